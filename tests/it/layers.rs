//! Who may use whom (ARCHITECTURE.md): read from the `use` lines, so that a wrong one fails by name.

use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder)];
    let mut found = Vec::new();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// No production line under `folder` uses one of `banned`.
fn uses_none(folder: &str, banned: &[&str]) {
    let files = files(folder);
    assert!(!files.is_empty());
    for (path, text) in files {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in banned {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn backends_know_no_doors_and_no_engine() {
    for backend in ["backends/azure", "backends/local"] {
        uses_none(
            backend,
            &[
                "crate::server",
                "crate::fetch",
                "crate::cli",
                "crate::proto",
                "crate::shape",
                "crate::gather",
                "std::env",
                "tokio::spawn",
            ],
        );
    }
}

#[test]
fn shapes_are_pure() {
    uses_none(
        "shape",
        &[
            "crate::server",
            "crate::fetch",
            "crate::backends",
            "crate::http",
            "async fn",
            "std::fs",
            "tokio::",
        ],
    );
}

#[test]
fn the_engine_knows_no_backend_and_no_door() {
    uses_none(
        "fetch",
        &["backends::azure", "backends::local", "crate::server", "crate::cli", "crate::shape", "crate::http"],
    );
    uses_none(
        "gather.rs",
        &["backends::azure", "backends::local", "crate::server", "crate::cli", "crate::http"],
    );
}

#[test]
fn the_command_line_is_known_by_main_alone() {
    for folder in ["server", "fetch", "backends", "shape", "http", "telemetry"] {
        uses_none(folder, &["crate::cli"]);
    }
}

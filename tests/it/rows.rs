//! The rows of the contract and what holds each (tests/cases/azure/rows.yaml).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::cases::folders;

type Rows = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// Names of all functions in the tree that are tests.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut todo: Vec<PathBuf> = ["src", "tests/it", "tests/standins"].map(|path| root.join(path)).into();
    let mut names = BTreeSet::new();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
                names.extend(rest.split('(').next().map(ToOwned::to_owned));
            }
            let ignored = line.starts_with("#[ignore");
            assert!(!ignored, "{}: a test is left out", path.display());
            marked = line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        }
    }
    names
}

/// The numbers that a section must have, from 1.
const NUMBERED: [(&str, usize); 4] = [("3 ", 13), ("8 ", 7), ("16 ", 34), ("18 ", 25)];

#[test]
fn azure_rows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/azure/rows.yaml");
    let rows: Rows = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut cases: BTreeSet<String> = folders("azure")
        .iter()
        .map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let tests = tests();
    let known = |name: &str| cases.contains(name) || tests.contains(name);
    let mut wrong = Vec::new();
    for (section, rows) in &rows {
        println!("{section}");
        for (row, names) in rows {
            println!("  {row}: {}", names.join(", "));
            wrong.extend(names.is_empty().then(|| format!("{section}: {row}: nothing holds it")));
            let strange = names.iter().filter(|name| !known(name));
            wrong.extend(strange.map(|name| format!("{section}: {row}: there is no {name}")));
        }
    }
    for (start, count) in NUMBERED {
        let section = rows.iter().find(|(name, _)| name.starts_with(start)).map(|(_, rows)| rows);
        let has = |number: usize| {
            section.is_some_and(|rows| rows.keys().any(|row| row.starts_with(&format!("{number} "))))
        };
        wrong.extend((1..=count).filter(|number| !has(*number)).map(|n| format!("{start}: no row {n}")));
    }
    println!("{} rows", rows.values().map(BTreeMap::len).sum::<usize>());
    for name in rows.values().flat_map(BTreeMap::values).flatten() {
        cases.remove(name);
    }
    wrong.extend(cases.iter().map(|case| format!("no row names the case {case}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Container images of one static busybox, made without any registry.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use ring::digest::{SHA256, digest};
use serde_json::json;
use tar::{Builder, EntryType, Header};

/// Programs that tests run in containers; each is a link to busybox.
const PROGRAMS: [&str; 16] = [
    "sh",
    "cat",
    "ls",
    "sleep",
    "id",
    "env",
    "stat",
    "readlink",
    "sha256sum",
    "test",
    "true",
    "wget",
    "nc",
    "grep",
    "find",
    "date",
];

/// Writes an archive, as `docker save` does, of an image called `name` that runs `command`.
pub(crate) fn write_archive(archive: &Path, name: &str, command: &str, busybox: &Path) -> Result<()> {
    let layer = layer(&fs::read(busybox).with_context(|| busybox.display().to_string())?)?;
    let configuration = json!({
        "architecture": architecture(), "os": "linux",
        "config": {
            "Env": ["PATH=/bin"],
            "Cmd": command.split(' ').collect::<Vec<_>>(),
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    })
    .to_string();
    let configuration_name = format!("{}.json", hex(configuration.as_bytes()));
    let manifest =
        json!([{"Config": configuration_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let mut tar = Builder::new(File::create(archive)?);
    for (name, bytes) in [
        ("manifest.json", manifest.as_bytes()),
        (&configuration_name, configuration.as_bytes()),
        ("layer.tar", &layer),
    ] {
        add(&mut tar, name, 0o644, bytes)?;
    }
    tar.finish()?;
    Ok(())
}

fn layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (folder, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777)] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        tar.append_data(&mut header, folder, std::io::empty())?;
    }
    add(&mut tar, "bin/busybox", 0o755, busybox)?;
    for program in PROGRAMS {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{program}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

fn add(tar: &mut Builder<impl std::io::Write>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The programs that the cluster is made of: in a cache folder, built by `e2e/build`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A folder of programs.
#[derive(Clone)]
pub(crate) struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Finds them, building what is missing.
    pub(crate) fn find() -> Result<Self> {
        if let Some(folder) = std::env::var_os("KEYFERRY_E2E_BINARIES") {
            return Ok(Self { folder: folder.into() });
        }
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/build");
        let output = Command::new(build).stderr(Stdio::inherit()).output().context("e2e/build")?;
        if !output.status.success() {
            bail!("e2e/build failed");
        }
        let folder = String::from_utf8(output.stdout).context("e2e/build")?;
        Ok(Self { folder: folder.trim().into() })
    }

    /// Path of one that was built, or of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let built = self.folder.join("bin").join(name);
        if built.exists() { built } else { self.folder.join(name) }
    }

    /// Path of a file of a Debian package.
    pub(crate) fn debian(&self, path: &str) -> PathBuf {
        self.folder.join("debian").join(path)
    }
}

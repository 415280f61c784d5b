//! kubectl, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::DIRECTORY;
use super::process::Process;
use crate::binaries::Binaries;

/// Longest time of one call.
const LIMIT: Duration = Duration::from_secs(60);

/// kubectl with the rights of an administrator.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: String,
}

impl Kubectl {
    /// Takes it from the folder of binaries.
    pub(crate) fn new(binaries: &Binaries) -> Self {
        Self { program: binaries.path("kubectl"), kubeconfig: format!("{DIRECTORY}/kubeconfig/admin") }
    }

    /// Runs a call and gives what it printed; the error holds what it complained.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.with_input(arguments, "").await
    }

    /// The same with `input` on standard input.
    pub(crate) async fn with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.program)
            .arg(format!("--kubeconfig={}", self.kubeconfig))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = timeout(LIMIT, child.wait_with_output())
            .await
            .with_context(|| format!("kubectl {arguments:?}"))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), text(&output.stderr).trim());
        }
        Ok(text(&output.stdout))
    }

    /// Starts a call that goes on.
    pub(crate) fn start(&self, logs: &Path, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg(format!("--kubeconfig={}", self.kubeconfig)).args(arguments);
        Process::run(logs, name, command)
    }

    /// Applies manifests.
    pub(crate) async fn apply(&self, manifests: &str) -> Result<()> {
        // Server-side: no read before the write, and no copy of the manifest in an annotation.
        self.with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests).await?;
        Ok(())
    }

    /// Reads something as JSON.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all).await?)?)
    }
}

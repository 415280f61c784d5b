//! keyferry on the node, installed as users do: by its chart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use tokio::process::Command;

use super::process::until;
use super::{Cluster, LONG};

/// Where the driver looks first; the sockets of keyferry and of a vendor's provider.
pub(crate) const SOCKETS: &str = "/etc/kubernetes/secrets-store-csi-providers";
/// Where it looks then.
pub(crate) const NEW_SOCKETS: &str = "/var/run/secrets-store-csi-providers";

impl Cluster {
    /// Renders the chart with the values of this cluster, then those given as `name=value`.
    pub(crate) async fn render(&self, values: &[&str]) -> Result<String> {
        let clone = &self.parts.clone;
        let mut command = Command::new(&self.parts.helm);
        command
            .args(["template", "keyferry"])
            .arg(clone.join("charts/keyferry"))
            .args(["--namespace", "kube-system", "--kube-version", "1.35.4", "--values"])
            .arg(clone.join("e2e/values.yaml"));
        for value in values {
            command.args(["--set-json", value]);
        }
        let output = command.stdin(Stdio::null()).output().await.context("helm")?;
        ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Installs keyferry, or upgrades it, and waits until the new pod serves and an old one is gone.
    pub(crate) async fn install(&self, values: &[&str]) -> Result<()> {
        self.apply_chart(values).await?;
        let status = ["rollout", "status", "daemonset/keyferry", "-n", "kube-system", "--timeout=55s"];
        self.kubectl.run(&status).await?;
        until(LONG, "one pod of keyferry", async || {
            let found = self.provider_pods().await?;
            ensure!(found.len() == 1, "{found:?}");
            Ok(())
        })
        .await
    }

    /// Applies the rendered chart without waiting.
    pub(crate) async fn apply_chart(&self, values: &[&str]) -> Result<()> {
        self.kubectl.apply(&self.render(values).await?).await
    }

    /// Removes keyferry and waits until its pod is gone.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let manifests = self.render(&[]).await?;
        self.kubectl.with_input(&["delete", "--ignore-not-found", "-f", "-"], &manifests).await?;
        until(LONG, "pods of keyferry gone", async || {
            let found = self.provider_pods().await?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(())
        })
        .await
    }

    /// Names of the pods of keyferry.
    pub(crate) async fn provider_pods(&self) -> Result<Vec<String>> {
        let query = ["get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=keyferry"];
        let found = self.kubectl.json(&query).await?;
        let items = found["items"].as_array().context("no items")?;
        Ok(items.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }

    /// Kills the process of keyferry in its container, as the kernel does when memory ends.
    pub(crate) fn kill_provider(&self) -> Result<()> {
        let pid = pid_of("/usr/local/bin/keyferry").context("keyferry does not run")?;
        rustix::process::kill_process(pid, Signal::KILL)?;
        Ok(())
    }

    /// Waits until something answers on the socket.
    pub(crate) async fn provider_answers(&self) -> Result<()> {
        let socket = PathBuf::from(SOCKETS).join("azure.sock");
        until(LONG, "socket answers", async || {
            Ok(keyferry::server::dial::connect(&socket).await.map(drop)?)
        })
        .await
    }
}

fn pid_of(program: &str) -> Option<Pid> {
    let entries = fs::read_dir("/proc").ok()?;
    let runs = |folder: &Path| {
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).next() == Some(program.as_bytes())
    };
    let found = entries.flatten().map(|entry| entry.path()).find(|folder| runs(folder))?;
    Pid::from_raw(found.file_name()?.to_str()?.parse().ok()?)
}

//! containerd and kubelet, as cluster.md 4.2 and 4.3 start them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::process::{Process, until};
use super::{DIRECTORY, Kubectl, images};
use crate::binaries::Binaries;
use crate::outside::group_of;

const START: Duration = Duration::from_secs(60);

/// The processes.
pub(crate) struct Node {
    _containerd: Process,
    kubelet: Option<Process>,
    ctr: PathBuf,
    /// `PATH` of kubelet and containerd: where runc is.
    path: String,
}

impl Node {
    /// Starts what needs no API server: containerd, with the images of the cases and `image`.
    pub(crate) async fn start(binaries: &Binaries, logs: &Path, image: &Path) -> Result<Self> {
        let folders = [binaries.debian("usr/bin"), binaries.debian("usr/sbin")];
        let inherited = std::env::var("PATH").unwrap_or_default();
        let path = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(":");
        let path = format!("{path}:{inherited}");
        write_containerd(&binaries.debian("usr/lib/cni"))?;
        let mut command = Command::new(binaries.debian("usr/bin/containerd"));
        command.args(["--config", &format!("{DIRECTORY}/containerd.toml")]).env("PATH", &path);
        let mut containerd = Process::run(logs, "containerd", command)?;
        let ctr = binaries.debian("usr/bin/ctr");
        until(START, "containerd", async || {
            containerd.check()?;
            run_ctr(&ctr, &["version"]).await
        })
        .await?;
        let node = Self { _containerd: containerd, kubelet: None, ctr, path };
        node.make_image(binaries, "docker.io/local/busybox:1", "sh").await?;
        node.make_image(binaries, "docker.io/local/pause:1", "sleep 2147483647").await?;
        node.import(image).await?;
        Ok(node)
    }

    /// Starts the kubelet and waits until the node is Ready.
    pub(crate) async fn join(&mut self, binaries: &Binaries, logs: &Path) -> Result<()> {
        let kubelet = self.kubelet.insert(kubelet(binaries, logs, &self.path)?);
        let kubectl = Kubectl::new(binaries);
        until(START, "node Ready", async || {
            kubelet.check()?;
            let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let status = kubectl.run(&["get", "node", "n1", "-o", ready]).await?;
            ensure!(status == "True", "Ready is {status:?}");
            Ok(())
        })
        .await
    }

    /// Makes an image of busybox that runs `command`.
    pub(crate) async fn make_image(&self, binaries: &Binaries, name: &str, command: &str) -> Result<()> {
        let archive = PathBuf::from(format!("{DIRECTORY}/image.tar"));
        images::write_archive(&archive, name, command, &binaries.debian("bin/busybox"))?;
        self.import(&archive).await
    }

    /// Gives an image to the node.
    pub(crate) async fn import(&self, archive: &Path) -> Result<()> {
        run_ctr(&self.ctr, &["-n", "k8s.io", "images", "import", &archive.display().to_string()]).await
    }

    /// Gives an image another name.
    pub(crate) async fn tag(&self, image: &str, name: &str) -> Result<()> {
        run_ctr(&self.ctr, &["-n", "k8s.io", "images", "tag", "--force", image, name]).await
    }

    /// Sends a local image to a registry.
    pub(crate) async fn push(&self, image: &str, user: &str) -> Result<()> {
        run_ctr(&self.ctr, &["-n", "k8s.io", "images", "push", "--plain-http", "--user", user, image]).await
    }

    /// Forgets an image.
    pub(crate) async fn remove_image(&self, image: &str) -> Result<()> {
        run_ctr(&self.ctr, &["-n", "k8s.io", "images", "remove", "--sync", image]).await
    }
}

fn kubelet(binaries: &Binaries, logs: &Path, path: &str) -> Result<Process> {
    let group = group_of(&std::env::var("KEYFERRY_E2E_ID").context("KEYFERRY_E2E_ID")?);
    let configuration = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{DIRECTORY}/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: {group}
failCgroupV1: false
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
syncFrequency: 5s
resolvConf: \"\"
maxPods: 200
oomScoreAdj: 0
maxOpenFiles: 20000
podLogsDir: {DIRECTORY}/pod-logs
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}
localStorageCapacityIsolation: false
"
    );
    fs::write(format!("{DIRECTORY}/kubelet.yaml"), configuration)?;
    let arguments = [
        format!("--config={DIRECTORY}/kubelet.yaml"),
        format!("--kubeconfig={DIRECTORY}/kubeconfig/kubelet"),
        "--hostname-override=n1".into(),
        format!("--root-dir={DIRECTORY}/kubelet"),
        "--node-ip=10.89.0.1".into(),
        "--v=2".into(),
    ];
    let mut command = Command::new(binaries.path("kubelet"));
    command.args(arguments).env("PATH", path);
    Process::run(logs, "kubelet", command)
}

async fn run_ctr(ctr: &Path, arguments: &[&str]) -> Result<()> {
    let socket = format!("{DIRECTORY}/containerd.sock");
    let output = Command::new(ctr).args(["-a", &socket]).args(arguments).output().await?;
    ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn write_containerd(plugins: &Path) -> Result<()> {
    let configuration = format!(
        r#"version = 2
root = "{DIRECTORY}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{DIRECTORY}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{DIRECTORY}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{DIRECTORY}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."registry.lab:5000"]
    endpoint = ["http://registry.lab:5000"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
        plugins = plugins.display()
    );
    fs::write(format!("{DIRECTORY}/containerd.toml"), configuration)?;
    fs::create_dir(format!("{DIRECTORY}/cni"))?;
    let network = serde_json::json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{"type": "ptp", "ipMasq": false, "ipam": {
            "type": "host-local", "dataDir": format!("{DIRECTORY}/cni-addresses"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
        }}],
    });
    fs::write(format!("{DIRECTORY}/cni/10-pods.conflist"), network.to_string())?;
    Ok(())
}

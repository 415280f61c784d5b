//! The real CSI driver, and the registration that a side-car does for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyferry::server::authority::AnyAuthority;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::control_plane::kubeconfig;
use super::process::Process;
use super::{DIRECTORY, Kubectl};
use crate::binaries::Binaries;

mod proto {
    #![allow(missing_docs, clippy::all, unreachable_pub, reason = "made from proto/registration.proto")]
    tonic::include_proto!("pluginregistration");
}
use proto::registration_server::{Registration, RegistrationServer};

/// Name of the driver, as pods give it.
pub(crate) const NAME: &str = "secrets-store.csi.k8s.io";
const START: Duration = Duration::from_secs(60);

/// Which driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// 1.6: `:authority` is `localhost`, rotation by the kubelet.
    Current,
    /// 1.5.6: `:authority` is the socket's path, rotation by a ticker of its own.
    Old,
}

/// How a driver runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Which one.
    pub(crate) release: Release,
    /// `--enable-secret-rotation`.
    pub(crate) rotation: bool,
    /// `--rotation-poll-interval`.
    pub(crate) poll: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self { release: Release::Current, rotation: true, poll: "2s" }
    }
}

/// A running driver, registered with the kubelet.
pub(crate) struct Driver {
    process: Process,
    registration: JoinHandle<()>,
}

impl Driver {
    /// Starts it and waits until the kubelet has registered it.
    pub(crate) async fn start(binaries: &Binaries, logs: &Path, settings: &Settings) -> Result<Self> {
        let name = match settings.release {
            Release::Current => "driver-1.6",
            Release::Old => "driver-1.5",
        };
        let socket = PathBuf::from(format!("{DIRECTORY}/kubelet/plugins/csi-secrets-store/csi.sock"));
        fs::create_dir_all(socket.parent().context("socket")?)?;
        give_account(&Kubectl::new(binaries)).await?;
        let arguments = [
            format!("--kubeconfig={DIRECTORY}/kubeconfig/driver"),
            format!("--endpoint=unix://{}", socket.display()),
            "--nodeid=n1".into(),
            "--provider-volume=/var/run/secrets-store-csi-providers".into(),
            "--additional-provider-volume-paths=/etc/kubernetes/secrets-store-csi-providers".into(),
            "--metrics-addr=127.0.0.1:8095".into(),
            format!("--enable-secret-rotation={}", settings.rotation),
            format!("--rotation-poll-interval={}", settings.poll),
            "-v=5".into(),
        ];
        let mut command = tokio::process::Command::new(binaries.path(name));
        // 1.5.6 takes this for its rotation, whatever --kubeconfig says (cluster.md 3.3).
        command
            .args(arguments)
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", "6443");
        let process = Process::run(logs, name, command)?;
        let (registered, mut seen) = watch::channel(None);
        let registration = tokio::spawn(register(socket, registered)?);
        let wait = seen.wait_for(Option::is_some);
        let answer = timeout(START, wait).await.context("the kubelet did not register the driver")??.clone();
        ensure!(answer.as_deref() == Some(""), "registration failed: {answer:?}");
        Ok(Self { process, registration })
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.registration.abort();
        self.process.kill().await
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.registration.abort();
    }
}

/// A kubeconfig and an in-cluster configuration with a token of the driver's own account, so that its rights are tested too.
async fn give_account(kubectl: &Kubectl) -> Result<()> {
    let arguments =
        ["create", "token", "secrets-store-csi-driver", "--namespace=kube-system", "--duration=24h"];
    let token = kubectl.run(&arguments).await?;
    let token = token.trim();
    fs::write(format!("{DIRECTORY}/kubeconfig/driver"), kubeconfig(token))?;
    let folder = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    fs::create_dir_all(folder)?;
    fs::write(folder.join("token"), token)?;
    fs::write(folder.join("namespace"), "kube-system")?;
    fs::copy(format!("{DIRECTORY}/certificates/ca.crt"), folder.join("ca.crt"))?;
    Ok(())
}

struct Answers {
    endpoint: String,
    registered: watch::Sender<Option<String>>,
}

fn register(
    driver: PathBuf,
    registered: watch::Sender<Option<String>>,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let folder = PathBuf::from(format!("{DIRECTORY}/kubelet/plugins_registry"));
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{NAME}-reg.sock"));
    // The kubelet watches the folder: a new file is a new registration.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let answers = Answers { endpoint: driver.display().to_string(), registered };
    // The kubelet's client escapes the path in `:authority`, which needs the same cure as the provider's socket.
    let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(AnyAuthority::new));
    let server =
        tonic::transport::Server::builder().add_service(RegistrationServer::from_arc(Arc::new(answers)));
    Ok(async move { drop(server.serve_with_incoming(incoming).await) })
}

#[tonic::async_trait]
impl Registration for Answers {
    async fn get_info(&self, _: Request<proto::InfoRequest>) -> Result<Response<proto::PluginInfo>, Status> {
        Ok(Response::new(proto::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<proto::RegistrationStatus>,
    ) -> Result<Response<proto::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let error =
            if status.plugin_registered { String::new() } else { format!("{} (refused)", status.error) };
        self.registered.send_replace(Some(error));
        Ok(Response::new(proto::RegistrationStatusResponse {}))
    }
}

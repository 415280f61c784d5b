//! A tiny provider of our own that sits on a vendor's socket: what keyferry is exchanged for, and measured against.

use std::path::{Path, PathBuf};

use anyhow::Result;
use keyferry::proto::csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer};
use keyferry::proto::{File, MountRequest, MountResponse, ObjectVersion, VersionRequest, VersionResponse};
use keyferry::server::authority::AnyAuthority;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// A running provider. As vendors' do, it replaces whatever is at its path, and removes the file when it stops.
pub(crate) struct Vendor {
    socket: PathBuf,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Vendor {
    /// Serves on `socket`; every object's value is `value`.
    pub(crate) fn start(socket: &Path, value: &str) -> Result<Self> {
        Self::serve(socket, Answers { value: value.to_owned(), first: Mutex::new(None) })
    }

    /// Serves on `socket`, but answers the first mount with this code.
    pub(crate) fn failing_once(socket: &Path, code: Code) -> Result<Self> {
        Self::serve(socket, Answers { value: "x".to_owned(), first: Mutex::new(Some(code)) })
    }

    fn serve(socket: &Path, answers: Answers) -> Result<Self> {
        if let Some(folder) = socket.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // It may not be there.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(AnyAuthority::new));
        let service = CsiDriverProviderServer::new(answers);
        let server = tonic::transport::Server::builder().add_service(service);
        let (stop, mut stopped) = watch::channel(false);
        let asked = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let task =
            tokio::spawn(async move { drop(server.serve_with_incoming_shutdown(incoming, asked).await) });
        Ok(Self { socket: socket.to_owned(), stop, task })
    }

    /// Stops it as a crash does: the file stays, and nobody listens.
    pub(crate) async fn crash(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }

    /// Stops it as SIGTERM does: the file goes, then the connections.
    pub(crate) async fn stop(self) {
        // Another provider may have replaced the file by now, or nobody listens any more.
        let _ = std::fs::remove_file(&self.socket);
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

struct Answers {
    value: String,
    /// Code of the first answer, until it was given.
    first: Mutex<Option<Code>>,
}

#[tonic::async_trait]
impl CsiDriverProvider for Answers {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: "v1alpha1".into(),
            runtime_name: "vendor".into(),
            runtime_version: "v1.0.0".into(),
        }))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
        if let Some(code) = self.first.lock().await.take() {
            return Err(Status::new(code, "as told"));
        }
        let attributes: Value = serde_json::from_str(&request.get_ref().attributes)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let objects = attributes["objects"].as_str().unwrap_or_default();
        let names = objects.lines().filter_map(|line| line.trim().strip_prefix("objectName: "));
        let mut answer = MountResponse::default();
        for name in names {
            answer.object_version.push(ObjectVersion { id: format!("secret/{name}"), version: "v1".into() });
            let contents = self.value.clone().into_bytes().into();
            answer.files.push(File { path: name.into(), mode: 0o644, contents });
        }
        Ok(Response::new(answer))
    }
}

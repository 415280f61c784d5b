//! The CSI door: sockets, requests, answers, codes, health.

pub mod admin;
pub mod authority;
pub mod dial;
pub mod request;
pub mod service;
pub mod socket;
pub mod status;
pub mod volumes;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::gather::Gather;
use crate::proto::csi_driver_provider_server::CsiDriverProviderServer;
use crate::telemetry::metrics::Metrics;
use authority::AnyAuthority;
use service::Provider;
use volumes::Volumes;

/// Requests can approach 3 MB (driver.md 1.3).
const MOST_REQUEST: usize = 16 << 20;

/// Settings of the door.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directories that each get one socket per backend.
    pub directories: Vec<PathBuf>,
    /// Longest time for one mount.
    pub budget: Duration,
    /// Time that running mounts get after a signal to stop.
    pub grace: Duration,
    /// Greatest answer.
    pub most_answer: usize,
    /// Volumes remembered.
    pub most_volumes: usize,
}

/// Why the door did not open or closed badly.
#[derive(Debug)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// An open door.
pub struct Running {
    /// Its sockets.
    pub sockets: Vec<PathBuf>,
    guards: Vec<socket::Guard>,
    servers: JoinSet<Result<(), tonic::transport::Error>>,
    stop: watch::Sender<bool>,
    grace: Duration,
}

/// Opens one socket per backend and directory and serves on them.
pub async fn open(
    backends: &[Arc<dyn Gather>],
    metrics: &Arc<Metrics>,
    settings: &Settings,
) -> Result<Running, Error> {
    let (stop, stopped) = watch::channel(false);
    let mut running =
        Running { sockets: vec![], guards: vec![], servers: JoinSet::new(), stop, grace: settings.grace };
    let mut listeners = Vec::new();
    let mut problems = Vec::new();
    for directory in &settings.directories {
        for backend in backends {
            let path = directory.join(format!("{}.sock", backend.name()));
            match socket::listen(&path).await {
                Ok((listener, guard)) => {
                    running.guards.push(guard);
                    running.sockets.push(path);
                    listeners.push((listener, backend.clone()));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error(problems.join("\n")));
    }
    for (listener, backend) in listeners {
        let volumes = Arc::new(Volumes::new(settings.most_volumes));
        let provider =
            Provider::new(backend, volumes, metrics.clone(), settings.budget, settings.most_answer);
        running.servers.spawn(serve(listener, provider, stopped.clone()));
    }
    Ok(running)
}

async fn serve(
    listener: UnixListener,
    provider: Provider,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CsiDriverProviderServer<Provider>>().await;
    let service = CsiDriverProviderServer::new(provider)
        .max_decoding_message_size(MOST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let incoming = UnixListenerStream::new(listener).map(|stream| stream.map(AnyAuthority::new));
    // No Server::timeout and no load shedding: both answer CANCELLED or worse (cluster.md 7).
    Server::builder()
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .await
}

impl Running {
    /// Stops accepting, removes the sockets, and gives running mounts the grace time.
    pub async fn stop(mut self) {
        // Nobody listens if all servers have ended already.
        let _ = self.stop.send(true);
        self.guards.clear();
        let drained = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, drained).await.is_err() {
            tracing::warn!(
                "some mounts did not end in the grace time; they are dropped and will be repeated"
            );
        }
    }
}

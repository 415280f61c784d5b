//! The CSI door: sockets, requests, answers, codes, health.

pub mod admin;
pub mod authority;
pub mod dial;
pub mod health;
pub mod linger;
pub mod overview;
pub mod page;
pub mod request;
pub mod service;
pub mod socket;
pub mod status;
pub mod volumes;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Server;

use crate::gather::Gather;
use crate::proto::csi_driver_provider_server::CsiDriverProviderServer;
use crate::telemetry::metrics::Metrics;
use authority::AnyAuthority;
use health::Health;
use linger::Linger;
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
    /// Time to wait for a foreign provider to leave a socket.
    pub wait_for_socket: Duration,
}

/// A backend and the volumes that it serves, at however many sockets.
#[derive(Clone)]
pub struct Served {
    /// The backend.
    pub backend: Arc<dyn Gather>,
    /// Its volumes.
    pub volumes: Arc<Volumes>,
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
    health: Arc<Health>,
    servers: JoinSet<Result<(), tonic::transport::Error>>,
    stop: watch::Sender<bool>,
    grace: Duration,
}

/// Opens one socket per backend and directory and serves on them; `health` learns of it.
pub async fn open(
    served: &[Served],
    metrics: &Arc<Metrics>,
    settings: &Settings,
    health: &Arc<Health>,
) -> Result<Running, Error> {
    let mut guards = Vec::new();
    let mut listeners = Vec::new();
    let mut problems = Vec::new();
    // One time for all sockets together.
    let waited = Instant::now() + settings.wait_for_socket;
    for directory in &settings.directories {
        for served in served {
            let path = directory.join(format!("{}.sock", served.backend.name()));
            match socket::listen_until(&path, waited).await {
                Ok((listener, guard)) => {
                    guards.push(guard);
                    listeners.push((listener, served.clone()));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error(problems.join("\n")));
    }
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    for (listener, Served { backend, volumes }) in listeners {
        let provider =
            Provider::new(backend, volumes, metrics.clone(), settings.budget, settings.most_answer);
        servers.spawn(serve(listener, provider, stopped.clone()));
    }
    let sockets = guards.iter().map(|guard| guard.path().to_owned()).collect();
    health.opened(guards);
    Ok(Running { sockets, health: health.clone(), servers, stop, grace: settings.grace })
}

/// Where connections come from.
enum Accepting {
    /// The listener, until a stop.
    Open(UnixListener, watch::Receiver<bool>),
    /// After it: those that were waiting already, so that a client which found our socket just before
    /// the stop is served as well.
    Last(std::os::unix::net::UnixListener),
}

/// Connections as they come; the stream ends after a stop.
fn connections(
    listener: UnixListener,
    stopped: watch::Receiver<bool>,
) -> impl Stream<Item = std::io::Result<AnyAuthority<Linger<UnixStream>>>> {
    futures_util::stream::unfold(Accepting::Open(listener, stopped), async |accepting| {
        let left = match accepting {
            Accepting::Open(listener, mut stopped) => tokio::select! {
                accepted = listener.accept() => {
                    let stream = accepted.map(|(stream, _)| wrap(stream));
                    return Some((stream, Accepting::Open(listener, stopped)));
                }
                () = end(&mut stopped) => listener.into_std().ok()?,
            },
            Accepting::Last(left) => left,
        };
        // The listener does not block: an error is the end of those who wait.
        let (stream, _) = left.accept().ok()?;
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        Some((stream.map(wrap), Accepting::Last(left)))
    })
}

fn wrap(stream: UnixStream) -> AnyAuthority<Linger<UnixStream>> {
    AnyAuthority::new(Linger::new(stream))
}

/// Waits for the stop.
async fn end(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(
    listener: UnixListener,
    provider: Provider,
    stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CsiDriverProviderServer<Provider>>().await;
    let service = CsiDriverProviderServer::new(provider)
        .max_decoding_message_size(MOST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    // No Server::timeout and no load shedding: both answer CANCELLED or worse (cluster.md 7). The end of
    // the connections is the signal: each then gets GOAWAY, and ends with its last running mount.
    Server::builder()
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(connections(listener, stopped), std::future::pending())
        .await
}

impl Running {
    /// Removes the sockets, stops accepting, and gives running mounts the grace time.
    pub async fn stop(mut self) {
        self.health.stop();
        // Nobody listens if all servers have ended already.
        let _ = self.stop.send(true);
        let drained = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, drained).await.is_err() {
            tracing::warn!(
                "some mounts did not end in the grace time; they are dropped and will be repeated"
            );
        }
    }
}

//! Connections to one host: one for HTTP/2, or up to a bound for HTTP/1.1.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connect::{Connector, Wire};
use super::{Failure, FailureKind};

/// A connection that was unused for longer is not used again.
const MOST_IDLE: Duration = Duration::from_secs(60);
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WAIT: Duration = Duration::from_secs(5);

type Body = Full<Bytes>;

struct Shared {
    sender: http2::SendRequest<Body>,
    number: u64,
    used: Instant,
}

struct Idle {
    sender: http1::SendRequest<Body>,
    since: Instant,
}

#[derive(Default)]
struct State {
    shared: Option<Shared>,
    idle: Vec<Idle>,
    /// Known once a connection was made.
    http1: bool,
    made: u64,
}

/// The connections of one host.
pub(super) struct Slot {
    state: Mutex<State>,
    /// Held while the protocol is unknown or the shared connection is being made.
    gate: tokio::sync::Mutex<()>,
    places: Arc<Semaphore>,
}

/// One connection for one request.
pub(super) enum Link {
    /// Shared with other requests.
    H2 { sender: http2::SendRequest<Body>, number: u64, reused: bool },
    /// Ours alone until it is released.
    H1 { sender: http1::SendRequest<Body>, reused: bool, place: OwnedSemaphorePermit },
}

impl Slot {
    pub(super) fn new(most: usize) -> Self {
        Self {
            state: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
            places: Arc::new(Semaphore::new(most.max(1))),
        }
    }

    /// A connection to send on: kept, or new.
    pub(super) async fn acquire(&self, connector: &Connector, uri: &Uri) -> Result<Link, Failure> {
        if let Some(link) = self.shared(true) {
            return Ok(link);
        }
        if !self.lock().http1 {
            let _gate = self.gate.lock().await;
            if let Some(link) = self.shared(true) {
                return Ok(link);
            }
            if !self.lock().http1 {
                return self.first(connector, uri).await;
            }
        }
        let place = self.place().await;
        if let Some(sender) = self.idle() {
            return Ok(Link::H1 { sender, reused: true, place });
        }
        let (wire, h2) = connector.connect(uri).await?;
        if h2 { self.share(wire, uri).await } else { alone(wire, uri, place).await }
    }

    /// Makes the connection that tells the protocol.
    async fn first(&self, connector: &Connector, uri: &Uri) -> Result<Link, Failure> {
        let (wire, h2) = connector.connect(uri).await?;
        if h2 {
            return self.share(wire, uri).await;
        }
        self.lock().http1 = true;
        alone(wire, uri, self.place().await).await
    }

    async fn place(&self) -> OwnedSemaphorePermit {
        self.places.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    fn shared(&self, reused: bool) -> Option<Link> {
        let mut state = self.lock();
        let shared = state.shared.as_mut()?;
        if shared.sender.is_closed() || shared.used.elapsed() > MOST_IDLE {
            state.shared = None;
            return None;
        }
        shared.used = Instant::now();
        Some(Link::H2 { sender: shared.sender.clone(), number: shared.number, reused })
    }

    async fn share(&self, wire: Box<dyn Wire>, uri: &Uri) -> Result<Link, Failure> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT)
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|_| closed(uri))?;
        // Ends with its last sender; the requests on it see its errors.
        tokio::spawn(async move { drop(connection.await) });
        let mut state = self.lock();
        state.http1 = false;
        state.made += 1;
        let number = state.made;
        state.shared = Some(Shared { sender: sender.clone(), number, used: Instant::now() });
        Ok(Link::H2 { sender, number, reused: false })
    }

    fn idle(&self) -> Option<http1::SendRequest<Body>> {
        let mut state = self.lock();
        state.idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() <= MOST_IDLE);
        state.idle.pop().map(|idle| idle.sender)
    }

    /// Takes a connection back after a complete answer.
    pub(super) fn release(&self, link: Link) {
        if let Link::H1 { sender, place, .. } = link {
            self.lock().idle.push(Idle { sender, since: Instant::now() });
            drop(place);
        }
    }

    /// Keeps a connection from being used again; one of HTTP/1.1 ends with its link.
    pub(super) fn give_up(&self, link: &Link) {
        let mut state = self.lock();
        match link {
            Link::H2 { number, .. } if state.shared.as_ref().is_some_and(|s| s.number == *number) => {
                state.shared = None;
            }
            Link::H2 { .. } => {}
            // The protocol is asked anew, in case the host changed.
            Link::H1 { .. } => state.idle.clear(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn alone(wire: Box<dyn Wire>, uri: &Uri, place: OwnedSemaphorePermit) -> Result<Link, Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(|_| closed(uri))?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(Link::H1 { sender, reused: false, place })
}

fn closed(uri: &Uri) -> Failure {
    Failure {
        kind: FailureKind::Closed,
        host: uri.host().unwrap_or_default().to_owned(),
        address: None,
        after: Duration::ZERO,
        detail: "in the HTTP handshake".to_owned(),
    }
}

impl Link {
    /// Whether the connection served other requests before.
    pub(super) fn reused(&self) -> bool {
        match self {
            Self::H2 { reused, .. } | Self::H1 { reused, .. } => *reused,
        }
    }

    pub(super) async fn send(&mut self, request: Request<Bytes>) -> hyper::Result<Response<Incoming>> {
        let (mut parts, body) = request.into_parts();
        match self {
            Self::H2 { sender, .. } => {
                sender.ready().await?;
                sender.send_request(Request::from_parts(parts, Full::new(body))).await
            }
            Self::H1 { sender, .. } => {
                if let Some(host) = parts.uri.authority().and_then(|a| a.as_str().parse().ok()) {
                    parts.headers.insert(header::HOST, host);
                }
                let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
                parts.uri = Uri::from(path);
                sender.ready().await?;
                sender.send_request(Request::from_parts(parts, Full::new(body))).await
            }
        }
    }
}

//! The one outgoing HTTP client: one TLS configuration, one pool, one set of CAs for every store.
//!
//! While it is not known whether a host speaks HTTP/2, one connection attempt runs and the other
//! requests wait for it, so that a hundred reads cost one handshake and not a hundred. A connection on
//! which a request got no answer in time is given up, so that the next try uses another (tracker T22).

mod connect;
mod pool;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::Instant;

use crate::secret::SecretBytes;
use connect::Connector;
use pool::{Link, Slot};
pub use tls::Roots;

/// Hosts whose connections are kept; more are served, but the oldest are forgotten.
const MOST_HOSTS: usize = 512;

/// Bounds and ways out.
#[derive(Clone)]
pub struct Settings {
    /// Time to establish a connection.
    pub connect_timeout: Duration,
    /// Time for one request in all.
    pub try_timeout: Duration,
    /// Greatest answer in bytes.
    pub max_response: usize,
    /// HTTP/1.1 connections to one host.
    pub max_connections: usize,
    /// Addresses for hosts (`host` or `host:port`), before any resolver is asked.
    pub connect_to: Vec<(String, SocketAddr)>,
    /// Trusted CAs.
    pub roots: Roots,
    /// Proxies for hosts.
    pub proxy: Option<Arc<Matcher>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Settings {
    /// Defaults, with `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`, `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub fn from_env() -> Self {
        Self { roots: Roots::from_env(), proxy: Some(Arc::new(Matcher::from_env())), ..Self::without_env() }
    }

    /// Defaults, untouched by the environment.
    pub fn without_env() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            try_timeout: Duration::from_secs(10),
            max_response: 4 << 20,
            max_connections: 40,
            connect_to: Vec::new(),
            roots: Roots::System,
            proxy: None,
        }
    }
}

/// An answer, whatever its status.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: SecretBytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.status, self.body.len())
    }
}

/// What failed below HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The resolver knows no such name.
    NoSuchHost,
    /// Nobody listens there.
    Refused,
    /// No connection in time.
    ConnectTimeout,
    /// The certificate or the handshake.
    Tls,
    /// A connection, but no complete answer in time.
    Silent,
    /// The connection ended before the answer did.
    Closed,
    /// More bytes than allowed.
    TooLarge,
    /// The CAs cannot be read.
    Roots,
    /// The proxy.
    Proxy,
}

/// Why there is no answer, in one line for an operator.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// Host that was asked.
    pub host: String,
    /// Address that was tried last.
    pub address: Option<SocketAddr>,
    /// Time spent.
    pub after: Duration,
    /// More words.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            FailureKind::NoSuchHost => "no such host: DNS has no such name",
            FailureKind::Refused => "connection refused",
            FailureKind::ConnectTimeout => "no answer to the connection attempt",
            FailureKind::Tls => "TLS failed",
            FailureKind::Silent => "the store accepted the connection and did not answer",
            FailureKind::Closed => "the connection was closed before the answer was complete",
            FailureKind::TooLarge => "the answer is too large",
            FailureKind::Roots => "the CA certificates cannot be read",
            FailureKind::Proxy => "the proxy refused",
        };
        // Go's words, which people search for (azure.md 13).
        match self.kind {
            FailureKind::NoSuchHost => write!(f, "dial tcp: lookup {}: {what}", self.host)?,
            _ => write!(f, "{}: {what}", self.host)?,
        }
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        write!(f, " after {:.1}s", self.after.as_secs_f64())
    }
}

/// The client.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    settings: Settings,
    connector: Connector,
    hosts: Mutex<HashMap<String, Arc<Slot>>>,
    dropped: AtomicU64,
}

impl Http {
    /// Makes a client; nothing is read or connected before the first request.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            connector: Connector::new(&settings),
            settings,
            hosts: Mutex::new(HashMap::new()),
            dropped: AtomicU64::new(0),
        }))
    }

    /// Connections given up because a request on them got no answer.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Sends one request and reads the whole answer.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Answer, Failure> {
        let start = Instant::now();
        let host = request.uri().host().unwrap_or_default().to_owned();
        let slot = self.slot(&request);
        let connected =
            tokio::time::timeout(self.0.settings.try_timeout, slot.acquire(&self.0.connector, request.uri()));
        let late = |kind| Failure {
            kind,
            host: host.clone(),
            address: None,
            after: start.elapsed(),
            detail: String::new(),
        };
        let mut link = connected.await.unwrap_or_else(|_| Err(late(FailureKind::ConnectTimeout)))?;
        let left = self.0.settings.try_timeout.saturating_sub(start.elapsed());
        let first = tokio::time::timeout(left, self.exchange(&mut link, request.clone(), &host, start)).await;
        match first {
            Ok(Ok(answer)) => {
                slot.release(link);
                Ok(answer)
            }
            // A kept connection may have been closed by the store meanwhile: once more on a new one.
            Ok(Err(failure)) if failure.kind == FailureKind::Closed && link.reused() => {
                slot.give_up(&link);
                drop(link);
                let mut link = slot.acquire(&self.0.connector, request.uri()).await?;
                let left = self.0.settings.try_timeout.saturating_sub(start.elapsed());
                let again = tokio::time::timeout(left, self.exchange(&mut link, request, &host, start)).await;
                let answer = again.unwrap_or_else(|_| Err(late(FailureKind::Silent)))?;
                slot.release(link);
                Ok(answer)
            }
            Ok(Err(failure)) => {
                if failure.kind != FailureKind::TooLarge {
                    slot.give_up(&link);
                }
                Err(failure)
            }
            Err(_) => {
                slot.give_up(&link);
                self.0.dropped.fetch_add(1, Ordering::Relaxed);
                Err(late(FailureKind::Silent))
            }
        }
    }

    fn slot(&self, request: &Request<Bytes>) -> Arc<Slot> {
        let uri = request.uri();
        let key = format!(
            "{}://{}",
            uri.scheme_str().unwrap_or("https"),
            uri.authority().map_or("", |a| a.as_str())
        );
        let mut hosts = self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MOST_HOSTS && !hosts.contains_key(&key) {
            hosts.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let most = self.0.settings.max_connections;
        hosts.entry(key).or_insert_with(|| Arc::new(Slot::new(most))).clone()
    }

    async fn exchange(
        &self,
        link: &mut Link,
        request: Request<Bytes>,
        host: &str,
        start: Instant,
    ) -> Result<Answer, Failure> {
        let failed = |kind, detail: &str| Failure {
            kind,
            host: host.to_owned(),
            address: None,
            after: start.elapsed(),
            detail: detail.to_owned(),
        };
        let response = link.send(request).await.map_err(|_| failed(FailureKind::Closed, ""))?;
        let (parts, body) = response.into_parts();
        let body = self.body(body).await.map_err(|too_large| {
            let most = format!("more than {} bytes", self.0.settings.max_response);
            if too_large { failed(FailureKind::TooLarge, &most) } else { failed(FailureKind::Closed, "") }
        })?;
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// Reads a bounded body; the error says whether it was too large.
    async fn body(&self, body: Incoming) -> Result<SecretBytes, bool> {
        let most = self.0.settings.max_response;
        let announced = usize::try_from(hyper::body::Body::size_hint(&body).lower()).unwrap_or(usize::MAX);
        if announced > most {
            return Err(true);
        }
        let mut body = Limited::new(body, most);
        // Room for what was announced at once: a vector that grows would leave copies behind.
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(announced));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| error.is::<http_body_util::LengthLimitError>())?;
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
        }
        Ok(SecretBytes::new(std::mem::take(&mut *bytes)))
    }
}

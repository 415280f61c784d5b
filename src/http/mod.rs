//! The one outgoing HTTP client: every request to a store, a token service or a metadata server.
//!
//! [`Http::send`] runs one try: it takes a connection from the pool or opens one, sends, and reads
//! the whole answer, all inside [`Settings::try_timeout`]. Whether and when to try again is up to
//! the caller; a try that stayed without an answer takes its connection out of the pool, so the
//! next one never waits on the same dead connection.

mod connect;
mod failure;
mod pool;
mod proxy;
mod tls;
mod trust;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::SecretBytes;

pub use failure::{Failure, FailureKind};
pub use proxy::Proxy;
pub use tls::Roots;
pub use trust::TrustFile;

use connect::Opener;
use failure::{Fault, Progress, Stage};
use pool::{Lease, Pool};

/// How the client behaves; [`Settings::default`] reads nothing from outside.
#[derive(Clone)]
pub struct Settings {
    /// Limit of name resolution, TCP, proxy tunnel and TLS together.
    pub connect_timeout: Duration,
    /// Limit of one whole try, from waiting for a connection to the last byte of the answer.
    pub try_timeout: Duration,
    /// Longest body of an answer.
    pub max_response: usize,
    /// HTTP/1.1 connections to one authority.
    pub max_connections: usize,
    /// Addresses used instead of a name: `host:port` is looked for first, then `host`. The name
    /// stays the one TLS verifies, and no proxy is used.
    pub connect_to: Vec<(String, SocketAddr)>,
    /// Authorities a server certificate may be signed by.
    pub roots: Roots,
    /// Proxy between the node and the stores.
    pub proxy: Proxy,
    /// Name that TLS asks for and verifies instead of the host's.
    pub server_name: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            try_timeout: Duration::from_secs(10),
            max_response: 4 << 20,
            max_connections: 40,
            connect_to: Vec::new(),
            roots: Roots::System,
            proxy: Proxy::None,
            server_name: None,
        }
    }
}

impl Settings {
    /// Defaults with the roots (`SSL_CERT_FILE`, `SSL_CERT_DIR`) and the proxy (`HTTPS_PROXY`,
    /// `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, upper or lower case) of the environment.
    pub fn from_env() -> Self {
        Self { roots: Roots::from_env(), proxy: Proxy::from_env(), ..Self::default() }
    }
}

/// What the client did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections whose TCP handshake succeeded.
    pub opened: u64,
    /// Connections given up because the other side did not answer.
    pub dropped_silent: u64,
    /// Calls of [`Http::send`].
    pub requests: u64,
}

/// Counters behind [`Stats`].
#[derive(Default)]
struct Counters {
    opened: AtomicU64,
    dropped_silent: AtomicU64,
    requests: AtomicU64,
}

/// Answer of a server, whatever its status.
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// Whole body, wiped when dropped.
    pub body: SecretBytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Header fields may hold tokens (set-cookie), so only their number is printed.
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("headers", &self.headers.len())
            .field("body", &self.body)
            .finish()
    }
}

/// The client; clones share connections.
#[derive(Clone)]
pub struct Http {
    inner: Arc<Inner>,
}

struct Inner {
    opener: Opener,
    pool: Arc<Pool>,
}

/// Where a request goes; connections are pooled by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    https: bool,
    /// Lower case, IPv6 addresses without brackets.
    host: String,
    port: u16,
}

/// Result of one exchange on one connection.
enum Trouble {
    /// The connection was gone before any answer: another one may help.
    Lost(Fault),
    /// The server had too many requests on this connection and did not look at this one.
    Refused(Fault),
    /// Anything else.
    Final(Fault),
}

impl Http {
    /// Makes a client; nothing is read or opened before the first request.
    pub fn new(settings: Settings) -> Self {
        let pool = Arc::new(Pool::new(settings.max_connections));
        Self { inner: Arc::new(Inner { opener: Opener::new(settings), pool }) }
    }

    /// Sends `request` (absolute URI) and reads the whole answer.
    ///
    /// Dropping the future cancels the request; its connection is used again only if that is safe.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Answer, Failure> {
        let started = Instant::now();
        let inner = &self.inner;
        inner.opener.counters.requests.fetch_add(1, Ordering::Relaxed);
        let target = match Target::of(request.uri()) {
            Ok(target) => target,
            Err(fault) => return Err(fault.at(request.uri().host().unwrap_or("?"), started)),
        };
        let progress = Progress::default();
        let work = Box::pin(inner.attempt(&target, request, &progress));
        let result = match timeout(inner.opener.settings.try_timeout, work).await {
            Ok(result) => result,
            Err(_) => {
                let fault = progress.overdue(&inner.opener.counters);
                inner.pool.prune(&target);
                Err(fault)
            }
        };
        result.map_err(|fault| fault.at(&target.host, started))
    }

    /// A client of its own with other settings.
    pub fn tuned(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.inner.opener.settings.clone();
        change(&mut settings);
        Self::new(settings)
    }

    /// The certificate, in DER, that the server at `url` shows; it is verified as for a request.
    pub async fn certificate(&self, url: &Uri) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let certificate = async { self.inner.opener.certificate(&Target::of(url)?).await };
        certificate.await.map_err(|fault| fault.at(url.host().unwrap_or("?"), started))
    }

    /// Gives the counters.
    pub fn stats(&self) -> Stats {
        let counters = &self.inner.opener.counters;
        Stats {
            opened: counters.opened.load(Ordering::Relaxed),
            dropped_silent: counters.dropped_silent.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    /// One request; once more if a reused connection turned out to be closed, or the server did not
    /// take the request up.
    async fn attempt(
        &self,
        target: &Target,
        request: Request<Bytes>,
        progress: &Progress,
    ) -> Result<Answer, Fault> {
        let lease = self.pool.lease(&self.opener, target, progress, false).await?;
        let reused = lease.reused();
        match self.exchange(target, lease, request.clone(), progress).await {
            Err(Trouble::Lost(_)) if reused => {}
            Err(Trouble::Refused(_)) => {}
            other => return flat(other),
        }
        let lease = self.pool.lease(&self.opener, target, progress, true).await?;
        flat(self.exchange(target, lease, request, progress).await)
    }

    /// Sends on `lease` and reads the answer.
    async fn exchange(
        &self,
        target: &Target,
        mut lease: Lease,
        mut request: Request<Bytes>,
        progress: &Progress,
    ) -> Result<Answer, Trouble> {
        let address = lease.mark().address;
        let head = *request.method() == Method::HEAD;
        self.shape(target, &lease, &mut request).map_err(Trouble::Final)?;
        progress.sending(lease.mark());
        let response = match lease.send(request.map(Full::new)).await {
            Ok(response) => response,
            Err(error) => {
                let trouble = self.sort(&error, address, lease.is_http2(), progress);
                if matches!(trouble, Trouble::Lost(_)) {
                    lease.mark().spoil();
                }
                return Err(trouble);
            }
        };
        progress.stage(Stage::Body);
        let answer = self.read(response, head, address).await.map_err(Trouble::Final)?;
        lease.finish();
        Ok(answer)
    }

    /// Gives the request the form the connection needs.
    fn shape(&self, target: &Target, lease: &Lease, request: &mut Request<Bytes>) -> Result<(), Fault> {
        let sends = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
        if sends && request.body().is_empty() {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if lease.is_http2() {
            request.headers_mut().remove(HOST);
            *request.version_mut() = Version::HTTP_2;
            return Ok(());
        }
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(&target.host_header()).map_err(|e| Fault::protocol(&e))?;
            request.headers_mut().insert(HOST, host);
        }
        if self.opener.forward(target, request.headers_mut()) {
            return Ok(()); // absolute form, for the proxy
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().map_err(|e| Fault::protocol(&e))?;
        Ok(())
    }

    /// Tells a lost connection from other troubles.
    fn sort(&self, error: &hyper::Error, address: SocketAddr, http2: bool, progress: &Progress) -> Trouble {
        if error.is_timeout() {
            return Trouble::Final(progress.overdue(&self.opener.counters));
        }
        let detail = failure::chain(error);
        if failure::lost(error, http2, &detail) {
            let detail = format!("the connection was closed before an answer: {detail}");
            Trouble::Lost(Fault::new(FailureKind::Closed, Some(address), detail))
        } else if http2 && detail.contains("refused stream") {
            Trouble::Refused(Fault::new(FailureKind::Protocol, Some(address), detail))
        } else {
            Trouble::Final(Fault::new(FailureKind::Protocol, Some(address), detail))
        }
    }

    /// Reads the body within its limit.
    async fn read(
        &self,
        response: Response<Incoming>,
        head: bool,
        address: SocketAddr,
    ) -> Result<Answer, Fault> {
        let limit = self.opener.settings.max_response;
        let (parts, mut body) = response.into_parts();
        let announced = if head { 0 } else { body.size_hint().lower() };
        if announced > limit as u64 {
            return Err(too_large(address, &format!("{announced} bytes announced"), limit));
        }
        let first = usize::try_from(announced).unwrap_or(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(first));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| broken(&e, address, bytes.len()))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(too_large(address, "more than that", limit));
            }
            bytes = append(bytes, data);
        }
        let body = SecretBytes::new(std::mem::take(&mut *bytes));
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

impl Target {
    fn of(uri: &Uri) -> Result<Self, Fault> {
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Fault::new(FailureKind::Protocol, None, "the URL is not http:// or https://")),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(Fault::new(FailureKind::Protocol, None, "the URL has no host"));
        }
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port })
    }

    /// Host in the form URLs use.
    fn url_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// `host:port`, always with the port.
    fn authority(&self) -> String {
        format!("{}:{}", self.url_host(), self.port)
    }

    /// Value of `Host`, without the default port.
    fn host_header(&self) -> String {
        let default = if self.https { 443 } else { 80 };
        if self.port == default { self.url_host() } else { self.authority() }
    }
}

/// Forgets whether another connection could help.
fn flat(result: Result<Answer, Trouble>) -> Result<Answer, Fault> {
    result.map_err(|trouble| match trouble {
        Trouble::Lost(fault) | Trouble::Refused(fault) | Trouble::Final(fault) => fault,
    })
}

/// Appends without leaving an unwiped copy behind when the buffer has to move.
fn append(mut bytes: Zeroizing<Vec<u8>>, data: Bytes) -> Zeroizing<Vec<u8>> {
    let needed = bytes.len() + data.len();
    if needed > bytes.capacity() {
        let mut wider = Zeroizing::new(Vec::with_capacity(needed.max(bytes.capacity() * 2)));
        wider.extend_from_slice(&bytes);
        bytes = wider;
    }
    bytes.extend_from_slice(&data);
    if let Ok(mut own) = data.try_into_mut() {
        own.as_mut().zeroize(); // only where nothing else shares the buffer
    }
    bytes
}

fn too_large(address: SocketAddr, what: &str, limit: usize) -> Fault {
    let detail = format!("the answer is too large: {what}, the limit is {limit} bytes");
    Fault::new(FailureKind::TooLarge, Some(address), detail)
}

/// Fault of an answer that broke off.
fn broken(error: &hyper::Error, address: SocketAddr, got: usize) -> Fault {
    let text = failure::chain(error);
    let kind = if failure::lost(error, false, &text) { FailureKind::Closed } else { FailureKind::Protocol };
    Fault::new(kind, Some(address), format!("the answer broke off after {got} bytes of body: {text}"))
}

/// Takes a lock; a panic elsewhere leaves the data of this module usable.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

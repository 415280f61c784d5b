//! Opens connections: name, address, proxy, TLS, HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, PROXY_AUTHORIZATION};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{self, FailureKind, Fault, Mark, Progress, Stage};
use super::proxy::{self, Via};
use super::tls::Tls;
use super::{Counters, Settings, Target};

/// Receive windows of HTTP/2: a whole answer fits without waiting for an update.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Requests sent before the server said how many it takes at once.
const FIRST_STREAMS: usize = 10;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Byte stream to a server: TCP, TLS, or TLS inside a tunnel.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
pub(super) type Wire = Box<dyn Stream>;

/// Opens connections for one client.
pub(super) struct Opener {
    pub(super) settings: Settings,
    pub(super) counters: Counters,
    tls: Tls,
}

/// New connection.
pub(super) struct Opened {
    pub(super) mark: Arc<Mark>,
    pub(super) task: Task,
    pub(super) sender: Sender,
}

/// Side of a connection that takes requests.
pub(super) enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Task that drives a connection; dropping it closes the connection.
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Opener {
    pub(super) fn new(settings: Settings) -> Self {
        let tls = Tls::new(settings.roots.clone());
        Self { settings, counters: Counters::default(), tls }
    }

    /// Opens a connection to `target` within the connect timeout.
    pub(super) async fn open(&self, target: &Target, progress: &Progress) -> Result<Opened, Fault> {
        let work = Box::pin(self.establish(target, progress));
        match timeout(self.settings.connect_timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(progress.overdue(&self.counters)),
        }
    }

    /// Whether requests to `target` go to a proxy as they are; adds its credentials.
    pub(super) fn forward(&self, target: &Target, headers: &mut HeaderMap) -> bool {
        if target.https {
            return false;
        }
        let Ok(Some(via)) = self.via(target) else { return false };
        if let Some(auth) = via.auth {
            headers.insert(PROXY_AUTHORIZATION, auth);
        }
        true
    }

    async fn establish(&self, target: &Target, progress: &Progress) -> Result<Opened, Fault> {
        let (mut wire, mark) = match self.via(target)? {
            None => {
                let (tcp, mark) = self.dial(&target.host, target.port, progress).await?;
                (Box::new(tcp) as Wire, mark)
            }
            Some(via) => self.through(&via, target, progress).await?,
        };
        let mut http2 = false;
        if target.https {
            progress.stage(Stage::Handshake);
            let config = Arc::clone(&self.tls.get().await?.store);
            (wire, http2) = secure(wire, config, self.server_name(target), mark.address).await?;
        }
        handshake(wire, http2, mark).await
    }

    /// Name that TLS asks for and verifies.
    fn server_name<'a>(&'a self, target: &'a Target) -> &'a str {
        self.settings.server_name.as_deref().unwrap_or(&target.host)
    }

    /// The certificate that `target` shows, within the connect timeout; no proxy is used.
    pub(super) async fn certificate(&self, target: &Target) -> Result<Vec<u8>, Fault> {
        let progress = Progress::default();
        let work = async {
            let (tcp, mark) = self.dial(&target.host, target.port, &progress).await?;
            progress.stage(Stage::Handshake);
            let config = Arc::clone(&self.tls.get().await?.store);
            let tls = greet(Box::new(tcp), config, self.server_name(target), mark.address).await?;
            let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            Ok(shown.expect("the handshake verified a certificate").to_vec())
        };
        match timeout(self.settings.connect_timeout, Box::pin(work)).await {
            Ok(result) => result,
            Err(_) => Err(progress.overdue(&self.counters)),
        }
    }

    fn via(&self, target: &Target) -> Result<Option<Via>, Fault> {
        if self.pinned(&target.host, target.port).is_some() {
            return Ok(None);
        }
        self.settings.proxy.via(target)
    }

    /// Connects to a proxy, and for https on to `target`.
    async fn through(
        &self,
        via: &Via,
        target: &Target,
        progress: &Progress,
    ) -> Result<(Wire, Arc<Mark>), Fault> {
        let dialled = self.dial(&via.host, via.port, progress).await;
        let (tcp, mark) = dialled.map_err(|fault| of_proxy(fault, via))?;
        let mut wire = Box::new(tcp) as Wire;
        progress.stage(Stage::Tunnel);
        if via.https {
            let config = Arc::clone(&self.tls.get().await?.proxy);
            let secured = secure(wire, config, &via.host, mark.address).await;
            (wire, _) = secured.map_err(|fault| of_proxy(fault, via))?;
        }
        if target.https {
            proxy::tunnel(&mut wire, via, target, mark.address).await?;
        }
        Ok((wire, mark))
    }

    /// Address set for the name instead of what the resolver says.
    fn pinned(&self, host: &str, port: u16) -> Option<SocketAddr> {
        let find = |wanted: &str| {
            let mut set = self.settings.connect_to.iter();
            set.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, address)| *address)
        };
        find(&format!("{host}:{port}")).or_else(|| find(&format!("[{host}]:{port}"))).or_else(|| find(host))
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
        if let Some(address) = self.pinned(host, port) {
            return Ok(vec![address]);
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let mut addresses = Vec::new();
        for address in tokio::net::lookup_host((host, port)).await.map_err(|e| unresolved(&e))? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(Fault::new(FailureKind::NoSuchHost, None, "the name has no address"));
        }
        Ok(addresses)
    }

    /// Tries the addresses in turn; each gets its share of the time that is left.
    async fn dial(
        &self,
        host: &str,
        port: u16,
        progress: &Progress,
    ) -> Result<(TcpStream, Arc<Mark>), Fault> {
        // A tenth is kept for TLS, and for an error that names every address.
        let end = Instant::now() + self.settings.connect_timeout * 9 / 10;
        progress.stage(Stage::Resolving);
        let addresses = self.resolve(host, port).await?;
        let mut tried = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            progress.connecting(address);
            let left = end.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(self.connected(tcp, address, progress)),
                Ok(Err(e)) => tried.push((address, Some(e))),
                Err(_) => tried.push((address, None)),
            }
        }
        Err(unreachable(&tried))
    }

    fn connected(&self, tcp: TcpStream, address: SocketAddr, progress: &Progress) -> (TcpStream, Arc<Mark>) {
        // Without it requests are only slower.
        tcp.set_nodelay(true).unwrap_or_default();
        self.counters.opened.fetch_add(1, Ordering::Relaxed);
        let mark = Mark::new(address);
        progress.connected(&mark);
        (tcp, mark)
    }
}

fn of_proxy(fault: Fault, via: &Via) -> Fault {
    let detail = format!("proxy {}:{}: {}", via.host, via.port, fault.detail);
    Fault::new(FailureKind::Proxy, fault.address, detail)
}

/// Tells a name that does not exist from a resolver that does not work. The resolver of the system
/// gives only a text: these are the ones of glibc and musl.
pub(super) fn unresolved(error: &io::Error) -> Fault {
    let text = error.to_string();
    let temporary = ["Temporary failure", "Try again", "Non-recoverable", "Unrecoverable", "System error"];
    let unknown = ["not known", "No address associated", "does not resolve", "has no usable address"];
    if !temporary.iter().any(|t| text.contains(t)) && unknown.iter().any(|t| text.contains(t)) {
        Fault::new(FailureKind::NoSuchHost, None, format!("no such host: {text}"))
    } else {
        Fault::new(FailureKind::Resolver, None, format!("the name could not be looked up: {text}"))
    }
}

/// Fault of a host none of whose addresses could be connected to.
fn unreachable(tried: &[(SocketAddr, Option<io::Error>)]) -> Fault {
    let answered =
        tried.iter().any(|(_, error)| error.as_ref().is_some_and(|e| e.kind() != io::ErrorKind::TimedOut));
    let kind = if answered { FailureKind::Refused } else { FailureKind::ConnectTimeout };
    let said = |error: &Option<io::Error>| match error {
        Some(error) => error.to_string(),
        None => "no answer to the connection attempt".to_owned(),
    };
    let detail = match tried {
        [(_, error)] => format!("cannot connect: {}", said(error)),
        _ => {
            let all: Vec<_> =
                tried.iter().map(|(address, error)| format!("{address} {}", said(error))).collect();
            format!("cannot connect to any address: {}", all.join("; "))
        }
    };
    Fault::new(kind, tried.last().map(|(address, _)| *address), detail)
}

/// TLS handshake; true if HTTP/2 was agreed on.
async fn secure(
    wire: Wire,
    config: Arc<ClientConfig>,
    host: &str,
    address: SocketAddr,
) -> Result<(Wire, bool), Fault> {
    let tls = greet(wire, config, host, address).await?;
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(tls), http2))
}

async fn greet(
    wire: Wire,
    config: Arc<ClientConfig>,
    host: &str,
    address: SocketAddr,
) -> Result<TlsStream<Wire>, Fault> {
    let fault = |detail: String| Fault::new(FailureKind::Tls, Some(address), detail);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| fault("the host is not a name TLS can verify".to_owned()))?;
    TlsConnector::from(config).connect(name, wire).await.map_err(|e| fault(tls_text(&e)))
}

fn tls_text(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => format!("the certificate was not accepted: {error}"),
        Some(_) => format!("TLS handshake failed: {error}"),
        None => format!("the connection was closed during the TLS handshake: {error}"),
    }
}

/// Starts HTTP on `wire`.
async fn handshake(wire: Wire, http2: bool, mark: Arc<Mark>) -> Result<Opened, Fault> {
    let address = mark.address;
    let fault = |e: hyper::Error| Fault::new(FailureKind::Protocol, Some(address), failure::chain(&e));
    let io = TokioIo::new(wire);
    let (sender, task) = if http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .handshake(io)
            .await
            .map_err(fault)?;
        // How a connection ends is told to those who wait for an answer on it.
        (Sender::Http2(sender), tokio::spawn(async move { connection.await.unwrap_or_default() }))
    } else {
        let (sender, connection) = http1::handshake(io).await.map_err(fault)?;
        (Sender::Http1(sender), tokio::spawn(async move { connection.await.unwrap_or_default() }))
    };
    Ok(Opened { mark, task: Task(task.abort_handle()), sender })
}

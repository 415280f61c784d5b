//! Resolves, connects, shakes hands; through a proxy where the environment says so.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{Failure, FailureKind, Roots, Settings, tls};

/// A connection, whatever it is made of.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes connections.
pub(super) struct Connector {
    connect_timeout: Duration,
    connect_to: Vec<(String, SocketAddr)>,
    roots: Roots,
    proxy: Option<Arc<Matcher>>,
    config: OnceCell<Arc<ClientConfig>>,
}

/// Longest answer of a proxy to CONNECT.
const MOST_PROXY_ANSWER: usize = 8 << 10;

impl Connector {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            connect_timeout: settings.connect_timeout,
            connect_to: settings.connect_to.clone(),
            roots: settings.roots.clone(),
            proxy: settings.proxy.clone(),
            config: OnceCell::new(),
        }
    }

    /// Connects to the host of `uri`; says whether the host chose HTTP/2.
    pub(super) async fn connect(&self, uri: &Uri) -> Result<(Box<dyn Wire>, bool), Failure> {
        let start = Instant::now();
        let host = uri.host().unwrap_or_default();
        let secure = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let failed = |kind, address, detail: String| Failure {
            kind,
            host: host.to_owned(),
            address,
            after: start.elapsed(),
            detail,
        };
        let work = async {
            let stream = match self.proxy_for(uri, host) {
                Some(proxy) => self.tunnel(&proxy, host, port, start).await?,
                None => self.dial(host, port, start).await?,
            };
            let address = stream.peer_addr().ok();
            // Small requests must not wait for each other; without it the connection is only slower.
            let _ = stream.set_nodelay(true);
            if !secure {
                return Ok((Box::new(stream) as Box<dyn Wire>, false));
            }
            let config = self
                .config
                .get_or_try_init(|| async { tls::config(&self.roots) })
                .await
                .map_err(|detail| failed(FailureKind::Roots, None, detail))?;
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| failed(FailureKind::Tls, address, "not a host name".to_owned()))?;
            let stream = TlsConnector::from(config.clone())
                .connect(name, stream)
                .await
                .map_err(|error| failed(FailureKind::Tls, address, error.to_string()))?;
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok((Box::new(stream) as Box<dyn Wire>, h2))
        };
        match timeout(self.connect_timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(failed(
                FailureKind::ConnectTimeout,
                self.mapped(host, port),
                "check network and firewall".into(),
            )),
        }
    }

    fn mapped(&self, host: &str, port: u16) -> Option<SocketAddr> {
        let full = format!("{host}:{port}");
        let find = |name: &str| self.connect_to.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        find(&full).or_else(|| find(host)).map(|(_, address)| *address)
    }

    async fn dial(&self, host: &str, port: u16, start: Instant) -> Result<TcpStream, Failure> {
        let failed = |kind, address, detail: String| Failure {
            kind,
            host: host.to_owned(),
            address,
            after: start.elapsed(),
            detail,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = match self.mapped(host, port) {
            Some(address) => vec![address],
            None => tokio::net::lookup_host((bare, port))
                .await
                .map_err(|error| failed(FailureKind::NoSuchHost, None, error.to_string()))?
                .collect(),
        };
        let mut last = failed(FailureKind::NoSuchHost, None, "the name has no address".to_owned());
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(FailureKind::Refused, Some(address), error.to_string()),
            }
        }
        Err(last)
    }

    /// The proxy for `uri`; never for the machine itself and its metadata service.
    fn proxy_for(&self, uri: &Uri, host: &str) -> Option<Proxy> {
        let local = host.parse().is_ok_and(|ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_loopback(),
        });
        if local || host == "localhost" {
            return None;
        }
        let found = self.proxy.as_ref()?.intercept(uri)?;
        let at = found.uri();
        Some(Proxy {
            host: at.host()?.to_owned(),
            port: at.port_u16().unwrap_or(80),
            auth: found.basic_auth().and_then(|value| value.to_str().ok()).map(ToOwned::to_owned),
        })
    }

    async fn tunnel(
        &self,
        proxy: &Proxy,
        host: &str,
        port: u16,
        start: Instant,
    ) -> Result<TcpStream, Failure> {
        let failed = |detail: String| Failure {
            kind: FailureKind::Proxy,
            host: host.to_owned(),
            address: None,
            after: start.elapsed(),
            detail: format!("{}:{}: {detail}", proxy.host, proxy.port),
        };
        let mut stream =
            self.dial(&proxy.host, proxy.port, start).await.map_err(|failure| failed(failure.to_string()))?;
        let auth =
            proxy.auth.as_ref().map_or(String::new(), |auth| format!("Proxy-Authorization: {auth}\r\n"));
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{auth}\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= MOST_PROXY_ANSWER {
                return Err(failed("its answer is too long".to_owned()));
            }
            // Byte by byte: what follows the answer belongs to the tunnel.
            answer.push(stream.read_u8().await.map_err(|error| failed(error.to_string()))?);
        }
        let status = answer.split(|b| *b == b' ').nth(1).unwrap_or_default();
        if status == b"200" {
            Ok(stream)
        } else {
            Err(failed(format!("it answered {}", String::from_utf8_lossy(&status[..status.len().min(3)]))))
        }
    }
}

struct Proxy {
    host: String,
    port: u16,
    auth: Option<String>,
}

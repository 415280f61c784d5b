//! Proxies: which requests use one, and the CONNECT tunnel through it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderValue, StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Target;
use super::connect::Wire;
use super::failure::{FailureKind, Fault};

/// Longest head of an answer to CONNECT.
const MAX_HEAD: usize = 16 << 10;

/// Proxy between the node and the stores.
#[derive(Clone, Default)]
pub enum Proxy {
    /// Every connection is direct.
    #[default]
    None,
    /// As the matcher says; loopback, link-local and metadata addresses stay direct.
    Rules(Arc<Matcher>),
}

/// One proxy to use.
pub(super) struct Via {
    pub(super) https: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) auth: Option<HeaderValue>,
}

impl Proxy {
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, upper or lower case.
    pub fn from_env() -> Self {
        Self::Rules(Arc::new(Matcher::from_env()))
    }

    /// Proxy for `target`, if one is to be used.
    pub(super) fn via(&self, target: &Target) -> Result<Option<Via>, Fault> {
        let Self::Rules(matcher) = self else { return Ok(None) };
        if near(&target.host) {
            return Ok(None);
        }
        let scheme = if target.https { "https" } else { "http" };
        let Ok(uri) = format!("{scheme}://{}/", target.authority()).parse::<Uri>() else { return Ok(None) };
        matcher.intercept(&uri).map(|found| Via::of(&found)).transpose()
    }
}

impl Via {
    fn of(found: &Intercept) -> Result<Self, Fault> {
        let uri = found.uri();
        let (https, default) = match uri.scheme_str() {
            Some("http") | None => (false, 80),
            Some("https") => (true, 443),
            Some(other) => {
                let detail =
                    format!("proxies of type {other}:// are not supported, http:// and https:// are");
                return Err(Fault::new(FailureKind::Proxy, None, detail));
            }
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(default);
        Ok(Self { https, host, port, auth: found.basic_auth().cloned() })
    }
}

/// Hosts that only this node can reach.
fn near(host: &str) -> bool {
    if host == "localhost" || host.ends_with(".localhost") || host == "metadata.google.internal" {
        return true;
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        // fd00:ec2::/32 is where the metadata services of EC2 and EKS answer over IPv6.
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.segments()[..2] == [0xfd00, 0x0ec2]
        }
        Err(_) => false,
    }
}

/// Asks the proxy at the other end of `wire` for a way to `target`.
pub(super) async fn tunnel(
    wire: &mut Wire,
    via: &Via,
    target: &Target,
    address: SocketAddr,
) -> Result<(), Fault> {
    let fault = |what: String| {
        let detail = format!("proxy {}:{}: {what}", via.host, via.port);
        Fault::new(FailureKind::Proxy, Some(address), detail)
    };
    let to = target.authority();
    let mut ask = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
    if let Some(auth) = &via.auth {
        ask.extend_from_slice(b"Proxy-Authorization: ");
        ask.extend_from_slice(auth.as_bytes());
        ask.extend_from_slice(b"\r\n");
    }
    ask.extend_from_slice(b"\r\n");
    wire.write_all(&ask).await.map_err(|e| fault(e.to_string()))?;
    wire.flush().await.map_err(|e| fault(e.to_string()))?;
    let head = read_head(wire).await.map_err(fault)?;
    match status(&head) {
        Some(status) if status.is_success() => Ok(()),
        Some(status) => Err(fault(format!("answered {status} to CONNECT {to}"))),
        None => Err(fault(format!("did not answer CONNECT {to} in HTTP/1.1"))),
    }
}

/// Reads up to the empty line, byte by byte: what follows belongs to the tunnel.
async fn read_head(wire: &mut Wire) -> Result<Vec<u8>, String> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err("the answer to CONNECT is too long".into());
        }
        match wire.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(e) => return Err(format!("closed the connection instead of answering CONNECT: {e}")),
        }
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    StatusCode::from_bytes(rest.get(2..5)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_hosts_stay_direct() {
        for host in ["localhost", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "fd00:ec2::254"] {
            assert!(near(host), "{host}");
        }
        for host in ["vault.example.com", "10.0.0.1", "fd00::1"] {
            assert!(!near(host), "{host}");
        }
    }

    #[test]
    fn status_of_connect() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n\r\n"), Some(StatusCode::OK));
        assert_eq!(status(b"HTTP/1.0 407 No\r\n\r\n"), Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED));
        assert_eq!(status(b"SSH-2.0\r\n\r\n"), None);
    }
}

//! Identity binding of AKS (azure.md 11.6): the token request goes to a proxy of the cluster, which is known
//! by a name of its own in the TLS handshake.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use http::Uri;
use ring::digest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::entra::Entra;
use crate::error::{Kind, Problem, Retry};
use crate::http::{Http, TrustFile};

/// Audience of the token that the pod must bring.
pub(super) const AUDIENCE: &str = "api://AKSIdentityBinding";

/// Where the proxy is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the proxy.
    pub url: Uri,
    /// Name in the TLS handshake; without it, it is worked out of the API server's certificate.
    pub server_name: Option<String>,
    /// Authorities that proxy and API server are signed by; the roots of the system where there is no such
    /// file.
    pub ca: PathBuf,
    /// The API server.
    pub api: Uri,
}

const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: Uri::from_static(CLUSTER),
            server_name: None,
            ca: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt".into(),
            api: Uri::from_static(CLUSTER),
        }
    }
}

impl Settings {
    /// The API server on its port (`KUBERNETES_SERVICE_PORT`).
    pub fn with_api_port(mut self, port: u16) -> Self {
        self.api = format!("{CLUSTER}:{port}").parse().expect("a host and a number");
        self
    }
}

/// Reads an address of a proxy: https, a host, and a path at most.
pub fn address(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|_| format!("{text:?} is no address"))?;
    let host = url.authority().filter(|authority| !authority.as_str().contains('@'));
    if url.scheme_str() != Some("https") || host.is_none() || url.query().is_some() || text.contains('#') {
        return Err(format!("{text:?} must be https://HOST[:PORT][/PATH] without user, query and fragment"));
    }
    Ok(url)
}

/// The proxy.
pub(super) struct Proxy {
    settings: Settings,
    trust: TrustFile,
    /// Worked out at first use; a failure is not kept (azure.md 16 row 28).
    server_name: Mutex<Option<String>>,
}

impl Proxy {
    pub(super) fn new(http: &Http, settings: Settings) -> Self {
        let trust = TrustFile::new(http.clone(), settings.ca.clone());
        Self { trust, server_name: Mutex::new(settings.server_name.clone()), settings }
    }

    /// Entra as it is reached through the proxy.
    pub(super) async fn entra(&self) -> Result<Entra, Problem> {
        let failed = |reason: String| {
            Problem::new(
                Kind::Unavailable,
                format!("failed to get keyvault client: proxy transport not available: {reason}"),
            )
            .hint("useAzureTokenProxy works on AKS with identity binding; elsewhere use clientID alone")
            .retry(Retry::After(None))
        };
        let name = self.server_name().await.map_err(failed)?;
        let http = self.trust.client(Some(&name)).await.map_err(failed)?;
        Ok(Entra::through(http, self.settings.url.clone()))
    }

    async fn server_name(&self) -> Result<String, String> {
        let known = || self.server_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known().clone() {
            return Ok(name);
        }
        let http = self.trust.client(None).await?;
        let der = http.certificate(&self.settings.api).await.map_err(|failure| failure.to_string())?;
        let id = cluster_id(&der).ok_or_else(|| {
            "the API server's certificate has no name hcp-kubernetes.ID.svc.cluster.local".to_owned()
        })?;
        let name = server_name_of(&id);
        *known() = Some(name.clone());
        Ok(name)
    }
}

/// The cluster's id in the first name of that form.
fn cluster_id(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    })?;
    let id = |name: &str| {
        let id = name.strip_prefix("hcp-kubernetes.")?.strip_suffix(".svc.cluster.local")?;
        (!id.is_empty() && !id.contains('.')).then(|| id.to_owned())
    };
    names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => id(name),
        _ => None,
    })
}

/// The proxy's name for a cluster: a letter and the base32 (extended hex, lower case) of a hash.
fn server_name_of(id: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("identity-binding{id}").as_bytes());
    format!("a{}.ests.aks", base32hex(hash.as_ref()))
}

fn base32hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut filled) = (0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        filled += 8;
        while filled >= 5 {
            filled -= 5;
            text.push(char::from(DIGITS[(bits >> filled & 31) as usize]));
        }
    }
    if filled > 0 {
        text.push(char::from(DIGITS[(bits << (5 - filled) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_11_6_the_servers_name_is_that_of_the_checked_vectors() {
        for (id, name) in [
            ("696995ccb303450001b31a18", "aeaf29ip1hi5q38ebc3u4daum81u0unk52t5bg50j25234fmuj78g.ests.aks"),
            ("abc123def456", "avimke6u6l2eeq8qc1cneuaq4sl2e1av9t4clqgun97le32hub670.ests.aks"),
        ] {
            assert_eq!(server_name_of(id), name);
        }
    }

    #[test]
    fn azure_11_6_the_proxys_address_is_https_and_plain() {
        for good in ["https://proxy", "https://proxy:8443/base"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["http://proxy", "https://u@proxy", "https://proxy?x", "https://proxy#x", "proxy", ""] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}

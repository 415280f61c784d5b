//! The lab's certificate authority and its one server certificate, new in each run.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// Every name that a stand-in is reached by.
const NAMES: [&str; 19] = [
    "localhost",
    "127.0.0.1",
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.chinacloudapi.cn",
    "login.microsoftonline.de",
    "*.vault.azure.net",
    "*.managedhsm.azure.net",
    "*.vault.usgovcloudapi.net",
    "*.vault.azure.cn",
    "*.vault.microsoftazure.de",
    "*.vault.lab.example",
    "login.lab.example",
    "*.vault.other.example",
    "login.other.example",
    "*.ests.aks",
    "kubernetes.default.svc.cluster.local",
    "hcp-kubernetes.abc123def456.svc.cluster.local",
    "kubernetes.default.svc",
];

/// A certificate authority, and the server certificate that it signed.
pub struct Lab {
    ca_pem: String,
    config: Arc<ServerConfig>,
}

impl Lab {
    /// Makes both; `http1_only` leaves HTTP/2 out of what servers offer.
    pub fn new(http1_only: bool) -> Self {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "lab CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let ca = Issuer::new(ca, ca_key);

        let mut server = CertificateParams::new(NAMES.map(ToOwned::to_owned)).unwrap();
        server.distinguished_name.push(DnType::CommonName, "localhost");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = server.signed_by(&key, &ca).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols =
            if http1_only { vec![b"http/1.1".to_vec()] } else { vec![b"h2".to_vec(), b"http/1.1".to_vec()] };
        Self { ca_pem, config: Arc::new(config) }
    }

    /// Gives the authority's certificate, the only root that clients need.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Gives what a TLS listener needs.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

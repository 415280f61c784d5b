//! Trusted CAs and the one TLS configuration.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Where trusted CAs come from.
#[derive(Debug, Clone)]
pub enum Roots {
    /// The system's bundle.
    System,
    /// These files and folders (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
    Paths(Vec<PathBuf>),
    /// This PEM text.
    Pem(String),
}

const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

impl Roots {
    /// As OpenSSL and Go do it: the variables replace the system's bundle.
    pub fn from_env() -> Self {
        let mut paths: Vec<PathBuf> = Vec::new();
        paths.extend(std::env::var_os("SSL_CERT_FILE").filter(|v| !v.is_empty()).map(PathBuf::from));
        if let Some(list) = std::env::var_os("SSL_CERT_DIR") {
            // A folder besides a file is often the system's own and holds the same again.
            if paths.is_empty() {
                paths.extend(std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()));
            }
        }
        if paths.is_empty() { Self::System } else { Self::Paths(paths) }
    }

    /// Reads the certificates; the error names the file.
    fn load(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match self {
            Self::Pem(text) => add(&mut store, text.as_bytes(), "the given PEM text")?,
            Self::System => {
                let found = BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
                let path = found.ok_or("there is no CA bundle on this system; set SSL_CERT_FILE")?;
                add_path(&mut store, &path)?;
            }
            Self::Paths(paths) => paths.iter().try_for_each(|path| add_path(&mut store, path))?,
        }
        if store.is_empty() { Err(format!("no CA certificate in {self:?}")) } else { Ok(store) }
    }
}

fn add_path(store: &mut RootCertStore, path: &PathBuf) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)?.filter_map(Result::ok) {
            // Folders of certificates hold other files and dead links as well.
            if let Ok(text) = std::fs::read(entry.path()) {
                let _ = add(store, &text, "");
            }
        }
        return Ok(());
    }
    add(store, &std::fs::read(path).map_err(failed)?, &path.display().to_string())
}

fn add(store: &mut RootCertStore, pem: &[u8], name: &str) -> Result<(), String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("{name}: {error}"))?;
    store.add_parsable_certificates(certificates);
    Ok(())
}

/// The configuration of every connection.
pub(super) fn config(roots: &Roots) -> Result<Arc<ClientConfig>, String> {
    let store = roots.load()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

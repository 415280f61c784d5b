//! TLS: trusted authorities and the client configuration, both made at first use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;

use super::failure::{FailureKind, Fault};

/// Where distributions keep the bundle of trusted authorities.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cacert.pem",
];

/// Authorities a server certificate may be signed by.
#[derive(Clone, Debug, Default)]
pub enum Roots {
    /// First bundle found at the usual places of distributions.
    #[default]
    System,
    /// All certificates of these files and of the files in these directories.
    Places {
        /// PEM files; each must be readable.
        files: Vec<PathBuf>,
        /// Directories; files in them that hold no certificate are passed over.
        directories: Vec<PathBuf>,
    },
    /// PEM text.
    Pem(Vec<u8>),
}

impl Roots {
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` (several directories separated by colons), else the
    /// bundle of the system.
    pub fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let files: Vec<_> = set("SSL_CERT_FILE").map(PathBuf::from).into_iter().collect();
        let directories: Vec<_> =
            set("SSL_CERT_DIR").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default();
        if files.is_empty() && directories.is_empty() {
            Self::System
        } else {
            Self::Places { files, directories }
        }
    }

    fn load(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match self {
            Self::System => {
                let Some(found) = BUNDLES.iter().find(|path| Path::new(path).exists()) else {
                    return Err(format!("no trusted authorities: none of {} exists", BUNDLES.join(", ")));
                };
                add_file(&mut store, Path::new(found))?;
            }
            Self::Places { files, directories } => {
                for file in files {
                    add_file(&mut store, file)?;
                }
                for directory in directories {
                    add_directory(&mut store, directory)?;
                }
            }
            Self::Pem(pem) => {
                if add(&mut store, pem)? == 0 {
                    return Err("no certificate in the given PEM text".into());
                }
            }
        }
        if store.is_empty() { Err("no trusted authorities: no certificate found".into()) } else { Ok(store) }
    }
}

fn add_file(store: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|e| format!("trusted authorities in {shown}: {e}"))?;
    match add(store, &pem) {
        Ok(0) => Err(format!("trusted authorities in {shown}: no usable certificate")),
        Ok(_) => Ok(()),
        Err(e) => Err(format!("trusted authorities in {shown}: {e}")),
    }
}

fn add_directory(store: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("trusted authorities in {}: {e}", path.display());
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.is_file()
            && let Ok(pem) = std::fs::read(&file)
        {
            // Directories also hold other files; the store as a whole must not stay empty.
            add(store, &pem).unwrap_or_default();
        }
    }
    Ok(())
}

/// Adds the certificates of `pem`; one that cannot be used as an authority is passed over.
fn add(store: &mut RootCertStore, pem: &[u8]) -> Result<usize, String> {
    let mut added = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("not PEM: {e}"))?;
        added += usize::from(store.add(certificate).is_ok());
    }
    Ok(added)
}

/// Configurations for servers and for proxies.
pub(super) struct Tls {
    roots: Roots,
    made: OnceCell<Made>,
}

#[derive(Clone)]
pub(super) struct Made {
    /// Offers HTTP/2 and HTTP/1.1.
    pub(super) store: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone.
    pub(super) proxy: Arc<ClientConfig>,
}

impl Tls {
    pub(super) fn new(roots: Roots) -> Self {
        Self { roots, made: OnceCell::new() }
    }

    /// Gives the configurations; a failure is tried again at the next call.
    pub(super) async fn get(&self) -> Result<&Made, Fault> {
        self.made.get_or_try_init(|| self.make()).await
    }

    async fn make(&self) -> Result<Made, Fault> {
        let fault = |detail: String| Fault::new(FailureKind::Roots, None, detail);
        let roots = self.roots.clone();
        let made = tokio::task::spawn_blocking(move || configure(&roots)).await;
        made.map_err(|e| fault(format!("reading the trusted authorities: {e}")))?.map_err(fault)
    }
}

fn configure(roots: &Roots) -> Result<Made, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut store = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots.load()?)
        .with_no_client_auth();
    store.resumption = Resumption::in_memory_sessions(256);
    let mut proxy = store.clone();
    store.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    proxy.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Made { store: Arc::new(store), proxy: Arc::new(proxy) })
}

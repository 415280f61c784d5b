//! A client that trusts the authorities of one file, which may be replaced while it is in use.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{Http, Proxy, Roots, Settings};

/// The file, and a client made of it. A cluster's own services are reached without a proxy.
pub struct TrustFile {
    base: Http,
    file: PathBuf,
    made: Mutex<Option<Made>>,
}

struct Made {
    pem: Option<Vec<u8>>,
    server_name: Option<String>,
    http: Http,
}

impl TrustFile {
    /// Nothing is read before [`TrustFile::client`].
    pub fn new(base: Http, file: PathBuf) -> Self {
        Self { base, file, made: Mutex::new(None) }
    }

    /// A client that trusts what the file holds now, or the roots of `base` where there is no file, and asks
    /// TLS for `server_name`. Calls with an unchanged file share one.
    pub async fn client(&self, server_name: Option<&str>) -> Result<Http, String> {
        let pem = match tokio::fs::read(&self.file).await {
            Ok(pem) => Some(pem),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("trusted authorities in {}: {error}", self.file.display())),
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.as_ref().filter(|m| m.pem == pem && m.server_name.as_deref() == server_name)
        {
            return Ok(known.http.clone());
        }
        let http = self.base.tuned(|settings: &mut Settings| {
            settings.proxy = Proxy::None;
            settings.server_name = server_name.map(ToOwned::to_owned);
            if let Some(pem) = &pem {
                settings.roots = Roots::Pem(pem.clone());
            }
        });
        *made = Some(Made { pem, server_name: server_name.map(ToOwned::to_owned), http: http.clone() });
        Ok(http)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_client_serves_until_the_file_or_the_name_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let trust = TrustFile::new(Http::new(Settings::default()), file.clone());
        let same = |a: &Http, b: &Http| std::sync::Arc::ptr_eq(&a.inner, &b.inner);
        let without = trust.client(None).await.unwrap();
        assert!(same(&without, &trust.client(None).await.unwrap()));
        std::fs::write(&file, "one").unwrap();
        let one = trust.client(None).await.unwrap();
        assert!(!same(&without, &one) && same(&one, &trust.client(None).await.unwrap()));
        assert!(!same(&one, &trust.client(Some("name")).await.unwrap()));
        std::fs::write(&file, "two").unwrap();
        assert!(!same(&one, &trust.client(None).await.unwrap()));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(trust.client(None).await.err().unwrap().contains("ca.crt"));
    }
}

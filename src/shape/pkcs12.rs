//! PKCS#12 with an empty password to PEM: private keys first, then certificates (azure.md 9.2).

use p12_keystore::{Pkcs12Archive, error::Error as Broken};
use zeroize::Zeroizing;

use super::{Error, chain, error, pem};
use crate::secret::SecretBytes;

/// Blocks, and a note for the log.
#[derive(Debug)]
pub struct Pem {
    /// The text.
    pub text: SecretBytes,
    /// Why the certificates are not in order, if they are not.
    pub note: Option<String>,
}

/// Reads every key and certificate, in bag order; `order_chain` puts the leaf first and the root last.
pub fn to_pem(der: &[u8], order_chain: bool) -> Result<Pem, Error> {
    let archive = Pkcs12Archive::from_pkcs12(der, "").map_err(|broken| explain(&broken))?;
    let certificates: Vec<&[u8]> = archive.certs.iter().map(|bag| bag.cert.as_der()).collect();
    let chain::Order { order, note } = if order_chain {
        chain::order(&certificates)?
    } else {
        chain::Order { order: (0..certificates.len()).collect(), note: None }
    };
    let mut text = Zeroizing::new(String::with_capacity(2 * der.len() + 256));
    for bag in &archive.keys {
        pem::write("PRIVATE KEY", bag.key.as_der(), &mut text);
    }
    for at in order {
        pem::write("CERTIFICATE", certificates[at], &mut text);
    }
    Ok(Pem { text: SecretBytes::new(std::mem::take(&mut *text).into_bytes()), note })
}

/// The reader's words say what was met, never bytes of it.
fn explain(broken: &Broken) -> Error {
    let text = broken.to_string();
    let lower = text.to_lowercase();
    if lower.contains("mac") || lower.contains("pad") || lower.contains("password") {
        return error(format!("the PKCS#12 value cannot be opened with an empty password ({text})"));
    }
    error(format!("the PKCS#12 value cannot be read: {text}"))
}

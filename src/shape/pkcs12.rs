//! PKCS#12 with an empty password to PEM: private keys first, then certificates (azure.md 9.2).

use p12_keystore::{Pkcs12Archive, error::Error as Broken};
use zeroize::Zeroizing;

use super::{Error, Pem, chain, error, pem, unlocked};
use crate::secret::SecretBytes;

/// Reads every key and certificate, in bag order; `order_chain` puts the leaf first and the root last.
pub fn to_pem(der: &[u8], order_chain: bool) -> Result<Pem, Error> {
    let archive = Pkcs12Archive::from_pkcs12(der, "").or_else(|broken| match unlocked::open(der) {
        Some(open) => Pkcs12Archive::from_pkcs12(&open, ""),
        None => Err(broken),
    });
    let archive = archive.map_err(|broken| explain(&broken))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::decode;
    use proptest::prelude::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    /// Made by `tests/shape/make.sh` with openssl; expected texts are openssl's own.
    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shape/", $name))
        };
    }

    fn pem(base64: &[u8], order: bool) -> Result<Pem, Error> {
        to_pem(decode::base64(base64).unwrap().expose(), order)
    }

    #[test]
    fn t10_every_writer_of_openssl_gives_key_leaf_intermediate_root() {
        let want = [&fixture!("key.pem")[..], fixture!("chain.pem")].concat();
        for (name, bytes) in [
            ("modern", &fixture!("modern.b64")[..]),
            ("legacy", fixture!("legacy.b64")),
            ("no-mac", fixture!("no-mac.b64")),
            ("plain", fixture!("plain.b64")),
        ] {
            let got = pem(bytes, true).unwrap();
            assert_eq!(got.text.expose(), want, "{name}");
            assert_eq!(got.note, None);
        }
    }

    #[test]
    fn t09_the_pair_loads_into_a_tls_library() {
        let got = pem(fixture!("modern.b64"), true).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(got.text.expose()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(got.text.expose()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    }

    #[test]
    fn azure_18_11_a_gap_keeps_the_order_and_names_the_missing_issuer() {
        let got = pem(fixture!("gap.b64"), true).unwrap();
        assert!(got.note.unwrap().contains("mid"));
        let kept = pem(fixture!("gap.b64"), false).unwrap();
        assert_eq!(got.text, kept.text);
        let want = [&fixture!("key.pem")[..], fixture!("gap.pem")].concat();
        assert_eq!(got.text.expose(), want);
    }

    #[test]
    fn t10_a_password_is_named() {
        assert!(pem(fixture!("password.b64"), true).unwrap_err().to_string().contains("password"));
    }

    #[test]
    fn azure_9_2_all_orders_of_a_chain_are_mended() {
        let certs: Vec<_> =
            CertificateDer::pem_slice_iter(fixture!("chain.pem")).map(Result::unwrap).collect();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let shuffled: Vec<&[u8]> = order.iter().map(|at| certs[*at].as_ref()).collect();
            let mended: Vec<usize> =
                chain::order(&shuffled).unwrap().order.iter().map(|at| order[*at]).collect();
            assert_eq!(mended, [0, 1, 2], "{order:?}");
        }
        assert_eq!(chain::order(&[]).unwrap_err().to_string(), "no leaf found");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_damaged_value_never_panics(at in 0_usize..1000, byte in any::<u8>()) {
            let mut der = decode::base64(fixture!("plain.b64")).unwrap().expose().to_vec();
            let at = at % der.len();
            der[at] = byte;
            let _ = to_pem(&der, true);
        }
    }
}

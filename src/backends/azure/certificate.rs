//! A service principal's certificate as its proof: a signed assertion in place of a client secret
//! (azure.md 16 row 29). RSA alone, since Entra takes no other key here.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::secret::SecretText;

/// Seconds that an assertion is good; it is used at once.
const LIFE: u64 = 600;

/// Certificate and key of an application.
pub(super) struct Signer {
    thumbprint: String,
    key: signature::RsaKeyPair,
}

impl Signer {
    /// Reads both from one PEM text. The errors are words, never a piece of it.
    pub(super) fn read(pem: &str) -> Result<Self, &'static str> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "clientcertificate holds no certificate as PEM")?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "clientcertificate holds no private key as PEM")?;
        let read = match &key {
            PrivateKeyDer::Pkcs8(der) => signature::RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => signature::RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("the private key in clientcertificate is no RSA key"),
        };
        let key =
            read.map_err(|_| "the private key in clientcertificate is no RSA key of 2048 bits or more")?;
        let thumbprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &certificate));
        Ok(Self { thumbprint, key })
    }

    /// What `client_id` presents to the token endpoint `audience`.
    pub(super) fn assertion(&self, client_id: &str, audience: &str) -> Result<SecretText, &'static str> {
        let random = SystemRandom::new();
        let mut id = [0_u8; 16];
        random.fill(&mut id).map_err(|_| "no random bytes")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint});
        let claims = json!({
            "aud": audience, "iss": client_id, "sub": client_id, "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": now, "nbf": now, "exp": now + LIFE,
        });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let mut proof = vec![0; self.key.public().modulus_len()];
        let padding = &signature::RSA_PSS_SHA256;
        self.key.sign(padding, &random, signed.as_bytes(), &mut proof).map_err(|_| "signing failed")?;
        Ok(SecretText::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(proof))))
    }
}

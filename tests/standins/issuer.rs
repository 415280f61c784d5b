//! Service-account tokens as a cluster mints them, right ones and each kind of wrong one, and their
//! verification for stand-ins that take such tokens.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::Clock;

/// Keys made by `openssl genpkey` for these tests and nothing else; ring cannot make RSA keys.
const PEM: [&str; 3] = [
    include_str!("keys/one-test-only.pem"),
    include_str!("keys/two-test-only.pem"),
    include_str!("keys/forged-test-only.pem"),
];
const FORGED: usize = 2;
/// What stands before an RSA key of 2048 bits in a SubjectPublicKeyInfo.
const SPKI_OF_RSA_2048: [u8; 24] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
    0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00,
];

/// What is wrong with a token, if anything. A token of another account is a right token of that account.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Variant {
    /// Nothing.
    #[default]
    Right,
    /// It ended a minute ago.
    Expired,
    /// It begins in ten minutes.
    NotYetValid,
    /// Signed by a key that nobody published, under the `kid` of the published one.
    ForgedKey,
    /// The right key under a `kid` that nobody published.
    UnknownKid,
    /// Another issuer, with the right signature.
    WrongIssuer,
    /// Another audience than asked for.
    WrongAudience,
    /// `alg: none` and no signature.
    AlgNone,
    /// The body was changed after signing.
    Altered,
}

/// Why a token was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Not three parts of base64url JSON, or without the claims needed.
    Malformed,
    /// Not RS256, an unknown key, or a signature that does not fit.
    Signature,
    /// Past its `exp` or before its `nbf`.
    Time,
}

/// The claims that stores decide by.
#[derive(Deserialize)]
pub struct Claims {
    /// Who minted it.
    pub iss: String,
    /// Whom it is for.
    pub sub: String,
    /// Where it may be used.
    pub aud: Vec<String>,
    exp: u64,
    nbf: u64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

/// A token issuer like the cluster's; one key is published at a time.
pub struct Issuer {
    url: Mutex<String>,
    keys: Vec<RsaKeyPair>,
    /// How often the keys were rotated: names the active key.
    rotations: AtomicU64,
    minted: AtomicU64,
    clock: Clock,
}

impl Issuer {
    /// Makes an issuer known by this URL.
    pub fn new(url: &str, clock: Clock) -> Self {
        let key = |pem: &str| {
            let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
        };
        Self {
            url: Mutex::new(url.to_owned()),
            keys: PEM.iter().map(|pem| key(pem)).collect(),
            rotations: AtomicU64::new(0),
            minted: AtomicU64::new(0),
            clock,
        }
    }

    /// Gives the URL in the tokens' `iss`.
    pub fn url(&self) -> String {
        self.url.lock().unwrap().clone()
    }

    /// Changes the URL in the tokens' `iss`.
    pub fn set_url(&self, url: &str) {
        url.clone_into(&mut self.url.lock().unwrap());
    }

    /// Mints a right token of an account.
    pub fn mint(&self, namespace: &str, account: &str, audience: &str) -> String {
        self.mint_as(namespace, account, audience, Variant::Right)
    }

    /// Mints a token of an account that is wrong in one way. Every token has a `jti` of its own.
    pub fn mint_as(&self, namespace: &str, account: &str, audience: &str, variant: Variant) -> String {
        let now = self.clock.now();
        let (nbf, exp) = match variant {
            Variant::Expired => (now - 3660, now - 60),
            Variant::NotYetValid => (now + 600, now + 4200),
            _ => (now, now + 3600),
        };
        let number = self.minted.fetch_add(1, Ordering::Relaxed);
        let mut body = json!({
            "iss": if variant == Variant::WrongIssuer { "https://other-issuer.example".into() } else { self.url() },
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": [if variant == Variant::WrongAudience { "somewhere-else" } else { audience }],
            "iat": nbf, "nbf": nbf, "exp": exp,
            "jti": format!("00000000-0000-4000-8000-{number:012x}"),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": uid(&format!("{namespace}/{account}"))},
                "pod": {"name": "web-0", "uid": uid(&format!("{namespace}/web-0"))},
            },
        });
        let kid = if variant == Variant::UnknownKid { "nobody-published-this".into() } else { self.kid() };
        let header = match variant {
            Variant::AlgNone => json!({"alg": "none"}),
            _ => json!({"alg": "RS256", "kid": kid}),
        };
        let signed = format!("{}.{}", encode(&header), encode(&body));
        let signature = match variant {
            Variant::AlgNone => Vec::new(),
            Variant::ForgedKey => sign(&self.keys[FORGED], &signed),
            _ => sign(self.active(), &signed),
        };
        let signature = URL_SAFE_NO_PAD.encode(signature);
        if variant == Variant::Altered {
            body["kubernetes.io"]["namespace"] = "kube-system".into();
            return format!("{}.{}.{signature}", encode(&header), encode(&body));
        }
        format!("{signed}.{signature}")
    }

    /// Checks form, key, signature and time; the claims are the caller's to judge.
    pub fn verify(&self, token: &str) -> Result<Claims, Flaw> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Flaw::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(Flaw::Malformed)?;
        let header: Header = decode(header)?;
        let claims: Claims = decode(body)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Flaw::Malformed)?;
        if header.alg != "RS256" || header.kid != Some(self.kid()) {
            return Err(Flaw::Signature);
        }
        self.public()
            .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature)
            .map_err(|_| Flaw::Signature)?;
        let now = self.clock.now();
        if now >= claims.exp || now < claims.nbf { Err(Flaw::Time) } else { Ok(claims) }
    }

    /// Publishes another key in place of the present one: tokens minted before are no longer believed.
    pub fn rotate_signing_keys(&self) {
        self.rotations.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the published keys.
    pub fn jwks(&self) -> Value {
        let RsaPublicKeyComponents { n, e } = self.public();
        let (n, e) = (URL_SAFE_NO_PAD.encode(n), URL_SAFE_NO_PAD.encode(e));
        json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid(), "n": n, "e": e}]})
    }

    /// Gives the discovery document.
    pub fn discovery(&self) -> Value {
        let url = self.url();
        json!({
            "issuer": url, "jwks_uri": format!("{url}/openid/v1/jwks"),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        })
    }

    fn active(&self) -> &RsaKeyPair {
        &self.keys[usize::try_from(self.rotations.load(Ordering::Relaxed) % 2).unwrap()]
    }

    /// As Kubernetes derives it, so that an API server that signs with the same key is believed.
    fn kid(&self) -> String {
        let spki = [&SPKI_OF_RSA_2048, self.active().public_key().as_ref()].concat();
        URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &spki))
    }

    fn public(&self) -> RsaPublicKeyComponents<Vec<u8>> {
        RsaPublicKeyComponents::from(self.active().public_key())
    }
}

/// Makes a stable identifier in the form of a GUID from a text.
pub fn uid(text: &str) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hex: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

/// Encodes one part of a token.
pub fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// Decodes one part of a token.
pub fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Flaw> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Flaw::Malformed)
}

fn sign(key: &RsaKeyPair, text: &str) -> Vec<u8> {
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
    signature
}

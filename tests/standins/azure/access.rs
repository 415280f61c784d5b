//! Access tokens: a JWT's shape with an HMAC, so that a vault checks each at little cost.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::issuer::{decode, encode};
use super::Shared;
use super::content::Identity;

/// How long a token is good, in seconds.
pub(super) const LIFETIME: u64 = 3599;

#[derive(Deserialize, Serialize)]
pub(super) struct Access {
    aud: String,
    iss: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    pub(super) appid: String,
    pub(super) oid: String,
    tid: String,
    /// Tokens of an earlier count were ended all at once.
    epoch: u64,
}

impl Access {
    pub(super) fn iss(&self) -> &str {
        &self.iss
    }
}

/// Why a token is not good for a vault.
pub(super) enum Refused {
    Missing,
    Signature,
    Issuer,
    Audience,
    Expired,
}

fn issuer(tenant: &str) -> String {
    format!("https://sts.windows.net/{tenant}/")
}

/// Makes a token.
pub(super) fn mint(shared: &Shared, identity: &Identity, tenant: &str, resource: &str) -> String {
    let now = shared.clock.now();
    let claims = json!(Access {
        aud: resource.trim_end_matches('/').to_owned(),
        iss: issuer(tenant),
        iat: now,
        nbf: now,
        exp: now + LIFETIME,
        appid: identity.client_id.clone(),
        oid: identity.object_id.clone(),
        tid: tenant.to_owned(),
        epoch: shared.epoch.load(Ordering::Relaxed),
    });
    let signed = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "HS256"})), encode(&claims));
    let tag = hmac::sign(&shared.access_key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Checks an `Authorization` header for a resource.
pub(super) fn verify(shared: &Shared, header: &str, tenant: &str, resource: &str) -> Result<Access, Refused> {
    let token = header.strip_prefix("Bearer ").ok_or(Refused::Missing)?;
    let (signed, tag) = token.rsplit_once('.').ok_or(Refused::Signature)?;
    let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| Refused::Signature)?;
    hmac::verify(&shared.access_key, signed.as_bytes(), &tag).map_err(|_| Refused::Signature)?;
    let (_, body) = signed.split_once('.').ok_or(Refused::Signature)?;
    let access: Access = decode(body).map_err(|_| Refused::Signature)?;
    let now = shared.clock.now();
    if access.tid != tenant {
        Err(Refused::Issuer)
    } else if access.aud != resource {
        Err(Refused::Audience)
    } else if now >= access.exp || now < access.nbf || access.epoch != shared.epoch.load(Ordering::Relaxed) {
        Err(Refused::Expired)
    } else {
        Ok(access)
    }
}

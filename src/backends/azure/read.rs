//! One object from Key Vault (azure.md 12).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ObjectKind, Read, Session, Target, errors};
use crate::error::{Kind, Problem, Retry};
use crate::http::{Answer, Http};
use crate::plan::{Form, Reading};
use crate::secret::SecretBytes;

const API_VERSION: &str = "7.4";
/// Vaults whose token resource is remembered.
const MOST_VAULTS: usize = 1024;

/// Token resource of vaults that want another one than their cloud's: learnt from a refusal, once.
#[derive(Default)]
pub(super) struct Resources(Mutex<HashMap<String, String>>);

impl Resources {
    /// The resource to ask a token for.
    pub(super) fn of(&self, target: &Target) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&target.vault).unwrap_or(&target.resource).clone()
    }

    /// Notes what a vault asked for; its host must be the vault's or a parent of it (azure.md 11.7).
    fn learn(&self, target: &Target, headers: &HeaderMap) {
        let Some(resource) = challenge(headers) else { return };
        let Some(host) = resource.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')) else {
            return;
        };
        let ours = target.vault == host || target.vault.ends_with(&format!(".{host}"));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ours && host.contains('.') && (known.len() < MOST_VAULTS || known.contains_key(&target.vault)) {
            known.insert(target.vault.clone(), resource.trim_end_matches('/').to_owned());
        }
    }
}

/// `resource` or `scope` of a `WWW-Authenticate` header.
fn challenge(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::WWW_AUTHENTICATE)?.to_str().ok()?;
    let value = |name: &str| {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    value("resource").or_else(|| value("scope").map(|scope| scope.trim_end_matches("/.default").to_owned()))
}

#[derive(Deserialize)]
struct Bundle<'a> {
    value: Option<String>,
    id: Option<String>,
    kid: Option<String>,
    #[serde(rename = "contentType")]
    content_type: Option<String>,
    cer: Option<String>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct KeyId {
    kid: Option<String>,
}

/// Reads one object.
pub(super) async fn read(
    http: &Http,
    resources: &Resources,
    target: &Target,
    session: &Session,
    read: &Read,
) -> Result<Reading, Problem> {
    let folder = match read.kind {
        ObjectKind::Secret => "secrets",
        ObjectKind::Key => "keys",
        ObjectKind::Certificate => "certificates",
    };
    // Name and version were checked against Key Vault's alphabet, so they cannot leave their place.
    let url = format!("https://{}/{folder}/{}/{}", target.vault, read.name, read.version);
    let answer = get(http, session, &url).await?;
    if !answer.status.is_success() {
        if answer.status.as_u16() == 401 {
            resources.learn(target, &answer.headers);
        }
        return Err(errors::vault(read.kind, &url, answer.status, &answer.headers, answer.body.expose()));
    }
    let bundle: Bundle = serde_json::from_slice(answer.body.expose()).map_err(|error| {
        Problem::new(
            Kind::Unavailable,
            format!(
                "GET {url}: the answer is not what Key Vault answers (line {} column {})",
                error.line(),
                error.column()
            ),
        )
        .hint("check what stands between this node and the store")
        .retry(Retry::After(None))
    })?;
    reading(read, bundle)
}

async fn get(http: &Http, session: &Session, url: &str) -> Result<Answer, Problem> {
    let mut token = HeaderValue::try_from(format!("Bearer {}", session.token.expose()))
        .map_err(|_| Problem::new(Kind::Unauthenticated, "the access token is no header value"))?;
    token.set_sensitive(true);
    let request = Request::get(format!("{url}?api-version={API_VERSION}"))
        .header(header::AUTHORIZATION, token)
        .header(header::USER_AGENT, concat!("keyferry/", env!("CARGO_PKG_VERSION")))
        .body(Bytes::new())
        .map_err(|error| Problem::config(format!("{url} is no address: {error}")))?;
    http.send(request).await.map_err(|failure| errors::transport(&format!("Get {url:?}"), &failure))
}

fn reading(read: &Read, bundle: Bundle) -> Result<Reading, Problem> {
    let (value, id, form) = match read.kind {
        ObjectKind::Secret => {
            let form = form(&bundle);
            (bundle.value.map(SecretBytes::from), bundle.id, form)
        }
        ObjectKind::Key => {
            let json = bundle.key.map(RawValue::get);
            let id = json.and_then(|json| serde_json::from_str::<KeyId>(json).ok()?.kid);
            (json.map(|json| SecretBytes::from(json.as_bytes())), id, Form::Plain)
        }
        ObjectKind::Certificate => {
            // Base64 of DER; the plan decodes it.
            (bundle.cer.map(SecretBytes::from), bundle.id, Form::Plain)
        }
    };
    let word = match read.kind {
        ObjectKind::Secret => "secret",
        ObjectKind::Key => "key",
        ObjectKind::Certificate => "certificate",
    };
    let nil = |what: &str| {
        Problem::new(Kind::Shape, format!("{word} {what} is nil"))
            .hint("the store's answer is incomplete; read the object with another client")
    };
    let value = value.ok_or_else(|| nil("value"))?;
    let id = id.ok_or_else(|| nil("id"))?;
    let version = id.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Reading { value, version, form, pinned: !read.version.is_empty() })
}

/// azure.md 9.1; without a content type the value itself tells (16 row 5).
fn form(bundle: &Bundle) -> Form {
    if bundle.kid.as_deref().unwrap_or_default().is_empty() {
        return Form::Plain;
    }
    match bundle.content_type.as_deref() {
        Some("application/x-pem-file") => Form::CertificatePem,
        Some("application/x-pkcs12") => Form::CertificatePkcs12,
        Some(other) => Form::CertificateUnknown(errors::clean(other)),
        None if bundle.value.as_deref().unwrap_or_default().contains("-----BEGIN ") => Form::CertificatePem,
        None => Form::CertificatePkcs12,
    }
}

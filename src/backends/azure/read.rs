//! One object from Key Vault, or the versions of one (azure.md 8, 12).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::errors::{self, Right};
use super::{ObjectKind, Read, Session, Target};
use crate::error::{Kind, Problem, Retry};
use crate::http::{Answer, Http};
use crate::plan::{Form, Reading};
use crate::secret::SecretBytes;

const API_VERSION: &str = "7.4";
/// Pages of one list of versions; Key Vault puts up to 25 on a page.
const MOST_PAGES: usize = 400;
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

/// One page of versions.
#[derive(Deserialize)]
struct Page {
    value: Option<Vec<Item>>,
    #[serde(rename = "nextLink")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    id: Option<String>,
    /// What a key has in place of an id.
    kid: Option<String>,
    attributes: Option<Attributes>,
}

#[derive(Deserialize)]
struct Attributes {
    enabled: Option<bool>,
    created: Option<i64>,
}

impl Read {
    /// The read of a version that a list names.
    pub(super) fn version(list: &Self, version: &str) -> Self {
        let (Self::Versions { kind, name } | Self::Object { kind, name, .. }) = list;
        Self::Object { kind: *kind, name: name.clone(), version: version.to_owned() }
    }
}

/// A vault, as someone.
pub(super) struct Asker<'a> {
    pub(super) http: &'a Http,
    pub(super) resources: &'a Resources,
    pub(super) target: &'a Target,
    pub(super) session: &'a Session,
}

impl Asker<'_> {
    /// Makes one read.
    pub(super) async fn read(&self, read: &Read) -> Result<Reading, Problem> {
        match read {
            Read::Object { kind, name, version } => self.object(*kind, name, version).await,
            Read::Versions { kind, name } => self.versions(*kind, name).await,
        }
    }

    async fn object(&self, kind: ObjectKind, name: &str, version: &str) -> Result<Reading, Problem> {
        // Name and version were checked against Key Vault's alphabet, so they cannot leave their place.
        let url = format!("https://{}/{}/{name}/{version}", self.target.vault, kind.folder());
        let answer = self.get(kind, Right::Get, &url, &format!("{url}?api-version={API_VERSION}")).await?;
        reading(kind, version, parse(&url, answer.body.expose())?)
    }

    /// Enabled versions, newest first; those of one second in the list's order (azure.md 16 row 17).
    async fn versions(&self, kind: ObjectKind, name: &str) -> Result<Reading, Problem> {
        let vault = &self.target.vault;
        let url = format!("https://{vault}/{}/{name}/versions", kind.folder());
        let mut next = Some(format!("{url}?api-version={API_VERSION}"));
        let mut found = Vec::new();
        for _ in 0..MOST_PAGES {
            let Some(page) = next.take() else { break };
            let answer = self.get(kind, Right::List, &url, &page).await?;
            let Page { value, next: link } = parse(&url, answer.body.expose())?;
            found.extend(value.unwrap_or_default().into_iter().filter_map(enabled));
            next = link.filter(|link| !link.is_empty());
            if let Some(link) = &next {
                // The token goes with the request, so it must not leave the vault.
                if !is_of(vault, link) {
                    return Err(Problem::new(
                        Kind::Unavailable,
                        format!("GET {url}: the next page is at another host than the vault"),
                    )
                    .hint("check what stands between this node and the store"));
                }
            }
        }
        if next.is_some() {
            let what = format!("GET {url}: more than {MOST_PAGES} pages of versions");
            return Err(Problem::new(Kind::Shape, what).hint("name a version instead of a history"));
        }
        found.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
        let ids: Vec<_> = found.into_iter().map(|(_, id)| id).collect();
        let value = SecretBytes::from(ids.join("\n"));
        Ok(Reading { value, version: String::new(), form: Form::Versions, pinned: false })
    }

    /// Asks `page`; errors name `url`, which is the same without its query.
    async fn get(&self, kind: ObjectKind, right: Right, url: &str, page: &str) -> Result<Answer, Problem> {
        let mut token = HeaderValue::try_from(format!("Bearer {}", self.session.token.expose()))
            .map_err(|_| Problem::new(Kind::Unauthenticated, "the access token is no header value"))?;
        token.set_sensitive(true);
        let request = Request::get(page)
            .header(header::AUTHORIZATION, token)
            .header(header::USER_AGENT, concat!("keyferry/", env!("CARGO_PKG_VERSION")))
            .body(Bytes::new())
            .map_err(|error| Problem::config(format!("{url} is no address: {error}")))?;
        let sent = self.http.send(request).await;
        let answer = sent.map_err(|failure| errors::no_vault(&format!("Get {url:?}"), &failure))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        if answer.status.as_u16() == 401 {
            self.resources.learn(self.target, &answer.headers);
        }
        let wanted = errors::Wanted { kind, right, hsm: self.target.hsm };
        Err(errors::vault(&wanted, url, answer.status, &answer.headers, answer.body.expose()))
    }
}

fn parse<'a, T: Deserialize<'a>>(url: &str, body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what =
            format!("GET {url}: the answer is not what Key Vault answers (line {line} column {column})");
        Problem::new(Kind::Unavailable, what)
            .hint("check what stands between this node and the store")
            .retry(Retry::After(None))
    })
}

/// Whether an address is of this very host; the service writes its port and its own spelling.
fn is_of(host: &str, address: &str) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let port = matches!(uri.port_u16(), None | Some(443));
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    uri.scheme_str() == Some("https")
        && plain
        && port
        && uri.host().is_some_and(|found| found.eq_ignore_ascii_case(host))
}

/// Time of creation and version id of an item that counts (azure.md 8).
fn enabled(item: Item) -> Option<(i64, String)> {
    let attributes = item.attributes.filter(|attributes| attributes.enabled != Some(false))?;
    Some((attributes.created.unwrap_or(0), last(&item.id.or(item.kid)?)))
}

/// The version at the end of an id.
fn last(id: &str) -> String {
    id.rsplit('/').next().unwrap_or_default().to_owned()
}

fn reading(kind: ObjectKind, asked: &str, bundle: Bundle) -> Result<Reading, Problem> {
    let (value, id, form) = match kind {
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
    let word = match kind {
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
    Ok(Reading { value, version: last(&id), form, pinned: !asked.is_empty() })
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

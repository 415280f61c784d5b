//! Key Vault's reading half: the checks in the service's order, then the object.

use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::super::serve::{Reply, pairs, value};
use super::access::{self, Access, Refused};
use super::content::{Denial, Kind, Right, Vault, Version, latest};
use super::{CLOUDS, Shared};

const VERSIONS: [&str; 12] = [
    "2016-10-01",
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "7.6-preview.2",
    "2025-06-01-preview",
    "2025-07-01",
    "2026-04-01",
];
const PAGE: usize = 25;
const LOCATION: &str = "westeurope";

pub(super) fn answer(shared: &Shared, parts: &Parts, host: &str) -> Reply {
    let content = shared.content.read().unwrap();
    let (Some(vault), Some((suffix, authority))) =
        (content.vaults.get(host), CLOUDS.iter().find(|(suffix, _)| host.ends_with(suffix)))
    else {
        // The real service has no such name; a test that maps one here is wrong.
        return shared.unexpected(parts, host, Reply::new(404, ""));
    };
    let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let resource = format!("https://{suffix}");
    let access = match access::verify(shared, header.unwrap_or_default(), &content.tenant, &resource) {
        Ok(access) => access,
        Err(refused) => {
            let challenge = format!(
                "Bearer authorization=\"https://{authority}/{}\", resource=\"{resource}\"",
                content.tenant
            );
            return error(401, "Unauthorized", None, unauthorized(&refused))
                .header("www-authenticate", challenge);
        }
    };
    let asked = Asked { shared, parts, host, vault, access };
    let reply = asked.answer();
    reply.client(Some(asked.access.appid))
}

fn unauthorized(refused: &Refused) -> &'static str {
    match refused {
        Refused::Missing => "AKV10000: Request is missing a Bearer or PoP token.",
        Refused::Signature => "AKV10046: Unable to resolve the key used for signature validation.",
        Refused::Issuer => "AKV10032: Invalid issuer. Expected one of the issuers of this vault's tenant.",
        Refused::Audience => "AKV10022: Invalid audience. Expected the audience of this vault.",
        Refused::Expired => "[TokenExpired] Error validating token: 'S2S12086'.",
    }
}

/// Makes an error body as the service words it.
pub(super) fn error(status: u16, code: &str, inner: Option<&str>, message: &str) -> Reply {
    let mut error = json!({"code": code, "message": message});
    if let Some(inner) = inner {
        error["innererror"] = json!({"code": inner});
    }
    Reply::json(status, &json!({ "error": error }))
}

/// A request with a token that is good.
struct Asked<'a> {
    shared: &'a Shared,
    parts: &'a Parts,
    host: &'a str,
    vault: &'a Vault,
    access: Access,
}

impl Asked<'_> {
    fn answer(&self) -> Reply {
        let query = pairs(self.parts.uri.query().unwrap_or_default());
        match value(&query, "api-version") {
            None => return error(400, "BadParameter", None, "api-version must be specified"),
            Some(version) if !VERSIONS.contains(&version) => {
                let text = format!(
                    "The specified version ({version}) is not recognized. Consider using the latest supported version (2026-04-01)."
                );
                return error(400, "BadParameter", None, &text);
            }
            Some(_) => {}
        }
        let decoded: Vec<_> = self
            .parts
            .uri
            .path()
            .split('/')
            .skip(1)
            .map(|p| percent_decode_str(p).decode_utf8_lossy())
            .collect();
        let mut path: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
        if path.last() == Some(&"") {
            path.pop();
        }
        let kind = path.first().and_then(|word| Kind::parse(word));
        let (Some(kind), 2..=3) = (kind, path.len()) else {
            return self.shared.unexpected(self.parts, self.host, error(404, "NotFound", None, "Not found."));
        };
        if self.parts.method != "GET" {
            let text = format!("HTTP {} not supported at this URL.", self.parts.method);
            let reply = error(405, "MethodNotAllowed", None, &text);
            return self.shared.unexpected(self.parts, self.host, reply);
        }
        let (name, version) = (path[1], path.get(2).copied());
        let listing = version == Some("versions");
        let known: &[&str] =
            if listing { &["api-version", "maxresults", "$skiptoken"] } else { &["api-version"] };
        if query.iter().any(|(name, _)| !known.contains(&name.as_str())) {
            // The service passes over these; a client of ours has no reason to send one.
            self.shared.unexpected(self.parts, self.host, Reply::new(200, ""));
        }
        let right = if listing { Right::List } else { Right::Get };
        if let Some(denial) = self.vault.denial(&self.access.appid, kind, right) {
            return self.forbidden(denial, kind, right, name);
        }
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 127 || !name.chars().all(usual) {
            let text = format!("The request URI contains an invalid name: {name}");
            return error(400, "BadParameter", None, &text);
        }
        let Some(versions) = self.vault.object(kind, name) else {
            return missing(kind, name, version.filter(|_| !listing));
        };
        if listing { self.list(kind, name, versions, &query) } else { get(kind, name, versions, version) }
    }

    fn list(&self, kind: Kind, name: &str, versions: &[Version], query: &[(String, String)]) -> Reply {
        let size = match value(query, "maxresults").map(str::parse) {
            None => PAGE,
            Some(Ok(size @ 1..=PAGE)) => size,
            Some(_) => {
                return error(400, "BadParameter", None, "Invalid maxResults, must be between 1 and 25");
            }
        };
        let mut sorted: Vec<_> = versions.iter().collect();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let from = value(query, "$skiptoken").map_or(0, |id| sorted.partition_point(|v| v.id.as_str() < id));
        let page = &sorted[from..sorted.len().min(from + size)];
        let items: Vec<_> = page.iter().map(|version| version.item(name)).collect();
        let next = sorted.get(from + size).map_or(Value::Null, |next| {
            let version = value(query, "api-version").unwrap_or_default();
            let word = kind.word();
            let url = format!("https://{}/{word}/{name}/versions?api-version={version}", self.host);
            format!("{url}&$skiptoken={}&maxresults={size}", next.id).into()
        });
        Reply::new(200, format!("{{\"value\":[{}],\"nextLink\":{next}}}", items.join(",")))
    }

    fn forbidden(&self, denial: Denial, kind: Kind, right: Right, name: &str) -> Reply {
        let Access { appid, oid, .. } = &self.access;
        let caller = format!("appid={appid};oid={oid};iss={}", self.access.iss());
        let at = format!("{};location={LOCATION}", self.vault.name);
        let word = kind.word();
        let (inner, text) = match denial {
            Denial::Firewall => (
                "ForbiddenByFirewall",
                format!(
                    "Client address is not authorized and caller is not a trusted service.\r\nClient address: 203.0.113.7\r\nCaller: {caller}\r\nVault: {at}"
                ),
            ),
            Denial::Policy => {
                let right = if right == Right::Get { "get" } else { "list" };
                (
                    "ForbiddenByPolicy",
                    format!(
                        "The user, group or application '{caller}' does not have {word} {right} permission on key vault '{at}'. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287"
                    ),
                )
            }
            Denial::Rbac => {
                // The names of the data actions in the service's role definitions.
                let action = match (kind, right) {
                    (Kind::Secrets, Right::Get) => "secrets/getSecret/action".to_owned(),
                    (Kind::Secrets, Right::List) => "secrets/readMetadata/action".to_owned(),
                    _ => format!("{word}/read"),
                };
                (
                    "ForbiddenByRbac",
                    format!(
                        "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nCaller: {caller}\r\nAction: 'Microsoft.KeyVault/vaults/{action}'\r\nResource: '/subscriptions/00000000-0000-4000-8000-000000000001/resourcegroups/lab/providers/microsoft.keyvault/vaults/{}/{word}/{name}'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: null \r\nVault: {at}",
                        self.vault.name
                    ),
                )
            }
        };
        error(403, "Forbidden", Some(inner), &text)
    }
}

fn get(kind: Kind, name: &str, versions: &[Version], version: Option<&str>) -> Reply {
    let found = match version {
        None => latest(versions),
        Some(id) => versions.iter().find(|version| version.id == id),
    };
    match found {
        None => missing(kind, name, version),
        Some(version) if kind == Kind::Secrets && !version.enabled => {
            let text = "Operation get is not allowed on a disabled secret.";
            error(403, "Forbidden", Some("SecretDisabled"), text)
        }
        Some(version) => Reply::new(200, version.answer(name)),
    }
}

fn missing(kind: Kind, name: &str, version: Option<&str>) -> Reply {
    let noun = kind.noun();
    let full = version.map_or_else(|| name.to_owned(), |version| format!("{name}/{version}"));
    let text = format!(
        "A {} with (name/id) {full} was not found in this key vault. If you recently deleted this {} you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182",
        noun.to_ascii_lowercase(),
        noun.to_ascii_lowercase()
    );
    error(404, &format!("{noun}NotFound"), None, &text)
}

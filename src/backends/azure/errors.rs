//! From what Azure answers to a problem that keeps the words operators search for (azure.md 13).

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::ObjectKind;
use crate::error::{Kind, Problem, Retry};
use crate::http::{Failure, FailureKind};

#[derive(Deserialize, Default)]
struct Body {
    #[serde(default)]
    error: Detail,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Detail {
    code: String,
    message: String,
    innererror: Inner,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Inner {
    code: String,
}

/// Longest text of a store that is passed on.
const MOST_MESSAGE: usize = 600;

/// What a request needs of the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// The content of an object.
    Get,
    /// Its versions.
    List,
}

/// What was asked, for the words about who must grant what.
pub(super) struct Wanted {
    pub(super) kind: ObjectKind,
    pub(super) right: Right,
    pub(super) hsm: bool,
}

/// An answer of Key Vault that is not a success.
pub(super) fn vault(
    wanted: &Wanted,
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Problem {
    let Detail { code, message, innererror } = serde_json::from_slice::<Body>(body).unwrap_or_default().error;
    let code = if code.is_empty() { "unknown".to_owned() } else { word(&code) };
    let inner =
        if innererror.code.is_empty() { String::new() } else { format!(" ({})", word(&innererror.code)) };
    let mut what = format!("GET {url}\nRESPONSE {}: {status}\nERROR CODE: {code}{inner}", status.as_u16());
    if !message.is_empty() {
        what.push_str(&format!("\n{}", clean(&message)));
    }
    let (problem, hint) = match status.as_u16() {
        401 => (Kind::Unauthenticated, "check tenantID and that the vault belongs to that tenant".to_owned()),
        403 => (Kind::Denied, refused(wanted, &innererror.code)),
        // Else an optional object would be taken for missing because of a gateway's page.
        404 if code == "unknown" => (
            Kind::Unavailable,
            "this is no answer of Key Vault; check what stands between this node and the store".to_owned(),
        ),
        404 => (Kind::NotFound, "check name and version of the object, and keyvaultName".to_owned()),
        429 => {
            (Kind::Throttled, "too many requests reach this vault; spread them or split the vault".to_owned())
        }
        408 | 500..=599 => {
            (Kind::Unavailable, "the store is in trouble; the kubelet will try again".to_owned())
        }
        _ => (Kind::Config, "check name and version of the object".to_owned()),
    };
    let retry = match problem {
        Kind::Throttled | Kind::Unavailable => Retry::After(retry_after(headers)),
        _ => Retry::No,
    };
    Problem::new(problem, what).hint(hint).retry(retry)
}

/// One line of a store's own words.
pub(super) fn clean(text: &str) -> String {
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_MESSAGE).collect();
    line.trim().to_owned()
}

fn word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect()
}

/// What an administrator must grant (tracker T07).
fn refused(wanted: &Wanted, inner: &str) -> String {
    let folder = wanted.kind.folder();
    let role = match wanted.kind {
        _ if wanted.hsm => "Managed HSM Crypto User",
        ObjectKind::Secret => "Key Vault Secrets User",
        ObjectKind::Key => "Key Vault Crypto User",
        ObjectKind::Certificate => "Key Vault Certificate User",
    };
    let right = match wanted.right {
        Right::Get => format!("get on {folder}"),
        Right::List => format!("list on {folder}, which objectVersionHistory needs besides get,"),
    };
    match inner {
        "ForbiddenByFirewall" => {
            "the network was refused, not the identity: allow this node's address or private endpoint in the vault's \
             networking"
                .to_owned()
        }
        "ForbiddenByRbac" => format!("grant the identity the role {role} ({right}) on this vault"),
        "ForbiddenByPolicy" => format!("add {right} for the identity to the vault's access policy"),
        "SecretDisabled" => "enable this version, or name another".to_owned(),
        _ => format!("grant {right} (role {role})"),
    }
}

/// The wait that a store asks for, in any of its three spellings.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let asked = number("retry-after-ms")
        .or_else(|| number("x-ms-retry-after-ms"))
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs));
    // A longer wait than a mount may take is an error at once, however long it is.
    asked.map(|wait| wait.min(Duration::from_secs(3600)))
}

/// No answer from a vault at all.
pub(super) fn no_vault(what: &str, failure: &Failure) -> Problem {
    transport(what, failure, "check keyvaultName, cloudName and the private DNS zone")
}

/// No answer at all; `name` is what to check where the host's name leads nowhere (tracker T03).
pub(super) fn transport(what: &str, failure: &Failure, name: &str) -> Problem {
    let hint = match failure.kind {
        FailureKind::NoSuchHost => format!("DNS has no such name; {name}"),
        FailureKind::Resolver => format!("DNS gave no answer for this name; check the resolver of this node, {name}"),
        FailureKind::Refused => {
            "the host refuses the connection: check network, firewall and private endpoint, and what listens there".to_owned()
        }
        FailureKind::ConnectTimeout => {
            "nothing answers at this address: check network, firewall and private endpoint".to_owned()
        }
        FailureKind::Silent => "the network or the store swallows requests; check both".to_owned(),
        FailureKind::Tls | FailureKind::Roots => {
            "check the CA certificates of this node (SSL_CERT_FILE)".to_owned()
        }
        FailureKind::Proxy => "check HTTPS_PROXY and NO_PROXY".to_owned(),
        FailureKind::TooLarge | FailureKind::Closed | FailureKind::Protocol => {
            "check what stands between this node and the store".to_owned()
        }
    };
    let retry = match failure.kind {
        FailureKind::NoSuchHost => Retry::Once,
        FailureKind::TooLarge | FailureKind::Tls | FailureKind::Roots => Retry::No,
        _ => Retry::After(None),
    };
    let kind = if failure.kind == FailureKind::TooLarge { Kind::Shape } else { Kind::Unavailable };
    // Go's words, which people search for (azure.md 13).
    let dial = match failure.kind {
        FailureKind::NoSuchHost | FailureKind::Resolver => "dial tcp: lookup ",
        _ => "",
    };
    Problem::new(kind, format!("{what}: {dial}{failure}")).hint(hint).retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t03_every_kind_of_silence_has_its_own_words() {
        let words = |kind, detail: &str| {
            let failure = Failure {
                kind,
                host: "shopkv.vault.azure.net".into(),
                address: Some("192.0.2.7:443".parse().unwrap()),
                after: Duration::from_secs(5),
                detail: detail.into(),
            };
            no_vault("Get \"x\"", &failure).to_string()
        };
        let silent = words(FailureKind::ConnectTimeout, "no answer to the connection attempt");
        for fragment in ["192.0.2.7:443", "no answer", "5.0 s", "network, firewall"] {
            assert!(silent.contains(fragment), "{fragment}: {silent}");
        }
        let refused = words(FailureKind::Refused, "cannot connect: Connection refused");
        let unknown = words(FailureKind::NoSuchHost, "no such host");
        let resolver = words(FailureKind::Resolver, "the name was not resolved in time");
        assert!(refused.contains("refuses the connection") && !refused.contains("DNS"), "{refused}");
        assert!(unknown.contains("DNS has no such name") && unknown.contains("keyvaultName"), "{unknown}");
        assert!(resolver.contains("DNS gave no answer") && resolver.contains("resolver"), "{resolver}");
        for text in [&unknown, &resolver] {
            assert!(text.contains("dial tcp: lookup shopkv.vault.azure.net"), "{text}");
        }
    }
}

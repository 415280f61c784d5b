//! The machine's metadata service: tokens of the identities that the machine has.

use http::request::Parts;
use serde_json::json;

use super::super::serve::{Reply, pairs, value};
use super::content::{Identity, Managed};
use super::{Shared, access, entra};

/// Versions that clients of this endpoint send: Microsoft's SDKs the first, its Rust SDK the second.
const VERSIONS: [&str; 2] = ["2018-02-01", "2019-08-01"];

pub(super) fn answer(shared: &Shared, parts: &Parts, host: &str) -> Reply {
    if parts.uri.path() != "/metadata/identity/oauth2/token" || host != "169.254.169.254" {
        return shared.unexpected(parts, host, Reply::new(404, ""));
    }
    if parts.method != "GET" {
        return shared.unexpected(parts, host, refuse(405, "method_not_allowed", "Only GET is supported."));
    }
    if parts.headers.get("metadata").is_none_or(|value| !value.as_bytes().eq_ignore_ascii_case(b"true")) {
        return refuse(400, "invalid_request", "Required metadata header not specified");
    }
    if parts.headers.contains_key("x-forwarded-for") {
        return refuse(400, "invalid_request", "A request with X-Forwarded-For is refused");
    }
    let query = pairs(parts.uri.query().unwrap_or_default());
    if !value(&query, "api-version").is_some_and(|version| VERSIONS.contains(&version)) {
        return refuse(400, "bad_request", "api-version is missing or not one of the service's");
    }
    let Some(resource) = value(&query, "resource") else {
        return refuse(400, "invalid_request", "Required query variable 'resource' is missing");
    };
    if !entra::known_resource(resource) {
        let text =
            format!("AADSTS500011: The resource principal named {resource} was not found in the tenant.");
        return refuse(400, "invalid_resource", &text);
    }
    let content = shared.content.read().unwrap();
    let mut machine = content.identities.iter().filter(|identity| identity.managed.is_some());
    let asked = ["client_id", "object_id", "mi_res_id", "msi_res_id"]
        .into_iter()
        .find_map(|name| value(&query, name).map(|value| (name, value)));
    let found = match asked {
        Some(("client_id", id)) => machine.find(|identity| identity.client_id == id),
        Some(("object_id", id)) => machine.find(|identity| identity.object_id == id),
        Some((_, id)) => machine.find(|identity| identity.resource_id.as_deref() == Some(id)),
        None => default(&machine.collect::<Vec<_>>()),
    };
    let Some(identity) = found else { return refuse(400, "invalid_request", "Identity not found") };
    let (now, lifetime) = (shared.clock.now(), access::LIFETIME);
    let body = json!({
        "access_token": access::mint(shared, identity, &content.tenant, resource),
        "client_id": identity.client_id,
        "expires_in": lifetime.to_string(),
        "expires_on": (now + lifetime).to_string(),
        "ext_expires_in": lifetime.to_string(),
        "not_before": now.to_string(),
        "resource": resource,
        "token_type": "Bearer",
    });
    Reply::json(200, &body).client(Some(identity.client_id.clone()))
}

/// The machine's own identity, else the only one assigned.
fn default<'a>(machine: &[&'a Identity]) -> Option<&'a Identity> {
    match machine.iter().find(|identity| identity.managed == Some(Managed::System)) {
        Some(system) => Some(system),
        None if machine.len() == 1 => Some(machine[0]),
        None => None,
    }
}

fn refuse(status: u16, error: &str, text: &str) -> Reply {
    Reply::json(status, &json!({"error": error, "error_description": text}))
}

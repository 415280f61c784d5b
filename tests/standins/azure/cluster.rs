//! What a cluster has around Azure: the API server's service accounts, the token proxy of identity binding,
//! and the pod identity service of a node.

use http::request::Parts;
use serde_json::{Value, json};

use super::super::serve::{Reply, ServerName, pairs, value};
use super::content::Content;
use super::{Shared, access, entra};

/// The host of API server and token proxy.
pub const HOST: &str = "kubernetes.default.svc.cluster.local";
/// What a caller of the API must bring.
pub const API_TOKEN: &str = "standin-api-token";
/// The id of the cluster; it stands in the certificate.
pub const CLUSTER_ID: &str = "abc123def456";
/// The token proxy's name in TLS, as it follows from the id.
pub const PROXY_NAME: &str = "avimke6u6l2eeq8qc1cneuaq4sl2e1av9t4clqgun97le32hub670.ests.aks";
const AUDIENCE: &str = "api://AKSIdentityBinding";

pub(super) fn answer(shared: &Shared, parts: &Parts, host: &str, body: &[u8]) -> Reply {
    let name = parts.extensions.get::<ServerName>().and_then(|name| name.0.clone()).unwrap_or_default();
    let path: Vec<&str> = parts.uri.path().trim_start_matches('/').split('/').collect();
    match (parts.method.as_str(), path.as_slice()) {
        ("GET", ["api", "v1", "namespaces", namespace, "serviceaccounts", account]) if name == HOST => {
            service_account(shared, parts, namespace, account)
        }
        ("POST", [.., tenant, "oauth2", "v2.0", "token"]) if name == PROXY_NAME => {
            proxy(shared, tenant, &String::from_utf8_lossy(body))
        }
        _ => shared.unexpected(parts, &format!("{host} (as {name})"), Reply::new(404, "")),
    }
}

fn status(code: u16, reason: &str, message: &str) -> Reply {
    Reply::json(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason,
            "code": code,
        }),
    )
}

fn service_account(shared: &Shared, parts: &Parts, namespace: &str, name: &str) -> Reply {
    let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if header.and_then(|header| header.strip_prefix("Bearer ")) != Some(API_TOKEN) {
        return status(401, "Unauthorized", "Unauthorized");
    }
    let content = shared.content.read().unwrap();
    match content.service_accounts.get(&format!("{namespace}/{name}")) {
        None => status(404, "NotFound", &format!("serviceaccounts \"{name}\" not found")),
        Some(annotations) => Reply::json(
            200,
            &json!({
                "kind": "ServiceAccount", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            }),
        ),
    }
}

fn proxy(shared: &Shared, tenant: &str, form: &str) -> Reply {
    let form = pairs(form);
    let content = shared.content.read().unwrap();
    let refuse = |code: u16, number: u32, text: &str| {
        Reply::json(code, &entra::error_body(shared, "invalid_client", number, text))
    };
    let client = value(&form, "client_id").unwrap_or_default();
    let Some(identity) = content.identities.iter().find(|known| known.client_id == client) else {
        return refuse(400, 700_016, "The application was not found.");
    };
    let claims = value(&form, "client_assertion").map(|assertion| shared.issuer.verify(assertion));
    let Some(Ok(claims)) = claims else { return refuse(401, 50027, "The token is not valid.") };
    if tenant != content.tenant || !claims.aud.iter().any(|own| own == AUDIENCE) {
        return refuse(401, 700_212, "The token is for another audience or tenant.");
    }
    if !identity.bound.contains(&claims.sub) {
        return refuse(403, 700_213, "The service account may not use this identity.");
    }
    let scope = value(&form, "scope").unwrap_or_default();
    let resource = scope.split(' ').find_map(|scope| scope.strip_suffix("/.default")).unwrap_or_default();
    if !entra::known_resource(resource) {
        return refuse(400, 500_011, "The resource is unknown.");
    }
    let token = access::mint(shared, identity, &content.tenant, resource);
    let lifetime = access::LIFETIME;
    let body = json!({"token_type": "Bearer", "expires_in": lifetime, "access_token": token});
    Reply::json(200, &body).client(Some(identity.client_id.clone()))
}

/// The pod identity service of the node.
pub(super) fn pod_identity(shared: &Shared, parts: &Parts, host: &str) -> Reply {
    if parts.method != "GET" || parts.uri.path() != "/host/token/" || host != "localhost" {
        return shared.unexpected(parts, host, Reply::new(404, ""));
    }
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let content = shared.content.read().unwrap();
    let pod = format!("{}/{}", header("podns"), header("podname"));
    // The service takes the query as it is, so an escaped resource is another one.
    let resource = parts.uri.query().and_then(|query| query.strip_prefix("resource=")).unwrap_or_default();
    let Some(identity) = identity_of(&content, &pod) else {
        return Reply::new(404, format!("no AzureAssignedIdentity found for pod:{pod}"));
    };
    if !entra::known_resource(resource) || resource.ends_with('/') {
        return Reply::new(400, "unknown resource");
    }
    let token = access::mint(shared, identity, &content.tenant, resource);
    let ends: Value = (shared.clock.now() + access::LIFETIME).to_string().into();
    let body = json!({
        "token": {"access_token": token, "expires_on": ends, "resource": resource, "token_type": "Bearer"},
        "clientid": identity.client_id,
    });
    Reply::json(200, &body).client(Some(identity.client_id.clone()))
}

fn identity_of<'a>(content: &'a Content, pod: &str) -> Option<&'a super::content::Identity> {
    let client = content.pods.get(pod)?;
    content.identities.iter().find(|known| known.client_id == *client)
}

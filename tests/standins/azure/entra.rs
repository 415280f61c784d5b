//! Entra ID: discovery and the token endpoint, with the errors that people search for.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use ring::{digest, signature};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::issuer::{Flaw, decode, uid};
use super::super::serve::{Reply, pairs, value};
use super::content::{AUDIENCE, Content, Identity};
use super::{CLOUDS, Shared, access};

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// An error of the token endpoint: status, `error`, AADSTS number, text.
struct Refusal(u16, &'static str, u32, String);

pub(super) fn answer(shared: &Shared, parts: &Parts, host: &str, body: &[u8]) -> Reply {
    let path: Vec<&str> = parts.uri.path().trim_start_matches('/').split('/').collect();
    match (parts.method.as_str(), path.as_slice()) {
        ("GET", ["common", "discovery", "instance"]) => instance(parts.uri.query().unwrap_or_default()),
        ("GET", [tenant, "v2.0", ".well-known", "openid-configuration"])
        | ("GET", [tenant, ".well-known", "openid-configuration"]) => {
            if shared.content.read().unwrap().tenant == *tenant {
                discovery(host, tenant)
            } else {
                refuse(shared, &unknown_tenant("invalid_tenant", tenant))
            }
        }
        ("POST", [tenant, "oauth2", "v2.0", "token"]) => {
            let content = shared.content.read().unwrap();
            let form = String::from_utf8_lossy(body);
            let form = pairs(&form);
            let known = |id: &&str| content.identities.iter().any(|identity| identity.client_id == *id);
            let client = value(&form, "client_id").filter(known).map(ToOwned::to_owned);
            let plain = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let form = if plain.is_some_and(|v| v.starts_with("application/x-www-form-urlencoded")) {
                form
            } else {
                Vec::new()
            };
            match token(shared, &content, tenant, &form) {
                Ok(reply) => reply.client(client),
                Err(refusal) => refuse(shared, &refusal).client(client),
            }
        }
        _ => shared.unexpected(parts, host, Reply::new(404, "")),
    }
}

fn instance(query: &str) -> Reply {
    let query = pairs(query);
    let endpoint = value(&query, "authorization_endpoint").unwrap_or_default();
    let tenant = endpoint.strip_prefix("https://").and_then(|rest| rest.split('/').nth(1));
    let (Some(tenant), Some("1.0" | "1.1")) = (tenant, value(&query, "api-version")) else {
        return Reply::json(
            400,
            &json!({"error": "invalid_instance", "error_description": "AADSTS50049: Unknown or invalid instance."}),
        );
    };
    let metadata: Vec<_> = CLOUDS
        .iter()
        .map(|(_, host)| json!({"preferred_network": host, "preferred_cache": host, "aliases": [host]}))
        .collect();
    let host = endpoint.trim_start_matches("https://").split('/').next().unwrap_or_default();
    Reply::json(
        200,
        &json!({
            "tenant_discovery_endpoint": format!("https://{host}/{tenant}/v2.0/.well-known/openid-configuration"),
            "api-version": "1.1",
            "metadata": metadata,
        }),
    )
}

fn discovery(host: &str, tenant: &str) -> Reply {
    let at = format!("https://{host}/{tenant}");
    Reply::json(
        200,
        &json!({
            "issuer": format!("{at}/v2.0"),
            "token_endpoint": format!("{at}/oauth2/v2.0/token"),
            "authorization_endpoint": format!("{at}/oauth2/v2.0/authorize"),
            "jwks_uri": format!("{at}/discovery/v2.0/keys"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }),
    )
}

fn unknown_tenant(error: &'static str, tenant: &str) -> Refusal {
    Refusal(
        400,
        error,
        90002,
        format!(
            "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud."
        ),
    )
}

fn token(
    shared: &Shared,
    content: &Content,
    tenant: &str,
    form: &[(String, String)],
) -> Result<Reply, Refusal> {
    let needed = |name: &str| {
        value(form, name).ok_or_else(|| {
            let text = format!("The request body must contain the following parameter: '{name}'.");
            Refusal(400, "invalid_request", 900_144, text)
        })
    };
    if tenant != content.tenant {
        return Err(unknown_tenant("invalid_request", tenant));
    }
    let grant = needed("grant_type")?;
    if grant != "client_credentials" {
        let text = format!("The app requested an unsupported grant type '{grant}'.");
        return Err(Refusal(400, "unsupported_grant_type", 70003, text));
    }
    let (client, scope) = (needed("client_id")?, needed("scope")?);
    let resource = scope.split(' ').find_map(|scope| scope.strip_suffix("/.default")).ok_or_else(|| {
        let text = format!("The provided request must include a 'scope' input parameter. The provided value for scope {scope} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).");
        Refusal(400, "invalid_scope", 70011, text)
    })?;
    if !known_resource(resource) {
        let text =
            format!("The resource principal named {resource} was not found in the tenant named {tenant}.");
        return Err(Refusal(400, "invalid_resource", 500_011, text));
    }
    let identity = content.identities.iter().find(|known| known.client_id == client).ok_or_else(|| {
        let text =
            format!("Application with identifier '{client}' was not found in the directory '{tenant}'.");
        Refusal(400, "unauthorized_client", 700_016, text)
    })?;
    match (value(form, "client_secret"), value(form, "client_assertion")) {
        (Some(secret), None) => {
            if !identity.client_secrets.iter().any(|known| known == secret) {
                let text = format!(
                    "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client}'."
                );
                return Err(Refusal(401, "invalid_client", 7_000_215, text));
            }
        }
        (None, Some(assertion)) if value(form, "client_assertion_type") == Some(ASSERTION) => {
            match certificate_of(assertion) {
                Some(header) => signed(shared, content, identity, &header, assertion)?,
                None => federated(shared, identity, assertion)?,
            }
        }
        _ => {
            let text = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            return Err(Refusal(401, "invalid_client", 7_000_218, text.to_owned()));
        }
    }
    let token = access::mint(shared, identity, &content.tenant, resource);
    let lifetime = access::LIFETIME;
    Ok(Reply::json(
        200,
        &json!({"token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime, "access_token": token}),
    )
    .header("cache-control", "no-store, no-cache"))
}

/// Tells whether tokens can be had for this resource.
pub(super) fn known_resource(resource: &str) -> bool {
    let host = resource.trim_end_matches('/').strip_prefix("https://");
    host.is_some_and(|host| CLOUDS.iter().any(|(suffix, _)| *suffix == host))
}

/// The header of an assertion that names a certificate.
fn certificate_of(assertion: &str) -> Option<Value> {
    let header: Value = decode(assertion.split('.').next()?).ok()?;
    let named = ["x5t#S256", "x5t"].iter().any(|name| header[name].is_string());
    named.then_some(header)
}

/// Whether a certificate is the one that a header names.
fn named(header: &Value, der: &CertificateDer) -> bool {
    [("x5t#S256", &digest::SHA256), ("x5t", &digest::SHA1_FOR_LEGACY_USE_ONLY)].iter().any(|(name, hash)| {
        // Some clients write the padding that the form does not have.
        let thumbprint = header[name].as_str().map(|text| text.trim_end_matches('='));
        thumbprint == Some(URL_SAFE_NO_PAD.encode(digest::digest(hash, der)).as_str())
    })
}

/// Checks an assertion that the application signed itself.
fn signed(
    shared: &Shared,
    content: &Content,
    identity: &Identity,
    header: &Value,
    assertion: &str,
) -> Result<(), Refusal> {
    let refuse = |number, text: &str| Err(Refusal(401, "invalid_client", number, text.to_owned()));
    let mut ders =
        identity.certificates.iter().filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
    let Some(der) = ders.find(|der| named(header, der)) else {
        return refuse(
            700_027,
            "The certificate with identifier used to sign the client assertion is not registered on application.",
        );
    };
    let algorithm = match header["alg"].as_str() {
        Some("PS256") => &signature::RSA_PSS_2048_8192_SHA256,
        Some("RS256") => &signature::RSA_PKCS1_2048_8192_SHA256,
        _ => return refuse(700_027, "The algorithm of the client assertion is not supported."),
    };
    let (_, certificate) = X509Certificate::from_der(&der).expect("a certificate of a test");
    let key = certificate.public_key().subject_public_key.data.to_vec();
    let (text, proof) = assertion.rsplit_once('.').unwrap_or_default();
    let proof = URL_SAFE_NO_PAD.decode(proof).unwrap_or_default();
    if signature::UnparsedPublicKey::new(algorithm, key).verify(text.as_bytes(), &proof).is_err() {
        return refuse(700_027, "Client assertion failed signature validation.");
    }
    let claims: Value = decode(text.split('.').nth(1).unwrap_or_default()).unwrap_or_default();
    let client = Some(identity.client_id.as_str());
    let ours = claims["iss"].as_str() == client && claims["sub"].as_str() == client;
    let path = format!("/{}/oauth2/v2.0/token", content.tenant);
    let audience = claims["aud"].as_str().and_then(|aud| aud.strip_suffix(&path));
    let now = shared.clock.now();
    // Some clients write fractions of a second, and no time to start from.
    let now = std::time::Duration::from_secs(now).as_secs_f64();
    let timely = claims["nbf"].as_f64().is_none_or(|nbf| nbf <= now)
        && claims["exp"].as_f64().is_some_and(|exp| exp > now);
    let audience =
        audience.is_some_and(|host| CLOUDS.iter().any(|(_, known)| host == format!("https://{known}")));
    if ours && audience && timely && claims["jti"].is_string() {
        Ok(())
    } else {
        refuse(700_021, "Client assertion contains an invalid claim.")
    }
}

fn federated(shared: &Shared, identity: &Identity, assertion: &str) -> Result<(), Refusal> {
    let no_match = |number, what: &str| {
        let text = format!(
            "No matching federated identity record found for presented assertion {what}. Please check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
        );
        Err(Refusal(401, "invalid_client", number, text))
    };
    let claims = shared.issuer.verify(assertion).map_err(|flaw| match flaw {
        Flaw::Malformed => {
            Refusal(400, "invalid_request", 50027, "JWT token is invalid or malformed.".to_owned())
        }
        Flaw::Signature => {
            let text = "Invalid JWT token. The signature could not be verified with the issuer's keys.";
            Refusal(400, "invalid_request", 50027, text.to_owned())
        }
        Flaw::Time => {
            let now = shared.clock.text();
            let text = format!("Client assertion is not within its valid time range. Current time: {now}.");
            Refusal(401, "invalid_client", 700_024, text)
        }
    })?;
    let own = shared.issuer.url();
    let of_issuer: Vec<_> =
        identity.federated.iter().filter(|f| *f.issuer.as_ref().unwrap_or(&own) == claims.iss).collect();
    if of_issuer.is_empty() {
        return no_match(700_211, &format!("issuer '{}'", claims.iss));
    }
    let of_subject: Vec<_> = of_issuer.into_iter().filter(|f| f.subject == claims.sub).collect();
    if of_subject.is_empty() {
        return no_match(700_213, &format!("subject '{}'", claims.sub));
    }
    let audience = |f: &&super::content::Federated| {
        claims.aud.iter().any(|own| own == f.audience.as_deref().unwrap_or(AUDIENCE))
    };
    if of_subject.iter().any(audience) {
        Ok(())
    } else {
        no_match(700_212, &format!("audience '{}'", claims.aud.join("', '")))
    }
}

fn refuse(shared: &Shared, Refusal(status, error, number, text): &Refusal) -> Reply {
    Reply::json(*status, &error_body(shared, error, *number, text))
}

/// Makes an error body as Entra words it.
pub(super) fn error_body(shared: &Shared, error: &str, number: u32, text: &str) -> Value {
    let count = shared.requests.fetch_add(1, Ordering::Relaxed);
    let (trace, correlation) = (uid(&format!("trace {count}")), uid(&format!("correlation {count}")));
    let time = shared.clock.text().replace('T', " ");
    json!({
        "error": error,
        "error_description": format!("AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {time}"),
        "error_codes": [number],
        "timestamp": time,
        "trace_id": trace,
        "correlation_id": correlation,
        "error_uri": format!("https://login.microsoftonline.com/error?code={number}"),
    })
}

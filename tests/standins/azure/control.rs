//! Changes from outside the process: a listener of its own, with paths that no real service has.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::faults::Fault;
use super::super::issuer::Variant;
use super::super::serve::{Gone, Reply, Sent};
use super::content::{AUDIENCE, Kind, ObjectVersion, Rule, host_of};
use super::{Shared, micros};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mint {
    namespace: String,
    service_account: String,
    audience: Option<String>,
    #[serde(default)]
    variant: Variant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    vault: String,
    kind: Kind,
    name: String,
    /// Set, or deleted if there is none.
    version: Option<ObjectVersion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Enable {
    vault: String,
    kind: Kind,
    name: String,
    version: Option<String>,
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rules {
    vault: String,
    /// In place of all before.
    rules: Vec<Rule>,
}

pub(super) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Sent>, Gone> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Gone)?.to_bytes();
    let reply = match change(&shared, parts.method.as_str(), parts.uri.path(), &body) {
        Ok(value) => Reply::json(200, &value),
        Err(text) => Reply::json(400, &json!({ "error": text })),
    };
    Ok(reply.header("content-type", "application/json").message(false))
}

fn change(shared: &Shared, method: &str, path: &str, body: &[u8]) -> Result<Value, String> {
    match (method, path) {
        ("GET", "/ready") => {}
        ("GET", "/.well-known/openid-configuration") => return Ok(shared.issuer.discovery()),
        ("GET", "/openid/v1/jwks") => return Ok(shared.issuer.jwks()),
        ("POST", "/__standin/faults") => shared.faults.arm(read::<Fault>(body)?),
        ("DELETE", "/__standin/faults") => shared.faults.clear(),
        ("GET", "/__standin/log") => {
            return Ok(json!({"requests": shared.log.all(), "inFlightPeak": shared.log.peak()}));
        }
        ("DELETE", "/__standin/log") => shared.log.clear(),
        ("GET", "/__standin/unexpected") => return Ok(json!(*shared.unexpected.lock().unwrap())),
        ("DELETE", "/__standin/unexpected") => shared.unexpected.lock().unwrap().clear(),
        ("POST", "/__standin/store") => shared.content.write().unwrap().add(read(body)?)?,
        ("POST", "/__standin/objects") => {
            let Object { vault, kind, name, version } = read(body)?;
            let (host, mut content) = (host_of(&vault), shared.content.write().unwrap());
            match version {
                Some(version) => content.vault(&host).set(&host, kind, &name, version),
                None => content.vault(&host).delete(kind, &name),
            }
        }
        ("POST", "/__standin/enable") => {
            let Enable { vault, kind, name, version, enabled } = read(body)?;
            let (host, mut content) = (host_of(&vault), shared.content.write().unwrap());
            content.vault(&host).enable(&host, kind, &name, version.as_deref(), enabled);
        }
        ("POST", "/__standin/rules") => {
            let Rules { vault, rules } = read(body)?;
            shared.content.write().unwrap().vault(&host_of(&vault)).rules = rules;
        }
        ("POST", "/__standin/mint") => {
            let Mint { namespace, service_account, audience, variant } = read(body)?;
            let audience = audience.as_deref().unwrap_or(AUDIENCE);
            let token = shared.issuer.mint_as(&namespace, &service_account, audience, variant);
            return Ok(json!({ "token": token }));
        }
        ("POST", "/__standin/latency") => {
            let milliseconds = read(body)?;
            let latency = micros(std::time::Duration::from_millis(milliseconds));
            shared.latency.store(latency, Ordering::Relaxed);
        }
        ("POST", "/__standin/clock") => shared.clock.shift(read(body)?),
        ("POST", "/__standin/expire-tokens") => {
            shared.epoch.fetch_add(1, Ordering::Relaxed);
        }
        ("POST", "/__standin/rotate-signing-keys") => shared.issuer.rotate_signing_keys(),
        _ => return Err(format!("{method} {path} is no control")),
    }
    Ok(json!({}))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

//! Proves an application's identity to Entra, through `azure_identity` over our transport (azure.md 11.2,
//! 11.4).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_core::http::headers::Headers;
use azure_core::http::request::Body;
use azure_core::http::{
    AsyncRawResponse, ClientMethodOptions, ClientOptions, HttpClient, Request, RetryOptions, Transport,
};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;

use super::{Login, Session, Target, errors};
use crate::error::{Kind, Problem, Retry};
use crate::http::{Failure, Http};
use crate::plan::Credential;
use crate::secret::SecretText;

/// A session is given up so long before its token ends.
const MARGIN: Duration = Duration::from_secs(300);

/// Gets an access token for `resource`.
pub(super) async fn login(
    http: &Http,
    target: &Target,
    client_id: &str,
    resource: &str,
    credential: &Credential,
) -> Result<Login<Session>, Problem> {
    let wire = Arc::new(Wire { http: http.clone(), last: Mutex::default() });
    let options = options(&wire, &target.authority);
    let claims = claims(credential);
    let app = App { tenant: &target.tenant, client_id };
    let source = source(&app, credential, options).map_err(|error| {
        Problem::config(format!("failed to get keyvault client: {}", errors::clean(&error.to_string())))
    })?;
    let scope = format!("{resource}/.default");
    let token = source
        .get_token(&[&scope], None)
        .await
        .map_err(|error| explain(&wire, &app, credential, &claims, &errors::clean(&error.to_string())))?;
    Ok(session(client_id, &claims, &token))
}

/// The application and where it lives.
struct App<'a> {
    tenant: &'a str,
    client_id: &'a str,
}

fn options(wire: &Arc<Wire>, authority: &str) -> ClientOptions {
    let mut custom = CustomConfiguration::default();
    custom.authority_host = authority.to_owned();
    ClientOptions {
        transport: Some(Transport::new(wire.clone())),
        // The engine decides about further tries, within the mount's time and the store's pace.
        retry: RetryOptions::none(),
        cloud: Some(Arc::new(CloudConfiguration::Custom(custom))),
        ..ClientOptions::default()
    }
}

fn source(
    app: &App,
    credential: &Credential,
    client_options: ClientOptions,
) -> azure_core::Result<Arc<dyn TokenCredential>> {
    let (tenant, client_id) = (app.tenant.to_owned(), app.client_id.to_owned());
    Ok(match credential {
        Credential::Token(token) => ClientAssertionCredential::new(
            tenant,
            client_id,
            Assertion(token.clone()),
            Some(ClientAssertionCredentialOptions { client_options }),
        )?,
        Credential::Password(secret) => ClientSecretCredential::new(
            &tenant,
            client_id,
            Secret::new(secret.expose().to_owned()),
            Some(ClientSecretCredentialOptions { client_options }),
        )?,
        Credential::Node => {
            let text = "an application needs a credential of its own";
            return Err(azure_core::Error::with_message(azure_core::error::ErrorKind::Credential, text));
        }
    })
}

/// When a session is no longer used: some time before its token ends.
pub(super) fn renew_after(life: Duration) -> Duration {
    life.saturating_sub(MARGIN).max(life / 2)
}

/// What a service-account token says of itself; proven only once Entra has accepted that very token.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Claims {
    iss: String,
    sub: String,
    aud: serde_json::Value,
    exp: u64,
}

fn claims(credential: &Credential) -> Claims {
    let Credential::Token(token) = credential else { return Claims::default() };
    let payload = token.expose().split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    payload.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

fn session(client_id: &str, claims: &Claims, token: &AccessToken) -> Login<Session> {
    let now = std::time::SystemTime::now();
    let unix = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ends = u64::try_from(token.expires_on.unix_timestamp()).unwrap_or(0);
    let mut lasts = renew_after(Duration::from_secs(ends.saturating_sub(unix)));
    if claims.exp > 0 {
        // The proof is as good as the token that gave it.
        lasts = lasts.min(Duration::from_secs(claims.exp.saturating_sub(unix)));
    }
    // Lengths keep two texts from looking like two others.
    let Claims { iss, sub, .. } = claims;
    let principal = format!("app {client_id} {} {iss} {} {sub}", iss.len(), sub.len());
    Login { session: Session { token: SecretText::new(token.token.secret().to_owned()) }, principal, lasts }
}

/// The refusal of the login service, with what it was told (tracker T04).
fn explain(wire: &Wire, app: &App, credential: &Credential, claims: &Claims, said: &str) -> Problem {
    let name = match credential {
        Credential::Token(_) => "ClientAssertionCredential",
        Credential::Password(_) | Credential::Node => "ClientSecretCredential",
    };
    match wire.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(Last::Failed(failure)) => errors::transport(&format!("{name} authentication failed"), &failure),
        Some(Last::Answered { status, wait }) if status >= 500 || status == 429 || status == 408 => {
            let kind = if status == 429 { Kind::Throttled } else { Kind::Unavailable };
            Problem::new(kind, format!("{name} authentication failed. RESPONSE {status}"))
                .hint("the login service is in trouble; the kubelet will try again")
                .retry(Retry::After(wait))
        }
        Some(Last::Answered { status, .. }) => refused(status, app, credential, claims, said),
        None => Problem::new(Kind::Unauthenticated, said.to_owned()),
    }
}

fn refused(status: u16, app: &App, credential: &Credential, claims: &Claims, said: &str) -> Problem {
    let App { tenant, client_id } = app;
    // What a token says is anybody's text until it is accepted.
    let [iss, sub, aud] = [&claims.iss, &claims.sub, &claims.aud.to_string()].map(|text| errors::clean(text));
    let hint = match credential {
        Credential::Token(_) => format!(
            "create a federated credential on client {client_id} with exactly issuer {iss}, subject {sub}, audience \
             api://AzureADTokenExchange (the token presented has issuer {iss}, subject {sub}, audience {aud})"
        ),
        Credential::Password(_) | Credential::Node => {
            "check clientid and clientsecret in the Secret behind nodePublishSecretRef".to_owned()
        }
    };
    let what = format!("{said}\nRESPONSE {status} (client {client_id}, tenant {tenant})");
    Problem::new(Kind::Unauthenticated, what).hint(hint)
}

/// The pod's token as an assertion.
struct Assertion(SecretText);

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assertion")
    }
}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        Ok(self.0.expose().to_owned())
    }
}

/// What the last request of a login came to; the crate's error does not keep it.
enum Last {
    Answered { status: u16, wait: Option<Duration> },
    Failed(Failure),
}

/// Our client as the crate's transport, for one login.
struct Wire {
    http: Http,
    last: Mutex<Option<Last>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

#[async_trait]
impl HttpClient for Wire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let broken = |text: String| azure_core::Error::with_message(azure_core::error::ErrorKind::Io, text);
        let mut builder =
            http::Request::builder().method(request.method().as_ref()).uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        let Body::Bytes(body) = request.body() else { return Err(broken("a login sends no stream".into())) };
        let request = builder.body(Bytes::clone(body)).map_err(|error| broken(error.to_string()))?;
        let note = |last| *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        match self.http.send(request).await {
            Ok(answer) => {
                let status = answer.status.as_u16();
                note(Last::Answered { status, wait: errors::retry_after(&answer.headers) });
                let mut headers = Headers::new();
                for (name, value) in &answer.headers {
                    if let Ok(value) = value.to_str() {
                        headers.insert(name.as_str().to_owned(), value.to_owned());
                    }
                }
                Ok(AsyncRawResponse::from_bytes(status.into(), headers, answer.body.expose().to_vec()))
            }
            Err(failure) => {
                let text = failure.to_string();
                note(Last::Failed(failure));
                Err(broken(text))
            }
        }
    }
}

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

use super::certificate::Signer;
use super::{Login, Session, errors};
use crate::error::{Kind, Problem, Retry};
use crate::http::{Failure, Http};
use crate::plan::Credential;
use crate::secret::SecretText;

/// A session is given up so long before its token ends.
const MARGIN: Duration = Duration::from_secs(300);

/// The login service, and the way to it.
pub(super) struct Entra {
    http: Http,
    /// A proxy that takes token requests in its place (azure.md 11.6).
    proxy: Option<http::Uri>,
}

impl Entra {
    /// Asks the authority itself.
    pub(super) fn direct(http: &Http) -> Self {
        Self { http: http.clone(), proxy: None }
    }

    /// Sends every request to `proxy` instead.
    pub(super) fn through(http: Http, proxy: http::Uri) -> Self {
        Self { http, proxy: Some(proxy) }
    }

    /// Gets an access token.
    pub(super) async fn login(
        self,
        app: &App<'_>,
        credential: &Credential,
    ) -> Result<Login<Session>, Problem> {
        let bound = self.proxy.is_some();
        let wire = Arc::new(Wire { entra: self, last: Mutex::default() });
        let options = options(&wire, app.authority);
        let claims = claims(credential);
        let source = source(app, credential, options).map_err(|error| {
            Problem::config(format!("failed to get keyvault client: {}", errors::clean(&error.to_string())))
        })?;
        let scope = format!("{}/.default", app.resource);
        let token = source.get_token(&[&scope], None).await.map_err(|error| {
            let failed = Failed { app, credential, claims: &claims, bound };
            failed.explain(&wire, &errors::clean(&error.to_string()))
        })?;
        Ok(session(app, &claims, &token))
    }
}

/// The application, where it lives and what it wants.
pub(super) struct App<'a> {
    pub(super) authority: &'a str,
    pub(super) tenant: &'a str,
    pub(super) client_id: &'a str,
    pub(super) resource: &'a str,
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
    app: &App<'_>,
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
        Credential::Certificate(pem) => {
            let audience = format!("{}{tenant}/oauth2/v2.0/token", app.authority);
            let signed = Signer::read(pem.expose()).and_then(|key| key.assertion(&client_id, &audience));
            ClientAssertionCredential::new(
                tenant,
                client_id,
                Assertion(signed.map_err(refuse)?),
                Some(ClientAssertionCredentialOptions { client_options }),
            )?
        }
        Credential::Node => {
            let text = "an application needs a credential of its own";
            return Err(refuse(text));
        }
    })
}

fn refuse(text: &'static str) -> azure_core::Error {
    azure_core::Error::with_message(azure_core::error::ErrorKind::Credential, text)
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

fn session(app: &App, claims: &Claims, token: &AccessToken) -> Login<Session> {
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
    let principal = format!("app {} {} {} {iss} {} {sub}", app.tenant, app.client_id, iss.len(), sub.len());
    Login { session: Session { token: SecretText::new(token.token.secret().to_owned()) }, principal, lasts }
}

/// A login that failed, with what it presented.
struct Failed<'a> {
    app: &'a App<'a>,
    credential: &'a Credential,
    claims: &'a Claims,
    /// Whether it went to the cluster's token proxy.
    bound: bool,
}

impl Failed<'_> {
    /// The refusal of the login service, with what it was told (tracker T04).
    fn explain(&self, wire: &Wire, said: &str) -> Problem {
        let name = match self.credential {
            Credential::Token(_) => "ClientAssertionCredential",
            Credential::Certificate(_) => "ClientCertificateCredential",
            Credential::Password(_) | Credential::Node => "ClientSecretCredential",
        };
        match wire.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Last::Failed(failure)) => errors::transport(
                &format!("{name} authentication failed"),
                &failure,
                "check cloudName, and that this node may reach the login service",
            ),
            Some(Last::Answered { status, wait }) if status >= 500 || status == 429 || status == 408 => {
                let kind = if status == 429 { Kind::Throttled } else { Kind::Unavailable };
                Problem::new(kind, format!("{name} authentication failed. RESPONSE {status}"))
                    .hint("the login service is in trouble; the kubelet will try again")
                    .retry(Retry::After(wait))
            }
            Some(Last::Answered { status, .. }) => self.refused(status, said),
            None => Problem::new(Kind::Unauthenticated, said.to_owned()),
        }
    }

    fn refused(&self, status: u16, said: &str) -> Problem {
        let App { tenant, client_id, .. } = self.app;
        let Claims { iss, sub, aud, .. } = self.claims;
        // What a token says is anybody's text until it is accepted.
        let [iss, sub, aud] = [iss, sub, &aud.to_string()].map(|text| errors::clean(text));
        let hint = match self.credential {
            Credential::Token(_) if self.bound => format!(
                "let {sub} use-managed-identity on the resource {client_id} of API group cid.wi.aks.azure.com, and bind \
                 the identity to this cluster (the token presented has audience {aud})"
            ),
            Credential::Token(_) => format!(
                "create a federated credential on client {client_id} with exactly issuer {iss}, subject {sub}, audience \
                 api://AzureADTokenExchange (the token presented has issuer {iss}, subject {sub}, audience {aud})"
            ),
            Credential::Certificate(_) => format!(
                "add the certificate in the Secret behind nodePublishSecretRef to client {client_id}, or check clientid"
            ),
            Credential::Password(_) | Credential::Node => {
                "check clientid and clientsecret in the Secret behind nodePublishSecretRef".to_owned()
            }
        };
        let what = format!("{said}\nRESPONSE {status} (client {client_id}, tenant {tenant})");
        Problem::new(Kind::Unauthenticated, what).hint(hint)
    }
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
    entra: Entra,
    last: Mutex<Option<Last>>,
}

impl Wire {
    /// The address to ask: the crate's, or the same path below the proxy's.
    fn address(&self, url: &str) -> String {
        let Some(proxy) = &self.entra.proxy else { return url.to_owned() };
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let base = proxy.to_string();
        format!("{}{}", base.trim_end_matches('/'), path.unwrap_or("/"))
    }
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
        let url = self.address(request.url().as_str());
        let mut builder = http::Request::builder().method(request.method().as_ref()).uri(url);
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        let Body::Bytes(body) = request.body() else { return Err(broken("a login sends no stream".into())) };
        let request = builder.body(Bytes::clone(body)).map_err(|error| broken(error.to_string()))?;
        let note = |last| *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        match self.entra.http.send(request).await {
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

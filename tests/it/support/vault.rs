//! A stand-in for Entra, Key Vault and the metadata service on loopback: TLS where the real ones have it,
//! tokens that must be the ones it gave out, and a list of the requests that it saw. An unknown request
//! is answered with 400 and remembered under its own name, so that a test can see it.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const TENANT: &str = "22222222-2222-2222-2222-222222222222";
pub const CLIENT: &str = "11111111-1111-1111-1111-111111111111";
pub const VAULT: &str = "shopkv.vault.azure.net";

#[derive(Default)]
struct State {
    /// Object path such as `secrets/db` to the rest of its answer, and its version.
    objects: HashMap<String, (String, String)>,
    /// Service-account tokens with a federated credential.
    federated: HashSet<String>,
    /// Statuses with headers for the next requests to the vault.
    faults: Vec<Reply>,
    log: Vec<(String, Instant)>,
    /// Whether the vault refuses everyone.
    denied: bool,
    /// Wait before each answer.
    latency: Duration,
}

/// The running stand-in; its tasks end with the test's runtime.
#[derive(Clone)]
pub struct StandIn {
    state: Arc<Mutex<State>>,
    pub ca: String,
    pub connect_to: Vec<(String, SocketAddr)>,
}

impl StandIn {
    pub async fn start() -> Self {
        Self::start_with(&[b"h2", b"http/1.1"]).await
    }

    /// Offers these protocols.
    pub async fn start_with(protocols: &[&[u8]]) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let names = ["login.microsoftonline.com", VAULT].map(ToOwned::to_owned);
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = |listener: &TcpListener| listener.local_addr().unwrap();
        let connect_to = vec![
            ("login.microsoftonline.com".to_owned(), at(&secure)),
            (VAULT.to_owned(), at(&secure)),
            ("169.254.169.254".to_owned(), at(&plain)),
        ];
        tokio::spawn(listen(secure, Some(TlsAcceptor::from(Arc::new(config))), state.clone()));
        tokio::spawn(listen(plain, None, state.clone()));
        Self { state, ca: certified.cert.pem(), connect_to }
    }

    pub fn secret(&self, name: &str, version: &str, value: &str) {
        let rest = format!(
            r#""value":{},"id":"https://{VAULT}/secrets/{name}/{version}""#,
            serde_json::Value::from(value)
        );
        self.object(&format!("secrets/{name}"), version, rest);
    }

    pub fn object(&self, path: &str, version: &str, rest: String) {
        self.state.lock().unwrap().objects.insert(path.to_owned(), (rest, version.to_owned()));
    }

    pub fn trust(&self, token: &str) {
        self.state.lock().unwrap().federated.insert(token.to_owned());
    }

    pub fn deny(&self) {
        self.state.lock().unwrap().denied = true;
    }

    pub fn fault(&self, status: u16, header: Option<(&'static str, String)>, body: &str) {
        self.state.lock().unwrap().faults.push((status, header, body.to_owned()));
    }

    pub fn latency(&self, latency: Duration) {
        self.state.lock().unwrap().latency = latency;
    }

    /// Takes the list of requests.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log).into_iter().map(|(line, _)| line).collect()
    }

    /// The requests so far, each with the moment it came.
    pub fn times(&self) -> Vec<(String, Instant)> {
        self.state.lock().unwrap().log.clone()
    }
}

async fn listen(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let (tls, state) = (tls.clone(), state.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, state.clone()));
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is nothing to tell.
            match tls {
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                }
                None => {
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                }
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or("").to_owned();
    let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
    let metadata = parts.headers.get("metadata").is_some();
    let came = Instant::now();
    let latency = state.lock().unwrap().latency;
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let mut state = state.lock().unwrap();
    state.log.push((format!("{} {path}", parts.method), came));
    let (status, header, body) = if path == format!("/{TENANT}/oauth2/v2.0/token") {
        entra(&state, &body)
    } else if path == "/metadata/identity/oauth2/token" {
        imds(metadata, &query)
    } else {
        vault(&mut state, &path, &query, bearer)
    };
    let mut response = Response::builder().status(status);
    if let Some((name, value)) = header {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(body)).unwrap())
}

type Reply = (u16, Option<(&'static str, String)>, String);

fn entra(state: &State, body: &[u8]) -> Reply {
    let form = String::from_utf8_lossy(body).into_owned();
    let has = |text: &str| form.split('&').any(|pair| pair == text);
    let token = form.split('&').find_map(|pair| pair.strip_prefix("client_assertion="));
    let good = has("scope=https%3A%2F%2Fvault.azure.net%2F.default")
        && has(&format!("client_id={CLIENT}"))
        && has("grant_type=client_credentials")
        && (has("client_secret=right") || token.is_some_and(|token| state.federated.contains(token)));
    if good {
        return (
            200,
            None,
            r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"entra-token"}"#
                .into(),
        );
    }
    let text = r#"{"error":"invalid_client","error_description":"AADSTS700213: No matching federated identity record found","error_codes":[700213]}"#;
    (401, None, text.into())
}

fn imds(metadata: bool, query: &str) -> Reply {
    let good = metadata
        && query.contains("resource=https%3A%2F%2Fvault.azure.net")
        && query.contains(&format!("client_id={CLIENT}"));
    if !good {
        return (400, None, r#"{"error":"invalid_request","error_description":"Identity not found"}"#.into());
    }
    let ends = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    (
        200,
        None,
        format!(
            r#"{{"access_token":"entra-token","expires_on":"{ends}","expires_in":"3600","resource":"x","token_type":"Bearer"}}"#
        ),
    )
}

fn vault(state: &mut State, path: &str, query: &str, bearer: &str) -> Reply {
    if query != "api-version=7.4" {
        return (400, None, r#"{"error":{"code":"BadParameter","message":"api-version"}}"#.into());
    }
    if bearer != "Bearer entra-token" {
        let challenge = format!(
            "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", resource=\"https://vault.azure.net\""
        );
        return (
            401,
            Some(("www-authenticate", challenge)),
            r#"{"error":{"code":"Unauthorized","message":"AKV10000"}}"#.into(),
        );
    }
    if !state.faults.is_empty() {
        return state.faults.remove(0);
    }
    if state.denied {
        return (403, None, r#"{"error":{"code":"Forbidden","message":"Caller is not authorized","innererror":{"code":"ForbiddenByRbac"}}}"#.into());
    }
    let (folder, version) = path.trim_start_matches('/').rsplit_once('/').unwrap_or((path, ""));
    match state.objects.get(folder) {
        Some((rest, known)) if version.is_empty() || version == known => (200, None, format!("{{{rest}}}")),
        _ => (
            404,
            None,
            r#"{"error":{"code":"SecretNotFound","message":"A secret with that name was not found"}}"#.into(),
        ),
    }
}

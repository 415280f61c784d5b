//! The stand-ins refuse what the real services refuse: one test for each check.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "mod.rs"]
mod standins;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use standins::azure::content::{
    Denial, Federated, Identity, Kind, Managed, ObjectVersion, Right, Store, Time,
};
use standins::azure::{AzureStandIn, CLIENT, Options, TENANT, cluster};
use standins::faults::{Fault, How};
use standins::issuer::Variant;

const AUDIENCE: &str = "api://AzureADTokenExchange";
const SCOPE: &str = "https://vault.azure.net/.default";
const RESOURCE: &str = "https://vault.azure.net";
const TOKEN_PATH: &str = "https://login.microsoftonline.com/TENANT/oauth2/v2.0/token";

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// An answer as a client sees it.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Gives the status with the error's code, and the inner one.
    fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (self.status, text(&json["error"]["code"]), text(&json["error"]["innererror"]["code"]))
    }
}

/// A stand-in with one vault and one identity, and a client that connects for each request.
struct Lab {
    store: AzureStandIn,
    roots: rustls::RootCertStore,
}

impl Lab {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let store = AzureStandIn::start(options).await.unwrap();
        store.identity(
            Identity::new(CLIENT).federated("shop", "web").client_secret("right").managed(Managed::User),
        );
        store.vault("lab-open").set_secret("db", "v1", "value", ObjectVersion::default());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(store.ca_pem().as_bytes()).unwrap()).unwrap();
        Self { store, roots }
    }

    fn address(&self, host: &str) -> SocketAddr {
        if host == "control" {
            return self.store.control().unwrap();
        }
        let list = self.store.connect_to();
        list.iter().find(|(name, _)| name.trim_end_matches(":80") == host).unwrap().1
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Got, Failed> {
        self.send_by("http/1.1", request).await
    }

    async fn send_by(&self, alpn: &str, mut request: Request<Full<Bytes>>) -> Result<Got, Failed> {
        let host = request.uri().host().unwrap().to_owned();
        let stream = TcpStream::connect(self.address(&host)).await?;
        let plain = request.uri().scheme_str() == Some("http");
        if plain || alpn == "http/1.1" {
            request.headers_mut().insert("host", host.parse()?);
            *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse::<Uri>()?;
        }
        if plain {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Self::read(sender.send_request(request).await?).await;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(host)?;
        let stream = TokioIo::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?);
        if alpn == "h2" {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            return Self::read(sender.send_request(request).await?).await;
        }
        let (mut sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        Self::read(sender.send_request(request).await?).await
    }

    async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Got, Failed> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Got { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Asks Entra with these changes to a right form; an empty value leaves the field out.
    async fn entra(&self, changes: &[(&str, &str)]) -> Got {
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", CLIENT),
            ("scope", SCOPE),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ];
        let mut tenant = TENANT;
        for (name, value) in changes {
            form.retain(|(known, _)| known != name);
            match *name {
                "tenant" => tenant = value,
                _ if value.is_empty() => {}
                _ => form.push((name, value)),
            }
        }
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let body: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let request = Request::post(TOKEN_PATH.replace("TENANT", tenant))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&").into())
            .unwrap();
        self.send(request).await.unwrap()
    }

    /// Shows Entra a service-account token that is wrong in one way.
    async fn assertion(&self, variant: Variant) -> (u16, u64) {
        let token = self.store.issuer().mint_as("shop", "web", AUDIENCE, variant);
        refusal(&self.entra(&[("client_assertion", &token)]).await)
    }

    fn token(&self) -> String {
        self.store.access_token(CLIENT, TENANT, RESOURCE)
    }

    async fn read_with(&self, token: &str, path: &str) -> Result<Got, Failed> {
        let request = Request::get(format!("https://lab-open.vault.azure.net{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(Full::default())
            .unwrap();
        self.send(request).await
    }

    async fn get(&self, path: &str) -> Got {
        let join = if path.contains('?') { '&' } else { '?' };
        self.read_with(&self.token(), &format!("{path}{join}api-version=7.4")).await.unwrap()
    }

    async fn imds(&self, query: &str, metadata: bool) -> Got {
        let uri = format!("http://169.254.169.254/metadata/identity/oauth2/token?{query}");
        let request = Request::get(uri);
        let request = if metadata { request.header("metadata", "true") } else { request };
        self.send(request.body(Full::default()).unwrap()).await.unwrap()
    }
}

fn refusal(got: &Got) -> (u16, u64) {
    (got.status, got.json()["error_codes"][0].as_u64().unwrap_or_default())
}

#[tokio::test]
async fn a_token_of_the_account_is_believed_and_reads() {
    let lab = Lab::new().await;
    let assertion = lab.store.issuer().mint("shop", "web", AUDIENCE);
    let got = lab.entra(&[("client_assertion", &assertion)]).await.json();
    assert_eq!((&got["token_type"], &got["expires_in"]), (&json!("Bearer"), &json!(3599)));
    let token = got["access_token"].as_str().unwrap();
    let read = lab.read_with(token, "/secrets/db?api-version=7.4").await.unwrap();
    assert_eq!(read.json()["value"], "value");
    let log = lab.store.log();
    let seen: Vec<_> =
        log.iter().map(|entry| (entry.service, entry.status, entry.client.as_deref())).collect();
    assert_eq!(seen, [("entra", 200, Some(CLIENT)), ("vault", 200, Some(CLIENT))]);
    assert_eq!((log[0].connection, log[1].connection, lab.store.in_flight_peak()), (1, 2, 1));
    assert_eq!(log[1].path, "/secrets/db?api-version=7.4");
}

#[tokio::test]
async fn each_flaw_of_an_assertion_has_its_number() {
    let lab = Lab::new().await;
    for (variant, number) in [
        (Variant::Right, (200, 0)),
        (Variant::Expired, (401, 700_024)),
        (Variant::NotYetValid, (401, 700_024)),
        (Variant::ForgedKey, (400, 50027)),
        (Variant::UnknownKid, (400, 50027)),
        (Variant::AlgNone, (400, 50027)),
        (Variant::Altered, (400, 50027)),
        (Variant::WrongIssuer, (401, 700_211)),
        (Variant::WrongAudience, (401, 700_212)),
    ] {
        assert_eq!(lab.assertion(variant).await, number, "{variant:?}");
    }
    let other = lab.store.issuer().mint("shop", "other", AUDIENCE);
    assert_eq!(refusal(&lab.entra(&[("client_assertion", &other)]).await), (401, 700_213));
    assert_eq!(refusal(&lab.entra(&[("client_assertion", "a.b")]).await), (400, 50027));
}

#[tokio::test]
async fn entra_refuses_what_is_wrong_with_a_form() {
    let lab = Lab::new().await;
    let right = [("client_secret", "right")];
    assert_eq!(refusal(&lab.entra(&right).await), (200, 0));
    for (change, number) in [
        (("client_secret", "wrong"), (401, 7_000_215)),
        (("client_id", "nobody"), (400, 700_016)),
        (("tenant", "elsewhere"), (400, 90002)),
        (("scope", RESOURCE), (400, 70011)),
        (("scope", "https://graph.microsoft.com/.default"), (400, 500_011)),
        (("grant_type", "password"), (400, 70003)),
        (("grant_type", ""), (400, 900_144)),
        (("client_secret", ""), (401, 7_000_218)),
    ] {
        assert_eq!(refusal(&lab.entra(&[right[0], change]).await), number, "{change:?}");
    }
    let with_others = [right[0], ("scope", "openid https://vault.azure.net/.default profile")];
    assert_eq!(lab.entra(&with_others).await.status, 200);
    let assertion = lab.store.issuer().mint("shop", "web", AUDIENCE);
    let typeless = [("client_assertion", assertion.as_str()), ("client_assertion_type", "")];
    assert_eq!(refusal(&lab.entra(&typeless).await), (401, 7_000_218));
}

#[tokio::test]
async fn discovery_knows_the_tenant_only() {
    let lab = Lab::new().await;
    let at =
        |path: &str| Request::get(format!("https://login.microsoftonline.com/{path}")).body(Full::default());
    for path in ["v2.0/.well-known/openid-configuration", ".well-known/openid-configuration"] {
        let got = lab.send(at(&format!("{TENANT}/{path}")).unwrap()).await.unwrap().json();
        assert_eq!(got["token_endpoint"], TOKEN_PATH.replace("TENANT", TENANT));
        let other = lab.send(at(&format!("elsewhere/{path}")).unwrap()).await.unwrap();
        assert_eq!((refusal(&other), &other.json()["error"]), ((400, 90002), &json!("invalid_tenant")));
    }
    let instance = format!(
        "common/discovery/instance?api-version=1.1&authorization_endpoint=https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/authorize"
    );
    let got = lab.send(at(&instance).unwrap()).await.unwrap().json();
    assert!(got["tenant_discovery_endpoint"].as_str().unwrap().contains(TENANT), "{got}");
}

#[tokio::test]
async fn the_metadata_service_asks_for_its_header_and_knows_its_identities() {
    let lab = Lab::new().await;
    let good = "api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net";
    assert_eq!(lab.imds(good, false).await.status, 400);
    assert_eq!(lab.imds("resource=https%3A%2F%2Fvault.azure.net", true).await.status, 400);
    assert_eq!(lab.imds("api-version=2018-02-01", true).await.status, 400);
    let unknown = lab.imds(&format!("{good}&client_id=nobody"), true).await;
    assert_eq!((unknown.status, &unknown.json()["error_description"]), (400, &json!("Identity not found")));
    let got = lab.imds(&format!("{good}&client_id={CLIENT}"), true).await.json();
    assert!(got["expires_on"].is_string() && got["expires_in"] == "3599", "{got}");
    let token = got["access_token"].as_str().unwrap();
    assert_eq!(lab.read_with(token, "/secrets/db/?api-version=7.4").await.unwrap().status, 200);
    assert_eq!(lab.imds(good, true).await.json()["client_id"], CLIENT, "the only one");
    lab.store.identity(Identity::new("second").managed(Managed::User));
    assert_eq!(lab.imds(good, true).await.status, 400, "two, and none is the machine's own");
}

#[tokio::test]
async fn a_vault_believes_its_own_tokens_only() {
    let lab = Lab::new().await;
    let good = lab.token();
    let mut altered = good.clone().into_bytes();
    let dot = good.find('.').unwrap() + 5;
    altered[dot] ^= 1;
    let cases = [
        (String::from_utf8(altered).unwrap(), "AKV10046"),
        (lab.store.access_token(CLIENT, "elsewhere", RESOURCE), "AKV10032"),
        (lab.store.access_token(CLIENT, TENANT, "https://vault.azure.cn"), "AKV10022"),
    ];
    for (token, code) in cases {
        let got = lab.read_with(&token, "/secrets/db?api-version=7.4").await.unwrap();
        assert_eq!(got.error().0, 401);
        assert!(got.json()["error"]["message"].as_str().unwrap().starts_with(code), "{code}");
    }
    let bare = Request::get("https://lab-open.vault.azure.net/secrets/db").body(Full::default()).unwrap();
    let got = lab.send(bare).await.unwrap();
    let challenge = format!(
        "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", resource=\"https://vault.azure.net\""
    );
    assert_eq!((got.status, got.headers["www-authenticate"].to_str().unwrap()), (401, challenge.as_str()));
    assert!(got.json()["error"]["message"].as_str().unwrap().starts_with("AKV10000"));
    lab.store.shift_clock(3600);
    assert_eq!(lab.read_with(&good, "/secrets/db?api-version=7.4").await.unwrap().status, 401, "old");
    assert_eq!(lab.get("/secrets/db").await.status, 200);
    let fresh = lab.token();
    lab.store.expire_tokens();
    assert_eq!(lab.read_with(&fresh, "/secrets/db?api-version=7.4").await.unwrap().status, 401, "ended");
}

#[tokio::test]
async fn a_vault_checks_version_of_the_api_rights_name_and_object() {
    let lab = Lab::new().await;
    let vault = lab.store.vault("lab-open");
    for query in ["", "?api-version=1.0"] {
        let got = lab.read_with(&lab.token(), &format!("/secrets/db{query}")).await.unwrap();
        assert_eq!(got.error(), (400, "BadParameter".into(), String::new()));
    }
    assert_eq!(lab.get("/secrets/d_b").await.error().1, "BadParameter");
    assert_eq!(lab.get("/secrets/nothing/").await.error(), (404, "SecretNotFound".into(), String::new()));
    assert_eq!(lab.get("/secrets/db/v9").await.error().1, "SecretNotFound");
    assert_eq!(lab.get("/keys/db").await.error().1, "KeyNotFound");
    assert_eq!(lab.get("/certificates/db").await.error().1, "CertificateNotFound");
    for (denial, inner) in [
        (Denial::Rbac, "ForbiddenByRbac"),
        (Denial::Policy, "ForbiddenByPolicy"),
        (Denial::Firewall, "ForbiddenByFirewall"),
    ] {
        vault.deny(Some(CLIENT), Some(Kind::Secrets), Some(Right::List), denial);
        assert_eq!(lab.get("/secrets/db/versions").await.error(), (403, "Forbidden".into(), inner.into()));
        assert_eq!(lab.get("/secrets/db").await.status, 200, "another right");
        vault.allow_all();
    }
    vault.disable(Kind::Secrets, "db", None);
    assert_eq!(lab.get("/secrets/db").await.error(), (403, "Forbidden".into(), "SecretDisabled".into()));
    vault.enable(Kind::Secrets, "db", None);
    vault.delete(Kind::Secrets, "DB");
    assert_eq!(lab.get("/secrets/db").await.status, 404);
}

#[tokio::test]
async fn the_latest_version_is_the_last_created_and_names_have_no_case() {
    let lab = Lab::new().await;
    let at = |time| ObjectVersion { created: Some(Time(time)), ..ObjectVersion::default() };
    let late = ObjectVersion { not_before: Some(Time(9_999_999_999)), expires: Some(Time(1)), ..at(20) };
    let vault = lab.store.vault("lab-open");
    vault.set_secret("two", "b", "new\n\"\u{e9}", late).set_secret("two", "c", "old", at(10));
    let got = lab.get("/secrets/TWO/").await.json();
    assert_eq!(
        (&got["value"], &got["id"]),
        (&json!("new\n\"\u{e9}"), &json!("https://lab-open.vault.azure.net/secrets/TWO/b"))
    );
    assert_eq!((&got["attributes"]["created"], &got["attributes"]["exp"]), (&json!(20), &json!(1)));
    assert_eq!(lab.get("/secrets/two/c").await.json()["value"], "old");
}

#[tokio::test]
async fn versions_come_in_pages_by_id() {
    let lab = Lab::new().await;
    let vault = lab.store.vault("lab-open");
    for number in (0..60).rev() {
        vault.set_secret("many", &format!("v{number:02}"), "x", ObjectVersion::default());
    }
    let (mut path, mut ids, mut pages) = ("/secrets/many/versions?api-version=7.4".to_owned(), Vec::new(), 0);
    loop {
        let got = lab.read_with(&lab.token(), &path).await.unwrap().json();
        pages += 1;
        let items = got["value"].as_array().unwrap();
        assert!(items.len() <= 25 && items.iter().all(|item| item.get("value").is_none()));
        ids.extend(
            items.iter().map(|item| item["id"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()),
        );
        let Some(next) = got["nextLink"].as_str() else { break };
        next.strip_prefix("https://lab-open.vault.azure.net").unwrap().clone_into(&mut path);
    }
    let all: Vec<_> = (0..60).map(|number| format!("v{number:02}")).collect();
    assert_eq!((ids, pages), (all, 3));
    assert_eq!(
        lab.get("/secrets/many/versions?maxresults=7").await.json()["value"].as_array().unwrap().len(),
        7
    );
    for size in ["0", "26", "x"] {
        assert_eq!(lab.get(&format!("/secrets/many/versions?maxresults={size}")).await.status, 400);
    }
    assert_eq!(lab.get("/secrets/nothing/versions").await.status, 404);
}

#[tokio::test]
async fn keys_and_certificates_name_what_belongs_to_them() {
    let lab = Lab::new().await;
    let vault = lab.store.vault("lab-open");
    let der = base64::engine::general_purpose::STANDARD.encode(b"not looked at here");
    vault.set_certificate("web", "c1", &der, ObjectVersion::default());
    vault.set_key(
        "web",
        "c1",
        json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AQ"}),
        ObjectVersion::default(),
    );
    let kid = "https://lab-open.vault.azure.net/keys/web/c1";
    let got = lab.get("/certificates/web").await.json();
    assert_eq!((&got["kid"], &got["cer"]), (&json!(kid), &json!(der)));
    assert_eq!(got["sid"], "https://lab-open.vault.azure.net/secrets/web/c1");
    let got = lab.get("/keys/web").await.json();
    assert_eq!((&got["key"]["kid"], &got["key"]["x"]), (&json!(kid), &json!("AA")));
    let backing = ObjectVersion { kid: Some(kid.to_owned()), ..ObjectVersion::default() };
    vault.set_secret("web", "c1", "pfx", backing);
    let got = lab.get("/secrets/web").await.json();
    assert_eq!((&got["kid"], &got["managed"]), (&json!(kid), &json!(true)));
}

#[tokio::test]
async fn faults_meet_as_often_as_armed() {
    let lab = Lab::new().await;
    lab.store.fault(Fault::status(429).path("/secrets/db").header("retry-after", "1").times(2));
    for _ in 0..2 {
        let got = lab.get("/secrets/db").await;
        assert_eq!(
            (got.error().1.as_str(), &got.headers["retry-after"]),
            ("Throttled", &"1".parse().unwrap())
        );
    }
    assert_eq!(lab.get("/secrets/db").await.status, 200);
    lab.store.fault(Fault::status(401).host("login.microsoftonline.com").code("AADSTS70021"));
    assert_eq!(refusal(&lab.entra(&[("client_secret", "right")]).await), (401, 70021));
    lab.store.fault(Fault::status(410));
    assert_eq!(lab.imds("", true).await.status, 410);
    lab.store.fault(Fault::delay(Duration::from_millis(80)));
    let start = Instant::now();
    assert_eq!(lab.get("/secrets/db").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(80));
    lab.store.clear_faults();
    lab.store.set_latency(Duration::from_millis(60));
    assert_eq!(lab.get("/secrets/db").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(140));
}

#[tokio::test]
async fn answers_break_in_each_way_over_both_protocols() {
    let lab = Lab::new().await;
    let request = || {
        Request::get("https://lab-open.vault.azure.net/secrets/db?api-version=7.4")
            .header("authorization", format!("Bearer {}", lab.token()))
            .body(Full::default())
            .unwrap()
    };
    for alpn in ["http/1.1", "h2"] {
        for how in [How::Close, How::Cut] {
            lab.store.fault(Fault::how(how));
            assert!(lab.send_by(alpn, request()).await.is_err(), "{how:?} {alpn}");
        }
        lab.store.fault(Fault::how(How::BrokenJson));
        let got = lab.send_by(alpn, request()).await.unwrap();
        assert!(got.status == 200 && serde_json::from_slice::<Value>(&got.body).is_err());
        lab.store.fault(Fault::how(How::Huge));
        assert!(lab.send_by(alpn, request()).await.unwrap().body.len() > 5 << 20);
        lab.store.fault(Fault::how(How::Hang));
        let hung = tokio::time::timeout(Duration::from_millis(100), lab.send_by(alpn, request()));
        assert!(hung.await.is_err());
        assert_eq!(lab.send_by(alpn, request()).await.unwrap().json()["value"], "value");
    }
    let statuses: Vec<_> = lab.store.log().iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [[0, 200, 200, 200, 0, 200]; 2].concat());
}

#[tokio::test]
async fn http_2_is_left_out_when_asked() {
    let lab = Lab::with(Options { http1_only: true, ..Options::default() }).await;
    let request = Request::get("https://lab-open.vault.azure.net/secrets/db").body(Full::default()).unwrap();
    assert!(lab.send_by("h2", request.clone()).await.is_err());
    assert_eq!(lab.send(request).await.unwrap().status, 401);
}

#[tokio::test]
async fn requests_that_no_service_has_are_remembered_without_their_secrets() {
    let lab = Lab::new().await;
    assert_eq!(lab.get("/storage/x").await.status, 404);
    lab.get("/secrets/db?pin=canary").await;
    let set = Request::put("https://lab-open.vault.azure.net/secrets/db?api-version=7.4")
        .header("authorization", format!("Bearer {}", lab.token()))
        .body(Full::default())
        .unwrap();
    assert_eq!(lab.send(set).await.unwrap().error().1, "MethodNotAllowed");
    let device = Request::post("https://login.microsoftonline.com/devicecode").body(Full::default()).unwrap();
    assert_eq!(lab.send(device).await.unwrap().status, 404);
    assert_eq!(
        lab.store.unexpected(),
        [
            "GET lab-open.vault.azure.net /storage/x?api-version=7.4",
            "GET lab-open.vault.azure.net /secrets/db?pin=(not shown)&api-version=7.4",
            "PUT lab-open.vault.azure.net /secrets/db?api-version=7.4",
            "POST login.microsoftonline.com /devicecode",
        ]
    );
    assert!(!format!("{:?}", lab.store.log()).contains("canary"));
}

#[tokio::test]
#[should_panic(expected = "GET lab-open.vault.azure.net /storage/x?api-version=7.4")]
async fn a_request_that_no_service_has_fails_its_test() {
    Lab::new().await.get("/storage/x").await;
}

#[tokio::test]
async fn the_api_server_asks_for_its_token_and_the_proxy_for_its_name() {
    let lab = Lab::new().await;
    lab.store.service_account("shop", "web", &[("a/b", "c")]);
    let read = async |token: &str, account: &str| {
        let uri = format!("https://{}/api/v1/namespaces/shop/serviceaccounts/{account}", cluster::HOST);
        let request = Request::get(uri).header("authorization", format!("Bearer {token}"));
        lab.send(request.body(Full::default()).unwrap()).await.unwrap()
    };
    assert_eq!(read("wrong", "web").await.status, 401);
    assert_eq!(read(cluster::API_TOKEN, "none").await.status, 404);
    assert_eq!(read(cluster::API_TOKEN, "web").await.json()["metadata"]["annotations"]["a/b"], "c");
    // The API server's own name is not the proxy's.
    let uri = format!("https://{}/{TENANT}/oauth2/v2.0/token", cluster::HOST);
    let request = Request::post(uri).body(Full::default()).unwrap();
    assert_eq!(lab.send(request).await.unwrap().status, 404);
    assert_eq!(lab.store.unexpected().len(), 1);
}

#[tokio::test]
async fn an_assertion_of_a_certificate_must_be_of_a_known_one() {
    let lab = Lab::new().await;
    let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"alg": "PS256", "typ": "JWT", "x5t#S256": "AAAA"}));
    let assertion = format!("{header}.{}.AAAA", encode(json!({"iss": CLIENT, "sub": CLIENT})));
    assert_eq!(refusal(&lab.entra(&[("client_assertion", &assertion)]).await), (401, 700_027));
}

#[tokio::test]
async fn rotated_keys_and_other_issuers() {
    let lab = Lab::new().await;
    let issuer = lab.store.issuer();
    let old = issuer.mint("shop", "web", AUDIENCE);
    let kid = issuer.jwks()["keys"][0]["kid"].clone();
    lab.store.rotate_signing_keys();
    assert_ne!(issuer.jwks()["keys"][0]["kid"], kid);
    assert_eq!(refusal(&lab.entra(&[("client_assertion", &old)]).await), (400, 50027));
    assert_eq!(lab.assertion(Variant::Right).await, (200, 0));
    let mut identity = Identity::new(CLIENT);
    let (issuer, audience) = (Some("https://other-issuer.example".to_owned()), None);
    identity.federated.push(Federated { issuer, subject: "system:serviceaccount:shop:web".into(), audience });
    lab.store.identity(identity);
    assert_eq!(lab.assertion(Variant::WrongIssuer).await, (200, 0));
    assert_eq!(lab.assertion(Variant::Right).await, (401, 700_211));
}

#[tokio::test]
async fn a_file_gives_content_rights_and_identities() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.yaml");
    std::fs::write(folder.path().join("value"), "from a file\n").unwrap();
    let text = "
identities:
  - clientId: reader
    clientSecrets: [right]
vaults:
  - name: lab-file
    rights: {reader: [secrets/get]}
    denial: policy
    secrets:
      db: [{version: v1, valueFile: value, created: '2026-01-02T03:04:05Z'}]
  - {name: lab-walled.vault.azure.cn, firewall: true}
";
    std::fs::write(&file, text).unwrap();
    let lab = Lab::with(Options { store: Store::read(&file).unwrap(), ..Options::default() }).await;
    let ask = async |client: &str, path: &str| {
        let request = Request::get(format!("https://lab-file.vault.azure.net{path}?api-version=7.4"));
        let token = lab.store.access_token(client, TENANT, RESOURCE);
        let request = request.header("authorization", format!("Bearer {token}"));
        lab.send(request.body(Full::default()).unwrap()).await.unwrap()
    };
    let got = ask("reader", "/secrets/db").await.json();
    assert_eq!(
        (&got["value"], &got["attributes"]["created"]),
        (&json!("from a file\n"), &json!(1_767_323_045))
    );
    assert_eq!(ask("reader", "/secrets/db/versions").await.error().2, "ForbiddenByPolicy");
    assert_eq!(ask(CLIENT, "/secrets/db").await.error().2, "ForbiddenByPolicy");
    assert!(lab.store.connect_to().iter().any(|(host, _)| host == "lab-walled.vault.azure.cn"));
    std::fs::write(&file, "vaults: [{name: x, secret: {}}]").unwrap();
    assert!(Store::read(&file).unwrap_err().contains("secret"));
}

#[tokio::test]
async fn the_control_listener_changes_what_the_handle_can() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let lab = Lab::with(Options { control: Some(any), ..Options::default() }).await;
    let change = async |method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(format!("http://control{path}"));
        let got = lab.send(request.body(body.to_string().into()).unwrap()).await.unwrap();
        assert_eq!(got.status, 200, "{path}: {}", got.json());
        got.json()
    };
    let secret = json!({"vault": "lab-open", "kind": "secrets", "name": "db"});
    let with = |more: Value| {
        let mut all = secret.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    change("POST", "/__standin/objects", with(json!({"version": {"version": "v2", "value": "new"}}))).await;
    assert_eq!(lab.get("/secrets/db").await.json()["value"], "new");
    change("POST", "/__standin/enable", with(json!({"version": "v2", "enabled": false}))).await;
    assert_eq!(lab.get("/secrets/db").await.error().2, "SecretDisabled");
    change("POST", "/__standin/objects", secret.clone()).await;
    assert_eq!(lab.get("/secrets/db").await.status, 404);
    let rules = json!({"vault": "lab-open", "rules": [{"kind": "secrets", "denial": "policy"}]});
    change("POST", "/__standin/rules", rules).await;
    assert_eq!(lab.get("/secrets/db").await.error().2, "ForbiddenByPolicy");
    let store = json!({"vaults": [{"name": "second", "secrets": {"a": [{"version": "v1", "value": "x"}]}}]});
    change("POST", "/__standin/store", store).await;
    assert!(lab.store.connect_to().iter().any(|(host, _)| host == "second.vault.azure.net"));
    change("POST", "/__standin/faults", json!({"status": 503, "path": "/keys/", "code": "Busy"})).await;
    assert_eq!(lab.get("/keys/k").await.error(), (503, "Busy".into(), String::new()));
    change("DELETE", "/__standin/faults", Value::Null).await;
    assert_eq!(lab.get("/keys/k").await.status, 404);
    let account = json!({"namespace": "shop", "serviceAccount": "web"});
    let token = change("POST", "/__standin/mint", account).await["token"].as_str().unwrap().to_owned();
    change("POST", "/__standin/clock", json!(4000)).await;
    assert_eq!(refusal(&lab.entra(&[("client_assertion", &token)]).await), (401, 700_024));
    let log = change("GET", "/__standin/log", Value::Null).await;
    assert_eq!((log["requests"].as_array().unwrap().len(), &log["inFlightPeak"]), (7, &json!(1)));
    let issuer = change("GET", "/.well-known/openid-configuration", Value::Null).await;
    assert_eq!(issuer["jwks_uri"], format!("{}/openid/v1/jwks", lab.store.issuer().url()));
    assert_eq!(change("GET", "/openid/v1/jwks", Value::Null).await, lab.store.issuer().jwks());
    let bad = Request::post("http://control/__standin/faults").body("{\"state\":1}".into()).unwrap();
    assert_eq!(lab.send(bad).await.unwrap().status, 400);
}

#[tokio::test]
async fn one_slow_answer_holds_up_no_other() {
    let lab = Lab::new().await;
    lab.store.set_latency(Duration::from_millis(100));
    let start = Instant::now();
    let all = futures_util::future::join_all((0..20).map(|_| lab.get("/secrets/db"))).await;
    assert!(all.iter().all(|got| got.status == 200) && start.elapsed() < Duration::from_millis(1500));
    assert_eq!(lab.store.in_flight_peak(), 20);
}

//! A strict stand-in for Entra ID, Key Vault and the instance metadata service.
//!
//! Service-account tokens and access tokens are really verified, rights are really asked, and a request
//! that the services do not have is remembered: the handle panics when dropped with such a request.

mod access;
pub mod cluster;
pub mod content;
pub mod control;
mod entra;
mod imds;
mod vault;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ring::hmac;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::content::{Content, Denial, Identity, Kind, ObjectVersion, Right, Rule, Store, host_of};
use super::clock::Clock;
use super::faults::{Fault, Faults, How};
use super::issuer::Issuer;
use super::log::{Log, Logged, shown};
use super::serve::{Gone, Reply, Sent, listen};
use super::tls::Lab;

/// The tenant unless told otherwise.
pub const TENANT: &str = "22222222-2222-4222-8222-222222222222";
/// A client id for tests with one identity.
pub const CLIENT: &str = "11111111-1111-4111-8111-111111111111";

/// Suffixes of vaults, and the host that gives tokens for them.
const CLOUDS: [(&str, &str); 7] = [
    ("vault.azure.net", "login.microsoftonline.com"),
    ("managedhsm.azure.net", "login.microsoftonline.com"),
    ("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    ("vault.azure.cn", "login.chinacloudapi.cn"),
    ("vault.microsoftazure.de", "login.microsoftonline.de"),
    ("vault.lab.example", "login.lab.example"),
    ("vault.other.example", "login.other.example"),
];
const METADATA: &str = "169.254.169.254";

/// Where a stand-in listens and what it begins with.
pub struct Options {
    /// Entra's listener.
    pub entra: SocketAddr,
    /// The vaults' listener.
    pub vault: SocketAddr,
    /// The metadata service's listener.
    pub imds: SocketAddr,
    /// The listener of API server and token proxy.
    pub cluster: SocketAddr,
    /// The pod identity service's listener.
    pub pod_identity: SocketAddr,
    /// A listener for changes from outside the process.
    pub control: Option<SocketAddr>,
    /// Whether HTTP/2 is left out of what the TLS listeners offer.
    pub http1_only: bool,
    /// How long each answer is held back.
    pub latency: Duration,
    /// What it begins with.
    pub store: Store,
}

impl Default for Options {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            entra: any,
            vault: any,
            imds: any,
            cluster: any,
            pod_identity: any,
            control: None,
            http1_only: false,
            latency: Duration::ZERO,
            store: Store::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Entra,
    Vault,
    Imds,
    Cluster,
    PodIdentity,
}

/// What the listeners share.
struct Shared {
    clock: Clock,
    issuer: Issuer,
    faults: Faults,
    log: Arc<Log>,
    unexpected: Mutex<Vec<String>>,
    /// Microseconds.
    latency: AtomicU64,
    content: RwLock<Content>,
    access_key: hmac::Key,
    epoch: AtomicU64,
    requests: AtomicU64,
}

/// The running stand-in; its tasks end when it is dropped.
pub struct AzureStandIn {
    shared: Arc<Shared>,
    entra: SocketAddr,
    vault: SocketAddr,
    imds: SocketAddr,
    cluster: SocketAddr,
    pod_identity: SocketAddr,
    control: Option<SocketAddr>,
    ca_pem: String,
    tasks: Vec<JoinHandle<()>>,
}

impl AzureStandIn {
    /// Starts it inside the present tokio runtime; all listeners stand when this returns.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let lab = Lab::new(options.http1_only);
        let clock = Clock::default();
        let issuer = options.store.issuer.as_deref().unwrap_or("https://issuer.lab.example");
        let mut content = Content::default();
        let issuer = Issuer::new(issuer, clock.clone());
        content.add(options.store).map_err(std::io::Error::other)?;
        let shared = Arc::new(Shared {
            clock,
            issuer,
            faults: Faults::default(),
            log: Arc::default(),
            unexpected: Mutex::default(),
            latency: AtomicU64::new(micros(options.latency)),
            content: RwLock::new(content),
            access_key: hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
                .expect("random bytes"),
            epoch: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let connections = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        let mut bound = Vec::new();
        let services = [
            (options.entra, Service::Entra),
            (options.vault, Service::Vault),
            (options.imds, Service::Imds),
            (options.cluster, Service::Cluster),
            (options.pod_identity, Service::PodIdentity),
        ];
        for (address, service) in services {
            let listener = TcpListener::bind(address).await?;
            bound.push(listener.local_addr()?);
            let plain = matches!(service, Service::Imds | Service::PodIdentity);
            let tls = (!plain).then(|| lab.config());
            let (shared, connections) = (shared.clone(), connections.clone());
            tasks.push(tokio::spawn(async move {
                let handler = move |number, request| answer(shared.clone(), service, number, request);
                match listen(listener, tls, connections, handler).await {}
            }));
        }
        let mut control = None;
        if let Some(address) = options.control {
            let listener = TcpListener::bind(address).await?;
            control = Some(listener.local_addr()?);
            let shared = shared.clone();
            tasks.push(tokio::spawn(async move {
                let handler = move |_, request| control::answer(shared.clone(), request);
                match listen(listener, None, Arc::default(), handler).await {}
            }));
        }
        let [entra, vault, imds, cluster, pod_identity] = bound.try_into().expect("five listeners");
        Ok(Self {
            shared,
            entra,
            vault,
            imds,
            cluster,
            pod_identity,
            control,
            ca_pem: lab.ca_pem().to_owned(),
            tasks,
        })
    }

    /// Starts one with defaults: nothing in it, loopback, ports of the system's choice.
    pub async fn empty() -> Self {
        Self::start(Options::default()).await.expect("loopback listeners")
    }

    /// Gives each host name, with the vaults of now, and the address to connect to in its place.
    pub fn connect_to(&self) -> Vec<(String, SocketAddr)> {
        let mut list: Vec<_> = CLOUDS.iter().map(|(_, host)| ((*host).to_owned(), self.entra)).collect();
        list.push((format!("{METADATA}:80"), self.imds));
        list.push((cluster::HOST.to_owned(), self.cluster));
        list.push(("localhost:2579".to_owned(), self.pod_identity));
        list.extend(self.shared.content.read().unwrap().vaults.keys().map(|host| (host.clone(), self.vault)));
        list
    }

    /// Gives the addresses of Entra, the vaults and the metadata service.
    pub fn addresses(&self) -> [SocketAddr; 3] {
        [self.entra, self.vault, self.imds]
    }

    /// Gives the control listener's address, if one was asked for.
    pub fn control(&self) -> Option<SocketAddr> {
        self.control
    }

    /// Gives the one root certificate that clients need.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Gives the minter of service-account tokens that Entra believes.
    pub fn issuer(&self) -> &Issuer {
        &self.shared.issuer
    }

    /// Gives the tenant's id.
    pub fn tenant(&self) -> String {
        self.shared.content.read().unwrap().tenant.clone()
    }

    /// Adds an identity, or replaces the one of its client id.
    pub fn identity(&self, identity: Identity) {
        self.shared.content.write().unwrap().identity(identity);
    }

    /// Sets the annotations of a service account.
    pub fn service_account(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut content = self.shared.content.write().unwrap();
        content.service_accounts.insert(format!("{namespace}/{name}"), annotations);
    }

    /// Binds an identity to a pod, for the pod identity service.
    pub fn pod(&self, namespace: &str, name: &str, client: &str) {
        let mut content = self.shared.content.write().unwrap();
        content.pods.insert(format!("{namespace}/{name}"), client.to_owned());
    }

    /// Gives a vault by its name in the public cloud or its host; a new one is made.
    pub fn vault(&self, name: &str) -> VaultHandle<'_> {
        let host = host_of(name);
        self.shared.content.write().unwrap().vault(&host);
        VaultHandle { shared: &self.shared, host }
    }

    /// Adds the content of a file.
    pub fn add(&self, store: Store) -> Result<(), String> {
        self.shared.content.write().unwrap().add(store)
    }

    /// Arms a fault, after those armed before.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults.arm(fault);
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Takes away those faults that were armed for this host.
    pub fn clear_faults_of(&self, host: &str) {
        self.shared.faults.clear_of(host);
    }

    /// Gives the requests so far, in the order in which they came.
    pub fn log(&self) -> Vec<Logged> {
        self.shared.log.all()
    }

    /// Forgets the requests so far, and the peak.
    pub fn clear_log(&self) {
        self.shared.log.clear();
    }

    /// Tells how many requests were open at once, at most.
    pub fn in_flight_peak(&self) -> usize {
        self.shared.log.peak()
    }

    /// Takes the requests that the real services do not have.
    pub fn unexpected(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.unexpected.lock().unwrap())
    }

    /// Holds each answer back for this long.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.latency.store(micros(latency), Ordering::Relaxed);
    }

    /// Moves the clock of issuer, Entra and vaults by some seconds.
    pub fn shift_clock(&self, seconds: i64) {
        self.shared.clock.shift(seconds);
    }

    /// Ends all access tokens given so far.
    pub fn expire_tokens(&self) {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Publishes another key for service-account tokens; those minted before are refused.
    pub fn rotate_signing_keys(&self) {
        self.shared.issuer.rotate_signing_keys();
    }

    /// Makes an access token past Entra, of any tenant, for tests of the vaults' checks.
    pub fn access_token(&self, client: &str, tenant: &str, resource: &str) -> String {
        access::mint(&self.shared, &Identity::new(client), tenant, resource)
    }
}

impl Drop for AzureStandIn {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let unexpected = self.unexpected();
        if !std::thread::panicking() {
            assert!(unexpected.is_empty(), "requests that the real services do not have: {unexpected:?}");
        }
    }
}

/// A vault whose content can be changed.
pub struct VaultHandle<'a> {
    shared: &'a Shared,
    host: String,
}

impl VaultHandle<'_> {
    /// Gives the vault's host name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sets a version of a secret; a new id is a new version.
    pub fn set_secret(&self, name: &str, version: &str, value: &str, rest: ObjectVersion) -> &Self {
        let (version, value) = (version.to_owned(), Some(value.to_owned()));
        self.set(Kind::Secrets, name, ObjectVersion { version, value, ..rest })
    }

    /// Sets a version of a key from its public JWK.
    pub fn set_key(&self, name: &str, version: &str, jwk: serde_json::Value, rest: ObjectVersion) -> &Self {
        let serde_json::Value::Object(jwk) = jwk else { panic!("a JWK is an object") };
        self.set(Kind::Keys, name, ObjectVersion { version: version.to_owned(), jwk: Some(jwk), ..rest })
    }

    /// Sets a version of a certificate from its DER in base64.
    pub fn set_certificate(&self, name: &str, version: &str, cer: &str, rest: ObjectVersion) -> &Self {
        let (version, cer) = (version.to_owned(), Some(cer.to_owned()));
        self.set(Kind::Certificates, name, ObjectVersion { version, cer, ..rest })
    }

    /// Sets a version of an object.
    pub fn set(&self, kind: Kind, name: &str, version: ObjectVersion) -> &Self {
        self.shared.content.write().unwrap().vault(&self.host).set(&self.host, kind, name, version);
        self
    }

    /// Disables one version of an object, or all.
    pub fn disable(&self, kind: Kind, name: &str, version: Option<&str>) {
        let mut content = self.shared.content.write().unwrap();
        content.vault(&self.host).enable(&self.host, kind, name, version, false);
    }

    /// Enables one version of an object, or all.
    pub fn enable(&self, kind: Kind, name: &str, version: Option<&str>) {
        let mut content = self.shared.content.write().unwrap();
        content.vault(&self.host).enable(&self.host, kind, name, version, true);
    }

    /// Deletes an object with all of its versions.
    pub fn delete(&self, kind: Kind, name: &str) {
        self.shared.content.write().unwrap().vault(&self.host).delete(kind, name);
    }

    /// Refuses a client, or all, one right on one kind, or all.
    pub fn deny(&self, client: Option<&str>, kind: Option<Kind>, right: Option<Right>, denial: Denial) {
        let client = client.map(ToOwned::to_owned);
        self.rule(Rule { client, kind, right, denial: Some(denial) });
    }

    /// Allows all to every known client again.
    pub fn allow_all(&self) {
        self.shared.content.write().unwrap().vault(&self.host).rules.clear();
    }

    /// Adds a rule; the last that fits decides.
    pub fn rule(&self, rule: Rule) {
        self.shared.content.write().unwrap().vault(&self.host).rules.push(rule);
    }
}

impl Shared {
    /// Remembers a request that the real service does not have.
    fn unexpected(&self, parts: &Parts, host: &str, reply: Reply) -> Reply {
        let path = shown(parts.uri.path(), parts.uri.query());
        self.unexpected.lock().unwrap().push(format!("{} {host} {path}", parts.method));
        reply
    }

    fn reply(&self, service: Service, parts: &Parts, host: &str, body: &[u8]) -> Reply {
        match service {
            Service::Entra if CLOUDS.iter().any(|(_, known)| *known == host) => {
                entra::answer(self, parts, host, body)
            }
            Service::Entra => self.unexpected(parts, host, Reply::new(404, "")),
            Service::Vault => vault::answer(self, parts, host),
            Service::Imds => imds::answer(self, parts, host),
            Service::Cluster => cluster::answer(self, parts, host, body),
            Service::PodIdentity => cluster::pod_identity(self, parts, host),
        }
    }

    /// Makes the answer that a fault sets, if it sets one.
    fn faulty(&self, service: Service, fault: &Fault) -> Option<Reply> {
        let status = fault.status?;
        let code = fault.code.as_deref();
        let text = "A fault that was armed.";
        let reply = match (&fault.body, service) {
            (Some(body), _) => Reply::new(status, body.clone()),
            (None, Service::Entra) => {
                let number = code.and_then(|code| code.trim_start_matches("AADSTS").parse().ok());
                let (error, usual) = match status {
                    401 => ("invalid_client", 700_213),
                    429 => ("temporarily_unavailable", 90055),
                    500.. => ("temporarily_unavailable", 90033),
                    _ => ("invalid_request", 900_144),
                };
                Reply::json(status, &entra::error_body(self, error, number.unwrap_or(usual), text))
            }
            (None, Service::Cluster | Service::PodIdentity) => Reply::new(status, "armed"),
            (None, Service::Imds) => {
                let error =
                    code.unwrap_or(if status == 429 { "too_many_requests" } else { "internal_error" });
                Reply::json(status, &json!({"error": error, "error_description": text}))
            }
            (None, Service::Vault) => {
                let usual = match status {
                    400 => "BadParameter",
                    401 => "Unauthorized",
                    403 => "Forbidden",
                    404 => "SecretNotFound",
                    429 => "Throttled",
                    503 => "ServiceUnavailable",
                    _ => "InternalServerError",
                };
                vault::error(status, code.unwrap_or(usual), fault.inner.as_deref(), text)
            }
        };
        Some(fault.headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value.as_str())))
    }
}

async fn answer(
    shared: Arc<Shared>,
    service: Service,
    connection: u64,
    request: Request<Incoming>,
) -> Result<Response<Sent>, Gone> {
    let (parts, body) = request.into_parts();
    let host = host(&parts);
    let name = match service {
        Service::Entra => "entra",
        Service::Vault => "vault",
        Service::Imds => "imds",
        Service::Cluster => "cluster",
        Service::PodIdentity => "podIdentity",
    };
    let mut open = shared.log.begin(Logged {
        service: name,
        method: parts.method.to_string(),
        host: host.clone(),
        path: shown(parts.uri.path(), parts.uri.query()),
        status: 0,
        client: None,
        start: Duration::ZERO,
        end: None,
        connection,
    });
    let body = body.collect().await.map_err(|_| Gone)?.to_bytes();
    let fault = shared.faults.meet(parts.method.as_str(), &host, parts.uri.path());
    let latency = Duration::from_micros(shared.latency.load(Ordering::Relaxed))
        + Duration::from_millis(fault.as_ref().map_or(0, |fault| fault.delay_ms));
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let how = fault.as_ref().map_or(How::Answer, |fault| fault.how);
    let mut reply = match how {
        How::Hang => std::future::pending().await,
        How::Close => return Err(Gone),
        How::Huge => Reply::new(200, format!("{{\"value\":\"{}\"}}", "x".repeat(5 << 20))),
        How::Answer | How::Cut | How::BrokenJson => fault
            .and_then(|fault| shared.faulty(service, &fault))
            .unwrap_or_else(|| shared.reply(service, &parts, &host, &body)),
    };
    if how == How::BrokenJson {
        (reply.status, reply.body) = (200, reply.body.slice(..reply.body.len() / 2));
    }
    (open.status, open.client) = (reply.status, reply.client.take());
    drop(open);
    let sets = |name: &str| reply.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !sets(CONTENT_TYPE.as_str()) {
        reply = reply.header(CONTENT_TYPE.as_str(), "application/json; charset=utf-8");
    }
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    Ok(reply.header("x-ms-request-id", uid_of(number)).message(how == How::Cut))
}

/// Makes a request id; cheaper than a hash.
fn uid_of(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// Finds the host that a request is for, without a port.
fn host(parts: &Parts) -> String {
    let authority = parts.uri.authority().map(ToString::to_string);
    let header = parts.headers.get(HOST).and_then(|value| value.to_str().ok());
    let full = authority.as_deref().or(header).unwrap_or_default();
    full.split(':').next().unwrap_or_default().to_ascii_lowercase()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

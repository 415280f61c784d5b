//! Stores in trouble: a final code each, a text with the next step, nothing cached, the next mount fine
//! (cluster.md 7, tracker T32).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyferry::backends::{self, Settings};
use keyferry::call::Call;
use keyferry::error::Problems;
use keyferry::fetch::{self, Tally};
use keyferry::gather::{Gather, Gathered, Outline};
use keyferry::http::{self, Http, Roots};
use tonic::{Code, Status};

use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::standins::faults::{Fault, How};
use crate::support::azure::{secret, start};
use crate::support::driver::Driver;

const LONG: Duration = Duration::from_secs(60);
const OBJECTS: &str = "array:\n  - |\n    objectName: db\n    objectType: secret\n";
const VAULT: &str = "shopkv.vault.azure.net";

fn parameters(objects: &'static str) -> [(&'static str, &'static str); 5] {
    [
        ("keyvaultName", "shopkv"),
        ("tenantID", TENANT),
        ("useVMManagedIdentity", "true"),
        ("userAssignedIdentityID", CLIENT),
        ("objects", objects),
    ]
}

fn open(store: &AzureStandIn, tries: u32) -> Arc<dyn Gather> {
    let http = Http::new(http::Settings {
        connect_to: store.connect_to(),
        roots: Roots::Pem(store.ca_pem().as_bytes().to_vec()),
        try_timeout: Duration::from_millis(700),
        ..http::Settings::default()
    });
    let engine = fetch::Settings { tries, ..fetch::Settings::default() };
    backends::open(&Settings::default(), &http, &engine).remove(0)
}

fn is_final(status: &Status) -> bool {
    let passing =
        [Code::Cancelled, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Aborted, Code::Unavailable];
    !passing.contains(&status.code())
}

async fn ready(tries: u32) -> (AzureStandIn, Driver) {
    let store = start().await;
    secret(&store, "db", "v1", "x");
    let driver = Driver::start(open(&store, tries)).await;
    (store, driver)
}

/// Mounts once with the fault and once without.
async fn trouble(fault: Fault, expected: &str) {
    let (store, driver) = ready(1).await;
    store.fault(fault.host(VAULT));
    let status = driver.mount("p1", &parameters(OBJECTS), LONG).await.unwrap_err();
    assert!(is_final(&status), "{status:?}");
    let text = status.message();
    for fragment in [expected, "objectName:db", "; for ", "azure, SecretProviderClass shop/vault"] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    store.clear_faults();
    let answer = driver.mount("p1", &parameters(OBJECTS), LONG).await.unwrap();
    assert_eq!(answer.files[0].contents.as_ref(), b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_stores_in_trouble_give_final_codes_and_nothing_is_cached() {
    for (fault, expected) in [
        (Fault::status(200).body("rubbish"), "not what Key Vault answers"),
        (Fault::status(200).body("[]"), "not what Key Vault answers"),
        (Fault::status(200).body("{}"), "secret value is nil"),
        (Fault::status(200).body(r#"{"value":"canary"}"#), "secret id is nil"),
        (Fault::status(204).body(""), "not what Key Vault answers"),
        (Fault::status(503).body("<html>"), "RESPONSE 503"),
        (Fault::status(500), "ERROR CODE: InternalServerError"),
        (Fault::status(429), "ERROR CODE: Throttled"),
        (Fault::status(302).body(""), "RESPONSE 302"),
        (Fault::how(How::Huge), "the answer is too large"),
        (Fault::how(How::Hang), "did not answer"),
        (Fault::how(How::Close), "check what stands between"),
        (Fault::how(How::Cut), "check what stands between"),
        (Fault::how(How::BrokenJson), "not what Key Vault answers"),
    ] {
        trouble(fault, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_refused_session_is_cured_by_a_fresh_login() {
    let (store, driver) = ready(1).await;
    driver.mount("p1", &parameters(OBJECTS), LONG).await.unwrap();
    store.expire_tokens();
    driver
        .mount("p2", &parameters("[{objectName: db, objectType: secret, objectVersion: v1}]"), LONG)
        .await
        .unwrap();
    store.fault(Fault::status(401).host(VAULT).times(2));
    let other = "[{objectName: other, objectType: secret}]";
    let status = driver.mount("p3", &parameters(other), LONG).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_store_slower_than_the_deadline() {
    let (store, driver) = ready(10).await;
    store.set_latency(LONG);
    let start = Instant::now();
    let status = driver.mount("p1", &parameters(OBJECTS), Duration::from_secs(2)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(1900), "our deadline comes before the caller's");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("context deadline exceeded"), "{status:?}");
    store.set_latency(Duration::ZERO);
    driver.mount("p1", &parameters(OBJECTS), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_store_that_refuses_connections() {
    let store = start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let mut connect_to = store.connect_to();
    connect_to.retain(|(host, _)| !host.starts_with("shopkv"));
    connect_to.push((VAULT.to_owned(), address));
    let http = Http::new(http::Settings {
        connect_to,
        roots: Roots::Pem(store.ca_pem().as_bytes().to_vec()),
        ..http::Settings::default()
    });
    let engine = fetch::Settings { tries: 1, ..fetch::Settings::default() };
    let driver = Driver::start(backends::open(&Settings::default(), &http, &engine).remove(0)).await;
    let status = driver.mount("p1", &parameters(OBJECTS), LONG).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("check network, firewall and private endpoint"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_one_pause_holds_for_all_mounts_of_the_vault() {
    let (store, driver) = ready(4).await;
    store.fault(Fault::status(429).host(VAULT).header("retry-after", "2"));
    let driver = Arc::new(driver);
    let first = tokio::spawn({
        let driver = driver.clone();
        async move { driver.mount("p0", &parameters(OBJECTS), LONG).await }
    });
    let reads =
        || store.log().into_iter().filter(|line| line.path.starts_with("/secrets/")).collect::<Vec<_>>();
    // The first read is answered with 429 before the others come.
    while !reads().iter().any(|line| line.end.is_some()) {
        tokio::task::yield_now().await;
    }
    let mounts = (1..40).map(|n| {
        let driver = driver.clone();
        async move { driver.mount(&format!("p{n}"), &parameters(OBJECTS), LONG).await.unwrap() }
    });
    futures_util::future::join_all(mounts).await;
    first.await.unwrap().unwrap();
    let reads = reads();
    assert_eq!(reads.len(), 2, "the throttled read and one for all forty");
    assert!(reads[1].start - reads[0].start >= Duration::from_secs(2));
}

/// A backend whose handler panics.
struct Panics;

#[async_trait]
impl Gather for Panics {
    fn name(&self) -> &'static str {
        "azure"
    }
    async fn gather(&self, call: &Call, _: &Tally) -> Result<Gathered, Problems> {
        assert!(call.pod.name != "bad", "made to panic");
        Ok(Gathered { versions: vec![("a".into(), "b".into())], ..Gathered::default() })
    }
    fn check(&self, _: &Call) -> Outline {
        unreachable!("a mount checks nothing")
    }
    fn forget(&self) {}
    fn sweep(&self) {}
    fn kept(&self) -> (usize, usize) {
        (0, 0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_a_panic_costs_one_mount() {
    let driver = Driver::start(Arc::new(Panics)).await;
    let status = driver.mount("bad", &parameters(OBJECTS), LONG).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("made to panic"));
    driver.mount("good", &parameters(OBJECTS), LONG).await.unwrap();
    assert!(driver.metrics.text().contains(r#"result="bug"} 1"#));
}

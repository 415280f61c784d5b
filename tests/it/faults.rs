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
use keyferry::http::{self, Http};
use tonic::{Code, Status};

use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::standins::faults::Fault;
use crate::support::driver::Driver;
use crate::support::store::{secret, settings, start};

const LONG: Duration = Duration::from_secs(60);
const OBJECTS: &str = "array:\n  - |\n    objectName: db\n    objectType: secret\n";

fn parameters() -> [(&'static str, &'static str); 5] {
    [
        ("keyvaultName", "shopkv"),
        ("tenantID", TENANT),
        ("useVMManagedIdentity", "true"),
        ("userAssignedIdentityID", CLIENT),
        ("objects", OBJECTS),
    ]
}

fn open(store: &AzureStandIn, tries: u32) -> Arc<dyn Gather> {
    with(settings(store), tries)
}

fn with(settings: http::Settings, tries: u32) -> Arc<dyn Gather> {
    let http = Http::new(http::Settings { try_timeout: Duration::from_millis(400), ..settings });
    let engine = fetch::Settings { tries, ..fetch::Settings::default() };
    backends::open(&Settings::default(), &http, &engine).remove(0)
}

/// A fault of the vault's next answer.
fn answer(status: u16, body: &str) -> Fault {
    Fault::status(status).path("/secrets/").body(body)
}

/// When the vault was asked, since its start.
fn reads(store: &AzureStandIn) -> Vec<Duration> {
    let log = store.log();
    log.iter().filter(|request| request.service == "vault").map(|request| request.start).collect()
}

fn is_final(status: &Status) -> bool {
    let passing =
        [Code::Cancelled, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Aborted, Code::Unavailable];
    !passing.contains(&status.code())
}

/// Mounts once with trouble and once without.
async fn trouble(driver: &Driver, store: &AzureStandIn, expected: &str) {
    let status = driver.mount("p1", &parameters(), LONG).await.unwrap_err();
    assert!(is_final(&status), "{status:?}");
    let text = status.message();
    for fragment in [expected, "objectName:db", "; for ", "azure, SecretProviderClass shop/vault"] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    store.set_latency(Duration::ZERO);
    let answer = driver.mount("p1", &parameters(), LONG).await.unwrap();
    assert_eq!(answer.files[0].contents, b"x");
}

async fn ready(tries: u32) -> (AzureStandIn, Driver) {
    let store = start().await;
    secret(&store, "db", "v1", "x");
    let driver = Driver::start(open(&store, tries)).await;
    (store, driver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_odd_answers() {
    for (status, body, expected) in [
        (200, "rubbish".to_owned(), "not what Key Vault answers"),
        (200, "[]".to_owned(), "not what Key Vault answers"),
        (200, "{}".to_owned(), "secret value is nil"),
        (200, "x".repeat(5 << 20), "the answer is too large"),
        (503, "<html>".to_owned(), "RESPONSE 503"),
        (500, String::new(), "RESPONSE 500"),
        (429, r#"{"error":{"code":"Throttled"}}"#.to_owned(), "ERROR CODE: Throttled"),
        (302, String::new(), "RESPONSE 302"),
    ] {
        let (store, driver) = ready(1).await;
        store.fault(answer(status, &body));
        trouble(&driver, &store, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_refused_session_is_cured_by_a_fresh_login() {
    let (store, driver) = ready(1).await;
    store.fault(answer(401, ""));
    driver.mount("p1", &parameters(), LONG).await.unwrap();
    store.fault(answer(401, ""));
    store.fault(answer(401, ""));
    let status = driver
        .mount(
            "p2",
            &parameters().map(|(k, v)| {
                (
                    k,
                    if k == "objects" {
                        "[{objectName: db, objectType: secret, objectVersion: v1}]"
                    } else {
                        v
                    },
                )
            }),
            LONG,
        )
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_silent_store() {
    let (store, driver) = ready(1).await;
    store.set_latency(LONG);
    trouble(&driver, &store, "did not answer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_store_slower_than_the_deadline() {
    let (store, driver) = ready(10).await;
    store.set_latency(LONG);
    let start = Instant::now();
    let status = driver.mount("p1", &parameters(), Duration::from_secs(2)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(1900), "our deadline comes before the caller's");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("context deadline exceeded"), "{status:?}");
    store.set_latency(Duration::ZERO);
    driver.mount("p1", &parameters(), LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_store_that_refuses_connections() {
    let store = start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings(&store);
    let vault = settings.connect_to.iter_mut().find(|(host, _)| host == "shopkv.vault.azure.net").unwrap();
    vault.1 = closed.local_addr().unwrap();
    drop(closed);
    let driver = Driver::start(with(settings, 1)).await;
    let status = driver.mount("p1", &parameters(), LONG).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("check network, firewall and private endpoint"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_one_pause_holds_for_all_mounts_of_the_vault() {
    let (store, driver) = ready(4).await;
    store.fault(Fault::status(429).path("/secrets/").header("retry-after-ms", "700"));
    let driver = Arc::new(driver);
    let first = tokio::spawn({
        let driver = driver.clone();
        async move { driver.mount("p0", &parameters(), LONG).await }
    });
    // The first read is throttled before the others come.
    while reads(&store).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mounts = (1..40).map(|n| {
        let driver = driver.clone();
        async move { driver.mount(&format!("p{n}"), &parameters(), LONG).await.unwrap() }
    });
    futures_util::future::join_all(mounts).await;
    first.await.unwrap().unwrap();
    let reads = reads(&store);
    assert_eq!(reads.len(), 2, "the throttled read and one for all forty");
    assert!(reads[1] - reads[0] >= Duration::from_millis(700));
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
    fn check(&self, _: &Call) -> Result<Outline, Problems> {
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
    let status = driver.mount("bad", &parameters(), LONG).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("made to panic"));
    driver.mount("good", &parameters(), LONG).await.unwrap();
    assert!(driver.metrics.text().contains(r#"result="bug"} 1"#));
}

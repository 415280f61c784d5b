//! Outages of half an hour in simulated time: what is served as last read, to whom, for how long, and how
//! fast (tracker T12). `contract.rs` has the same over every backend.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyferry::backends;
use keyferry::call::{Call, Occasion, Parameters, Pod, TOKENS_KEY, Tokens};
use keyferry::error::{Kind, Problems};
use keyferry::fetch::{Settings, Tally};
use keyferry::gather::{Gather, Gathered, Store};
use keyferry::path::Mode;
use keyferry::proto::MountResponse;
use tokio::time::{Instant, advance};
use tonic::{Code, Status};

use crate::identities::{Mirror, World};
use crate::standins::azure::content::Identity;
use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::standins::faults::Fault;
use crate::support::azure::{self, AUDIENCE};
use crate::support::driver::Driver;

const MINUTE: Duration = Duration::from_secs(60);
const BOUND: Duration = Duration::from_secs(1800);
/// Longest time of a mount in an outage: what the store gets, and a little for the rest.
const SHORT: Duration = Duration::from_millis(3100);

/// Tokens a and b are of one account, c of another.
fn start(settings: &Settings) -> (Arc<Mutex<World>>, Store<Mirror>) {
    let accepted = [("a", 0), ("b", 0), ("c", 1)].map(|(token, who)| (token.to_owned(), who)).into();
    let world = Arc::new(Mutex::new(World { accepted, ..World::default() }));
    (world.clone(), Store::new(Mirror(world), settings))
}

fn allowed() -> Settings {
    Settings { last_good_max_age: BOUND, last_good_default: BOUND, ..Settings::default() }
}

async fn mount(
    store: &Store<Mirror>,
    token: &str,
    more: &[(&str, &str)],
    occasion: Occasion,
) -> Result<Gathered, Problems> {
    let own = [("token", token), ("target", "s"), ("object", "db")];
    let parameters = own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let call = Call {
        parameters: Parameters::new(&parameters),
        pod: Pod::default(),
        class: None,
        tokens: Tokens::default(),
        secrets: None,
        mode: Mode::DEFAULT,
        deadline: Instant::now() + Duration::from_secs(110),
        occasion,
    };
    store.gather(&call, &Tally::default()).await
}

async fn first(store: &Store<Mirror>, token: &str) -> Result<Gathered, Problems> {
    mount(store, token, &[], Occasion::First).await
}

fn version(got: &Gathered) -> &str {
    &got.versions[0].1
}

/// Half an hour with a pod a minute; the store gives back control at each.
async fn half_an_hour(store: &Store<Mirror>, token: &str) {
    for minute in 0..29 {
        let start = Instant::now();
        let got = first(store, token).await.unwrap();
        assert!(start.elapsed() < SHORT, "minute {minute}: {:?}", start.elapsed());
        assert_eq!((got.files[0].contents.expose(), version(&got)), (&b"s db p0"[..], "0+last-good"));
        let old = got.last_good.unwrap();
        assert_eq!((old.objects, old.store.starts_with("store")), (1, true), "{old:?}");
        store.sweep();
        advance(MINUTE - start.elapsed()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn t12_pods_of_the_same_account_start_while_the_store_answers_503() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    world.lock().unwrap().down = true;
    advance(Duration::from_secs(30)).await;
    half_an_hour(&store, "b").await;
    let text = first(&store, "c").await.unwrap_err().to_string();
    assert!(text.contains("no value that this identity read in the last 30m is in memory"), "{text}");
    advance(MINUTE).await;
    let problems = first(&store, "b").await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unavailable);
    for part in ["store has been in trouble for 30m", "in the last 30m"] {
        assert!(problems.to_string().contains(part), "{part}: {problems}");
    }
    world.lock().unwrap().down = false;
    world.lock().unwrap().version = 7;
    let got = first(&store, "b").await.unwrap();
    assert_eq!((version(&got), got.last_good.is_none()), ("7", true));
}

#[tokio::test(start_paused = true)]
async fn t12_pods_start_while_the_store_is_silent_and_the_budget_holds_after_the_bound() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    world.lock().unwrap().latency = Duration::from_secs(86_400);
    advance(Duration::from_secs(30)).await;
    half_an_hour(&store, "b").await;
    assert!(world.lock().unwrap().reads < 70, "one goes on behind, and each mount may ask once");
    advance(MINUTE).await;
    let start = Instant::now();
    assert_eq!(first(&store, "b").await.unwrap_err().kind(), Kind::Deadline);
    assert!(start.elapsed() <= Duration::from_secs(110));
}

#[tokio::test(start_paused = true)]
async fn t12_off_it_is_an_error_with_a_reason() {
    let (world, store) = start(&Settings::default());
    first(&store, "a").await.unwrap();
    world.lock().unwrap().down = true;
    advance(MINUTE).await;
    for more in [&[][..], &[("lastGoodMaxAge", "30m")]] {
        let problems = mount(&store, "b", more, Occasion::First).await.unwrap_err();
        assert_eq!(problems.kind(), Kind::Unavailable);
        let text = problems.to_string();
        assert!(text.contains("no last good value is allowed") && text.contains("--last-good-max-age is 0s"));
    }
}

#[tokio::test(start_paused = true)]
async fn t12_a_class_opts_in_up_to_what_the_node_allows_and_may_opt_out() {
    for (class, node, age, served) in [
        (Some("5m"), Duration::ZERO, 4, true),
        (Some("5m"), Duration::ZERO, 6, false),
        (Some("24h"), Duration::ZERO, 31, false),
        (None, Duration::ZERO, 1, false),
        (None, BOUND, 29, true),
        (Some("0"), BOUND, 1, false),
    ] {
        let (world, store) = start(&Settings { last_good_default: node, ..allowed() });
        let class: Vec<_> = class.iter().map(|age| ("lastGoodMaxAge", *age)).collect();
        mount(&store, "a", &class, Occasion::First).await.unwrap();
        world.lock().unwrap().down = true;
        for _ in 0..age {
            advance(MINUTE).await;
            store.sweep();
        }
        let got = mount(&store, "b", &class, Occasion::First).await;
        assert_eq!(got.is_ok(), served, "{class:?} {node:?} {age}");
    }
}

#[tokio::test(start_paused = true)]
async fn t12_a_slow_store_is_heard_though_nobody_waits_for_it() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    world.lock().unwrap().latency = Duration::from_secs(5);
    world.lock().unwrap().version = 1;
    advance(MINUTE).await;
    assert_eq!(version(&first(&store, "a").await.unwrap()), "0+last-good");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let got = mount(&store, "a", &[], Occasion::Repeat).await.unwrap();
    assert_eq!((version(&got), world.lock().unwrap().reads), ("1", 2));
}

#[tokio::test(start_paused = true)]
async fn t12_who_has_proven_nothing_gets_nothing() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    advance(MINUTE).await;
    world.lock().unwrap().down = true;
    world.lock().unwrap().login_down = true;
    first(&store, "a").await.expect("this very token was proven, and its session is still good");
    assert_eq!(first(&store, "b").await.unwrap_err().kind(), Kind::Unavailable);
    world.lock().unwrap().login_down = false;
    first(&store, "b").await.expect("the login service is enough");
    assert_eq!(first(&store, "forged").await.unwrap_err().kind(), Kind::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn t12_an_identity_that_was_refused_gets_nothing_of_what_it_once_read() {
    let (world, store) = start(&allowed());
    for object in ["db", "api"] {
        mount(&store, "a", &[("object", object)], Occasion::First).await.unwrap();
    }
    mount(&store, "c", &[("object", "api")], Occasion::First).await.unwrap();
    advance(MINUTE).await;
    world.lock().unwrap().refused.insert(0);
    assert_eq!(first(&store, "a").await.unwrap_err().kind(), Kind::Denied);
    world.lock().unwrap().down = true;
    for object in ["db", "api"] {
        let problems = mount(&store, "b", &[("object", object)], Occasion::First).await.unwrap_err();
        assert_eq!(problems.kind(), Kind::Unavailable, "{object}");
    }
    mount(&store, "c", &[("object", "api")], Occasion::First).await.expect("another one was not refused");
}

#[tokio::test(start_paused = true)]
async fn t12_who_asks_for_what_was_never_allowed_spoils_nothing() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    let problems = mount(&store, "b", &[("object", "forbidden")], Occasion::First).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Denied);
    world.lock().unwrap().down = true;
    advance(MINUTE).await;
    first(&store, "a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn t12_what_is_forgotten_stays_so() {
    let (world, store) = start(&allowed());
    first(&store, "a").await.unwrap();
    world.lock().unwrap().down = true;
    advance(MINUTE).await;
    store.sweep();
    assert_eq!(store.kept().0, 1, "it lives as long as the fallback allows");
    store.forget();
    assert_eq!(store.kept(), (0, 0));
    first(&store, "a").await.unwrap_err();
}

const OBJECTS: &str = "[{objectName: db, objectType: secret}, {objectName: api, objectType: secret}]";

/// A class by workload identity, mounted with a token of `account` that was minted just now.
async fn by_token(
    azure: &AzureStandIn,
    driver: &Driver,
    account: &str,
    class: &[(&str, &str)],
) -> Result<MountResponse, Status> {
    let token = azure.issuer().mint("shop", account, AUDIENCE);
    let token = serde_json::json!({AUDIENCE: {"token": token}}).to_string();
    let own = [("keyvaultName", "shopkv"), ("tenantID", TENANT), ("objects", OBJECTS), (TOKENS_KEY, &token)];
    driver.mount("pod", &[&own[..], class].concat(), Duration::from_secs(60)).await
}

#[tokio::test]
async fn t12_a_pod_s_own_token_of_the_same_account_is_enough_and_another_s_is_not() {
    let azure = azure::start().await;
    let other = "33333333-3333-4333-8333-333333333333";
    azure.identity(Identity::new(other).federated("shop", "other"));
    azure::secret(&azure, "db", "v1", "x");
    azure::secret(&azure, "api", "v1", "y");
    let engine = Settings { tries: 1, ..allowed() };
    let http = azure::client(&azure, |_| true);
    let backend = backends::open(&backends::Settings::default(), &http, &engine).remove(0);
    let driver = Driver::start(backend).await;
    let before = by_token(&azure, &driver, "web", &[("clientID", CLIENT)]).await.unwrap();
    azure.fault(Fault::status(503).host("shopkv.vault.azure.net").times(u32::MAX));
    tokio::time::pause();
    advance(29 * MINUTE).await;
    tokio::time::resume();
    azure.clear_log();
    let during = by_token(&azure, &driver, "web", &[("clientID", CLIENT)]).await.unwrap();
    assert_eq!(during.files, before.files);
    let logins = azure.log().iter().filter(|line| line.path.contains("/oauth2/")).count();
    assert_eq!(logins, 1, "its own token was proven");
    by_token(&azure, &driver, "other", &[("clientID", other)]).await.unwrap_err();
    let forged = by_token(&azure, &driver, "other", &[("clientID", CLIENT)]).await.unwrap_err();
    assert_eq!(forged.code(), Code::Unauthenticated, "{forged:?}");
}

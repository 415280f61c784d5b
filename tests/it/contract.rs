//! Statements that hold for every backend. A new one supplies a fixture and gets these tests.

use std::sync::Arc;
use std::time::Duration;

use keyferry::backends::{self, Settings};
use keyferry::fetch;
use keyferry::gather::Gather;
use keyferry::http::Http;
use keyferry::policy::Policy;
use keyferry::server::service;
use tonic::Code;

use crate::standins::azure::content::{Denial, Identity, Kind, Managed};
use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::standins::faults::Fault;
use crate::support::azure::{client, secret, start};
use crate::support::driver::Driver;
use crate::support::log;

const LONG: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);
/// An identity besides [`CLIENT`].
const OTHER: &str = "33333333-3333-4333-8333-333333333333";

type Class = Vec<(&'static str, String)>;

/// A store of one kind that holds what it is told, and how a class of its dialect asks for objects.
trait Fixture: Sync {
    fn backend(&self, engine: &fetch::Settings) -> Arc<dyn Gather>;
    fn put(&self, name: &str, value: &str);
    fn remove(&self, name: &str);
    fn deny(&self, name: &str);
    /// Lets every read fail as if the store were down, while identities can be proven; or no longer.
    fn down(&self, down: bool);
    /// Parameters of a class that wants `names`, each as a file of that name.
    fn class(&self, names: &[&str]) -> Class;
    /// The same for another identity, if the store knows several.
    fn as_other(&self, class: &Class) -> Option<Class>;
}

struct Azure(AzureStandIn);

impl Fixture for Azure {
    fn backend(&self, engine: &fetch::Settings) -> Arc<dyn Gather> {
        backends::open(&Settings::default(), &client(&self.0, |_| true), engine).remove(0)
    }

    fn put(&self, name: &str, value: &str) {
        let count = self.0.log().len();
        secret(&self.0, name, &format!("v{count}{}", value.len()), value);
    }

    fn remove(&self, name: &str) {
        self.0.vault("shopkv").delete(Kind::Secrets, name);
    }

    fn deny(&self, _: &str) {
        self.0.vault("shopkv").deny(Some(CLIENT), Some(Kind::Secrets), None, Denial::Rbac);
    }

    fn down(&self, down: bool) {
        self.0.clear_faults();
        if down {
            self.0.fault(Fault::status(503).host("shopkv.vault.azure.net").times(u32::MAX));
        }
    }

    fn as_other(&self, class: &Class) -> Option<Class> {
        let client = |value: &String| value.replace(CLIENT, OTHER);
        Some(class.iter().map(|(key, value)| (*key, client(value))).collect())
    }

    fn class(&self, names: &[&str]) -> Class {
        let entries: Vec<_> =
            names.iter().map(|n| format!("- {{objectName: {n}, objectType: secret}}")).collect();
        vec![
            ("keyvaultName", "shopkv".into()),
            ("tenantID", TENANT.into()),
            ("useVMManagedIdentity", "true".into()),
            ("userAssignedIdentityID", CLIENT.into()),
            ("objects", entries.join("\n")),
        ]
    }
}

struct Local {
    root: tempfile::TempDir,
    outside: tempfile::TempDir,
}

impl Fixture for Local {
    fn backend(&self, engine: &fetch::Settings) -> Arc<dyn Gather> {
        let settings = Settings { local_root: Some(self.root.path().to_owned()), ..Settings::default() };
        backends::open(&settings, &Http::new(keyferry::http::Settings::default()), engine).pop().unwrap()
    }

    fn put(&self, name: &str, value: &str) {
        // As editors do it: a new file in place of the old one.
        let draft = self.root.path().join(".draft");
        std::fs::write(&draft, value).unwrap();
        std::fs::rename(draft, self.root.path().join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.root.path().join(name)).unwrap();
    }

    fn deny(&self, name: &str) {
        // Root may read every file, so a link that leads out stands for what is refused.
        self.remove(name);
        std::fs::write(self.outside.path().join(name), "canary-outside").unwrap();
        std::os::unix::fs::symlink(self.outside.path().join(name), self.root.path().join(name)).unwrap();
    }

    fn down(&self, down: bool) {
        let away = self.root.path().with_extension("away");
        let (from, to) = if down { (self.root.path(), &*away) } else { (&*away, self.root.path()) };
        std::fs::rename(from, to).unwrap();
    }

    fn as_other(&self, _: &Class) -> Option<Class> {
        None
    }

    fn class(&self, names: &[&str]) -> Class {
        vec![("objects", names.iter().map(|name| format!("- {{name: {name}}}\n")).collect())]
    }
}

async fn fixtures() -> Vec<Box<dyn Fixture>> {
    let local = Local { root: tempfile::tempdir().unwrap(), outside: tempfile::tempdir().unwrap() };
    let azure = start().await;
    azure.identity(Identity::new(OTHER).managed(Managed::User));
    vec![Box::new(Azure(azure)), Box::new(local)]
}

/// Adds `fields` to the entry of `name`, in either dialect.
fn with(mut class: Class, name: &str, fields: &str) -> Class {
    for (_, objects) in class.iter_mut().filter(|(key, _)| *key == "objects") {
        let at = objects.find(&format!("ame: {name}")).unwrap();
        let open = objects[..at].rfind('{').unwrap();
        objects.insert_str(open + 1, &format!("{fields}, "));
    }
    class
}

/// Adds a parameter to a class.
fn and(class: &Class, key: &'static str, value: &str) -> Class {
    class.iter().cloned().chain([(key, value.to_owned())]).collect()
}

async fn driver(fixture: &dyn Fixture) -> Driver {
    Driver::start(fixture.backend(&fetch::Settings { tries: 1, ..fetch::Settings::default() })).await
}

/// Paths and contents, and versions.
type Answered = (Vec<(String, String)>, Vec<String>);

/// As [`mount`], where files may be missing.
async fn answer(driver: &Driver, pod: &str, class: &Class) -> Result<Answered, tonic::Status> {
    let class: Vec<_> = class.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let answer = driver.mount(pod, &class, LONG).await?;
    let text = |contents: &[u8]| String::from_utf8_lossy(contents).into_owned();
    let files = answer.files.iter().map(|file| (file.path.clone(), text(&file.contents)));
    Ok((files.collect(), answer.object_version.into_iter().map(|object| object.version).collect()))
}

/// The paths of an answer.
async fn paths(driver: &Driver, pod: &str, class: &Class) -> Vec<String> {
    answer(driver, pod, class).await.unwrap().0.into_iter().map(|(path, _)| path).collect()
}

/// Whether a line of the log has all of `parts`.
fn logged(parts: &[&str]) -> bool {
    log::since(0).lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// Lets simulated time pass, for whatever runs on this thread.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

type Mounted = Result<Vec<(String, Vec<u8>)>, tonic::Status>;

async fn mount(driver: &Driver, pod: &str, class: &[(&'static str, String)]) -> Mounted {
    let class: Vec<_> = class.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let answer = driver.mount(pod, &class, LONG).await?;
    assert_eq!(answer.object_version.len(), answer.files.len());
    Ok(answer.files.into_iter().map(|file| (file.path, file.contents.to_vec())).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_in_the_users_order() {
    for fixture in fixtures().await {
        let names: Vec<String> = (0..30).rev().map(|n| format!("object-{n}")).collect();
        names.iter().for_each(|name| fixture.put(name, &format!("value of {name}")));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let files = mount(&driver(&*fixture).await, "p", &fixture.class(&names)).await.unwrap();
        let want: Vec<_> =
            names.iter().map(|n| ((*n).to_owned(), format!("value of {n}").into_bytes())).collect();
        assert_eq!(files, want);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_object_fails_the_mount_and_is_named() {
    for fixture in fixtures().await {
        fixture.put("here", "x");
        let status =
            mount(&driver(&*fixture).await, "p", &fixture.class(&["here", "gone"])).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("gone") && status.message().contains("objects[1]"), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_object_is_denied_and_nothing_of_it_is_told() {
    for fixture in fixtures().await {
        fixture.put("db", "canary-value");
        fixture.deny("db");
        let status = mount(&driver(&*fixture).await, "p", &fixture.class(&["db"])).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(!status.message().contains("canary"), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_answered_from_memory_until_it_is_forgotten() {
    for fixture in fixtures().await {
        fixture.put("db", "old");
        let backend = fixture.backend(&fetch::Settings::default());
        let driver = Driver::start(backend.clone()).await;
        let class = fixture.class(&["db"]);
        mount(&driver, "p", &class).await.unwrap();
        fixture.put("db", "new one");
        assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, b"old");
        backend.forget();
        assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, b"new one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_value_is_in_the_repeat_after_its_age() {
    for fixture in fixtures().await {
        fixture.put("db", "old");
        let engine =
            fetch::Settings { repeat_max_age: Duration::from_millis(1), ..fetch::Settings::default() };
        let driver = Driver::start(fixture.backend(&engine)).await;
        let class = fixture.class(&["db"]);
        mount(&driver, "p", &class).await.unwrap();
        fixture.put("db", "new one");
        let after = tokio::time::Instant::now() + Duration::from_millis(1);
        tokio::time::sleep_until(after).await;
        assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, b"new one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_class_is_a_first_mount_and_errors_are_not_kept() {
    for fixture in fixtures().await {
        let engine =
            fetch::Settings { start_max_age: Duration::ZERO, tries: 1, ..fetch::Settings::default() };
        let driver = Driver::start(fixture.backend(&engine)).await;
        let class = fixture.class(&["db"]);
        mount(&driver, "p", &class).await.unwrap_err();
        fixture.put("db", "old");
        assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, b"old");
        fixture.put("db", "new one");
        let mut edited = class.clone();
        edited.push(("maxAge", "5m".into()));
        assert_eq!(mount(&driver, "p", &edited).await.unwrap()[0].1, b"new one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caching_can_be_switched_off() {
    for fixture in fixtures().await {
        let off = fetch::Settings {
            start_max_age: Duration::ZERO,
            repeat_max_age: Duration::ZERO,
            ..fetch::Settings::default()
        };
        let driver = Driver::start(fixture.backend(&off)).await;
        let class = fixture.class(&["db"]);
        for value in ["one", "two two", "three three"] {
            fixture.put("db", value);
            assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, value.as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_mount_leaves_the_next_one_fine() {
    for fixture in fixtures().await {
        fixture.put("db", "x");
        let driver = driver(&*fixture).await;
        let class = fixture.class(&["db"]);
        for _ in 0..20 {
            let cancelled =
                tokio::time::timeout(Duration::from_micros(300), mount(&driver, "p", &class)).await;
            drop(cancelled);
        }
        assert_eq!(mount(&driver, "p", &class).await.unwrap()[0].1, b"x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_entries_are_one_read_and_two_files() {
    for fixture in fixtures().await {
        fixture.put("db", "x");
        let driver = driver(&*fixture).await;
        let mut class = fixture.class(&["db", "db"]);
        for (_, objects) in class.iter_mut().filter(|(key, _)| *key == "objects") {
            // The second of the two under another path, in either dialect.
            let second = objects.rfind('{').unwrap();
            objects.insert_str(second + 1, "objectAlias: again, path: again, ");
        }
        let files = mount(&driver, "p", &class).await.unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[1], ("again".to_owned(), b"x".to_vec()));
        assert!(driver.metrics.text().contains("source=\"store\"} 1"), "{}", driver.metrics.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_the_policy_refuses_asks_nobody_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    for fixture in fixtures().await {
        fixture.put("db", "canary-value");
        std::fs::write(&file, "rules: [{name: elsewhere, namespaces: [shop], addresses: [elsewhere]}]")
            .unwrap();
        let policy = Arc::new(Policy::open(&file, &backends::NAMES).unwrap());
        let engine = fetch::Settings { policy: Some(policy.clone()), ..fetch::Settings::default() };
        let backend = fixture.backend(&engine);
        let driver = Driver::start(backend.clone()).await;
        let class = fixture.class(&["db"]);
        let status = mount(&driver, "p", &class).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        for part in ["rule \"elsewhere\"", "is none of \"elsewhere\"", "the administrator of the cluster"] {
            assert!(status.message().contains(part), "{part}: {status:?}");
        }
        assert!(driver.metrics.text().contains("result=\"refused\"} 1"));
        assert!(!engine.metrics.text().contains("keyferry_store_requests_total{"), "nothing was sent");
        assert_eq!(backend.kept(), (0, 0));
        std::fs::write(&file, "rules: [{name: all, namespaces: [\"sho*\"], backends: [azure, local]}]")
            .unwrap();
        policy.refresh();
        mount(&driver, "p", &class).await.unwrap();
        assert!(engine.metrics.text().contains("keyferry_store_requests_total{"));
        std::fs::write(&file, "rules: [{name: others, namespaces: [others]}]").unwrap();
        policy.refresh();
        let status = mount(&driver, "p", &class).await.unwrap_err();
        assert!(
            status.message().contains("no rule is for namespace \"shop\""),
            "not even from memory: {status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_a_missing_optional_object_is_left_out_counted_and_logged() {
    log::capture();
    for fixture in fixtures().await {
        fixture.put("db", "x");
        fixture.put("api", "y");
        let driver = driver(&*fixture).await;
        let class = with(fixture.class(&["db", "gone", "api"]), "gone", "optional: true");
        let (files, versions) = answer(&driver, "t08-p", &class).await.unwrap();
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        assert_eq!(files, [file("db", "x"), file("api", "y")]);
        assert_eq!((versions.len(), versions[1].as_str()), (3, "absent"));
        let count = |outcome: &str| {
            let (text, line) = (driver.metrics.text(), format!("outcome=\"{outcome}\"}} 1"));
            text.contains("keyferry_optional_missing_total{") && text.contains(&line)
        };
        assert!(count("skipped"), "{}", driver.metrics.text());
        assert!(logged(&["an optional object is missing", "shop/t08-p", "class=\"vault\"", "secret/gone"]));
        let class = with(fixture.class(&["db", "gone"]), "gone", "optional: true, default: fallback");
        let (files, versions) = answer(&driver, "p2", &class).await.unwrap();
        assert_eq!(files, [file("db", "x"), file("gone", "fallback")]);
        assert!(versions[1].starts_with("default-") && count("default"), "{versions:?}");
        let class = with(fixture.class(&["db", "gone"]), "gone", "optional: true, default: another");
        assert_ne!(answer(&driver, "p3", &class).await.unwrap().1[1], versions[1], "content and version");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_refused_throttled_or_silent_is_not_missing() {
    for fixture in fixtures().await {
        fixture.put("db", "x");
        let driver = driver(&*fixture).await;
        let class = with(fixture.class(&["db"]), "db", "optional: true, default: fallback");
        fixture.down(true);
        let status = answer(&driver, "p", &class).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        fixture.down(false);
        fixture.deny("db");
        let status = answer(&driver, "p", &class).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(!driver.metrics.text().contains("keyferry_optional_missing_total{"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_an_optional_object_comes_and_goes_with_the_next_fetch() {
    for fixture in fixtures().await {
        let off = fetch::Settings {
            start_max_age: Duration::ZERO,
            repeat_max_age: Duration::ZERO,
            ..fetch::Settings::default()
        };
        let driver = Driver::start(fixture.backend(&off)).await;
        let class = with(fixture.class(&["db"]), "db", "optional: true");
        let (files, versions) = answer(&driver, "p", &class).await.unwrap();
        assert_eq!(versions, ["absent"]);
        // Without any file the driver would keep what is there, whatever it is.
        assert_eq!(files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), [service::EMPTY]);
        fixture.put("db", "x");
        assert_eq!(paths(&driver, "p", &class).await, ["db"]);
        fixture.remove("db");
        assert_eq!(paths(&driver, "p", &class).await, [service::EMPTY]);
        let status = answer(&driver, "p", &fixture.class(&["db"])).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "not marked as optional");
        assert!(status.message().contains("db"), "{status:?}");
    }
}

#[tokio::test]
async fn t12_half_an_hour_of_outage_with_last_good_values() {
    log::capture();
    for fixture in fixtures().await {
        fixture.put("db", "canary-of-outage");
        fixture.put("api", "y");
        let engine =
            fetch::Settings { last_good_max_age: 30 * MINUTE, tries: 1, ..fetch::Settings::default() };
        let driver = Driver::start(fixture.backend(&engine)).await;
        let off = fixture.class(&["db", "api"]);
        let class = and(&off, "lastGoodMaxAge", "30m");
        let before = answer(&driver, "p1", &class).await.unwrap();
        fixture.down(true);
        pass(29 * MINUTE).await;
        let during = answer(&driver, "t12-p2", &class).await.unwrap();
        assert_eq!(during.0, before.0, "the same files");
        let marked = |version: &String| format!("{version}+last-good");
        assert_eq!(during.1, before.1.iter().map(marked).collect::<Vec<_>>());
        let text = driver.metrics.text();
        assert!(
            text.lines().any(|l| l.starts_with("keyferry_last_good_total{") && l.ends_with("} 2")),
            "{text}"
        );
        // One line says all, also why.
        let line = ["served last good values", "shop/t12-p2", "class=\"vault\"", "objects=2", "age=17"];
        assert!(logged(&[&line[..], &["in trouble for 0s: ", "for the operator"]].concat()));
        let status = answer(&driver, "p3", &off).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("no last good value is allowed"), "{status:?}");
        if let Some(other) = fixture.as_other(&class) {
            let status = answer(&driver, "p4", &other).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "it has read nothing");
        }
        pass(2 * MINUTE).await;
        let status = answer(&driver, "p5", &class).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        for part in ["has been in trouble for 2m", "read in the last 30m"] {
            assert!(status.message().contains(part), "{part}: {status:?}");
        }
        fixture.down(false);
        assert_eq!(answer(&driver, "p5", &class).await.unwrap(), before, "fresh again");
        assert!(!log::since(0).contains("canary-of-outage"));
    }
}

#[tokio::test]
async fn t12_what_was_refused_or_is_gone_or_forgotten_is_no_last_good_value() {
    for fixture in fixtures().await {
        fixture.put("db", "x");
        fixture.put("api", "y");
        let engine =
            fetch::Settings { last_good_max_age: 30 * MINUTE, tries: 1, ..fetch::Settings::default() };
        let backend = fixture.backend(&engine);
        let driver = Driver::start(backend.clone()).await;
        let class = |name: &str| and(&fixture.class(&[name]), "lastGoodMaxAge", "30m");
        let outage = async |name: &str, pod: &str| {
            fixture.down(true);
            pass(MINUTE).await;
            let got = answer(&driver, pod, &class(name)).await;
            fixture.down(false);
            got.map_err(|status| status.code())
        };
        answer(&driver, "p1", &class("db")).await.unwrap();
        outage("db", "p2").await.expect("it would be served");
        backend.forget();
        assert_eq!(outage("db", "p3").await, Err(Code::FailedPrecondition), "forgotten");
        for name in ["db", "api"] {
            answer(&driver, "p4", &class(name)).await.unwrap();
        }
        fixture.remove("db");
        pass(MINUTE).await;
        assert_eq!(answer(&driver, "p5", &class("db")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(outage("db", "p6").await, Err(Code::NotFound), "gone");
        let optional = with(class("db"), "db", "optional: true");
        fixture.down(true);
        assert_eq!(paths(&driver, "p6", &optional).await, [service::EMPTY], "as last heard");
        fixture.down(false);
        outage("api", "p6").await.expect("only the one that is gone");
        fixture.put("db", "x");
        answer(&driver, "p7", &class("db")).await.unwrap();
        pass(MINUTE).await;
        fixture.deny("db");
        assert_eq!(answer(&driver, "p7", &class("db")).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(outage("api", "p8").await, Err(Code::FailedPrecondition), "the identity was refused");
    }
}

//! Statements that hold for every backend. A new one supplies a fixture and gets these tests.

use std::sync::Arc;
use std::time::Duration;

use keyferry::backends::{self, Settings};
use keyferry::fetch;
use keyferry::gather::Gather;
use keyferry::http::Http;
use keyferry::policy::Policy;
use tonic::Code;

use crate::standins::azure::content::{Denial, Kind};
use crate::standins::azure::{AzureStandIn, CLIENT, TENANT};
use crate::support::azure::{client, secret, start};
use crate::support::driver::Driver;

const LONG: Duration = Duration::from_secs(60);

/// A store of one kind that holds what it is told, and how a class of its dialect asks for objects.
trait Fixture: Sync {
    fn backend(&self, engine: &fetch::Settings) -> Arc<dyn Gather>;
    fn put(&self, name: &str, value: &str);
    fn remove(&self, name: &str);
    fn deny(&self, name: &str);
    /// Parameters of a class that wants `names`, each as a file of that name.
    fn class(&self, names: &[&str]) -> Vec<(&'static str, String)>;
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

    fn class(&self, names: &[&str]) -> Vec<(&'static str, String)> {
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

    fn class(&self, names: &[&str]) -> Vec<(&'static str, String)> {
        vec![("objects", names.iter().map(|name| format!("- {{name: {name}}}\n")).collect())]
    }
}

async fn fixtures() -> Vec<Box<dyn Fixture>> {
    let local = Local { root: tempfile::tempdir().unwrap(), outside: tempfile::tempdir().unwrap() };
    vec![Box::new(Azure(start().await)), Box::new(local)]
}

async fn driver(fixture: &dyn Fixture) -> Driver {
    Driver::start(fixture.backend(&fetch::Settings { tries: 1, ..fetch::Settings::default() })).await
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

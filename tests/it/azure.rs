//! The Azure backend through the whole engine, against the stand-in over TLS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyferry::backends::{self, Settings};
use keyferry::call::{Call, Occasion, Parameters, Pod, Tokens};
use keyferry::error::{Kind, Problems};
use keyferry::fetch::{self, Tally};
use keyferry::gather::{Gather, Gathered};
use keyferry::path::Mode;
use keyferry::secret::SecretText;

use crate::standins::azure::content::{Denial, Kind as Object};
use crate::standins::azure::{CLIENT, TENANT};
use crate::standins::faults::{Fault, How};
use crate::standins::issuer::Variant;
use crate::support::azure::{AUDIENCE, client, open, secret, start};

fn objects(names: &[&str]) -> String {
    let entries: String =
        names.iter().map(|n| format!("  - |\n    objectName: {n}\n    objectType: secret\n")).collect();
    format!("array:\n{entries}")
}

fn call(extra: &[(&str, &str)], objects: &str, token: Option<&str>) -> Call {
    let mut map: BTreeMap<String, String> =
        extra.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for (key, value) in [("keyvaultName", "shopkv"), ("tenantId", TENANT), ("objects", objects)] {
        map.insert(key.to_owned(), value.to_owned());
    }
    let tokens = token.map(|token| {
        format!(r#"{{"api://AzureADTokenExchange":{{"token":"{token}","expirationTimestamp":"2030-01-01T00:00:00Z"}}}}"#)
    });
    Call {
        parameters: Parameters::new(&map),
        pod: Pod {
            name: "web-0".into(),
            namespace: "shop".into(),
            uid: "u".into(),
            service_account: "web".into(),
        },
        class: Some("vault".into()),
        tokens: Tokens::new(tokens),
        secrets: None,
        mode: Mode::DEFAULT,
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        occasion: Occasion::First,
    }
}

const WORKLOAD: &[(&str, &str)] = &[("clientID", CLIENT)];
const MACHINE: &[(&str, &str)] =
    &[("usePodIdentity", "false"), ("useVMManagedIdentity", "true"), ("userAssignedIdentityID", CLIENT)];

async fn mount(backend: &Arc<dyn Gather>, call: &Call) -> Result<Gathered, Problems> {
    backend.gather(call, &Tally::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_004_managed_identity_gives_both_secrets_byte_for_byte() {
    let store = start().await;
    secret(&store, "db-password", "a1", "p@ss\n");
    secret(&store, "api-key", "b1", "märker \"x\"");
    let backend = open(&store);
    let got = mount(&backend, &call(MACHINE, &objects(&["db-password", "api-key"]), None)).await.unwrap();
    let files: Vec<_> =
        got.files.iter().map(|f| (f.path.as_str(), f.mode.bits(), f.contents.expose())).collect();
    assert_eq!(
        files,
        [("db-password", 0o644, &b"p@ss\n"[..]), ("api-key", 0o644, "märker \"x\"".as_bytes())]
    );
    let versions =
        [("secret/db-password", "a1"), ("secret/api-key", "b1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(got.versions, versions);
    assert_eq!(store.log().len(), 3, "one token and two reads, no probe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_a_hundred_pods_of_one_identity_read_each_object_once() {
    let store = start().await;
    let names: Vec<String> = (0..10).map(|n| format!("object-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| secret(&store, name, "v1", "value"));
    let backend = open(&store);
    let mut known = None;
    let mounts: Vec<_> = (0..100)
        .map(|_| {
            // Each token is of its own; the account is one.
            let token = store.issuer().mint("shop", "web", AUDIENCE);
            known = Some(token.clone());
            let (backend, call) = (backend.clone(), call(WORKLOAD, &objects(&names), Some(&token)));
            tokio::spawn(async move { mount(&backend, &call).await })
        })
        .collect();
    for mount in futures_util::future::join_all(mounts).await {
        assert_eq!(mount.unwrap().unwrap().files.len(), 10);
    }
    let log = store.log();
    let reads = log.iter().filter(|request| request.path.starts_with("/secrets/")).count();
    assert_eq!((reads, log.len() - reads), (10, 100), "ten reads, and one proof per pod's token");
    assert!(log.iter().all(|request| request.status == 200 && request.client.as_deref() == Some(CLIENT)));
    store.clear_log();
    let known = known.expect("a token of a mount before");
    let repeat = Call { occasion: Occasion::Repeat, ..call(WORKLOAD, &objects(&names), Some(&known)) };
    let tally = Tally::default();
    backend.gather(&repeat, &tally).await.unwrap();
    assert_eq!(tally.hits.load(Ordering::Relaxed), 10);
    assert_eq!(store.log().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_token_of_equal_claims_never_gets_a_cached_value() {
    let store = start().await;
    secret(&store, "db", "v1", "canary-value");
    let good = store.issuer().mint("shop", "web", AUDIENCE);
    let backend = open(&store);
    mount(&backend, &call(WORKLOAD, &objects(&["db"]), Some(&good))).await.unwrap();
    let forged = store.issuer().mint_as("shop", "web", AUDIENCE, Variant::ForgedKey);
    let problems = mount(&backend, &call(WORKLOAD, &objects(&["db"]), Some(&forged))).await.unwrap_err();
    assert_eq!(problems.kind(), Kind::Unauthenticated);
    let text = problems.to_string();
    for fragment in [
        "AADSTS50027",
        "ClientAssertionCredential authentication failed",
        "issuer https://issuer.lab.example",
        "subject system:serviceaccount:shop:web",
        CLIENT,
    ] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    assert!(!text.contains(&forged) && !text.contains("canary"), "{text}");
    let none = mount(&backend, &call(WORKLOAD, &objects(&["db"]), None)).await.unwrap_err().to_string();
    assert!(none.contains("failed to build auth config for mode None: failed to parse workload identity tokens, error: service account tokens not found"), "{none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_token_gets_the_value_that_the_right_one_cached() {
    let store = start().await;
    secret(&store, "db", "v1", "canary-value");
    let backend = open(&store);
    let right = store.issuer().mint("shop", "web", AUDIENCE);
    let with = |token: &str, occasion| Call { occasion, ..call(WORKLOAD, &objects(&["db"]), Some(token)) };
    mount(&backend, &with(&right, Occasion::First)).await.unwrap();
    let mint = |account: &str, variant| store.issuer().mint_as("shop", account, AUDIENCE, variant);
    let others = [
        mint("other", Variant::Right),
        mint("web", Variant::Expired),
        mint("web", Variant::NotYetValid),
        mint("web", Variant::ForgedKey),
        mint("web", Variant::UnknownKid),
        mint("web", Variant::WrongIssuer),
        mint("web", Variant::WrongAudience),
        mint("web", Variant::AlgNone),
        mint("web", Variant::Altered),
    ];
    for (number, token) in others.iter().enumerate() {
        for occasion in [Occasion::First, Occasion::Repeat] {
            let problems = mount(&backend, &with(token, occasion)).await.unwrap_err();
            assert_eq!(problems.kind(), Kind::Unauthenticated, "{number}");
            let text = problems.to_string();
            assert!(
                text.contains("AADSTS") && !text.contains("canary") && !text.contains(token.as_str()),
                "{text}"
            );
        }
    }
    mount(&backend, &with(&right, Occasion::Repeat)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_principal_needs_the_right_secret() {
    let store = start().await;
    secret(&store, "db", "v1", "x");
    let backend = open(&store);
    let with = |secret: &str| {
        let secrets = [("ClientID", CLIENT), ("CLIENTSECRET", secret)];
        let secrets = secrets.map(|(k, v)| (k.to_owned(), SecretText::new(v.to_owned()))).into();
        Call { secrets: Some(secrets), ..call(&[], &objects(&["db"]), None) }
    };
    mount(&backend, &with("right")).await.unwrap();
    let text = mount(&backend, &with("wrong-canary")).await.unwrap_err().to_string();
    assert!(
        text.contains("ClientSecretCredential authentication failed") && !text.contains("wrong-canary"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_secret_is_in_the_next_first_mount_after_the_start_age() {
    let store = start().await;
    secret(&store, "db", "v1", "old");
    let http = client(&store, |_| true);
    let engine = fetch::Settings { start_max_age: Duration::ZERO, ..fetch::Settings::default() };
    let backend = backends::open(&Settings::default(), &http, &engine).remove(0);
    mount(&backend, &call(MACHINE, &objects(&["db"]), None)).await.unwrap();
    secret(&store, "db", "v2", "new");
    let repeat = Call { occasion: Occasion::Repeat, ..call(MACHINE, &objects(&["db"]), None) };
    assert_eq!(mount(&backend, &repeat).await.unwrap().files[0].contents.expose(), b"old");
    let first = mount(&backend, &call(MACHINE, &objects(&["db"]), None)).await.unwrap();
    assert_eq!((first.files[0].contents.expose(), first.versions[0].1.as_str()), (&b"new"[..], "v2"));
    secret(&store, "db", "v3", "newest");
    backend.forget();
    assert_eq!(mount(&backend, &repeat).await.unwrap().files[0].contents.expose(), b"newest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_a_pause_asked_by_the_store_is_kept_and_then_all_succeed() {
    let store = start().await;
    secret(&store, "db", "v1", "x");
    store.fault(Fault::status(429).path("/secrets/").header("retry-after-ms", "300"));
    let backend = open(&store);
    let start = std::time::Instant::now();
    mount(&backend, &call(MACHINE, &objects(&["db"]), None)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_13_refusals_keep_the_words_people_search_for() {
    let store = start().await;
    let backend = open(&store);
    let missing = mount(&backend, &call(MACHINE, &objects(&["db-pass"]), None)).await.unwrap_err();
    let text = missing.to_string();
    for fragment in [
        "failed to mount objects, error: failed to get objectType:secret, objectName:db-pass, objectVersion:: ",
        "GET https://shopkv.vault.azure.net/secrets/db-pass/",
        "RESPONSE 404: 404 Not Found",
        "ERROR CODE: SecretNotFound",
        "objects[0]",
        "shop/vault",
    ] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    assert_eq!(missing.kind(), Kind::NotFound);
    store.vault("shopkv").deny(Some(CLIENT), Some(Object::Secrets), None, Denial::Rbac);
    backend.forget();
    let denied = mount(&backend, &call(MACHINE, &objects(&["db-pass"]), None)).await.unwrap_err();
    let text = denied.to_string();
    for fragment in ["RESPONSE 403", "ERROR CODE: Forbidden", "ForbiddenByRbac", "Key Vault Secrets User"] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    assert_eq!(denied.kind(), Kind::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_odd_answers_are_ordinary_errors_and_the_next_mount_is_fine() {
    let store = start().await;
    secret(&store, "db", "v1", "x");
    let backend = open(&store);
    let bodies = ["{}", r#"{"value":"canary"}"#].map(|body| Fault::status(200).body(body));
    for fault in bodies.into_iter().chain([Fault::how(How::Huge)]) {
        store.fault(fault.path("/secrets/"));
        let text = mount(&backend, &call(MACHINE, &objects(&["db"]), None)).await.unwrap_err().to_string();
        assert!(text.contains("objectName:db") && !text.contains("canary"), "{text}");
    }
    mount(&backend, &call(MACHINE, &objects(&["db"]), None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_of_a_class_come_all_at_once_and_cost_no_request() {
    let store = start().await;
    let backend = open(&store);
    let text = "array:\n  - |\n    objectName: a\n    objectType: Secret\n  - |\n    objectName: b\n    objectType: key\n    objectEncoding: hex\n    filePermission: \"0900\"\n  - |\n    objectName: ../c\n    objectType: secret\n";
    let problems = mount(&backend, &call(&[("usePodIdentity", "yes"), ("cloudName", "Mars")], text, None))
        .await
        .unwrap_err();
    let text = problems.to_string();
    for fragment in [
        "failed to parse usePodIdentity flag, error: \"yes\"",
        "cloudName Mars is not valid, error: ",
        "\"MARS\"",
        "nodePublishSecretRef secret is not set",
        "objectName:a, objectVersion:: Invalid vaultObjectTypes. Should be secret, key, or cert",
        "objectEncoding only supported for objectType: secret",
        "filePermission \"0900\"",
        "file name must not contain '..'",
        "[objects[1].filePermission, line 9]",
    ] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    assert_eq!(store.log().len(), 0);
}

#[tokio::test]
async fn t03_a_name_that_does_not_resolve_is_explained() {
    let store = start().await;
    let http = client(&store, |host| !host.contains("vault"));
    let settings = Settings::default();
    let backend = backends::open(&settings, &http, &fetch::Settings::default()).remove(0);
    let start = std::time::Instant::now();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut class = call(MACHINE, &objects(&["db"]), None);
    class.parameters = {
        let pairs = class.parameters.pairs().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let mut map: BTreeMap<_, _> = pairs.collect();
        map.insert("cloudName".into(), "AzureStackCloud".into());
        std::fs::write(file.path(), r#"{"activeDirectoryEndpoint":"https://login.microsoftonline.com/","keyVaultDNSSuffix":"vault.invalid","keyVaultEndpoint":"https://vault.azure.net"}"#).unwrap();
        map.insert("cloudEnvFileName".into(), file.path().display().to_string());
        Parameters::new(&map)
    };
    let text = mount(&backend, &class).await.unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(10));
    for fragment in [
        "dial tcp: lookup shopkv.vault.invalid",
        "no such name",
        "keyvaultName",
        "private DNS zone",
        "(tries: 2)",
    ] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
}

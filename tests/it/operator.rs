//! What the operator of a node and of a cluster uses: policy, metrics, the page, the action to forget.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use keyferry::backends::{self, Settings};
use keyferry::call::{Call, Occasion, Parameters, Pod, Tokens};
use keyferry::error::Kind;
use keyferry::fetch;
use keyferry::http::{Http, Stats};
use keyferry::path::Mode;
use keyferry::policy::Reach;
use keyferry::proto::MountResponse;
use keyferry::secret::SecretText;
use keyferry::telemetry::metrics::{Class, Metrics, Mounted};
use rustix::process::Signal;

use crate::support::server::{Server, client, fresh, get, http, request};

async fn mount(
    dir: &Path,
    namespace: &str,
    pod: &str,
    class: &str,
    objects: &str,
) -> Result<MountResponse, tonic::Status> {
    let mut client = client(&dir.join("sockets/local.sock"));
    client.mount(request(namespace, pod, class, objects)).await.map(tonic::Response::into_inner)
}

#[test]
fn a_broken_policy_at_the_start_is_told_with_every_line() {
    let dir = fresh();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "rules:\n- nam: a\n  namespaces: [x]\n- name: b\n").unwrap();
    let mut server = Server::start(dir.path(), "log", &["--policy", file.to_str().unwrap()]);
    assert_eq!(server.code(), Some(2));
    let log = server.log();
    for part in ["policy.yaml:2: rules[0].nam", "did you mean \"name\"", "policy.yaml:4: rules[1].namespaces"]
    {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_read_again_at_a_signal_and_a_broken_one_changes_nothing() {
    let dir = fresh();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "rules: [{name: shop, namespaces: [shop], addresses: [\"d*\"]}]").unwrap();
    let server = Server::start(dir.path(), "log", &["--policy", file.to_str().unwrap()]);
    let admin = server.address("admin");
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap();
    let status = mount(dir.path(), "web", "p", "c", "- name: db").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(get(admin, "/metrics").1.contains("keyferry_policy_ok 1"));
    std::fs::write(&file, "rules: [{name: web}]").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("the rules read before stay in force");
    assert!(get(admin, "/metrics").1.contains("keyferry_policy_ok 0"));
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap();
    std::fs::write(&file, "rules: [{name: web, namespaces: [web]}]").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("the policy has changed");
    mount(dir.path(), "web", "p", "c", "- name: db").await.unwrap();
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap_err();
}

/// What the policy is asked about for a class with these parameters.
fn reach(backend: usize, parameters: &[(&str, &str)], secrets: &[(&str, &str)]) -> Reach {
    let settings = Settings { local_root: Some("/".into()), ..Settings::default() };
    let http = Http::new(keyferry::http::Settings::default());
    let map = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let secrets = secrets.iter().map(|(k, v)| ((*k).to_owned(), SecretText::new((*v).to_owned())));
    let call = Call {
        parameters: Parameters::new(&map),
        pod: Pod { name: "p".into(), namespace: "n".into(), ..Pod::default() },
        class: None,
        tokens: Tokens::new(Some(r#"{"api://AzureADTokenExchange":{"token":"t"}}"#.into())),
        secrets: Some(secrets.collect()),
        mode: Mode::DEFAULT,
        deadline: tokio::time::Instant::now(),
        occasion: Occasion::First,
    };
    backends::open(&settings, &http, &fetch::Settings::default())[backend].check(&call).reach
}

#[test]
fn the_policy_is_asked_about_host_and_client_or_path_and_node() {
    let azure = |more: &[(&str, &str)], secrets: &[(&str, &str)]| {
        let objects = "array:\n- |\n  objectName: db\n  objectType: secret\n";
        let own = [("keyvaultName", "shopkv"), ("tenantID", "t"), ("objects", objects)];
        let reach = reach(0, &[&own, more].concat(), secrets);
        assert_eq!(reach.addresses, ["shopkv.vault.azure.net"]);
        reach.identity
    };
    assert_eq!(azure(&[("clientID", "c-1")], &[]), "c-1");
    assert_eq!(azure(&[], &[("ClientID", "c-2"), ("clientsecret", "s")]), "c-2");
    assert_eq!(azure(&[("useVMManagedIdentity", "true")], &[]), "system-assigned");
    assert_eq!(azure(&[("useVMManagedIdentity", "true"), ("userAssignedIdentityID", "c-3")], &[]), "c-3");
    let china =
        [("keyvaultName", "kv1"), ("tenantID", "t"), ("clientID", "c"), ("cloudName", "AzureChinaCloud")];
    let objects = ("objects", "array:\n- |\n  objectName: db\n  objectType: secret\n");
    assert_eq!(reach(0, &[&china[..], &[objects]].concat(), &[]).addresses, ["kv1.vault.azure.cn"]);
    let local = reach(1, &[("objects", "[{name: a/db}, {name: b, path: c}]")], &[]);
    assert_eq!((local.addresses, local.identity.as_str()), (vec!["a/db".to_owned(), "b".to_owned()], "node"));
}

#[test]
fn a_mount_by_hand_obeys_the_policy() {
    let dir = fresh();
    let (class, file) = (dir.path().join("class.yaml"), dir.path().join("policy.yaml"));
    std::fs::write(&class, "kind: SecretProviderClass\nmetadata: {name: c, namespace: n}\nspec:\n  provider: local\n  parameters: {objects: \"[{name: db}]\"}\n").unwrap();
    for (namespace, code) in [("n", 0), ("other", 1)] {
        std::fs::write(&file, format!("rules: [{{name: a, namespaces: [{namespace}]}}]")).unwrap();
        let mut mount = Command::new(env!("CARGO_BIN_EXE_keyferry"));
        mount.args(["mount", "-f"]).arg(&class).arg("--policy").arg(&file);
        let output = mount.arg("--local-root").arg(dir.path().join("root")).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t34_a_failed_republish_is_a_line_and_a_count_and_its_class_ages() {
    let dir = fresh();
    let server = Server::start(dir.path(), "log", &["--repeat-max-age", "0"]);
    let admin = server.address("admin");
    let at = || {
        let text = get(admin, "/metrics").1;
        let head = "keyferry_class_last_success_timestamp_seconds{backend=\"local\",namespace=\"shop\",class=\"c\"} ";
        text.lines()
            .find_map(|line| line.strip_prefix(head)?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap();
    let first = at();
    std::fs::rename(dir.path().join("root/db"), dir.path().join("root/away")).unwrap();
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap_err();
    assert!((at() - first).abs() < 1e-9, "a failure is no success");
    let text = get(admin, "/metrics").1;
    assert!(
        text.contains("keyferry_repeat_failures_total{backend=\"local\",result=\"not_found\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("keyferry_store_requests_total{backend=\"local\",result=\"not_found\"} 1"),
        "{text}"
    );
    let log = server.log();
    let line = log.lines().find(|line| line.contains("mount failed")).unwrap();
    for part in ["pod=\"shop/p\"", "class=\"c\"", "occasion=\"repeat\"", "kind=\"not_found\"", "db"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    std::fs::rename(dir.path().join("root/away"), dir.path().join("root/db")).unwrap();
    mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap();
    assert!(at() > first, "recovery resets the age");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t49_random_names_in_failing_mounts_add_no_series() {
    let dir = fresh();
    let server = Server::start(dir.path(), "log", &[]);
    let admin = server.address("admin");
    let mut client = client(&dir.path().join("sockets/local.sock"));
    client.mount(request("shop", "good", "c", "- name: db")).await.unwrap();
    client.mount(request("shop", "bad", "d", "- name: gone")).await.unwrap_err();
    let series = || get(admin, "/metrics").1.lines().filter(|line| line.starts_with("keyferry_")).count();
    let before = series();
    for n in 0..1000 {
        let (namespace, class) = (format!("ns-{n}"), format!("class-{n}"));
        client
            .mount(request(&namespace, &format!("pod-{n}"), &class, &format!("- name: gone-{n}")))
            .await
            .unwrap_err();
    }
    assert_eq!(series(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t34_forget_makes_the_next_call_ask_and_is_refused_to_other_pages() {
    let dir = fresh();
    let server = Server::start(dir.path(), "log", &["--repeat-max-age", "1h"]);
    let admin = server.address("admin");
    let value =
        async || mount(dir.path(), "shop", "p", "c", "- name: db").await.unwrap().files[0].contents.clone();
    value().await;
    std::fs::write(dir.path().join("root/db"), "new").unwrap();
    let post = |more: &str| {
        http(admin, &format!("POST /forget HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0{more}")).0
    };
    for refused in
        ["", "\r\nSec-Fetch-Site: cross-site", "\r\nSec-Fetch-Site: same-site\r\nOrigin: http://localhost:1"]
    {
        assert_eq!(post(refused), 403, "{refused}");
    }
    assert_eq!(
        http(admin, "POST /forget HTTP/1.1\r\nHost: evil.test\r\nX-Keyferry: forget\r\nContent-Length: 0").0,
        421
    );
    assert_eq!(get(admin, "/forget").0, 405);
    assert_eq!(value().await.as_ref(), b"marker-value", "nothing was forgotten so far");
    assert_eq!(post("\r\nX-Keyferry: forget"), 200);
    assert_eq!(value().await.as_ref(), b"new");
    assert_eq!(post("\r\nSec-Fetch-Site: same-origin"), 303);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_and_the_status_tell_volumes_and_no_values() {
    let dir = fresh();
    let server = Server::start(dir.path(), "log", &[]);
    let admin = server.address("admin");
    mount(dir.path(), "shop", "web-0", "c", "- name: db").await.unwrap();
    mount(dir.path(), "shop", "<b>bad", "d", "- name: gone").await.unwrap_err();
    let (status, page) = get(admin, "/");
    assert_eq!(status, 200);
    for part in
        ["web-0", "&lt;b&gt;bad", "secret/db", "local.sock", "content-security-policy: default-src 'none'"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    let (head, text) = get(admin, "/status.json")
        .1
        .split_once("\r\n\r\n")
        .map(|(h, t)| (h.to_owned(), t.to_owned()))
        .unwrap();
    assert!(head.contains("application/json"), "{head}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["volumes"][0]["state"], "failing", "{json}");
    assert_eq!(json["volumes"][1]["pod"], "web-0");
    assert_eq!(json["volumes"][1]["objects"][0][0], "secret/db");
    assert_eq!(json["identities"][0]["identity"], "node");
    assert_eq!(json["stores"][0]["failures"], 1);
    for text in [page, text] {
        assert!(!text.contains("marker-value"));
    }
    assert_eq!(http(admin, "GET / HTTP/1.1\r\nHost: evil.test").0, 421);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t12_the_node_s_page_and_metrics_tell_of_last_good_values() {
    let dir = fresh();
    let flags = ["--last-good-max-age", "1h", "--last-good-default", "1h", "--start-max-age", "0"];
    let server = Server::start(dir.path(), "log", &flags);
    let admin = server.address("admin");
    let age = || {
        let text = get(admin, "/metrics").1;
        let head = "keyferry_last_good_age_seconds{backend=\"local\"} ";
        text.lines().find_map(|line| line.strip_prefix(head)?.parse::<f64>().ok()).unwrap()
    };
    let shown = || get(admin, "/status.json").1.contains("\"last_good\":null");
    mount(dir.path(), "shop", "p1", "c", "- name: db").await.unwrap();
    assert_eq!((age(), shown()), (0.0, true));
    std::fs::rename(dir.path().join("root"), dir.path().join("away")).unwrap();
    let answer = mount(dir.path(), "shop", "p2", "c", "- name: db").await.unwrap();
    assert_eq!(answer.files[0].contents.as_ref(), b"marker-value");
    assert!(answer.object_version[0].version.ends_with("+last-good"));
    assert!(age() > 0.0);
    let page = get(admin, "/").1;
    assert!(page.contains("with values 0 s old"), "{page}");
    std::fs::rename(dir.path().join("away"), dir.path().join("root")).unwrap();
    mount(dir.path(), "shop", "p2", "c", "- name: db").await.unwrap();
    mount(dir.path(), "shop", "p1", "d", "- name: db").await.unwrap();
    assert_eq!((age(), shown()), (0.0, true), "all is fresh again");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("served last good values")).unwrap();
    for part in ["shop/p2", "class=\"c\"", "objects=1", "age=0", "cannot open the local root"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn t12_a_default_above_the_bound_is_refused_at_the_start() {
    let dir = fresh();
    let flags = ["--last-good-max-age", "30m", "--last-good-default", "1h"];
    let mut server = Server::start(dir.path(), "log", &flags);
    assert_eq!(server.code(), Some(2));
    assert!(server.log().contains("--last-good-default 1h is more than --last-good-max-age 30m"));
}

/// Names of all metrics, as Prometheus sees them: counters with `_total`, infos with `_info`.
fn exported() -> BTreeSet<String> {
    let metrics = Metrics::new(true);
    metrics.mounted("azure", Some(Kind::Denied), Duration::ZERO);
    metrics.reads("azure", &Mounted { requests: 1, hits: 1, joined: 1, logins: 1 });
    metrics.kept("azure", 1, 1);
    metrics.http(&Stats::default());
    metrics.repeat_failed("azure", Kind::Denied);
    metrics.asked("azure", None, Duration::ZERO);
    metrics.volumes("azure", 1);
    metrics.classes([(Class { backend: "azure", namespace: "n".into(), class: "c".into() }, 1.0)]);
    metrics.policy(true);
    metrics.optional_missing("azure", true);
    metrics.last_good("azure", 1);
    metrics.last_good_age("azure", Duration::ZERO);
    let name = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
    };
    metrics.text().lines().filter_map(name).collect()
}

/// Names of metrics in a text; series of a histogram count for it.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("keyferry_") && word.len() > "keyferry_".len());
    names
        .map(|name| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            base.filter(|base| base.ends_with("_seconds")).unwrap_or(name).to_owned()
        })
        .collect()
}

#[test]
fn every_metric_is_in_the_docs_and_no_other() {
    let doc =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metrics.md"))
            .unwrap();
    let rows: String = doc.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(named(&rows), exported());
}

/// Files of the chart that name metrics: dashboards and rules.
fn charted() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/keyferry/files");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let wanted = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|end| ["json", "yaml", "yml"].iter().any(|want| end == *want))
    };
    entries.map(|entry| entry.unwrap().path()).filter(wanted).collect()
}

#[test]
fn every_metric_that_the_chart_names_is_exported() {
    let exported = exported();
    for path in charted() {
        let unknown: Vec<_> =
            named(&std::fs::read_to_string(&path).unwrap()).difference(&exported).cloned().collect();
        assert!(unknown.is_empty(), "{} names {unknown:?}", path.display());
    }
}

#[test]
fn a_metric_that_nobody_exports_is_found_in_a_query() {
    let query = "{\"expr\": \"histogram_quantile(0.9, rate(keyferry_mount_seconds_bucket[5m])) > keyferry_odd_total\"}";
    let exported = exported();
    let unknown: Vec<_> = named(query).difference(&exported).cloned().collect();
    assert_eq!(unknown, ["keyferry_odd_total"]);
}

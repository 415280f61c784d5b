//! Histories against the stand-in, where a case cannot say it (azure.md 8).

use keyferry::backends::{self, Settings, azure};
use keyferry::call::{Call, Occasion, Pod};
use keyferry::fetch::{self, Tally};

use crate::standins::azure::content::{ObjectVersion, Time};
use crate::standins::azure::{AzureStandIn, CLIENT};
use crate::standins::faults::Fault;
use crate::support::azure::{Ask, client, open, start};

/// A call as the machine.
fn call(parameters: &[(&str, &str)], objects: &str) -> Call {
    let parameters = [&[("useVMManagedIdentity", "true")], parameters].concat();
    Ask { parameters: &parameters, objects, ..Ask::default() }.call()
}

fn versions(store: &AzureStandIn, count: u64) {
    for number in 0..count {
        // Ids in another order than times, as the service gives them.
        let id = format!("{:04x}", number * 7919 % 65536);
        let rest = ObjectVersion { created: Some(Time(1_700_000_000 + number)), ..ObjectVersion::default() };
        store.vault("shopkv").set_secret("many", &id, &format!("value {number}"), rest);
    }
}

const ALL: &str = "- objectName: many\n  objectType: secret\n  objectVersionHistory: 1000\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_8_a_history_goes_over_all_pages() {
    let store = start().await;
    versions(&store, 60);
    let backend = open(&store);
    let got = backend.gather(&call(&[], ALL), &Tally::default()).await.unwrap();
    let found: Vec<_> =
        got.files.iter().map(|f| (f.path.to_string(), f.contents.expose().to_vec())).collect();
    let wanted: Vec<_> =
        (0..60).map(|at| (format!("many/{at}"), format!("value {}", 59 - at).into_bytes())).collect();
    assert_eq!(found, wanted);
    assert_eq!(got.versions[3].0, "secret/many/3");
    let lists = store.log().iter().filter(|l| l.path.contains("/versions")).count();
    assert_eq!((lists, store.log().len()), (3, 1 + 3 + 60), "25, 25 and 10 on a page");
    // A warm repeat asks nothing; a new version is the next one's first.
    store.clear_log();
    let repeat = || Call { occasion: Occasion::Repeat, ..call(&[], ALL) };
    backend.gather(&repeat(), &Tally::default()).await.unwrap();
    assert_eq!(store.log().len(), 0);
    backend.forget();
    let rest = ObjectVersion { created: Some(Time(1_800_000_000)), ..ObjectVersion::default() };
    store.vault("shopkv").set_secret("many", "ffff", "newest", rest);
    let got = backend.gather(&repeat(), &Tally::default()).await.unwrap();
    assert_eq!((got.files.len(), got.files[0].contents.expose()), (61, &b"newest"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_8_a_page_at_another_host_is_not_asked() {
    let store = start().await;
    versions(&store, 2);
    let backend = open(&store);
    for next in [
        "https://evil.example/secrets/many/versions",
        "https://shopkv.vault.azure.net.evil.example/x",
        "https://shopkv.vault.azure.net@evil.example/x",
        "https://shopkv.vault.azure.net:8443/x",
        "http://shopkv.vault.azure.net/x",
        "/secrets/many/versions",
    ] {
        let body = format!(r#"{{"value":[],"nextLink":"{next}"}}"#);
        // The engine tries again, as with any answer that is none of the store's.
        store.fault(Fault::status(200).path("/secrets/many/versions").body(&body).times(4));
        let text = backend.gather(&call(&[], ALL), &Tally::default()).await.unwrap_err().to_string();
        assert!(text.contains("another host than the vault") && text.contains("objectName:many"), "{text}");
        store.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_8_a_next_page_may_be_spelled_with_port_and_in_another_case() {
    let store = start().await;
    versions(&store, 3);
    let backend = open(&store);
    let next = "https://ShopKV.vault.azure.net:443/secrets/many/versions?api-version=7.4&$skiptoken=0000";
    let body = format!(r#"{{"value":[],"nextLink":"{next}"}}"#);
    store.fault(Fault::status(200).path("/secrets/many/versions").body(&body));
    let got = backend.gather(&call(&[], ALL), &Tally::default()).await.unwrap();
    assert_eq!(got.files.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_8_items_without_attributes_or_time() {
    let store = start().await;
    versions(&store, 3);
    let backend = open(&store);
    let id = |n: u64| format!("https://shopkv.vault.azure.net/secrets/many/{:04x}", n * 7919 % 65536);
    let body = format!(
        r#"{{"value":[{{"id":"{}"}},{{"id":"{}","attributes":{{}}}},{{"id":"{}","attributes":{{"created":5}}}}]}}"#,
        id(0),
        id(1),
        id(2)
    );
    store.fault(Fault::status(200).path("/secrets/many/versions").body(&body));
    let got = backend.gather(&call(&[], ALL), &Tally::default()).await.unwrap();
    let found: Vec<_> = got.files.iter().map(|f| f.contents.expose()).collect();
    assert_eq!(found, [b"value 2", b"value 1"], "no attributes: not counted; no time: the oldest");
}

#[tokio::test]
async fn azure_3_pod_name_and_namespace_are_needed() {
    let store = start().await;
    let nobody = Call { pod: Pod::default(), ..call(&[], ALL) };
    let text = open(&store).gather(&nobody, &Tally::default()).await.unwrap_err().to_string();
    for fragment in ["1. pod name is not provided", "2. pod namespace is not provided", "podInfoOnMount"] {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_10_the_file_of_the_process_serves_classes_that_name_none() {
    let store = start().await;
    store.vault("shopkv.vault.lab.example").set_secret("db", "v1", "lab", ObjectVersion::default());
    store.vault("shopkv.vault.other.example").set_secret("db", "v1", "other", ObjectVersion::default());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(format!("{name}.json"));
        let text = format!(
            r#"{{"activeDirectoryEndpoint":"https://login.{name}.example/","keyVaultDNSSuffix":"vault.{name}.example"}}"#
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let (lab, other) = (file("lab"), file("other"));
    let azure =
        azure::Settings { cloud: None, environment_file: Some(lab.clone()), ..azure::Settings::default() };
    let settings = Settings { azure, ..Settings::default() };
    let backend = backends::open(&settings, &client(&store, |_| true), &fetch::Settings::default()).remove(0);
    let one = "- objectName: db\n  objectType: secret\n";
    let value = async |parameters: &[(&str, &str)]| {
        let got = backend.gather(&call(parameters, one), &Tally::default()).await.unwrap();
        String::from_utf8(got.files[0].contents.expose().to_vec()).unwrap()
    };
    let stack = ("cloudName", "AzureStackCloud");
    let own = ("cloudEnvFileName", other.to_str().unwrap());
    let principal = ("userAssignedIdentityID", CLIENT);
    assert_eq!(value(&[principal]).await, "lab", "the cloud of the process is the file's");
    assert_eq!(value(&[principal, stack]).await, "lab");
    assert_eq!(value(&[principal, stack, own]).await, "other");
    assert_eq!(value(&[principal, stack]).await, "lab", "a class leaves nothing behind");
    // The file is read anew for each request.
    std::fs::copy(&other, &lab).unwrap();
    assert_eq!(value(&[principal]).await, "other");
}

#[test]
fn azure_16_3_and_4_the_admin_listener_is_small_and_its_failure_is_told() {
    use std::io::{Read, Write};
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let serve = |address: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyferry"));
        command.args(["serve", "--admin-addr", address, "--socket-dir"]).arg(dir.path());
        command
    };
    let output = serve(&address).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&address) && text.contains("--admin-addr"), "{text}");
    let mut command = serve("127.0.0.1:0");
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut log, &mut line).unwrap(), 0, "it ended");
    }
    let at = line.find("127.0.0.1:").unwrap();
    let end =
        line[at..].find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(line.len() - at);
    let address = &line[at..at + end];
    let ask = |path: &str| {
        let mut stream = std::net::TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let asked = [("/healthz", "200"), ("/debug/pprof/", "404"), ("/debug/vars", "404")];
    let answers = asked.map(|(path, status)| (path, status, ask(path)));
    // Before anything is judged: a test that fails leaves no server behind.
    child.kill().unwrap();
    child.wait().unwrap();
    for (path, status, answer) in answers {
        let answer = answer.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
}

//! Cases are folders: `tests/cases/<backend>/<name>/{call,store,want}.yaml`; adding one needs no Rust.
//! Without a store of its own a case has `tests/cases/<backend>/store.yaml`; parameters that it does not
//! set are those of `tests/cases/<backend>/parameters.yaml`, and one that is empty there is left out.
//! Each runs through the whole engine; what it must not do is checked for all: no secret of the store in
//! an error or warning, and equal answers and no request when it is asked again as a repeat.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyferry::backends::{self, Settings, azure};
use keyferry::call::{Call, Occasion, Parameters, Pod, Tokens};
use keyferry::error::Problems;
use keyferry::fetch::{self, Tally};
use keyferry::gather::{Gather, Gathered};
use keyferry::http::Http;
use keyferry::path::Mode;
use keyferry::secret::SecretText;
use keyferry::server::status;
use serde::Deserialize;

use crate::standins::azure::content::Store;
use crate::standins::azure::{AzureStandIn, Options};
use crate::standins::faults::Fault;
use crate::support::azure::{AUDIENCE, client};
use crate::support::log;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallFile {
    parameters: BTreeMap<String, String>,
    secrets: Option<BTreeMap<String, String>>,
    /// Whether the request has a token of shop/web.
    #[serde(default = "yes")]
    tokens: bool,
    /// What stands in the request in their place.
    raw_tokens: Option<String>,
    /// Mode that the caller asks for.
    mode: Option<String>,
    /// The server's switch for files of certificate and key.
    #[serde(default)]
    split: bool,
    /// The server's switch for the order of chains.
    #[serde(default = "yes")]
    order_chain: bool,
    /// What is armed at the stand-in.
    #[serde(default)]
    faults: Vec<Fault>,
    /// Texts written into files first; `$NAME` in a parameter is the path.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// What `check` refuses although a mount does not.
    #[serde(default)]
    slips: Vec<String>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalFile {
    files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Want {
    files: Option<Vec<WantFile>>,
    versions: Option<Vec<(String, String)>>,
    #[serde(default)]
    warnings: Vec<String>,
    error: Option<WantError>,
    requests: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantFile {
    path: String,
    mode: String,
    text: Option<String>,
    base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantError {
    code: String,
    contains: Vec<String>,
}

impl WantFile {
    fn bytes(&self) -> Vec<u8> {
        match (&self.text, &self.base64) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).unwrap(),
            _ => panic!("a wanted file has either text or base64"),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root(backend: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(backend)
}

/// The folders of a backend's cases.
pub fn folders(backend: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(root(backend)).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

/// Puts the common parameters under those of the case, and the paths of its files into them.
fn complete(file: &mut CallFile, dir: &Path) {
    let common: BTreeMap<String, String> = read(&root("azure").join("parameters.yaml"));
    for (name, text) in &file.files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    for (key, value) in common {
        file.parameters.entry(key).or_insert(value);
    }
    file.parameters.retain(|_, value| !value.is_empty());
    for value in file.parameters.values_mut() {
        for name in file.files.keys() {
            *value = value.replace(&format!("${name}"), &dir.join(name).display().to_string());
        }
    }
}

fn store(folder: &Path) -> Store {
    let own = folder.join("store.yaml");
    let path = if own.exists() { own } else { root("azure").join("store.yaml") };
    Store::read(&path).unwrap_or_else(|error| panic!("{error}"))
}

fn call(file: &CallFile, token: Option<String>) -> Call {
    let tokens = token.filter(|_| file.tokens).map(|token| {
        serde_json::json!({AUDIENCE: {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}})
            .to_string()
    });
    let tokens = file.raw_tokens.clone().or(tokens);
    let secrets = file.secrets.clone();
    Call {
        parameters: Parameters::new(&file.parameters),
        pod: Pod {
            name: "web-0".into(),
            namespace: "shop".into(),
            uid: "u".into(),
            service_account: "web".into(),
        },
        class: Some("case".into()),
        tokens: Tokens::new(tokens),
        secrets: secrets.map(|all| all.into_iter().map(|(k, v)| (k, SecretText::new(v))).collect()),
        mode: file.mode.as_deref().map_or(Mode::DEFAULT, |text| Mode::from_octal(text).unwrap()),
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        occasion: Occasion::First,
    }
}

/// Checks one answer against what is wanted; gives what is wrong.
fn judge(want: &Want, got: Result<&Gathered, (String, String)>) -> Vec<String> {
    let mut wrong = Vec::new();
    match (&want.error, got) {
        (None, Err((code, text))) => wrong.push(format!("failed with {code}: {text}")),
        (Some(_), Ok(_)) => wrong.push("it must fail and did not".to_owned()),
        (Some(error), Err((code, text))) => {
            if code != error.code {
                wrong.push(format!("code {code} instead of {}", error.code));
            }
            let missing = error.contains.iter().filter(|fragment| !text.contains(*fragment));
            wrong.extend(missing.map(|fragment| format!("{fragment:?} is not in: {text}")));
        }
        (None, Ok(got)) => wrong.extend(judge_files(want, got)),
    }
    wrong
}

fn judge_files(want: &Want, got: &Gathered) -> Vec<String> {
    let mut wrong = Vec::new();
    let shown =
        |path: &str, mode: &str, bytes: &[u8]| format!("{path} {mode} {}", String::from_utf8_lossy(bytes));
    let found: Vec<_> =
        got.files.iter().map(|f| shown(f.path.as_str(), &f.mode.to_string(), f.contents.expose())).collect();
    let wanted = want.files.as_ref().expect("a case wants files or an error");
    let wanted: Vec<_> = wanted.iter().map(|f| shown(&f.path, &f.mode, &f.bytes())).collect();
    if found != wanted {
        wrong.push(format!("files\n{}\ninstead of\n{}", found.join("\n"), wanted.join("\n")));
    }
    if let Some(versions) = want.versions.as_ref().filter(|versions| **versions != got.versions) {
        wrong.push(format!("versions {:?} instead of {versions:?}", got.versions));
    }
    let heard = got.warnings.join("\n");
    let missing = want.warnings.iter().filter(|fragment| !heard.contains(*fragment));
    wrong.extend(missing.map(|fragment| format!("no warning {fragment:?} in {heard:?}")));
    wrong
}

async fn ask(backend: &Arc<dyn Gather>, call: &Call) -> Result<Gathered, (String, String)> {
    backend.gather(call, &Tally::default()).await.map_err(|problems| {
        let status = status::of(&problems);
        (status::name(status.code()).to_owned(), status.message().to_owned())
    })
}

/// Values of the store, or their base64, in what was said, and logged at the most verbose level.
fn leaks(values: &[String], said: &str, logged: &str) -> Vec<String> {
    let heard = format!("{said}{logged}");
    // Shorter values stand in ordinary words.
    let markers =
        values.iter().filter(|value| value.len() >= 5).flat_map(|v| [v.clone(), STANDARD.encode(v)]);
    markers.filter(|marker| heard.contains(marker.as_str())).map(|_| "a value leaked".to_owned()).collect()
}

fn report(failed: &[(String, Vec<String>)], count: usize) {
    let lines: Vec<_> = failed.iter().map(|(name, wrong)| format!("{name}: {}", wrong.join("; "))).collect();
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), lines.join("\n"));
    assert!(count > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_cases() {
    log::capture();
    let mut failed = Vec::new();
    let folders = folders("azure");
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (mut file, want): (CallFile, Want) =
            (read(&folder.join("call.yaml")), read(&folder.join("want.yaml")));
        let mark = log::mark();
        let dir = tempfile::tempdir().unwrap();
        complete(&mut file, dir.path());
        let store = store(folder);
        let secrets = store.vaults.iter().flat_map(|vault| vault.secrets.values().flatten());
        let values: Vec<String> = secrets.filter_map(|version| version.value.clone()).collect();
        let store = AzureStandIn::start(Options { store, ..Options::default() }).await.unwrap();
        let settings = Settings {
            azure: azure::Settings {
                split: file.split,
                order_chain: file.order_chain,
                ..azure::Settings::default()
            },
            ..Settings::default()
        };
        let engine = fetch::Settings { tries: 1, ..fetch::Settings::default() };
        file.faults.iter().for_each(|fault| store.fault(fault.clone()));
        // A vault that the stand-in does not have is a name that DNS does not have.
        let backend = backends::open(&settings, &client(&store, |_| true), &engine).remove(0);
        let call = call(&file, Some(store.issuer().mint("shop", "web", AUDIENCE)));
        let refused = Problems::some(backend.check(&call).problems)
            .map_or(String::new(), |problems| problems.to_string());
        let got = ask(&backend, &call).await;
        let missing = file.slips.iter().filter(|slip| !refused.contains(*slip));
        let mut wrong: Vec<_> =
            missing.map(|slip| format!("check does not refuse with {slip:?}: {refused}")).collect();
        if want.error.is_none() && file.slips.is_empty() && !refused.is_empty() {
            wrong.push(format!("check refuses: {refused}"));
        }
        wrong.extend(judge(&want, got.as_ref().map_err(Clone::clone)));
        // Reads run side by side, so their order says nothing.
        let mut requests: Vec<_> = store.log().iter().map(|l| format!("{} {}", l.method, l.path)).collect();
        requests.sort_unstable();
        let wanted = want.requests.clone().map(|mut wanted| {
            wanted.sort_unstable();
            wanted
        });
        if wanted.is_some_and(|wanted| wanted != requests) {
            wrong.push(format!("requests {requests:?}"));
        }
        if got.is_ok() {
            store.clear_log();
            let repeat = Call { occasion: Occasion::Repeat, ..call };
            wrong.extend(judge(&want, ask(&backend, &repeat).await.as_ref().map_err(Clone::clone)));
            wrong.extend(store.log().iter().map(|l| format!("a repeat asked {}", l.path)));
        }
        wrong.extend(store.unexpected());
        let said = match &got {
            Ok(got) => format!("{:?} {}", got, got.warnings.join(" ")),
            Err((_, text)) => text.clone(),
        };
        wrong.extend(leaks(&values, &said, &log::since(mark)));
        if !wrong.is_empty() {
            failed.push((name, wrong));
        }
    }
    assert!(log::since(0).contains("TRACE"), "nothing was logged at the most verbose level");
    report(&failed, folders.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_cases() {
    let mut failed = Vec::new();
    let folders = folders("local");
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (file, want): (CallFile, Want) =
            (read(&folder.join("call.yaml")), read(&folder.join("want.yaml")));
        let root = tempfile::tempdir().unwrap();
        for (path, text) in read::<LocalFile>(&folder.join("store.yaml")).files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let settings = Settings { local_root: Some(root.path().to_owned()), ..Settings::default() };
        let http = Http::new(keyferry::http::Settings::default());
        let backend = backends::open(&settings, &http, &fetch::Settings::default()).pop().unwrap();
        let wrong = judge(&want, ask(&backend, &call(&file, None)).await.as_ref().map_err(Clone::clone));
        if !wrong.is_empty() {
            failed.push((name, wrong));
        }
    }
    report(&failed, folders.len());
}

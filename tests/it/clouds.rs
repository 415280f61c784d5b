//! The clouds by their own names: a namespace with a network and a hosts file of its own, the stand-in on port
//! 443 of it, and the real program without any address given to it (azure.md 10).

use std::process::{Command, Stdio};

use crate::standins::azure::content::{Identity, Managed, ObjectVersion};
use crate::standins::azure::{AzureStandIn, CLIENT, Options, TENANT};
use crate::support::azure::Ask;

const INSIDE: &str = "KEYFERRY_TEST_INSIDE_NAMESPACE";

/// Cloud, suffix of its vaults, host of its login service.
const CLOUDS: [(&str, &str, &str); 6] = [
    ("AzurePublicCloud", "vault.azure.net", "login.microsoftonline.com"),
    ("AzureUSGovernmentCloud", "vault.usgovcloudapi.net", "login.microsoftonline.us"),
    ("AzureChinaCloud", "vault.azure.cn", "login.chinacloudapi.cn"),
    ("AzureGermanCloud", "vault.microsoftazure.de", "login.microsoftonline.de"),
    ("AzureStackCloud", "vault.lab.example", "login.lab.example"),
    ("AzureStackCloud", "vault.other.example", "login.other.example"),
];

/// Sets the namespace up and runs the test inside; all of it is gone with the process.
const SET_UP: &str = r#"set -e
mount --make-rprivate /
ip link set lo up
ip addr add 169.254.169.254/32 dev lo
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
mount --bind "$1/resolv.conf" /etc/resolv.conf
exec "$2" --exact clouds::inside_the_namespace --nocapture"#;

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    command
}

#[test]
fn azure_10_every_cloud_is_reached_by_its_own_names() {
    let may = unshare()
        .args(["ip", "link", "set", "lo", "up"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !may {
        eprintln!(
            "left out: no right to make a network namespace, or no iproute2 (unshare --net --mount ip link set lo up)"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = "127.0.0.1 localhost\n".to_owned();
    for (_, suffix, login) in CLOUDS {
        hosts.push_str(&format!("127.0.0.2 {login}\n127.0.0.3 shopkv.{suffix}\n"));
    }
    for (name, text) in [("hosts", hosts.as_str()), ("nsswitch.conf", "hosts: files\n"), ("resolv.conf", "")]
    {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let output = unshare()
        .args(["sh", "-c", SET_UP, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, dir.path())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn class(name: &str, cloud: &str, file: Option<&str>, vault: &str) -> String {
    let file = file.map_or(String::new(), |file| format!("    cloudEnvFileName: {file}\n"));
    format!(
        "kind: SecretProviderClass\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  provider: azure\n  \
         parameters:\n    keyvaultName: {vault}\n    tenantID: {TENANT}\n    cloudName: {cloud}\n{file}    \
         objects: |\n      - objectName: db\n        objectType: secret\n"
    )
}

/// What runs in the namespace; without one there is nothing to do.
#[test]
fn inside_the_namespace() {
    let Some(dir) = std::env::var_os(INSIDE).map(std::path::PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let at = |text: &str| text.parse().unwrap();
    let options = Options {
        entra: at("127.0.0.2:443"),
        vault: at("127.0.0.3:443"),
        imds: at("169.254.169.254:80"),
        ..Options::default()
    };
    let store = runtime.block_on(AzureStandIn::start(options)).unwrap();
    store.identity(Identity::new(CLIENT).client_secret("right").managed(Managed::User));
    for (_, suffix, _) in CLOUDS {
        let vault = store.vault(&format!("shopkv.{suffix}"));
        vault.set_secret("db", "v1", &format!("from {suffix}"), ObjectVersion::default());
    }
    std::fs::write(dir.join("ca.pem"), store.ca_pem()).unwrap();
    let secrets = format!(r#"{{"clientid":"{CLIENT}","clientsecret":"right"}}"#);
    std::fs::write(dir.join("principal.json"), secrets).unwrap();
    for name in ["lab", "other"] {
        let cloud = format!(
            r#"{{"activeDirectoryEndpoint":"https://login.{name}.example/","keyVaultDNSSuffix":"vault.{name}.example"}}"#
        );
        std::fs::write(dir.join(format!("{name}.json")), cloud).unwrap();
    }
    let mount = |number: usize, class: String| {
        let file = dir.join(format!("class-{number}.yaml"));
        std::fs::write(&file, class).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyferry"));
        command.args(["mount", "--pod", "shop/web-0", "--show", "--output", "json", "-f"]).arg(&file);
        command.arg("--secrets").arg(dir.join("principal.json"));
        command.env("SSL_CERT_FILE", dir.join("ca.pem")).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // All at once: the two classes with files of their own among them.
    let running: Vec<_> = CLOUDS
        .into_iter()
        .enumerate()
        .map(|(number, (cloud, suffix, _))| {
            let file = suffix.strip_prefix("vault.").and_then(|rest| rest.strip_suffix(".example"));
            let file = file.map(|name| dir.join(format!("{name}.json")).display().to_string());
            (suffix, mount(number, class("one", cloud, file.as_deref(), "shopkv")))
        })
        .collect();
    for (suffix, child) in running {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{suffix}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains(&format!("from {suffix}")), "{suffix}: {text}");
    }
    let log = store.log();
    for (_, suffix, login) in CLOUDS {
        let of = |host: &str| log.iter().filter(|l| l.host == host).map(|l| l.status).collect::<Vec<_>>();
        assert_eq!((of(login), of(&format!("shopkv.{suffix}"))), (vec![200], vec![200]), "{suffix}");
    }
    assert_eq!(log.len(), 2 * CLOUDS.len(), "no discovery, and no login service but the cloud's own");
    // One process and one cache for both: two classes with two files, asked by turns and at the same time.
    both_files_in_one_process(&runtime, &dir, &store);
    // A name that is not in the hosts file does not exist.
    let output = mount(99, class("none", "AzurePublicCloud", None, "nobody")).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for fragment in
        ["dial tcp: lookup nobody.vault.azure.net", "DNS has no such name", "keyvaultName", "(tries: 2)"]
    {
        assert!(text.contains(fragment), "{fragment}: {text}");
    }
    assert_eq!(output.status.code(), Some(1));
}

fn both_files_in_one_process(runtime: &tokio::runtime::Runtime, dir: &std::path::Path, store: &AzureStandIn) {
    use keyferry::http::{self, Http, Roots};
    let roots = Roots::Pem(store.ca_pem().as_bytes().to_vec());
    let http = Http::new(http::Settings { roots, ..http::Settings::default() });
    let settings = keyferry::backends::Settings::default();
    let backend = keyferry::backends::open(&settings, &http, &keyferry::fetch::Settings::default()).remove(0);
    let call = |name: &str| {
        let file = dir.join(format!("{name}.json")).display().to_string();
        let parameters = [
            ("cloudName", "AzureStackCloud"),
            ("cloudEnvFileName", file.as_str()),
            ("useVMManagedIdentity", "true"),
        ];
        Ask { parameters: &parameters, ..Ask::default() }.call()
    };
    runtime.block_on(async {
        let asked = (0..20).map(|number| {
            let name = if number % 2 == 0 { "lab" } else { "other" };
            let (backend, call) = (backend.clone(), call(name));
            tokio::spawn(async move {
                let got = backend.gather(&call, &keyferry::fetch::Tally::default()).await.unwrap();
                assert_eq!(got.files[0].contents.expose(), format!("from vault.{name}.example").as_bytes());
            })
        });
        for task in futures_util::future::join_all(asked).await {
            task.unwrap();
        }
    });
}

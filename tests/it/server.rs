//! The real binary on real sockets.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::standins::azure::{CLIENT, TENANT};
use crate::support::azure::{secret, start};

const CLASS: &str = "kind: SecretProviderClass\nmetadata: {name: c, namespace: n}\nspec:\n  provider: local\n  parameters:\n    objects: |\n      - name: db\n";

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn keyferry() -> Command {
    Command::new(env!("CARGO_BIN_EXE_keyferry"))
}

fn serve(dir: &Path) -> Server {
    let mut server = keyferry();
    server.args(["serve", "--admin-addr", "127.0.0.1:0", "--log-level", "trace", "--local-root"]);
    server.arg(dir.join("root")).arg("--socket-dir").arg(dir.join("sockets"));
    server.stderr(Stdio::from(
        std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap(),
    ));
    Server(server.spawn().unwrap())
}

fn mount(dir: &Path) -> Output {
    std::fs::write(dir.join("class.yaml"), CLASS).unwrap();
    let mut mount = keyferry();
    mount.args(["mount", "--output", "json", "-f"]).arg(dir.join("class.yaml"));
    mount.arg("--socket").arg(dir.join("sockets/local.sock")).arg("--to").arg(dir.join("volume"));
    mount.output().unwrap()
}

/// Mounts until the server answers, for some seconds at most.
fn mounted(dir: &Path) -> Output {
    let start = Instant::now();
    loop {
        let output = mount(dir);
        if output.status.success() || start.elapsed() > Duration::from_secs(20) {
            return output;
        }
        std::thread::yield_now();
    }
}

fn fresh() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::write(dir.path().join("root/db"), "marker-value").unwrap();
    dir
}

#[test]
fn t39_a_marker_is_in_the_files_and_nowhere_else() {
    let dir = fresh();
    let _server = serve(dir.path());
    let output = mounted(dir.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(dir.path().join("volume/db")).unwrap(), b"marker-value");
    for text in [output.stdout, output.stderr, std::fs::read(dir.path().join("log")).unwrap()] {
        assert!(!String::from_utf8_lossy(&text).contains("marker-value"));
    }
}

#[test]
fn a_killed_server_leaves_a_socket_that_its_successor_replaces() {
    let dir = fresh();
    let first = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    drop(first);
    assert!(dir.path().join("sockets/local.sock").exists(), "a killed process cleans nothing");
    assert_eq!(mount(dir.path()).status.code(), Some(1), "nobody listens");
    let _second = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
}

#[test]
fn t32_an_answer_over_the_limit_is_ours_to_refuse() {
    let dir = fresh();
    let _server = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    std::fs::write(dir.path().join("root/db"), vec![b'x'; 4 << 20]).unwrap();
    let start = Instant::now();
    let text = loop {
        // The value of the first mount may be served for two seconds.
        let output = mount(dir.path());
        if !output.status.success() || start.elapsed() > Duration::from_secs(20) {
            break String::from_utf8_lossy(&output.stderr).into_owned();
        }
        std::thread::yield_now();
    };
    assert!(text.contains("FAILED_PRECONDITION") && text.contains("\"db\""), "{text}");
    assert!(text.contains("--max-call-recv-msg-size"), "{text}");
}

#[test]
fn killed_in_the_middle_of_fifty_mounts_it_starts_again_and_leaves_nothing() {
    let dir = fresh();
    let first = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    let mounts: Vec<Child> = (0..50)
        .map(|n| {
            let mut mount = keyferry();
            mount.args(["mount", "-f"]).arg(dir.path().join("class.yaml"));
            mount.arg("--socket").arg(dir.path().join("sockets/local.sock"));
            mount.arg("--to").arg(dir.path().join(format!("volume-{n}")));
            mount.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    drop(first);
    for mut mount in mounts {
        // Some were done, some were cut; none hangs.
        assert!(mount.wait().unwrap().code().is_some());
    }
    let _second = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    let left: Vec<_> = std::fs::read_dir(dir.path().join("sockets"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            !entry.file_name().to_string_lossy().ends_with(".sock") || !entry.file_type().unwrap().is_socket()
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_terminated_server_removes_its_sockets() {
    let dir = fresh();
    let mut server = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.0.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(dir.path().join("sockets")).unwrap().count(), 0);
}

#[test]
fn seed_004_class_with_secret_objects_is_checked_and_mounted_over_tls() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(start());
    secret(&store, "db-password", "a1", "p@ss\n");
    secret(&store, "api-key", "b1", "k");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), store.ca_pem()).unwrap();
    let class = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/azure/class.yaml");
    assert!(keyferry().arg("check").arg(&class).output().unwrap().status.success());
    let mut mount = keyferry();
    mount.args(["mount", "-f"]).arg(&class).arg("--to").arg(dir.path().join("volume"));
    mount.args([
        "--set",
        &format!("tenantId={TENANT}"),
        "--set",
        &format!("userAssignedIdentityID={CLIENT}"),
    ]);
    for (host, address) in store.connect_to() {
        mount.arg("--connect-to").arg(format!("{host}={address}"));
    }
    let output =
        mount.env("SSL_CERT_FILE", dir.path().join("ca.pem")).env_remove("SSL_CERT_DIR").output().unwrap();
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{error}");
    assert!(text.contains("db-password  0644  5      secret/db-password  a1"), "{text}");
    assert_eq!(std::fs::read(dir.path().join("volume/db-password")).unwrap(), b"p@ss\n");
    assert!(!text.contains("p@ss"));
}

//! The real binary on real sockets.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
fn t47_a_second_server_is_refused_with_the_path() {
    let dir = fresh();
    let _first = serve(dir.path());
    assert!(mounted(dir.path()).status.success());
    let mut second = keyferry();
    second.args(["serve", "--admin-addr", "127.0.0.1:0", "--socket-dir"]).arg(dir.path().join("sockets"));
    let output = second.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("azure.sock") && text.contains("another process answers"), "{text}");
    assert!(mount(dir.path()).status.success(), "the first one goes on");
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

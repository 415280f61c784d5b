//! One server relieves another at the same sockets, while clients that keep their connections, as the
//! driver does, mount all the time.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::proto::{MountRequest, MountResponse};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A server that ends with the test; its log is kept.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start(dir: &Path, name: &str, flags: &[&str]) -> Self {
        let log = dir.join(name);
        let mut server = Command::new(env!("CARGO_BIN_EXE_keyferry"));
        server.args(["serve", "--backends", "local", "--admin-addr", "127.0.0.1:0"]).args(flags);
        server.arg("--local-root").arg(dir.join("root")).arg("--socket-dir").arg(dir.join("sockets"));
        server.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        Self { child: server.spawn().unwrap(), log }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log holds `text`.
    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(30), "{text:?} is not in:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// Address of a listener, by the name it has in the log.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.wait_for("ready");
        let log = self.log();
        let line = log.lines().find(|line| line.contains("ready")).unwrap();
        let (_, rest) = line.split_once(&format!("{listener}=\"")).unwrap();
        rest.split_once('"').unwrap().0.parse().unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// Status and body of one HTTP request with `head` as its first lines.
pub fn http(address: SocketAddr, head: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}"))
}

pub fn fresh() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::write(dir.path().join("root/db"), "marker-value").unwrap();
    dir
}

/// A mount of `objects` by `pod` of `namespace` with `class`.
pub fn request(namespace: &str, pod: &str, class: &str, objects: &str) -> MountRequest {
    let attributes = serde_json::json!({
        "objects": objects, "secretProviderClass": class,
        "csi.storage.k8s.io/pod.name": pod, "csi.storage.k8s.io/pod.namespace": namespace,
        "csi.storage.k8s.io/pod.uid": pod,
    });
    MountRequest {
        attributes: attributes.to_string(),
        secrets: "null".into(),
        target_path: format!("/pods/{pod}/mount"),
        permission: "420".into(),
        current_object_version: vec![],
    }
}

/// One connection for life, made anew when it ends, as the driver's.
pub fn client(socket: &Path) -> CsiDriverProviderClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    CsiDriverProviderClient::new(endpoint.connect_lazy())
}

/// Mounts with the driver's retry policy: three attempts where the connection failed under the call
/// (driver.md 1.3). An answer of the server is never tried again.
async fn mount(
    client: &mut CsiDriverProviderClient<Channel>,
    request: &MountRequest,
) -> Result<MountResponse, Status> {
    let mut attempts = 1;
    loop {
        match client.mount(request.clone()).await {
            Err(status)
                if attempts < 3 && status.source().is_some_and(|e| e.is::<tonic::transport::Error>()) =>
            {
                attempts += 1;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t47_hundreds_of_mounts_during_upgrades_and_none_fails() {
    let dir = fresh();
    let socket = dir.path().join("sockets/local.sock");
    let mut servers = vec![Server::start(dir.path(), "log-0", &[])];
    servers[0].wait_for("ready");
    let (done, mounted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (mut client, done, mounted) = (client(&socket), done.clone(), mounted.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let request = request("shop", &format!("p{n}"), "c", "- name: db");
                    let answer = mount(&mut client, &request).await.unwrap();
                    assert_eq!(answer.files[0].contents.as_ref(), b"marker-value");
                    mounted.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count: usize| {
        let want = mounted.load(Ordering::Relaxed) + count;
        while mounted.load(Ordering::Relaxed) < want && !clients.iter().any(|c| c.is_finished()) {
            tokio::task::yield_now().await;
        }
    };
    for turn in 1..=3 {
        more(100).await;
        let new = Server::start(dir.path(), &format!("log-{turn}"), &[]);
        new.wait_for("ready");
        new.wait_for("taking the socket over");
        more(100).await;
        let mut old = servers.pop().unwrap();
        old.terminate();
        assert_eq!(old.code(), Some(0), "{}", old.log());
        servers.push(new);
        more(100).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(servers[0].log().matches("mounted").count() >= 100, "the clients reached the last server");
}

#[test]
fn an_old_server_is_alive_and_no_longer_ready_once_it_is_relieved() {
    let dir = fresh();
    let old = Server::start(dir.path(), "old", &["--metrics-addr", "127.0.0.1:0"]);
    let probes = old.address("metrics");
    assert_eq!((get(probes, "/healthz").0, get(probes, "/readyz").0), (200, 200));
    assert_eq!(get(probes, "/metrics").0, 200);
    assert_eq!((get(probes, "/").0, get(probes, "/status.json").0), (404, 404));
    let new = Server::start(dir.path(), "new", &[]);
    let admin = new.address("admin");
    assert_eq!((get(admin, "/healthz").0, get(admin, "/readyz").0), (200, 200));
    let (status, text) = get(probes, "/readyz");
    assert_eq!((get(probes, "/healthz").0, status), (200, 503));
    assert!(text.contains("taken this socket over"), "{text}");
    std::fs::remove_file(dir.path().join("sockets/local.sock")).unwrap();
    assert_eq!((get(probes, "/healthz").0, get(admin, "/healthz").0), (503, 503));
}

#[test]
fn two_processes_may_listen_at_one_address() {
    let dir = fresh();
    let old = Server::start(dir.path(), "old", &["--metrics-addr", "127.0.0.1:0"]);
    let at = old.address("metrics").to_string();
    let new = Server::start(dir.path(), "new", &["--metrics-addr", &at]);
    assert_eq!(new.address("metrics").to_string(), at);
}

#[test]
fn t47_a_foreign_provider_is_an_error_or_waited_for_until_a_signal() {
    let dir = fresh();
    std::fs::create_dir(dir.path().join("sockets")).unwrap();
    let socket = dir.path().join("sockets/local.sock");
    // It takes connections and drops them, so it never says that it is keyferry.
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let mut refused = Server::start(dir.path(), "refused", &[]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.log().contains(&format!("another process answers on socket {}", socket.display())));
    let mut waiting = Server::start(dir.path(), "waiting", &["--wait-for-socket", "1h"]);
    waiting.wait_for("waiting for it to go");
    waiting.terminate();
    assert_eq!(waiting.code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn a_public_admin_listener_is_refused() {
    let dir = fresh();
    let mut server = Server::start(dir.path(), "log", &["--admin-addr", "0.0.0.0:0"]);
    assert_eq!(server.code(), Some(2));
    assert!(server.log().contains("--metrics-addr"), "{}", server.log());
}

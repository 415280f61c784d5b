//! The real binary as a server with the local store, and clients of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyferry::proto::MountRequest;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
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

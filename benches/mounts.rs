//! What a mount costs: latency, upstream requests, CPU and memory of the real binary, beside a bare
//! gRPC echo in the same run. Prints one table. Machines are shared and noisy: compare ratios.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::proto::csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer};
use keyferry::proto::{File, MountRequest, MountResponse, ObjectVersion, VersionRequest, VersionResponse};
use keyferry::server::dial::{self, Channel};
use tonic::{Request, Response, Status};

#[path = "../tests/standins/mod.rs"]
mod standins;

use standins::azure::content::{self, Identity};
use standins::azure::{AzureStandIn, CLIENT, Options, TENANT};

type Client = CsiDriverProviderClient<Channel>;

/// The floor: an answer of the same size without any work.
struct Echo(usize);

#[tonic::async_trait]
impl CsiDriverProvider for Echo {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse::default()))
    }

    async fn mount(&self, _: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
        let file =
            |n: usize| File { path: format!("object-{n}"), mode: 420, contents: vec![b'v'; 64].into() };
        let object = |n: usize| ObjectVersion { id: format!("secret/object-{n}"), version: "v1".into() };
        let (files, object_version) = ((0..self.0).map(file).collect(), (0..self.0).map(object).collect());
        Ok(Response::new(MountResponse { files, object_version, error: None }))
    }
}

/// The real binary, serving; killed at the end.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Server {
    fn start(store: &AzureStandIn, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), store.ca_pem()).unwrap();
        let mut command = Command::new(binary());
        command.args(["serve", "--admin-addr", "127.0.0.1:0", "--log-level", "error"]).args(flags);
        command.arg("--socket-dir").arg(dir.path()).env("SSL_CERT_FILE", dir.path().join("ca.pem"));
        command.env_remove("SSL_CERT_DIR").stdout(Stdio::null());
        for (host, address) in store.connect_to() {
            command.arg("--connect-to").arg(format!("{host}={address}"));
        }
        Self { child: command.spawn().unwrap(), dir }
    }

    /// As [`Server::start`], with 5 % of one CPU; nothing where this process may make no control group.
    fn throttled(store: &AzureStandIn) -> Option<(Self, Throttle)> {
        let throttle = Throttle::new()?;
        let server = Self::start(store, &[]);
        throttle.take(server.child.id());
        Some((server, throttle))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("azure.sock")
    }

    async fn client(&self) -> Client {
        loop {
            match dial::connect(&self.socket()).await {
                Ok(channel) => return client(channel),
                Err(_) => tokio::time::sleep(Duration::from_micros(200)).await,
            }
        }
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    /// Resident memory in MiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

/// A control group with a CPU limit of 50m, removed at the end.
struct Throttle(PathBuf);

impl Throttle {
    fn new() -> Option<Self> {
        let name = format!("keyferry-bench-{}", std::process::id());
        let old = PathBuf::from("/sys/fs/cgroup/cpu").join(&name);
        let new = PathBuf::from("/sys/fs/cgroup").join(&name);
        let limited = |dir: &PathBuf, file: &str, text: &str| {
            std::fs::create_dir(dir).is_ok() && std::fs::write(dir.join(file), text).is_ok()
        };
        if limited(&old, "cpu.cfs_quota_us", "5000") {
            return Some(Self(old));
        }
        limited(&new, "cpu.max", "5000 100000").then_some(Self(new))
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // It can be removed once its process has ended; a leftover is an empty folder.
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn binary() -> PathBuf {
    std::env::var_os("KEYFERRY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_keyferry").into(), PathBuf::from)
}

fn client(channel: Channel) -> Client {
    CsiDriverProviderClient::with_origin(channel, dial::origin())
}

/// The token of a pod; it stays the same as long as `turn` does.
fn token(store: &AzureStandIn, pod: usize, turn: usize) -> String {
    static TOKENS: Mutex<BTreeMap<(usize, usize, usize), String>> = Mutex::new(BTreeMap::new());
    let key = (std::ptr::from_ref(store) as usize, pod, turn);
    let mint = || store.issuer().mint("shop", "web", "api://AzureADTokenExchange");
    TOKENS.lock().unwrap().entry(key).or_insert_with(mint).clone()
}

fn request(store: &AzureStandIn, pod: usize, turn: usize, objects: usize) -> MountRequest {
    let entries: String = (0..objects)
        .map(|n| format!("  - |\n    objectName: object-{n}\n    objectType: secret\n"))
        .collect();
    let token = token(store, pod, turn);
    let tokens = serde_json::json!({"api://AzureADTokenExchange": {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}});
    let attributes = serde_json::json!({
        "keyvaultName": "shopkv", "tenantID": TENANT, "clientID": CLIENT, "objects": format!("array:\n{entries}"),
        "csi.storage.k8s.io/pod.name": format!("p{pod}"), "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": format!("uid-{pod}"), "csi.storage.k8s.io/serviceAccount.tokens": tokens.to_string(),
    });
    MountRequest {
        attributes: attributes.to_string(),
        secrets: "null".into(),
        target_path: format!("/pods/uid-{pod}/mount"),
        permission: "420".into(),
        current_object_version: vec![],
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Median milliseconds of `count` mounts, one after the other, and CPU milliseconds of each.
async fn measure(server: &Server, client: &mut Client, requests: Vec<MountRequest>) -> (f64, f64) {
    let (cpu, count) = (server.cpu(), requests.len());
    let mut times = Vec::new();
    for request in requests {
        let start = Instant::now();
        client.mount(request).await.unwrap();
        times.push(start.elapsed());
    }
    (median(times), (server.cpu() - cpu) * 1000.0 / f64::from(u32::try_from(count).unwrap()))
}

fn row(what: &str, figure: &str, goal: &str) {
    println!("{what:<58} {figure:>26}   {goal}");
}

async fn floor(objects: usize) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("echo.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(CsiDriverProviderServer::new(Echo(objects)))
            .serve_with_incoming(incoming),
    );
    let mut client = client(dial::connect(&path).await.unwrap());
    let mut times = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        client.mount(MountRequest::default()).await.unwrap();
        times.push(start.elapsed());
    }
    median(times)
}

async fn first_mounts(store: &AzureStandIn, http1: bool) {
    for (latency, goals) in [(0, ["0.8", "2.6", "9"]), (20, ["42", "46", if http1 { "110" } else { "55" }])] {
        store.set_latency(Duration::from_millis(latency));
        let server = Server::start(store, &["--start-max-age", "0"]);
        let mut client = server.client().await;
        client.mount(request(store, 900_000, 0, 1)).await.unwrap();
        for (objects, goal) in [1, 20, 100].into_iter().zip(goals) {
            let turns = if latency == 0 { 100 } else { 25 };
            let requests = (0..turns).map(|turn| request(store, 1000 * objects + turn, 0, objects)).collect();
            let (ms, cpu) = measure(&server, &mut client, requests).await;
            let wire = if http1 { "HTTP/1.1" } else { "HTTP/2" };
            let what = format!("first mount, store {latency} ms, {objects} objects, {wire}");
            row(&what, &format!("{ms:.2} ms, CPU {cpu:.2} ms"), goal);
        }
    }
    store.set_latency(Duration::ZERO);
}

async fn repeats(store: &AzureStandIn) {
    let server = Server::start(store, &[]);
    let mut client = server.client().await;
    client.mount(request(store, 1, 0, 20)).await.unwrap();
    store.clear_log();
    let requests = (0..1000).map(|_| request(store, 1, 0, 20)).collect();
    let (ms, cpu) = measure(&server, &mut client, requests).await;
    let floor = floor(20).await;
    let figure = format!("{ms:.3} ms, {:.1} x floor, CPU {cpu:.3}", ms / floor);
    row("repeat of a fresh volume, 20 objects", &figure, "0.3 ms, 2.5 x floor, CPU 0.1");
    row("  upstream requests of these 1000 repeats", &counted(store).to_string(), "0");
    row("  floor: bare echo, 20 files", &format!("{floor:.3} ms"), "");
}

async fn crowd(store: &AzureStandIn) {
    let server = Server::start(store, &["--repeat-max-age", "1s"]);
    let client = server.client().await;
    store.clear_log();
    for (what, goal, change) in [
        ("100 pods x 10 objects: all mount, upstream requests", "110", false),
        ("  all repeat", "0", false),
        ("  all repeat after every value changed", "10", true),
    ] {
        if change {
            fill(store, 10, "v2");
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let mounts = (0..100).map(|pod| {
            let (mut client, request) = (client.clone(), request(store, pod, 0, 10));
            async move { client.mount(request).await.unwrap() }
        });
        join_all(mounts).await;
        row(what, &counted(store).to_string(), goal);
    }
}

/// Five minutes at a hundredth of their length: every pod again each 750 ms, values good for 600 ms.
async fn five_minutes(store: &AzureStandIn) {
    let server = Server::start(store, &["--repeat-max-age", "600ms"]);
    let client = server.client().await;
    for round in 0..5 {
        let mounts = (0..100).map(|pod| {
            let (mut client, request) = (client.clone(), request(store, pod, 0, 10));
            async move { client.mount(request).await.unwrap() }
        });
        join_all(mounts).await;
        if round == 0 {
            store.clear_log();
        }
        tokio::time::sleep(Duration::from_millis(750)).await;
    }
    row("  repeats over five minutes (1:100)", &counted(store).to_string(), "40");
}

async fn starved(store: &AzureStandIn) {
    let what = "first mount of the process, 50m CPU, 10 objects, 20 ms";
    let Some((server, _throttle)) = Server::throttled(store) else {
        return row(what, "not run: no control group", "150 ms");
    };
    store.set_latency(Duration::from_millis(20));
    let mut client = server.client().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let request = request(store, 1, 0, 10);
    let start = Instant::now();
    client.mount(request).await.unwrap();
    row(what, &format!("{:.0} ms", start.elapsed().as_secs_f64() * 1000.0), "150 ms");
    store.set_latency(Duration::ZERO);
    drop(server);
}

async fn memory(store: &AzureStandIn) {
    let start = Instant::now();
    let server = Server::start(store, &[]);
    let mut client = server.client().await;
    client.version(VersionRequest { version: "v1alpha1".into() }).await.unwrap();
    row(
        "process start to first answer",
        &format!("{:.1} ms", start.elapsed().as_secs_f64() * 1000.0),
        "5 ms",
    );
    row("memory idle", &format!("{:.1} MiB", server.memory()), "10");
    for pod in 0..1000 {
        client.mount(request(store, pod, 0, 10)).await.unwrap();
    }
    row("  after 1000 mounts of 10", &format!("{:.1} MiB", server.memory()), "16");
    store.set_latency(Duration::from_millis(300));
    let mounts = (0..500).map(|pod| {
        let (mut client, request) = (client.clone(), request(store, 5000 + pod, 1, 10));
        async move { client.mount(request).await.unwrap() }
    });
    let start = Instant::now();
    let peak = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        server.memory()
    };
    let (_, peak) = tokio::join!(join_all(mounts), peak);
    store.set_latency(Duration::ZERO);
    let rate = 500.0 / (start.elapsed().as_secs_f64() - 0.6);
    row("  with 500 mounts in flight", &format!("{peak:.1} MiB"), "40");
    row("  afterwards", &format!("{:.1} MiB, {rate:.0} mounts/s", server.memory()), "falling back");
    let size = std::fs::metadata(binary()).map_or(0, |meta| meta.len());
    row("binary", &format!("{:.1} MB", f64::from(u32::try_from(size).unwrap()) / 1e6), "10 MB");
}

/// Requests since the last count.
fn counted(store: &AzureStandIn) -> usize {
    let count = store.log().len();
    store.clear_log();
    count
}

fn fill(store: &AzureStandIn, objects: usize, version: &str) {
    for n in 0..objects {
        store.vault("shopkv").set_secret(
            &format!("object-{n}"),
            version,
            &"v".repeat(64),
            content::ObjectVersion::default(),
        );
    }
}

async fn start(http1_only: bool) -> AzureStandIn {
    let store = AzureStandIn::start(Options { http1_only, ..Options::default() }).await.unwrap();
    store.identity(Identity::new(CLIENT).federated("shop", "web"));
    fill(&store, 100, "v1");
    store
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        row("what", "measured", "reach");
        let store = start(false).await;
        first_mounts(&store, false).await;
        let http1 = start(true).await;
        first_mounts(&http1, true).await;
        repeats(&store).await;
        crowd(&store).await;
        five_minutes(&store).await;
        starved(&store).await;
        memory(&store).await;
    });
}

//! keyferry itself comes, goes, crashes and is exchanged, with pods running.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyferry::proto::VersionRequest;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::server::dial;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};
use tonic::Request;

use super::files::requests_to;
use super::manifests::{MOUNT, class, class_with, entries, machine, pod};
use super::{Case, With, case};
use crate::cluster::driver::{Release, Settings};
use crate::cluster::process::until;
use crate::cluster::provider::{NEW_SOCKETS, SOCKETS};
use crate::cluster::vendor::Vendor;
use crate::cluster::{Cluster, LONG};
use crate::standins::faults::Fault;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("keyferry_is_killed_in_the_middle_of_a_mount", With::Nobody, killed),
        case("keyferry_comes_after_the_pod", With::Nobody, absent),
        case("an_upgrade_leaves_no_gap_and_no_failed_mount", With::Nobody, upgrade),
        case("a_restarted_driver_goes_on_with_what_is_mounted", With::Nobody, driver_restarted),
        case("t33_the_old_driver_mounts_and_rotates", With::Nobody, old_driver),
        case("a_vendors_provider_is_exchanged_and_comes_back", With::Nobody, exchange),
        case("t47_a_dead_socket_of_a_predecessor_is_replaced", With::Nobody, dead_socket),
        case("keyferry_runs_without_root_where_the_directories_are_its_own", With::Nobody, without_root),
        case("t48_a_node_with_taints_has_its_secrets", With::Nobody, tainted),
    ]
}

async fn killed(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "after the crash");
    cluster.namespace("killed").await?;
    cluster.azure.fault(Fault::delay(Duration::from_secs(4)).host(&vault.host()).times(1));
    cluster.kubectl.apply(&(class("killed", "c", &vault.name, &["a"]) + &pod("killed", "web", "c"))).await?;
    until(LONG, "the read has begun", async || {
        ensure!(requests_to(&cluster, &vault.host()) > 0, "no request yet");
        Ok(())
    })
    .await?;
    cluster.kill_provider()?;
    let since = Instant::now();
    cluster.running("killed", "web").await?;
    let value = cluster.exec("killed", "web", &["cat", &format!("{MOUNT}/a")]).await?;
    ensure!(value == "after the crash", "{value}");
    Ok(format!("runs {:.1} s after the crash", since.elapsed().as_secs_f64()))
}

async fn absent(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    // A driver that has never met the provider, as on a new node.
    cluster.restart_driver(&Settings::default()).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("absent").await?;
    cluster.kubectl.apply(&(class("absent", "c", &vault.name, &["a"]) + &pod("absent", "web", "c"))).await?;
    cluster.event_with("absent", "web", &["provider not found"]).await?;
    cluster.install(&[]).await?;
    cluster.running("absent", "web").await?;
    Ok(String::new())
}

/// While one version takes over from the other: somebody answers on the socket at every moment, and pods start.
async fn upgrade(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("upgrade").await?;
    cluster.kubectl.apply(&class("upgrade", "c", &vault.name, &["a"])).await?;
    cluster.kubectl.apply(&pod("upgrade", "before", "c")).await?;
    cluster.running("upgrade", "before").await?;
    cluster.node.lock().await.tag(IMAGE, NEXT).await?;
    let probe = Probe::start(Path::new(SOCKETS).join("azure.sock"));
    let pods = async {
        for n in 0..12 {
            let name = format!("during-{n}");
            cluster.kubectl.apply(&pod("upgrade", &name, "c")).await?;
            cluster.running("upgrade", &name).await?;
        }
        anyhow::Ok(())
    };
    let (upgraded, started) = tokio::join!(cluster.install(&[r#"image.tag="next""#]), pods);
    upgraded?;
    started?;
    let (gap, probes) = probe.stop().await?;
    ensure!(gap < Duration::from_secs(1), "nobody answered for {gap:?}");
    let failed = failed_mounts(&cluster, "upgrade").await?;
    ensure!(failed.is_empty(), "{failed:?}");
    cluster.install(&[]).await?;
    Ok(format!("{probes} probes, longest time without an answer {:.0} ms", gap.as_secs_f64() * 1000.0))
}

const IMAGE: &str = concat!("docker.io/keyferry/keyferry:", env!("CARGO_PKG_VERSION"));
const NEXT: &str = "docker.io/keyferry/keyferry:next";

async fn driver_restarted(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "old");
    cluster.namespace("driver").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let manifests = class_with("driver", "c", &parameters, &entries(&["a"]), "") + &pod("driver", "web", "c");
    cluster.kubectl.apply(&manifests).await?;
    cluster.running("driver", "web").await?;
    cluster.restart_driver(&Settings::default()).await?;
    let path = format!("{MOUNT}/a");
    ensure!(cluster.exec("driver", "web", &["cat", &path]).await? == "old");
    vault.secret("a", "v2", "new");
    rotated(&cluster, "driver", &path).await?;
    Ok(String::new())
}

/// 1.5.6 names the socket's path as `:authority` and rotates by a ticker of its own (driver.md 1.3, 9.1).
async fn old_driver(cluster: Rc<Cluster>) -> Result<String> {
    cluster.restart_driver(&Settings { release: Release::Old, ..Settings::default() }).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "old");
    cluster.namespace("old-driver").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let manifests =
        class_with("old-driver", "c", &parameters, &entries(&["a"]), "") + &pod("old-driver", "web", "c");
    cluster.kubectl.apply(&manifests).await?;
    cluster.running("old-driver", "web").await?;
    vault.secret("a", "v2", "new");
    rotated(&cluster, "old-driver", &format!("{MOUNT}/a")).await?;
    cluster.restart_driver(&Settings::default()).await?;
    Ok(String::new())
}

async fn rotated(cluster: &Cluster, namespace: &str, path: &str) -> Result<()> {
    until(LONG, "new value", async || {
        let value = cluster.exec(namespace, "web", &["cat", path]).await?;
        ensure!(value == "new", "{value}");
        Ok(())
    })
    .await
}

/// docs/migrate/azure.md, there and back: no class and no pod is touched, no mount fails.
async fn exchange(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    let socket = Path::new(NEW_SOCKETS).join("azure.sock");
    let vendor = Vendor::start(&socket, "the same value")?;
    cluster.restart_driver(&Settings::default()).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "the same value");
    cluster.namespace("exchange").await?;
    cluster
        .kubectl
        .apply(&(class("exchange", "c", &vault.name, &["a"]) + &pod("exchange", "web", "c")))
        .await?;
    cluster.running("exchange", "web").await?;
    ensure!(requests_to(&cluster, &vault.host()) == 0, "the vendor's stand-in did not answer");

    // Only the vendor's own directory, as the driver looks there second and knows it already.
    let sockets = format!(r#"socketDirs=["{NEW_SOCKETS}"]"#);
    cluster.apply_chart(&[&sockets]).await?;
    until(LONG, "keyferry waits for the vendor's socket", async || {
        let logs = cluster.kubectl.run(&["logs", "-n", "kube-system", "daemonset/keyferry"]).await?;
        ensure!(logs.contains(&socket.display().to_string()), "{logs}");
        Ok(())
    })
    .await?;
    let probe = Probe::start(socket.clone());
    vendor.stop().await;
    cluster.kubectl.apply(&pod("exchange", "after", "c")).await?;
    cluster.running("exchange", "after").await?;
    let (gap, _) = probe.stop().await?;
    ensure!(requests_to(&cluster, &vault.host()) > 0, "keyferry did not answer");

    let vendor = Vendor::start(&socket, "the same value")?;
    let probe = Probe::start(socket.clone());
    let manifests = cluster.render(&[&sockets]).await?;
    cluster.kubectl.with_input(&["delete", "-f", "-"], &manifests).await?;
    until(LONG, "keyferry gone", async || {
        ensure!(cluster.provider_pods().await?.is_empty(), "still there");
        Ok(())
    })
    .await?;
    cluster.kubectl.apply(&pod("exchange", "back", "c")).await?;
    cluster.running("exchange", "back").await?;
    let (back, _) = probe.stop().await?;

    let failed = failed_mounts(&cluster, "exchange").await?;
    ensure!(failed.is_empty(), "{failed:?}");
    for name in ["web", "after", "back"] {
        let value = cluster.exec("exchange", name, &["cat", &format!("{MOUNT}/a")]).await?;
        ensure!(value == "the same value", "{name}: {value}");
        let count = [
            "get",
            "pod",
            name,
            "-n",
            "exchange",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}",
        ];
        ensure!(cluster.kubectl.run(&count).await? == "0", "{name} was restarted");
    }
    vendor.stop().await;
    cluster.restart_driver(&Settings::default()).await?;
    cluster.install(&[]).await?;
    Ok(format!(
        "longest time without an answer {:.0} ms there, {:.0} ms back",
        gap.as_secs_f64() * 1e3,
        back.as_secs_f64() * 1e3
    ))
}

/// Tracker T47: the driver knows the provider from the old directory, where the predecessor left a dead socket.
async fn dead_socket(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    let socket = Path::new(SOCKETS).join("azure.sock");
    let vendor = Vendor::start(&socket, "x")?;
    cluster.restart_driver(&Settings::default()).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("dead-socket").await?;
    let class = class("dead-socket", "c", &vault.name, &["a"]);
    cluster.kubectl.apply(&(class + &pod("dead-socket", "before", "c"))).await?;
    cluster.running("dead-socket", "before").await?;
    vendor.crash().await;
    ensure!(socket.exists(), "the test wants a dead socket");
    cluster.install(&[]).await?;
    cluster.kubectl.apply(&pod("dead-socket", "after", "c")).await?;
    cluster.running("dead-socket", "after").await?;
    ensure!(requests_to(&cluster, &vault.host()) > 0, "keyferry did not answer");
    Ok(String::new())
}

/// docs/guides/install.md: directories that belong to 65532, and nothing else.
async fn without_root(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    for folder in [SOCKETS, NEW_SOCKETS] {
        std::os::unix::fs::chown(folder, Some(65532), Some(65532)).context(folder)?;
    }
    cluster.install(&["runAsUser=65532"]).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("without-root").await?;
    cluster
        .kubectl
        .apply(&(class("without-root", "c", &vault.name, &["a"]) + &pod("without-root", "web", "c")))
        .await?;
    cluster.running("without-root", "web").await?;
    cluster.uninstall().await?;
    for folder in [SOCKETS, NEW_SOCKETS] {
        std::os::unix::fs::chown(folder, Some(0), Some(0)).context(folder)?;
    }
    cluster.install(&[]).await?;
    Ok(String::new())
}

/// Tracker T48: the chart tolerates what the driver does.
async fn tainted(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    cluster.kubectl.run(&["taint", "nodes", "n1", "team=gpu:NoSchedule", "team=gpu:NoExecute"]).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("tainted").await?;
    cluster.install(&[]).await?;
    let spec = "tolerations: [{operator: Exists}]\n";
    let pod = super::manifests::pod_with("tainted", "web", &[("s", MOUNT, "c")], "", spec);
    cluster.kubectl.apply(&(class("tainted", "c", &vault.name, &["a"]) + &pod)).await?;
    cluster.running("tainted", "web").await?;
    cluster.kubectl.run(&["taint", "nodes", "n1", "team-"]).await?;
    Ok(String::new())
}

/// Texts of the mounts that failed in a namespace.
async fn failed_mounts(cluster: &Cluster, namespace: &str) -> Result<Vec<String>> {
    let query = ["get", "events", "-n", namespace, "--field-selector", "reason=FailedMount"];
    let events = cluster.kubectl.json(&query).await?;
    let items = events["items"].as_array().context("no items")?;
    Ok(items.iter().map(|event| event["message"].to_string()).collect())
}

/// Asks for the version again and again, over a new connection each time, as a driver without one would.
struct Probe {
    stop: watch::Sender<bool>,
    task: JoinHandle<(Duration, usize)>,
}

impl Probe {
    fn start(socket: std::path::PathBuf) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let (mut longest, mut count, mut last) = (Duration::ZERO, 0, Instant::now());
            let mut tick = interval(Duration::from_millis(5));
            while !*stopped.borrow() {
                tick.tick().await;
                let limit = Duration::from_secs(5);
                if timeout(limit, answers(&socket)).await.is_ok_and(|answer| answer.is_ok()) {
                    // Of the time between two answers, the pause between two questions is ours.
                    longest = longest.max(last.elapsed().saturating_sub(Duration::from_millis(5)));
                    last = Instant::now();
                    count += 1;
                }
            }
            (longest.max(last.elapsed()), count)
        });
        Self { stop, task }
    }

    /// The longest time without an answer, and how many answers there were.
    async fn stop(self) -> Result<(Duration, usize)> {
        self.stop.send_replace(true);
        Ok(self.task.await?)
    }
}

async fn answers(socket: &Path) -> Result<()> {
    let mut client = CsiDriverProviderClient::with_origin(dial::connect(socket).await?, dial::origin());
    client.version(Request::new(VersionRequest { version: "v1alpha1".into() })).await?;
    Ok(())
}

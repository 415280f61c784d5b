//! Stores in trouble while pods start. A pod may wait; it may never run on an empty volume (driver.md 8.3).

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::files::requests_to;
use super::manifests::{MOUNT, class, class_with, entries, machine, pod, pod_with, workload};
use super::{Case, With, case};
use crate::cluster::driver::Settings;
use crate::cluster::process::until;
use crate::cluster::provider::SOCKETS;
use crate::cluster::vendor::Vendor;
use crate::cluster::{Cluster, LONG};
use crate::standins::azure::content::Identity;
use crate::standins::faults::{Fault, How};

/// Starts with failures at first.
const STARTS: usize = 100;
const CLIENT: &str = "55555555-5555-4555-8555-555555555555";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_pod_waits_for_its_store_and_starts", With::Others, waits),
        case("a_running_pod_keeps_its_files_through_an_outage", With::Others, keeps),
        case("t12_a_pod_starts_with_the_last_good_value", With::Nobody, last_good),
        case("a_provider_with_a_passing_code_leaves_a_volume_empty", With::Nobody, hazard),
        case("t32_no_pod_runs_on_an_empty_volume_in_100_starts", With::Nobody, never_empty),
    ]
}

async fn waits(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "late");
    cluster.namespace("store-down").await?;
    cluster.azure.fault(Fault { times: None, ..Fault::status(503).host(&vault.host()) });
    cluster
        .kubectl
        .apply(&(class("store-down", "c", &vault.name, &["a"]) + &pod("store-down", "web", "c")))
        .await?;
    cluster.event_with("store-down", "web", &["503", &vault.host()]).await?;
    cluster.azure.clear_faults_of(&vault.host());
    let back = Instant::now();
    cluster.running("store-down", "web").await?;
    ensure!(cluster.exec("store-down", "web", &["cat", &format!("{MOUNT}/a")]).await? == "late");
    Ok(format!("runs {:.1} s after the store was back", back.elapsed().as_secs_f64()))
}

/// A republish that fails leaves the old files, and the value follows when the store is back.
async fn keeps(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "old");
    cluster.namespace("outage").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let manifests = class_with("outage", "c", &parameters, &entries(&["a"]), "") + &pod("outage", "web", "c");
    cluster.kubectl.apply(&manifests).await?;
    cluster.running("outage", "web").await?;
    let before = requests_to(&cluster, &vault.host());
    cluster.azure.fault(Fault { times: None, ..Fault::status(403).host(&vault.host()) });
    vault.secret("a", "v2", "new");
    until(LONG, "a failed republish", async || {
        ensure!(requests_to(&cluster, &vault.host()) > before, "the store was not asked again");
        Ok(())
    })
    .await?;
    let path = format!("{MOUNT}/a");
    ensure!(cluster.exec("outage", "web", &["cat", &path]).await? == "old");
    cluster.azure.clear_faults_of(&vault.host());
    until(LONG, "new value", async || {
        let value = cluster.exec("outage", "web", &["cat", &path]).await?;
        ensure!(value == "new", "{value}");
        Ok(())
    })
    .await?;
    Ok(String::new())
}

/// Tracker T12, with both switches on: the sibling of a running pod starts while the store is down.
async fn last_good(cluster: Rc<Cluster>) -> Result<String> {
    cluster.install(&[r#"limits.lastGoodMaxAge="30m""#]).await?;
    let vault = cluster.vault();
    vault.secret("a", "v1", "good");
    cluster.namespace("last-good").await?;
    let parameters = machine(&vault.name) + "lastGoodMaxAge: 10m\n";
    let class = class_with("last-good", "c", &parameters, &entries(&["a"]), "");
    cluster.kubectl.apply(&(class + &pod("last-good", "first", "c"))).await?;
    cluster.running("last-good", "first").await?;
    cluster.azure.fault(Fault { times: None, ..Fault::status(503).host(&vault.host()) });
    let start = Instant::now();
    cluster.kubectl.apply(&pod("last-good", "second", "c")).await?;
    cluster.running("last-good", "second").await?;
    let took = start.elapsed();
    ensure!(cluster.exec("last-good", "second", &["cat", &format!("{MOUNT}/a")]).await? == "good");
    cluster.azure.clear_faults_of(&vault.host());
    cluster.install(&[]).await?;
    Ok(format!("runs {:.1} s after it was made", took.as_secs_f64()))
}

/// The hazard itself, with a provider that answers RESOURCE_EXHAUSTED once: the container that looks at its file finds none. So
/// the next case would see it, if keyferry ever did the same.
async fn hazard(cluster: Rc<Cluster>) -> Result<String> {
    cluster.uninstall().await?;
    cluster.restart_driver(&Settings { poll: "2m", ..Settings::default() }).await?;
    let vendor =
        Vendor::failing_once(&Path::new(SOCKETS).join("azure.sock"), tonic::Code::ResourceExhausted)?;
    let vault = cluster.vault();
    cluster.namespace("hazard").await?;
    let pod = looking_pod("hazard", "web", "c", "a");
    cluster.kubectl.apply(&(class("hazard", "c", &vault.name, &["a"]) + &pod)).await?;
    until(LONG, "the container ends for want of its file", async || {
        let phase = cluster
            .kubectl
            .run(&["get", "pod", "web", "-n", "hazard", "-o", "jsonpath={.status.phase}"])
            .await?;
        ensure!(phase == "Failed", "{phase}");
        Ok(())
    })
    .await?;
    vendor.stop().await;
    cluster.restart_driver(&Settings::default()).await?;
    cluster.install(&[]).await?;
    Ok(String::new())
}

/// A pod whose container looks at its file once, when it starts, and ends if there is none.
fn looking_pod(namespace: &str, name: &str, class: &str, file: &str) -> String {
    let looks = format!("command: ['sh', '-c', 'test -s {MOUNT}/{file} && exec sleep 10000']\n");
    pod_with(namespace, name, &[("s", MOUNT, class)], &looks, "restartPolicy: Never\n")
        .replace("      command: ['sleep', '10000']\n", "")
}

/// Each pod has an object of its own that fails in some way at first. The container looks at its file once, when it starts: an
/// empty volume would be seen at once and never mended, as the pod is not started again.
async fn never_empty(cluster: Rc<Cluster>) -> Result<String> {
    // A pod is in danger for as long as its directory is younger than this.
    cluster.restart_driver(&Settings { poll: "2m", ..Settings::default() }).await?;
    let vault = cluster.vault();
    cluster.namespace("never-empty").await?;
    cluster.azure.identity(Identity::new(CLIENT).federated("never-empty", "default"));
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut manifests = String::new();
    for n in 0..STARTS {
        let object = format!("o-{n}-");
        vault.secret(&object, "v1", "filled");
        // Half of them go through Entra as well, each with a token of its own.
        let parameters = if n % 2 == 0 { machine(&vault.name) } else { workload(&vault.name, CLIENT) };
        let entry =
            format!("array:\n  - |\n    objectName: {object}\n    objectType: secret\n    objectAlias: o\n");
        manifests += &class_with("never-empty", &object[..object.len() - 1], &parameters, &entry, "");
        cluster.azure.fault(random.fault().host(&vault.host()).path(&format!("/secrets/{object}")));
        manifests += &looking_pod("never-empty", &format!("p{n}"), &object[..object.len() - 1], "o");
    }
    cluster.azure.fault(Fault::status(500).host("login.microsoftonline.com").times(40));
    let start = Instant::now();
    cluster.kubectl.apply(&manifests).await?;
    let query = ["get", "pods", "-n", "never-empty", "-o", "jsonpath={.items[*].status.phase}"];
    until(LONG * 3, "100 pods run", async || {
        let phases = cluster.kubectl.run(&query).await?;
        let count = |phase: &str| phases.split(' ').filter(|found| *found == phase).count();
        ensure!(count("Failed") == 0, "{} pods ran on an empty volume", count("Failed"));
        ensure!(count("Running") == STARTS, "{} of {STARTS} run", count("Running"));
        Ok(())
    })
    .await?;
    let failed = cluster
        .kubectl
        .json(&["get", "events", "-n", "never-empty", "--field-selector", "reason=FailedMount"])
        .await?;
    let failures = failed["items"].as_array().map_or(0, Vec::len);
    ensure!(failures > 20, "only {failures} pods met a failure: the test shows nothing");
    cluster.kubectl.run(&["delete", "namespace", "never-empty", "--wait=false"]).await?;
    cluster.restart_driver(&Settings::default()).await?;
    Ok(format!(
        "{STARTS} starts, {failures} pods with failures at first, {:.0} s",
        start.elapsed().as_secs_f64()
    ))
}

/// The same sequence in each run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// Trouble for the first requests: more of them than one mount makes, so that mounts fail. Of refusals fewer, as each ends a
    /// mount, and the kubelet waits twice as long after each.
    fn fault(&mut self) -> Fault {
        let times = u32::try_from(self.below(9)).unwrap_or(0) + 1;
        let fault = match self.below(9) {
            0 => Fault::status(429),
            1 => Fault::status(500),
            2 => Fault::status(502),
            3 => Fault::status(503),
            4 => return Fault::status(403).times(times.min(4)),
            5 => return Fault::status(404).times(times.min(4)),
            6 => Fault::how(How::Close),
            7 => Fault::how(How::BrokenJson),
            _ => Fault::how(How::Cut),
        };
        fault.times(times)
    }
}

//! Many pods at once, against a provider that does nothing.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::files::{requests_to, start_pods};
use super::manifests::class;
use super::{Case, With, case};
use crate::cluster::process::until;
use crate::cluster::provider::SOCKETS;
use crate::cluster::vendor::Vendor;
use crate::cluster::{Cluster, LONG};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("fifty_pods_start_at_once", With::Nobody, at_once)]
}

async fn at_once(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.uninstall().await?;
    let vendor = Vendor::start(&Path::new(SOCKETS).join("azure.sock"), "x")?;
    let mut times = Vec::new();
    for count in [20, 50] {
        times.push(("trivial", count, one(&cluster, &vault.name, &format!("trivial-{count}"), count).await?));
    }
    vendor.stop().await;
    cluster.install(&[]).await?;
    for count in [20, 50] {
        let before = requests_to(&cluster, &vault.host());
        times.push((
            "keyferry",
            count,
            one(&cluster, &vault.name, &format!("keyferry-{count}"), count).await?,
        ));
        let reads = requests_to(&cluster, &vault.host()) - before;
        ensure!(reads < count / 2, "{reads} reads for {count} pods of one identity");
    }
    let shown: Vec<_> =
        times.iter().map(|(who, count, time)| format!("{who} {count} pods {time:.1} s")).collect();
    Ok(shown.join(", "))
}

async fn one(cluster: &Cluster, vault: &str, namespace: &str, count: usize) -> Result<f64> {
    cluster.namespace(namespace).await?;
    cluster.kubectl.apply(&class(namespace, "c", vault, &["a"])).await?;
    let took = start_pods(cluster, namespace, "c", count).await?;
    cluster.kubectl.run(&["delete", "pods", "--all", "-n", namespace, "--wait=false"]).await?;
    until(LONG, "pods gone", async || {
        let left = cluster.kubectl.run(&["get", "pods", "-n", namespace, "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await?;
    Ok(took.as_secs_f64())
}

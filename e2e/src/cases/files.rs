//! Secrets as files of a pod.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::manifests::{MOUNT, class, class_with, entries, machine, pod, pod_with, workload};
use super::{Case, With, case};
use crate::cluster::process::until;
use crate::cluster::{Cluster, LONG};
use crate::standins::azure::TENANT;
use crate::standins::azure::content::{Denial, Identity, Kind};

const PRINCIPAL: &str = "77777777-7777-4777-8777-777777777777";
const OTHER: &str = "33333333-3333-4333-8333-333333333333";
const THIRD: &str = "44444444-4444-4444-8444-444444444444";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_pod_prints_its_secret", With::Others, a_pod_prints_its_secret),
        case("a_changed_secret_reaches_the_running_container", With::Others, rotation),
        case("one_pod_has_several_volumes", With::Others, several_volumes),
        case("a_container_that_is_not_root_reads_its_secret", With::Others, not_root),
        case("two_identities_read_only_their_own", With::Others, two_identities),
        case("a_service_principal_comes_from_a_secret", With::Others, service_principal),
        case("a_class_is_edited_while_in_use", With::Others, edited_class),
        case("the_event_shows_every_mistake_of_a_class", With::Others, mistakes),
        case("the_event_names_a_missing_object_and_its_cure", With::Others, missing_object),
        case("the_event_names_a_denied_object_and_its_cure", With::Others, denied_object),
        case("t31_an_unchanged_secret_is_not_written_again", With::Others, unchanged),
        case("t08_an_optional_object_comes_and_goes", With::Others, optional),
        case("a_deleted_pod_leaves_nothing", With::Others, unmount),
    ]
}

/// Seed 004, minimal: two secrets as files.
async fn a_pod_prints_its_secret(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("secret-1-key", "v1", "correct horse");
    vault.secret("secret-2-key", "v1", "battery staple\n");
    cluster.namespace("test-secret").await?;
    let manifests = class("test-secret", "test-secret-spc", &vault.name, &["secret-1-key", "secret-2-key"]);
    cluster.kubectl.apply(&(manifests + &pod("test-secret", "example-pod", "test-secret-spc"))).await?;
    cluster.running("test-secret", "example-pod").await?;
    let read = async |name: &str| {
        let path = format!("{MOUNT}/{name}");
        cluster.exec("test-secret", "example-pod", &["cat", &path]).await
    };
    ensure!(read("secret-1-key").await? == "correct horse");
    ensure!(read("secret-2-key").await? == "battery staple\n");
    let listed = cluster.exec("test-secret", "example-pod", &["ls", MOUNT]).await?;
    ensure!(listed == "secret-1-key\nsecret-2-key\n", "{listed}");
    Ok(String::new())
}

async fn rotation(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("db", "v1", "old");
    cluster.namespace("rotation").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let synced =
        "secretObjects:\n  - {secretName: db, type: Opaque, data: [{objectName: db, key: password}]}\n";
    let class = class_with("rotation", "db", &parameters, &entries(&["db"]), synced);
    cluster.kubectl.apply(&(class + &pod("rotation", "web", "db"))).await?;
    cluster.running("rotation", "web").await?;
    let path = format!("{MOUNT}/db");
    ensure!(cluster.exec("rotation", "web", &["cat", &path]).await? == "old");
    until(LONG, "synced Secret", async || cluster.secret("rotation", "db", "password").await).await?;
    let changed = Instant::now();
    vault.secret("db", "v2", "new");
    until(LONG, "new value in the container", async || {
        let value = cluster.exec("rotation", "web", &["cat", &path]).await?;
        ensure!(value == "new", "{value}");
        Ok(())
    })
    .await?;
    let seen = changed.elapsed();
    until(LONG, "new value in the Kubernetes Secret", async || {
        let value = cluster.secret("rotation", "db", "password").await?;
        ensure!(value == b"new", "{value:?}");
        Ok(())
    })
    .await?;
    Ok(format!(
        "container {:.1} s, Secret {:.1} s after the change",
        seen.as_secs_f64(),
        changed.elapsed().as_secs_f64()
    ))
}

/// Tracker T31: watchers see nothing while nothing changes, however often the driver asks, and one swap when it does.
async fn unchanged(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "one");
    cluster.namespace("unchanged").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let manifests =
        class_with("unchanged", "c", &parameters, &entries(&["a"]), "") + &pod("unchanged", "web", "c");
    cluster.kubectl.apply(&manifests).await?;
    cluster.running("unchanged", "web").await?;
    let tree = format!("{MOUNT}/..data");
    let before = cluster.exec("unchanged", "web", &["readlink", &tree]).await?;
    let asked = requests_to(&cluster, &vault.host());
    until(LONG, "three more reads", async || {
        ensure!(requests_to(&cluster, &vault.host()) >= asked + 3, "not yet");
        Ok(())
    })
    .await?;
    ensure!(
        cluster.exec("unchanged", "web", &["readlink", &tree]).await? == before,
        "the files were written again"
    );
    vault.secret("a", "v2", "two");
    until(LONG, "the swap", async || {
        ensure!(cluster.exec("unchanged", "web", &["readlink", &tree]).await? != before, "the same tree");
        Ok(())
    })
    .await?;
    Ok(String::new())
}

/// Tracker T08: a missing optional object stops no pod; its file follows the object, also away again.
async fn optional(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    cluster.namespace("optional").await?;
    let parameters = machine(&vault.name) + "maxAge: 1s\n";
    let objects = "array:\n  - |\n    objectName: a\n    objectType: secret\n    optional: true\n";
    let class = class_with("optional", "c", &parameters, objects, "");
    cluster.kubectl.apply(&(class + &pod("optional", "web", "c"))).await?;
    cluster.running("optional", "web").await?;
    let listed = async |want: &str| {
        until(LONG, want, async || {
            let listed = cluster.exec("optional", "web", &["ls", MOUNT]).await?;
            ensure!(listed == want, "{listed:?}");
            Ok(())
        })
        .await
    };
    listed("").await?;
    vault.secret("a", "v1", "here");
    listed("a\n").await?;
    vault.handle().delete(Kind::Secrets, "a");
    listed("").await?;
    Ok(String::new())
}

async fn several_volumes(cluster: Rc<Cluster>) -> Result<String> {
    let (first, second) = (cluster.vault(), cluster.vault());
    first.secret("a", "v1", "from the first");
    second.secret("a", "v1", "from the second");
    cluster.namespace("several").await?;
    let classes =
        class("several", "first", &first.name, &["a"]) + &class("several", "second", &second.name, &["a"]);
    let volumes = [("one", "/mnt/one", "first"), ("two", "/mnt/two", "second")];
    cluster.kubectl.apply(&(classes + &pod_with("several", "web", &volumes, "", ""))).await?;
    cluster.running("several", "web").await?;
    let all = cluster.exec("several", "web", &["cat", "/mnt/one/a", "/mnt/two/a"]).await?;
    ensure!(all == "from the firstfrom the second", "{all}");
    Ok(String::new())
}

async fn not_root(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "for everybody");
    cluster.namespace("not-root").await?;
    let spec = "securityContext: {runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true, fsGroup: 1000}\n";
    let pod = pod_with("not-root", "web", &[("s", MOUNT, "c")], "", spec);
    cluster.kubectl.apply(&(class("not-root", "c", &vault.name, &["a"]) + &pod)).await?;
    cluster.running("not-root", "web").await?;
    ensure!(cluster.exec("not-root", "web", &["id", "-u"]).await? == "1000\n");
    let value = cluster.exec("not-root", "web", &["cat", &format!("{MOUNT}/a")]).await?;
    ensure!(value == "for everybody", "{value}");
    Ok(String::new())
}

/// Tokens are the kubelet's own; the stand-in for Entra verifies them against the API server's key.
async fn two_identities(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "shared");
    cluster.namespace("identities").await?;
    cluster.azure.identity(Identity::new(OTHER).federated("identities", "reader"));
    cluster.azure.identity(Identity::new(THIRD).federated("identities", "stranger"));
    vault.handle().deny(Some(THIRD), None, None, Denial::Rbac);
    let mut manifests = String::new();
    for (account, client) in [("reader", OTHER), ("stranger", THIRD)] {
        manifests += &format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: identities}}\n"
        );
        manifests += &class_with("identities", account, &workload(&vault.name, client), &entries(&["a"]), "");
    }
    let spec = |account: &str| format!("serviceAccountName: {account}\n");
    manifests += &pod_with("identities", "reader", &[("s", MOUNT, "reader")], "", &spec("reader"));
    cluster.kubectl.apply(&manifests).await?;
    cluster.running("identities", "reader").await?;
    // The value is in memory now. Another identity, and another account that borrows the first one's class, both meet the store.
    let mut pods = pod_with("identities", "stranger", &[("s", MOUNT, "stranger")], "", &spec("stranger"));
    pods += &pod_with("identities", "thief", &[("s", MOUNT, "reader")], "", &spec("stranger"));
    cluster.kubectl.apply(&pods).await?;
    cluster.event_with("identities", "stranger", &["ForbiddenByRbac", "Key Vault Secrets User"]).await?;
    let thief = ["AADSTS7002", "system:serviceaccount:identities:stranger", OTHER];
    cluster.event_with("identities", "thief", &thief).await?;
    Ok(String::new())
}

/// nodePublishSecretRef, with the characters that the driver escapes (driver.md 3.2).
async fn service_principal(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "for a principal");
    cluster.namespace("principal").await?;
    cluster.azure.identity(Identity::new(PRINCIPAL).client_secret("a<b>&c"));
    let parameters = format!("tenantId: '{TENANT}'\nkeyvaultName: '{}'\n", vault.name);
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: principal, namespace: principal}}\nstringData: {{clientid: '{PRINCIPAL}', clientsecret: 'a<b>&c'}}\n"
    );
    let pod = pod("principal", "web", "c").replace(
        "        readOnly: true\n        volume",
        "        readOnly: true\n        nodePublishSecretRef: {name: principal}\n        volume",
    );
    let class = class_with("principal", "c", &parameters, &entries(&["a"]), "");
    cluster.kubectl.apply(&(secret + &class + &pod)).await?;
    cluster.running("principal", "web").await?;
    Ok(String::new())
}

async fn edited_class(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "one");
    vault.secret("b", "v1", "two");
    cluster.namespace("edited").await?;
    cluster.kubectl.apply(&(class("edited", "c", &vault.name, &["a"]) + &pod("edited", "web", "c"))).await?;
    cluster.running("edited", "web").await?;
    cluster.kubectl.apply(&class("edited", "c", &vault.name, &["b"])).await?;
    until(LONG, "files of the edited class", async || {
        let listed = cluster.exec("edited", "web", &["ls", MOUNT]).await?;
        ensure!(listed == "b\n", "{listed}");
        Ok(())
    })
    .await?;
    Ok(String::new())
}

async fn mistakes(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    cluster.namespace("mistakes").await?;
    let objects = "array:
  - |
    objectName: a
    objectType: secrets
  - |
    objectName: b
    objectType: secret
    filePermission: '0999'
  - |
    objectType: secret
";
    let class = class_with("mistakes", "c", &machine(&vault.name), objects, "");
    cluster.kubectl.apply(&(class + &pod("mistakes", "web", "c"))).await?;
    let fragments = ["\"secrets\"", "objects[1]", "0999", "objects[2]", "objectName"];
    cluster.event_with("mistakes", "web", &fragments).await?;
    ensure!(requests_to(&cluster, &vault.host()) == 0, "a class with mistakes reached the store");
    Ok(String::new())
}

async fn missing_object(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("there", "v1", "x");
    cluster.namespace("missing").await?;
    let class = class("missing", "c", &vault.name, &["there", "not-there"]);
    cluster.kubectl.apply(&(class + &pod("missing", "web", "c"))).await?;
    cluster.event_with("missing", "web", &["not-there", &vault.host(), "objectName"]).await?;
    let since = Instant::now();
    vault.secret("not-there", "v1", "now it is");
    cluster.running("missing", "web").await?;
    Ok(format!("runs {:.1} s after the object was made", since.elapsed().as_secs_f64()))
}

async fn denied_object(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    vault.handle().deny(None, None, None, Denial::Policy);
    cluster.namespace("denied").await?;
    cluster.kubectl.apply(&(class("denied", "c", &vault.name, &["a"]) + &pod("denied", "web", "c"))).await?;
    cluster.event_with("denied", "web", &["ForbiddenByPolicy", "objectName:a", "access policy"]).await?;
    vault.handle().allow_all();
    cluster.running("denied", "web").await?;
    Ok(String::new())
}

async fn unmount(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("unmount").await?;
    cluster
        .kubectl
        .apply(&(class("unmount", "c", &vault.name, &["a"]) + &pod("unmount", "web", "c")))
        .await?;
    cluster.running("unmount", "web").await?;
    let uid = cluster
        .kubectl
        .run(&["get", "pod", "web", "-n", "unmount", "-o", "jsonpath={.metadata.uid}"])
        .await?;
    let mounted =
        |cluster: &Cluster| Ok::<_, anyhow::Error>(cluster.mounted()?.iter().any(|line| line.contains(&uid)));
    ensure!(mounted(&cluster)?, "no mount of pod {uid}");
    cluster.kubectl.run(&["delete", "pod", "web", "-n", "unmount"]).await?;
    until(LONG, "unmount", async || {
        ensure!(!mounted(&cluster)?, "still mounted");
        let folder = format!("{}/kubelet/pods/{uid}", crate::cluster::DIRECTORY);
        ensure!(!std::path::Path::new(&folder).exists(), "{folder} is left");
        Ok(())
    })
    .await?;
    Ok(String::new())
}

/// Requests to a host so far.
pub(crate) fn requests_to(cluster: &Cluster, host: &str) -> usize {
    cluster.azure.log().iter().filter(|request| request.host == host).count()
}

/// Starts pods `p0`, `p1`, … of one class and waits until all run.
pub(crate) async fn start_pods(
    cluster: &Cluster,
    namespace: &str,
    class: &str,
    count: usize,
) -> Result<Duration> {
    let pods: String = (0..count).map(|n| pod(namespace, &format!("p{n}"), class)).collect();
    let start = Instant::now();
    cluster.kubectl.apply(&pods).await?;
    until(LONG, &format!("{count} pods run"), async || {
        let phases = ["get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].status.phase}"];
        let running =
            cluster.kubectl.run(&phases).await?.split(' ').filter(|phase| *phase == "Running").count();
        ensure!(running == count, "{running} of {count} run");
        Ok(())
    })
    .await?;
    let took = start.elapsed();
    // Every one of them has its file: no pod on an empty volume.
    let names: Vec<_> = (0..count).map(|n| format!("p{n}")).collect();
    for some in names.chunks(10) {
        let path = format!("{MOUNT}/a");
        let filled = async |name: &String| cluster.exec(namespace, name, &["test", "-s", &path]).await;
        try_join_all(some.iter().map(filled)).await?;
    }
    Ok(took)
}

//! Callers other than a kubelet's mount, and what an administrator allows and sees.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use keyferry::proto::MountRequest;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::server::dial;
use serde_json::json;
use tonic::Request;

use super::files::requests_to;
use super::manifests::{class, entries, pod};
use super::{Case, With, case};
use crate::cluster::provider::SOCKETS;
use crate::cluster::{Cluster, MACHINE};
use crate::standins::azure::TENANT;
use crate::standins::azure::content::Identity;

const CLIENT: &str = "66666666-6666-4666-8666-666666666666";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("the_sync_controller_is_served", With::Others, sync_controller),
        case("a_policy_refuses_and_names_its_rule", With::Nobody, policy),
    ]
}

/// As cluster.md 9 and driver.md 3.1 say: no deadline, `{}` for secrets, one fixed path, a token that is bound to no pod.
async fn sync_controller(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "for a Secret");
    cluster.namespace("sync").await?;
    cluster.azure.identity(Identity::new(CLIENT).federated("sync", "default"));
    let audience = "api://AzureADTokenExchange";
    let arguments = ["create", "token", "default", "-n", "sync", "--audience", audience, "--duration=600s"];
    let token = cluster.kubectl.run(&arguments).await?;
    let tokens = json!({audience: {"token": token.trim(), "expirationTimestamp": "2030-01-01T00:00:00Z"}});
    let attributes = json!({
        "clientID": CLIENT, "tenantId": TENANT, "keyvaultName": vault.name, "objects": entries(&["a"]),
        "csi.storage.k8s.io/pod.name": "controller", "csi.storage.k8s.io/pod.uid": "",
        "csi.storage.k8s.io/pod.namespace": "sync", "csi.storage.k8s.io/serviceAccount.name": "default",
        "csi.storage.k8s.io/serviceAccount.tokens": tokens.to_string(),
    });
    let channel = dial::connect(&Path::new(SOCKETS).join("azure.sock")).await?;
    let mut client = CsiDriverProviderClient::with_origin(channel, dial::origin());
    let answer = client
        .mount(Request::new(MountRequest {
            attributes: attributes.to_string(),
            secrets: "{}".into(),
            target_path: "/mnt/secrets-store".into(),
            permission: "420".into(),
            current_object_version: vec![],
        }))
        .await?
        .into_inner();
    let file = answer.files.first().context("no file")?;
    ensure!(file.contents == "for a Secret".as_bytes() && file.path == "a", "{}", file.path);
    ensure!(!answer.object_version.is_empty(), "no version");
    Ok(String::new())
}

/// The API server refuses the class, and keyferry itself refuses the mount of a class that was there before.
async fn policy(cluster: Rc<Cluster>) -> Result<String> {
    let (allowed, other) = (cluster.vault(), cluster.vault());
    for vault in [&allowed, &other] {
        vault.secret("a", "v1", "x");
    }
    cluster.namespace("policy").await?;
    cluster.kubectl.apply(&class("policy", "before", &other.name, &["a"])).await?;
    let rules = json!([{"name": "policy-vaults", "namespaces": ["policy"], "backends": ["azure"],
        "addresses": [allowed.host()], "identities": [MACHINE]}]);
    let rules = format!("policy.rules={rules}");
    cluster.install(&[&rules, "policy.admission.enabled=true"]).await?;

    cluster
        .kubectl
        .apply(&(class("policy", "good", &allowed.name, &["a"]) + &pod("policy", "web", "good")))
        .await?;
    cluster.running("policy", "web").await?;
    cluster.kubectl.apply(&pod("policy", "refused", "before")).await?;
    let event = ["PermissionDenied", "policy-vaults", &other.host()];
    cluster.event_with("policy", "refused", &event).await?;
    ensure!(requests_to(&cluster, &other.host()) == 0, "a refused class reached the store");

    let refusal = cluster.kubectl.apply(&class("policy", "bad", &other.name, &["a"])).await;
    let text = format!("{:#}", refusal.err().context("the API server took a class that the policy refuses")?);
    ensure!(text.contains("policy-vaults") && text.contains(&allowed.host()), "{text}");
    let overriding = pod("policy", "sly", "good")
        .replace("{secretProviderClass: good}", "{secretProviderClass: good, keyvaultName: other}");
    let refusal = cluster.kubectl.apply(&overriding).await;
    let text = format!("{:#}", refusal.err().context("the API server took a pod that overrides its class")?);
    ensure!(text.contains("keyvaultName"), "{text}");

    let manifests = cluster.render(&[&rules, "policy.admission.enabled=true"]).await?;
    cluster.kubectl.with_input(&["delete", "-f", "-"], &manifests).await?;
    cluster.install(&[]).await?;
    Ok(String::new())
}

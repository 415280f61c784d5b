//! Callers other than a kubelet's mount, and what an administrator allows and sees.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use keyferry::proto::MountRequest;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::server::dial;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Request;

use super::files::requests_to;
use super::manifests::{MOUNT, class, class_with, entries, pod, pod_with};
use super::{Case, With, case};
use crate::cluster::process::until;
use crate::cluster::provider::SOCKETS;
use crate::cluster::{Cluster, LONG, MACHINE};
use crate::standins::azure::TENANT;
use crate::standins::azure::content::Identity;

const ANNOTATED: &str = "88888888-8888-4888-8888-888888888888";
const CLIENT: &str = "66666666-6666-4666-8666-666666666666";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("the_sync_controller_is_served", With::Others, sync_controller),
        case("an_operator_sees_volumes_and_forgets_values", With::Others, operator),
        case("t05_an_annotated_service_account_is_the_identity", With::Nobody, annotated),
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

/// The page and its one action, through `kubectl port-forward`: nothing of it is open to other pods.
async fn operator(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "never on a page");
    cluster.namespace("operator").await?;
    cluster
        .kubectl
        .apply(&(class("operator", "c", &vault.name, &["a"]) + &pod("operator", "web", "c")))
        .await?;
    cluster.running("operator", "web").await?;
    let arguments = ["port-forward", "-n", "kube-system", "daemonset/keyferry", "18990:8990"];
    let mut forward = cluster.kubectl.start(&cluster.parts.logs, "port-forward", &arguments)?;
    let page = until(LONG, "the page", async || {
        forward.check()?;
        ask("GET / HTTP/1.1\r\n").await
    })
    .await?;
    for text in ["200 OK", "operator", "kv", "azure.sock"] {
        ensure!(page.contains(text), "no {text:?} on the page:\n{page}");
    }
    ensure!(!page.contains("never on a page"), "a value is on the page");
    // The value was read a moment ago; a repeat would have it from memory for a minute.
    vault.secret("a", "v2", "changed");
    let forgotten = ask("POST /forget HTTP/1.1\r\nX-Keyferry: forget\r\nContent-Length: 0\r\n").await?;
    ensure!(forgotten.contains("200 OK"), "{forgotten}");
    let path = format!("{MOUNT}/a");
    until(LONG, "the changed value", async || {
        let value = cluster.exec("operator", "web", &["cat", &path]).await?;
        ensure!(value == "changed", "{value}");
        Ok(())
    })
    .await?;
    forward.kill().await?;
    Ok(String::new())
}

/// One request to the forwarded port; the whole answer.
async fn ask(head: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect("127.0.0.1:18990").await?;
    let request = format!("{head}Host: localhost:18990\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(!answer.is_empty(), "no answer");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Tracker T05: client and tenant stand on the service account alone. With the switch off the error says what is missing.
async fn annotated(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "by annotation");
    cluster.namespace("annotated").await?;
    cluster.azure.identity(Identity::new(ANNOTATED).federated("annotated", "web"));
    let account = format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: web\n  namespace: annotated\n  annotations: {{azure.workload.identity/client-id: '{ANNOTATED}', azure.workload.identity/tenant-id: '{TENANT}'}}\n"
    );
    let class =
        class_with("annotated", "c", &format!("keyvaultName: '{}'\n", vault.name), &entries(&["a"]), "");
    let pod = pod_with("annotated", "web", &[("s", MOUNT, "c")], "", "serviceAccountName: web\n");
    cluster.kubectl.apply(&(account + &class + &pod)).await?;
    cluster.event_with("annotated", "web", &["nodePublishSecretRef secret is not set"]).await?;
    // No Service routes to the API server here, so its address is given.
    let address = r#"extraEnv=[{"name":"SSL_CERT_FILE","value":"/e2e/azure-ca.pem"},{"name":"KUBERNETES_SERVICE_HOST","value":"127.0.0.1"},{"name":"KUBERNETES_SERVICE_PORT","value":"6443"}]"#;
    let values = ["azure.serviceAccountIdentity=true", address];
    cluster.install(&values).await?;
    cluster.running("annotated", "web").await?;
    let manifests = cluster.render(&values).await?;
    cluster.kubectl.with_input(&["delete", "-f", "-"], &manifests).await?;
    cluster.install(&[]).await?;
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

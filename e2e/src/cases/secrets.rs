//! The same secrets as Kubernetes Secrets: seed 004's second manifest, seed 001's three ways, all types.

use std::rc::Rc;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::manifests::{MOUNT, class_with, entries, machine, pod, pod_with};
use super::{Case, With, case};
use crate::cluster::process::{Process, until};
use crate::cluster::{Cluster, DIRECTORY, LONG};
use crate::standins::azure::content::ObjectVersion;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_secret_is_an_environment_variable", With::Others, environment),
        case("all_keys_of_a_secret_are_files", With::Others, all_keys),
        case("an_image_is_pulled_with_a_synced_secret", With::Others, image_pull),
        case("every_type_of_secret_is_written", With::Others, every_type),
        case("a_secret_goes_with_its_last_pod", With::Others, collected),
    ]
}

/// Seed 004: the class makes a Kubernetes Secret, the pod takes a variable from it.
async fn environment(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("secret-key", "v1", "from the environment");
    cluster.namespace("test-secret-env").await?;
    let objects = "secretObjects:
  - secretName: azure-kv
    type: Opaque
    data:
      - {objectName: secret-key, key: example-secret}
";
    let class = class_with(
        "test-secret-env",
        "test-secret-env-spc",
        &machine(&vault.name),
        &entries(&["secret-key"]),
        objects,
    );
    let env = "env:
  - name: EXAMPLE_SECRET
    valueFrom: {secretKeyRef: {name: azure-kv, key: example-secret}}
";
    let volumes = [("secrets-store", MOUNT, "test-secret-env-spc")];
    let pod = pod_with("test-secret-env", "example-pod", &volumes, env, "");
    cluster.kubectl.apply(&(class + &pod)).await?;
    cluster.running("test-secret-env", "example-pod").await?;
    let value = cluster.exec("test-secret-env", "example-pod", &["sh", "-c", "echo $EXAMPLE_SECRET"]).await?;
    ensure!(value == "from the environment\n", "{value}");
    Ok(String::new())
}

/// Seed 001, second way: another pod mounts the Secret itself.
async fn all_keys(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("access", "v1", "the access key");
    vault.secret("secret", "v1", "the secret key");
    cluster.namespace("all-keys").await?;
    let objects = "secretObjects:
  - secretName: clearml
    type: Opaque
    data:
      - {objectName: access, key: access}
      - {objectName: secret, key: secret}
";
    let class = class_with("all-keys", "c", &machine(&vault.name), &entries(&["access", "secret"]), objects);
    let reader = "---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: all-keys}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: docker.io/local/busybox:1
      imagePullPolicy: Never
      command: ['sleep', '10000']
      volumeMounts: [{name: s, mountPath: /var/my-app-secret, readOnly: true}]
  volumes: [{name: s, secret: {secretName: clearml}}]
";
    cluster.kubectl.apply(&(class + &pod("all-keys", "holder", "c") + reader)).await?;
    cluster.running("all-keys", "reader").await?;
    let read = ["sh", "-c", "cd /var/my-app-secret; ls; cat access secret"];
    let value = cluster.exec("all-keys", "reader", &read).await?;
    ensure!(value == "access\nsecret\nthe access keythe secret key", "{value}");
    Ok(String::new())
}

/// Seed 001, third way: a registry that asks for a password. The volume of one pod makes the Secret; another pod's image is
/// pulled with it, since no pod can be pulled for with what its own volume makes (sync.md C.3).
async fn image_pull(cluster: Rc<Cluster>) -> Result<String> {
    let _registry = start_registry(&cluster).await?;
    let image = "registry.lab:5000/team/tool:1";
    {
        let node = cluster.node.lock().await;
        node.make_image(&cluster.binaries, image, "sleep 10000").await?;
        node.push(image, "puller:open sesame").await?;
        node.remove_image(image).await?;
    }
    let vault = cluster.vault();
    let auth = STANDARD.encode("puller:open sesame");
    let config = format!(
        r#"{{"auths":{{"registry.lab:5000":{{"username":"puller","password":"open sesame","auth":"{auth}"}}}}}}"#
    );
    vault.secret("docker-config", "v1", &config);
    cluster.namespace("image-pull").await?;
    let objects = "secretObjects:
  - secretName: registry
    type: kubernetes.io/dockerconfigjson
    data: [{objectName: docker-config, key: .dockerconfigjson}]
";
    let class = class_with("image-pull", "c", &machine(&vault.name), &entries(&["docker-config"]), objects);
    let pulled = |name: &str, spec: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: image-pull}}
spec:
  terminationGracePeriodSeconds: 0
{spec}  containers: [{{name: tool, image: '{image}', imagePullPolicy: Always}}]
"
        )
    };
    let pods = pulled("without", "") + &pulled("tool", "  imagePullSecrets: [{name: registry}]\n");
    cluster.kubectl.apply(&(class + &pod("image-pull", "holder", "c") + &pods)).await?;
    cluster.running("image-pull", "tool").await?;
    cluster.event_with("image-pull", "without", &["Failed to pull image", "401 Unauthorized"]).await?;
    Ok(String::new())
}

/// A registry on loopback with one user, as Debian packages it.
async fn start_registry(cluster: &Cluster) -> Result<Process> {
    let folder = format!("{DIRECTORY}/registry");
    std::fs::create_dir(&folder)?;
    std::fs::write(format!("{folder}/users"), USERS)?;
    let configuration = format!(
        "version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: '127.0.0.1:5000'}}
auth: {{htpasswd: {{realm: lab, path: {folder}/users}}}}
"
    );
    let file = format!("{folder}/config.yaml");
    std::fs::write(&file, configuration)?;
    let program = cluster.binaries.debian("usr/bin/docker-registry");
    let mut process = Process::start(&cluster.parts.logs, "registry", &program, &["serve".into(), file])?;
    until(LONG, "registry", async || {
        process.check()?;
        Ok(tokio::net::TcpStream::connect("127.0.0.1:5000").await.map(drop)?)
    })
    .await?;
    Ok(process)
}

/// The password is "open sesame"; the registry takes bcrypt only.
const USERS: &str = "puller:$2y$04$8hlrYfo9OmwxB/KAdiPybenlYe7uPcGgcwfAQ9EmbB8/yPA8mLgOi";

/// What the API server asks of each type (sync.md C.2), from a vault's secrets and one bundle of key and certificate.
async fn every_type(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new(vec!["web.shop".to_owned()])?.self_signed(&key)?;
    vault.secret("bundle", "v1", &(key.serialize_pem() + &certificate.pem()));
    // A certificate of Key Vault: the PFX comes as base64, and tracker T09 wants its pair in the Secret.
    let pfx = include_str!("../../../tests/shape/pfx/rsa-openssl.b64").replace('\n', "");
    let certificate = ObjectVersion {
        content_type: Some("application/x-pkcs12".into()),
        kid: Some(format!("https://{}/keys/pfx/v1", vault.host())),
        ..ObjectVersion::default()
    };
    vault.handle().set_secret("pfx", "v1", &pfx, certificate);
    for (name, value) in [
        ("opaque", "anything"),
        ("docker", r#"{"auths":{}}"#),
        ("user", "web"),
        ("password", "p w"),
        ("ssh", "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90IGEga2V5\n-----END OPENSSH PRIVATE KEY-----\n"),
    ] {
        vault.secret(name, "v1", value);
    }
    cluster.namespace("types").await?;
    let objects = "secretObjects:
  - {secretName: opaque, type: Opaque, data: [{objectName: opaque, key: any}]}
  - secretName: tls
    type: kubernetes.io/tls
    data: [{objectName: bundle, key: tls.crt}, {objectName: bundle, key: tls.key}]
  - secretName: certificate
    type: kubernetes.io/tls
    data: [{objectName: pfx, key: tls.crt}, {objectName: pfx, key: tls.key}]
  - {secretName: docker, type: kubernetes.io/dockerconfigjson, data: [{objectName: docker, key: .dockerconfigjson}]}
  - secretName: basic
    type: kubernetes.io/basic-auth
    data: [{objectName: user, key: username}, {objectName: password, key: password}]
  - {secretName: ssh, type: kubernetes.io/ssh-auth, data: [{objectName: ssh, key: ssh-privatekey}]}
";
    let names = ["bundle", "pfx", "opaque", "docker", "user", "password", "ssh"];
    let class = class_with("types", "c", &machine(&vault.name), &entries(&names), objects);
    cluster.kubectl.apply(&(class + &pod("types", "holder", "c"))).await?;
    cluster.running("types", "holder").await?;
    for (name, kind, key, starts) in [
        ("opaque", "Opaque", "any", "anything"),
        ("tls", "kubernetes.io/tls", "tls.crt", "-----BEGIN CERTIFICATE-----"),
        ("tls", "kubernetes.io/tls", "tls.key", "-----BEGIN EC PRIVATE KEY-----"),
        ("certificate", "kubernetes.io/tls", "tls.crt", "-----BEGIN CERTIFICATE-----"),
        ("certificate", "kubernetes.io/tls", "tls.key", "-----BEGIN RSA PRIVATE KEY-----"),
        ("docker", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", "{"),
        ("basic", "kubernetes.io/basic-auth", "password", "p w"),
        ("ssh", "kubernetes.io/ssh-auth", "ssh-privatekey", "-----BEGIN OPENSSH"),
    ] {
        let value = until(LONG, name, async || cluster.secret("types", name, key).await).await?;
        ensure!(value.starts_with(starts.as_bytes()), "{name}/{key}: {}", String::from_utf8_lossy(&value));
        let found = cluster.kubectl.json(&["get", "secret", name, "-n", "types"]).await?;
        ensure!(found["type"] == kind, "{name} is of type {}", found["type"]);
    }
    // The pair fits, leaf first: a TLS server takes it.
    let (chain, key) = (
        cluster.secret("types", "certificate", "tls.crt").await?,
        cluster.secret("types", "certificate", "tls.key").await?,
    );
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?;
    rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?;
    Ok(String::new())
}

async fn collected(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("a", "v1", "x");
    cluster.namespace("collected").await?;
    let objects = "secretObjects: [{secretName: s, type: Opaque, data: [{objectName: a, key: a}]}]\n";
    let class = class_with("collected", "c", &machine(&vault.name), &entries(&["a"]), objects);
    let deployment = format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: collected}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: docker.io/local/busybox:1
          imagePullPolicy: Never
          command: ['sleep', '10000']
          env: [{{name: A, valueFrom: {{secretKeyRef: {{name: s, key: a}}}}}}]
          volumeMounts: [{{name: v, mountPath: {MOUNT}, readOnly: true}}]
      volumes:
        - name: v
          csi: {{driver: secrets-store.csi.k8s.io, readOnly: true, volumeAttributes: {{secretProviderClass: c}}}}
"
    );
    cluster.kubectl.apply(&(class + &deployment)).await?;
    cluster.kubectl.run(&["rollout", "status", "deployment/web", "-n", "collected", "--timeout=55s"]).await?;
    until(LONG, "owner of the Secret", async || {
        let secret = cluster.kubectl.json(&["get", "secret", "s", "-n", "collected"]).await?;
        ensure!(secret["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet", "{secret}");
        Ok(())
    })
    .await?;
    cluster.kubectl.run(&["delete", "deployment", "web", "-n", "collected"]).await?;
    until(LONG, "Secret collected", async || {
        let found =
            cluster.kubectl.run(&["get", "secret", "s", "-n", "collected", "--ignore-not-found"]).await?;
        ensure!(found.is_empty(), "{found}");
        Ok(())
    })
    .await?;
    Ok(String::new())
}

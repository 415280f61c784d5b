//! The cluster: control plane, node, driver, stores, and keyferry installed by its chart.

mod control_plane;
pub(crate) mod driver;
mod images;
mod kubectl;
mod node;
pub(crate) mod process;
pub(crate) mod provider;
pub(crate) mod vendor;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::control_plane::ControlPlane;
use self::driver::{Driver, Settings};
pub(crate) use self::kubectl::Kubectl;
use self::node::Node;
use self::process::until;
use crate::binaries::Binaries;
use crate::inside::VAULTS;
use crate::standins::azure::content::{Identity, Managed, Store};
use crate::standins::azure::{AzureStandIn, Options, VaultHandle};
use crate::{Parts, standins};

/// Where the cluster's files are: a tmpfs in the namespaces, over a folder that every machine has.
pub(crate) const DIRECTORY: &str = "/mnt";
/// The managed identity of the machine, as classes name it.
pub(crate) const MACHINE: &str = "11111111-1111-4111-8111-111111111111";
/// Longest wait for a pod. The kubelet's own waits grow to 2 minutes; a pod that failed some times needs that long.
pub(crate) const LONG: Duration = Duration::from_secs(150);

/// Everything that runs.
pub(crate) struct Cluster {
    pub(crate) binaries: Binaries,
    pub(crate) parts: Parts,
    pub(crate) kubectl: Kubectl,
    pub(crate) azure: AzureStandIn,
    pub(crate) node: Mutex<Node>,
    driver: Mutex<Option<Driver>>,
    vaults: AtomicUsize,
    /// Seconds that the start took, by step.
    pub(crate) steps: Vec<(&'static str, f64)>,
    _control_plane: ControlPlane,
}

impl Cluster {
    /// Starts all but the provider.
    pub(crate) async fn start(parts: &Parts, binaries: Binaries) -> Result<Self> {
        let mut clock = Clock::start();
        let azure = start_azure().await?;
        let control_plane = ControlPlane::start(&binaries, &parts.logs);
        let node = Node::start(&binaries, &parts.logs, &parts.image);
        let (control_plane, mut node) = tokio::try_join!(control_plane, node)?;
        let kubectl = Kubectl::new(&binaries);
        clock.step("API server, containerd, images");
        prepare(&kubectl, &binaries).await?;
        clock.step("resources of the driver");
        node.join(&binaries, &parts.logs).await?;
        clock.step("node Ready");
        let driver = Driver::start(&binaries, &parts.logs, &Settings::default()).await?;
        clock.step("driver registered");
        Ok(Self {
            binaries,
            parts: parts.clone(),
            kubectl,
            azure,
            node: Mutex::new(node),
            driver: Mutex::new(Some(driver)),
            vaults: AtomicUsize::new(0),
            steps: clock.steps,
            _control_plane: control_plane,
        })
    }

    /// Ends the driver and starts another.
    pub(crate) async fn restart_driver(&self, settings: &Settings) -> Result<()> {
        let mut driver = self.driver.lock().await;
        if let Some(mut old) = driver.take() {
            old.kill().await?;
        }
        *driver = Some(Driver::start(&self.binaries, &self.parts.logs, settings).await?);
        Ok(())
    }

    /// A vault that no other case uses.
    pub(crate) fn vault(&self) -> Vault<'_> {
        let number = self.vaults.fetch_add(1, Ordering::Relaxed);
        assert!(number < VAULTS, "more cases than vaults in /etc/hosts");
        let name = format!("kv{number}");
        Vault { handle: self.azure.vault(&name), name }
    }

    /// Makes a namespace.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl.run(&["create", "namespace", name]).await?;
        // Its default account is made by a controller a moment later; pods need it.
        until(LONG, "default service account", async || {
            self.kubectl.run(&["get", "serviceaccount", "default", "-n", name]).await
        })
        .await?;
        Ok(())
    }

    /// Waits until a pod runs and is ready.
    pub(crate) async fn running(&self, namespace: &str, pod: &str) -> Result<()> {
        let result = until(LONG, &format!("pod {namespace}/{pod} runs"), async || {
            let found = self.kubectl.json(&["get", "pod", pod, "-n", namespace]).await?;
            let ready = found["status"]["containerStatuses"]
                .as_array()
                .is_some_and(|all| all.iter().all(|c| c["ready"] == true));
            ensure!(found["status"]["phase"] == "Running" && ready, "phase is {}", found["status"]["phase"]);
            Ok(())
        })
        .await;
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.events(namespace, pod).await?.join("\n"))),
        }
    }

    /// Runs a command in a pod's first container and gives its output.
    pub(crate) async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "-n", namespace, pod, "--"];
        arguments.extend(command);
        self.kubectl.run(&arguments).await
    }

    /// Texts of a pod's events: reason and message.
    pub(crate) async fn events(&self, namespace: &str, pod: &str) -> Result<Vec<String>> {
        let field = format!("involvedObject.name={pod}");
        let events =
            self.kubectl.json(&["get", "events", "-n", namespace, "--field-selector", &field]).await?;
        let all = events["items"].as_array().context("no items")?;
        let line = |event: &Value| {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text("reason"), text("message"))
        };
        Ok(all.iter().map(line).collect())
    }

    /// Waits for an event of a pod that holds all the fragments, and gives its text.
    pub(crate) async fn event_with(&self, namespace: &str, pod: &str, fragments: &[&str]) -> Result<String> {
        until(LONG, "event", async || {
            let events = self.events(namespace, pod).await?;
            let holds_all = |text: &&String| fragments.iter().all(|fragment| text.contains(fragment));
            match events.iter().find(holds_all) {
                Some(text) => Ok(text.clone()),
                None => bail!("no event with {fragments:?} among:\n{}", events.join("\n")),
            }
        })
        .await
    }

    /// Value of a key of a Kubernetes Secret, decoded.
    pub(crate) async fn secret(&self, namespace: &str, name: &str, key: &str) -> Result<Vec<u8>> {
        use base64::Engine;
        let secret = self.kubectl.json(&["get", "secret", name, "-n", namespace]).await?;
        let value = secret["data"][key].as_str().with_context(|| format!("{name} has no key {key}"))?;
        Ok(base64::engine::general_purpose::STANDARD.decode(value)?)
    }

    /// Volumes of the driver that are mounted on the node.
    pub(crate) fn mounted(&self) -> Result<Vec<String>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let ours = mounts.lines().filter(|line| line.contains("kubernetes.io~csi"));
        Ok(ours.map(str::to_owned).collect())
    }
}

/// A vault of one case.
pub(crate) struct Vault<'a> {
    /// Its name, as classes give it.
    pub(crate) name: String,
    handle: VaultHandle<'a>,
}

impl Vault<'_> {
    /// Puts a version of a secret into it.
    pub(crate) fn secret(&self, name: &str, version: &str, value: &str) {
        self.handle.set_secret(name, version, value, standins::azure::content::ObjectVersion::default());
    }

    /// The vault itself.
    pub(crate) fn handle(&self) -> &VaultHandle<'_> {
        &self.handle
    }

    /// Its host.
    pub(crate) fn host(&self) -> String {
        format!("{}.vault.azure.net", self.name)
    }
}

/// The stand-in at the addresses that `/etc/hosts` names.
async fn start_azure() -> Result<AzureStandIn> {
    let azure = AzureStandIn::start(Options {
        entra: "127.0.0.2:443".parse()?,
        vault: "127.0.0.3:443".parse()?,
        imds: "169.254.169.254:80".parse()?,
        store: Store { issuer: Some(control_plane::ISSUER.into()), ..Store::default() },
        ..Options::default()
    })
    .await?;
    fs::write(format!("{DIRECTORY}/azure-ca.pem"), azure.ca_pem())?;
    azure.identity(Identity::new(MACHINE).managed(Managed::User));
    Ok(azure)
}

/// What the driver's own manifests bring, and its CSIDriver object.
async fn prepare(kubectl: &Kubectl, binaries: &Binaries) -> Result<()> {
    let mut manifests = String::new();
    for file in [
        "driver-1.6-deploy/secrets-store.csi.x-k8s.io_secretproviderclasses.yaml",
        "driver-1.6-deploy/secrets-store.csi.x-k8s.io_secretproviderclasspodstatuses.yaml",
        "driver-1.6-deploy/rbac-secretproviderclass.yaml",
        "driver-1.6-deploy/rbac-secretprovidersyncing.yaml",
        "driver-1.5-deploy/rbac-secretproviderrotation.yaml",
        "driver-1.5-deploy/rbac-secretprovidertokenrequest.yaml",
    ] {
        let path = binaries.path(file);
        manifests.push_str(&fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        manifests.push_str("\n---\n");
    }
    manifests.push_str(
        "apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: secrets-store.csi.k8s.io}
spec:
  podInfoOnMount: true
  attachRequired: false
  volumeLifecycleModes: [Ephemeral]
  requiresRepublish: true
  tokenRequests: [{audience: 'api://AzureADTokenExchange'}]
",
    );
    kubectl.apply(&manifests).await?;
    kubectl
        .run(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd/secretproviderclasses.secrets-store.csi.x-k8s.io",
            "crd/secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io",
        ])
        .await?;
    Ok(())
}

/// Measures steps.
pub(crate) struct Clock {
    last: Instant,
    steps: Vec<(&'static str, f64)>,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// Notes how long it took since the last step.
    pub(crate) fn step(&mut self, name: &'static str) {
        self.steps.push((name, self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

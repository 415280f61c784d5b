//! etcd, API server, controller manager and scheduler, as cluster.md 3 and 4.4 start them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::process::{Process, until};
use super::{DIRECTORY, Kubectl};
use crate::binaries::Binaries;

/// Who signs service-account tokens: the stand-in for Entra believes tokens of this issuer, signed with this key.
pub(crate) const ISSUER: &str = "https://issuer.lab.example";
const SIGNING_KEY: &str = include_str!("../../../tests/standins/keys/one-test-only.pem");
/// Token, user and group of each client; the file is the API server's.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("kubelet", "system:node:n1", "system:nodes"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
];
const START: Duration = Duration::from_secs(60);

/// The processes.
pub(crate) struct ControlPlane {
    _processes: Vec<Process>,
}

impl ControlPlane {
    /// Starts everything and waits until the API server serves.
    pub(crate) async fn start(binaries: &Binaries, logs: &Path) -> Result<Self> {
        write_certificates()?;
        write_clients()?;
        let mut processes = Vec::new();
        for (name, arguments) in [("etcd", etcd()), ("kube-apiserver", api_server())] {
            processes.push(Process::start(logs, name, &binaries.path(name), &arguments)?);
        }
        let kubectl = Kubectl::new(binaries);
        until(START, "API server", async || {
            processes.iter_mut().try_for_each(Process::check)?;
            kubectl.run(&["get", "--raw", "/readyz"]).await?;
            kubectl.run(&["get", "namespace", "kube-system"]).await
        })
        .await?;
        for (name, arguments) in
            [("kube-controller-manager", controller_manager()), ("kube-scheduler", scheduler())]
        {
            processes.push(Process::start(logs, name, &binaries.path(name), &arguments)?);
        }
        Ok(Self { _processes: processes })
    }
}

/// A kubeconfig of a client that shows `token`.
pub(crate) fn kubeconfig(token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: e2e\n\
         clusters: [{{name: e2e, cluster: {{server: 'https://127.0.0.1:6443', certificate-authority: {DIRECTORY}/certificates/ca.crt}}}}]\n\
         users: [{{name: e2e, user: {{token: '{token}'}}}}]\n\
         contexts: [{{name: e2e, context: {{cluster: e2e, user: e2e}}}}]\n"
    )
}

fn write_certificates() -> Result<()> {
    let folder = format!("{DIRECTORY}/certificates");
    fs::create_dir(&folder)?;
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(vec![])?;
    authority.distinguished_name.push(DnType::CommonName, "keyferry e2e");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"];
    let server = CertificateParams::new(names.map(str::to_owned))?.signed_by(&key, &issuer)?;
    fs::write(format!("{folder}/ca.crt"), authority_certificate.pem())?;
    fs::write(format!("{folder}/server.crt"), server.pem())?;
    fs::write(format!("{folder}/server.key"), key.serialize_pem())?;
    fs::write(format!("{folder}/signing.key"), SIGNING_KEY)?;
    Ok(())
}

fn write_clients() -> Result<()> {
    fs::create_dir(format!("{DIRECTORY}/kubeconfig"))?;
    let mut tokens = String::new();
    for (name, user, group) in CLIENTS {
        tokens.push_str(&format!("{name}-token,{user},{name},\"{group}\"\n"));
        fs::write(format!("{DIRECTORY}/kubeconfig/{name}"), kubeconfig(&format!("{name}-token")))?;
    }
    fs::write(format!("{DIRECTORY}/tokens.csv"), tokens)?;
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(|word| word.replace("$D", DIRECTORY)).collect()
}

fn etcd() -> Vec<String> {
    words(
        "--data-dir $D/etcd-data --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
         --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380
         --initial-cluster default=http://127.0.0.1:2380 --unsafe-no-fsync --log-level warn",
    )
}

fn api_server() -> Vec<String> {
    let mut arguments = words(
        "--etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --advertise-address=10.89.0.1 --secure-port=6443
         --service-cluster-ip-range=10.96.0.0/16
         --tls-cert-file=$D/certificates/server.crt --tls-private-key-file=$D/certificates/server.key
         --service-account-signing-key-file=$D/certificates/signing.key --service-account-key-file=$D/certificates/signing.key
         --api-audiences=https://kubernetes.default.svc
         --token-auth-file=$D/tokens.csv --authorization-mode=Node,RBAC
         --endpoint-reconciler-type=none --allow-privileged=true --kubelet-preferred-address-types=InternalIP",
    );
    arguments.push(format!("--service-account-issuer={ISSUER}"));
    arguments
}

/// Each controller acts under its own account: as one user they may not delete what others made (cluster.md 4.4).
fn controller_manager() -> Vec<String> {
    words(
        "--kubeconfig=$D/kubeconfig/controller-manager --service-account-private-key-file=$D/certificates/signing.key
         --root-ca-file=$D/certificates/ca.crt --leader-elect=false --use-service-account-credentials=true --bind-address=127.0.0.1
         --controllers=garbage-collector-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,replicaset-controller,deployment-controller,daemonset-controller,namespace-controller,taint-eviction-controller,node-lifecycle-controller",
    )
}

fn scheduler() -> Vec<String> {
    words("--kubeconfig=$D/kubeconfig/scheduler --leader-elect=false --bind-address=127.0.0.1")
}

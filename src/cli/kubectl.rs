//! `kubectl keyferry`: the classes of a live cluster, fetched by kubectl itself, so that its configuration,
//! credentials and rights are used and no client of Kubernetes is linked.
//!
//! kubectl runs the program called `kubectl-keyferry` on the PATH: a link to this binary.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::{Args as Group, Parser, Subcommand};

use super::Failed;
use super::args::{Form, Stores};
use super::check::{self, Shape};

/// Checks and explains SecretProviderClasses of a cluster.
#[derive(Debug, Parser)]
#[command(name = "kubectl keyferry", bin_name = "kubectl keyferry", version, about)]
struct Plugin {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check classes of a namespace with the real parser
    Check(Live),
    /// Say what classes would do: requests, as whom, with which permissions, files
    Explain(Live),
}

#[derive(Debug, Group)]
struct Live {
    /// Classes; all of the namespace where none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The namespace, else that of kubectl's context
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    all_namespaces: bool,
    /// kubectl's context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// kubectl's configuration
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// Form of the report
    #[arg(short, long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// Fail on warnings as well
    #[arg(long)]
    deny_warnings: bool,
    #[command(flatten)]
    stores: Stores,
}

/// Whether the program was called by the name of the plugin.
pub(super) fn called(program: Option<&std::ffi::OsStr>) -> bool {
    let stem = program.and_then(|program| Path::new(program).file_stem());
    stem.is_some_and(|stem| stem == "kubectl-keyferry" || stem == "kubectl_keyferry")
}

pub(super) fn run() -> Result<(), Failed> {
    let (live, explain) = match Plugin::parse().command {
        Verb::Check(live) => (live, false),
        Verb::Explain(live) => (live, true),
    };
    let text = get(&live)?;
    let shape = Shape { form: live.output, explain, deny_warnings: live.deny_warnings };
    check::live(&live.stores, &text, &shape)
}

/// The kind in full, so that no other kind of a like name is meant.
const KIND: &str = "secretproviderclasses.secrets-store.csi.x-k8s.io";
/// Greatest answer that is read: etcd holds some GiB, the classes of a cluster hardly this much.
const MOST_BYTES: u64 = 64 << 20;

/// What kubectl prints.
fn get(live: &Live) -> Result<String, Failed> {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["get", KIND]).args(&live.names).args(["--output", "json"]);
    for (flag, value) in
        [("--namespace", &live.namespace), ("--context", &live.context), ("--kubeconfig", &live.kubeconfig)]
    {
        kubectl.args(value.as_ref().map(|value| format!("{flag}={value}")));
    }
    kubectl.args(live.all_namespaces.then_some("--all-namespaces"));
    let failed = |error: std::io::Error| Failed::outside(format!("cannot run kubectl: {error}"));
    // What kubectl complains of goes to the user as it is.
    let mut child = kubectl.stdin(Stdio::inherit()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut bytes = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Failed::outside(format!(
            "kubectl printed more than {MOST_BYTES} bytes; name a namespace"
        )));
    }
    if !status.success() {
        return Err(Failed::outside(format!("kubectl get {KIND} failed ({status})")));
    }
    String::from_utf8(bytes).map_err(|_| Failed::outside("kubectl printed what is no UTF-8"))
}

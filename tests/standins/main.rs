//! The Azure stand-in as a program, for judges, demos and benchmarks. See README.md in this folder.

#[path = "mod.rs"]
mod standins;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use standins::azure::content::Store;
use standins::azure::{AzureStandIn, Options};

#[derive(Parser)]
struct Args {
    /// What it holds: a file of YAML or JSON
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// The address of every listener that has none of its own; ports are the system's choice
    #[arg(long, value_name = "IP", default_value_t = Ipv4Addr::LOCALHOST.into())]
    listen: IpAddr,
    /// Where Entra listens
    #[arg(long, value_name = "IP:PORT")]
    entra: Option<SocketAddr>,
    /// Where the vaults listen
    #[arg(long, value_name = "IP:PORT")]
    vault: Option<SocketAddr>,
    /// Where the metadata service listens
    #[arg(long, value_name = "IP:PORT")]
    imds: Option<SocketAddr>,
    /// Where changes are taken
    #[arg(long, value_name = "IP:PORT")]
    control: Option<SocketAddr>,
    /// Where the root certificate is written
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// How long each answer is held back
    #[arg(long, value_name = "N", default_value_t = 0)]
    latency_ms: u64,
    /// Offer HTTP/1.1 only
    #[arg(long)]
    http1: bool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let own = SocketAddr::new(args.listen, 0);
    let chosen = [args.entra, args.vault, args.imds, args.control].map(|address| address.unwrap_or(own));
    // 169.254.0.0/16 is link-local: inside a namespace the metadata service's own address.
    if let Some(far) = chosen.iter().find(|address| !near(address.ip())) {
        return Err(format!("{far} is not loopback").into());
    }
    let [entra, vault, imds, control] = chosen;
    let store = args.store.as_deref().map(Store::read).transpose()?.unwrap_or_default();
    let standin = AzureStandIn::start(Options {
        entra,
        vault,
        imds,
        control: Some(control),
        http1_only: args.http1,
        latency: Duration::from_millis(args.latency_ms),
        store,
        ..Options::default()
    })
    .await?;
    if let Some(file) = &args.ca_out {
        std::fs::write(file, standin.ca_pem())?;
    }
    let [entra, vault, imds] = standin.addresses();
    let connect_to: std::collections::BTreeMap<_, _> = standin.connect_to().into_iter().collect();
    let line = json!({
        "ready": true, "entra": entra, "vault": vault, "imds": imds, "control": standin.control(),
        "ca": args.ca_out, "connectTo": connect_to,
    });
    writeln!(std::io::stdout(), "{line}")?;
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = ended.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    let unexpected = standin.unexpected();
    if unexpected.is_empty() {
        Ok(())
    } else {
        Err(format!("requests that the real services do not have: {unexpected:?}").into())
    }
}

fn near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

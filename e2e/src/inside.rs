//! Inside the namespaces: their first process, and what it starts.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, WaitOptions, wait};

use crate::binaries::Binaries;
use crate::cluster::{Cluster, DIRECTORY};
use crate::{Parts, Run, report};

/// The first process: starts the second, and buries whoever lost its parent.
pub(crate) fn init(arguments: &[String]) -> Result<ExitCode> {
    let child = Command::new(std::env::current_exe()?).args(arguments).spawn()?;
    let child = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty())? {
            Some((pid, status)) if pid == child => {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
            }
            _ => {}
        }
    }
}

/// Runs the cases.
pub(crate) fn run(run: Run) -> Result<ExitCode> {
    prepare()?;
    runtime()?.block_on(async {
        let cluster = Rc::new(Cluster::start(&run.parts, Binaries::find()?).await?);
        report::run(&cluster, &run.filter).await
    })
}

/// Starts a cluster with keyferry on it and says `ready`.
pub(crate) fn up(parts: &Parts) -> Result<ExitCode> {
    prepare()?;
    runtime()?.block_on(async {
        let cluster = Cluster::start(parts, Binaries::find()?).await?;
        let vault = cluster.vault();
        vault.secret("db-password", "v1", "correct horse battery staple\n");
        cluster.apply_chart(&[]).await?;
        cluster.provider_answers().await?;
        println!("ready");
        std::future::pending::<()>().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Makes the namespaces a machine of their own: writable folders in memory, addresses, a name.
fn prepare() -> Result<()> {
    // Where the usual paths are written to, the writes stay in here.
    sh("mount -t tmpfs -o mode=755 tmpfs /run")?;
    sh(&format!("mount -t tmpfs -o mode=755 tmpfs {DIRECTORY}"))?;
    sh("mount -t tmpfs -o mode=755 tmpfs /var/log")?;
    sh(&format!("mkdir {DIRECTORY}/etc {DIRECTORY}/etc-work"))?;
    sh(&format!(
        "mount -t overlay -o lowerdir=/etc,upperdir={DIRECTORY}/etc,workdir={DIRECTORY}/etc-work overlay /etc"
    ))?;
    // The driver mounts where the kubelet looks, and containers see later mounts.
    sh("mount --make-rshared /")?;
    sh("hostname n1 && ip link set lo up && ip address add 169.254.169.254/32 dev lo")?;
    sh("ip link add node0 type veth peer name node1 && ip address add 10.89.0.1/24 dev node0")?;
    sh("ip link set node0 up && ip link set node1 up && echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    std::fs::write("/etc/hosts", hosts())?;
    std::fs::write("/etc/resolv.conf", "# no name server: names come from /etc/hosts\n")?;
    Ok(())
}

/// Names of the services that the stand-ins answer for. The kubelet copies this file into pods on the
/// host's network, so that keyferry finds them as it finds the real ones.
fn hosts() -> String {
    let mut lines = BTreeMap::from([("127.0.0.1".to_owned(), "localhost n1 registry.lab".to_owned())]);
    lines.insert("127.0.0.2".into(), "login.microsoftonline.com".into());
    let vaults: Vec<_> = (0..VAULTS).map(|n| format!("kv{n}.vault.azure.net")).collect();
    lines.insert("127.0.0.3".into(), vaults.join(" "));
    lines.iter().map(|(address, names)| format!("{address} {names}\n")).collect()
}

/// Vaults there are: `kv0`, `kv1`, … one for each case.
pub(crate) const VAULTS: usize = 64;

fn sh(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", script]).status().context("sh")?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

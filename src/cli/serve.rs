//! `keyferry serve`: the CSI door, until a signal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failed;
use super::args::{Engine, Serve, Stores};
use crate::backends::{self, azure};
use crate::fetch;
use crate::gather::Gather;
use crate::http::Http;
use crate::kube;
use crate::policy::Policy;
use crate::server::health::Health;
use crate::server::volumes::Volumes;
use crate::server::{self, Served, admin};
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;

/// How often old values are dropped.
const SWEEP: Duration = Duration::from_secs(30);
/// How often the policy's file is looked at: a mounted ConfigMap is swapped without a sign.
const LOOK: Duration = Duration::from_secs(10);
/// Threads at most: a node agent waits for networks, it does not compute.
const MOST_THREADS: usize = 4;

pub(super) fn run(args: Serve) -> Result<(), Failed> {
    logs::start(args.log_format, args.log_level);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    runtime(threads)?.block_on(serve(args))
}

/// A runtime with few threads and a bounded pool for blocking work.
pub(super) fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(|error| Failed::outside(format!("cannot start threads: {error}")))
}

/// Opens the backends that the flags switch on; `offline` ones plan and do no more.
pub(super) fn open(
    stores: &Stores,
    engine: &fetch::Settings,
    offline: bool,
) -> Result<(Vec<Arc<dyn Gather>>, Http), Failed> {
    let http = Http::new(crate::http::Settings {
        connect_timeout: stores.connect_timeout,
        try_timeout: stores.try_timeout,
        max_response: stores.max_response_bytes,
        max_connections: stores.max_connections,
        connect_to: stores.connect_to.clone(),
        ..crate::http::Settings::from_env()
    });
    let cloud = azure_cloud(stores)?;
    let settings = backends::Settings {
        local_root: stores.local_root.clone(),
        azure: azure::Settings {
            cloud,
            environment_file: stores.azure_environment_file.clone(),
            order_chain: stores.azure_construct_pem_chain,
            split: stores.azure_write_cert_and_key_in_separate_files,
            token_proxy: token_proxy(stores),
            service_accounts: stores.azure_service_account_identity.then(kube::Settings::from_env),
            offline,
        },
    };
    Ok((backends::open(&settings, &http, engine), http))
}

/// The cloud of classes that name none; nothing where a file describes it.
fn azure_cloud(stores: &Stores) -> Result<Option<azure::cloud::Cloud>, Failed> {
    let name = &stores.azure_cloud_name;
    if azure::cloud::is_stack(name) {
        return match &stores.azure_environment_file {
            Some(_) => Ok(None),
            None => Err(Failed::input("--azure-cloud-name AzureStackCloud needs --azure-environment-file")),
        };
    }
    match azure::cloud::by_name(name) {
        Some(cloud) => Ok(Some(cloud)),
        None => Err(Failed::input(format!("--azure-cloud-name {name:?} is not valid"))),
    }
}

/// The proxy of identity binding; the API server's port is known from the environment (azure.md 11.6).
fn token_proxy(stores: &Stores) -> azure::binding::Settings {
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok());
    azure::binding::Settings {
        url: stores.azure_token_proxy_url.clone(),
        server_name: stores.azure_sni_name.clone(),
        ..azure::binding::Settings::default().with_api_port(port.unwrap_or(443))
    }
}

/// Those of `opened` that `--backends` names, or all where it is not given.
fn choose(opened: Vec<Arc<dyn Gather>>, names: &[String]) -> Result<Vec<Arc<dyn Gather>>, Failed> {
    let off = names.iter().find(|name| opened.iter().all(|backend| backend.name() != name.as_str()));
    if let Some(name) = off {
        // Names are checked when they are typed, and only the local store can be off.
        return Err(Failed::input(format!("--backends names {name}, which needs --local-root")));
    }
    let wanted = |backend: &Arc<dyn Gather>| {
        names.is_empty() || names.iter().any(|name| name.as_str() == backend.name())
    };
    Ok(opened.into_iter().filter(wanted).collect())
}

/// The engine's bounds and rules from the flags.
pub(super) fn engine(args: &Engine) -> Result<fetch::Settings, Failed> {
    let Engine {
        start_max_age,
        repeat_max_age,
        pinned_max_age,
        last_good_max_age,
        last_good_default,
        last_good_after,
        cache_bytes,
        max_sessions,
        reads_per_mount,
        reads_per_store,
        tries,
        mount_budget,
        ref policy,
    } = *args;
    if last_good_default > last_good_max_age {
        let [default, most] = [last_good_default, last_good_max_age].map(humantime::format_duration);
        return Err(Failed::input(format!(
            "--last-good-default {default} is more than --last-good-max-age {most}, which bounds every class"
        )));
    }
    let policy = policy.as_deref().map(|path| Policy::open(path, &backends::NAMES)).transpose();
    let policy = policy.map_err(Failed::input)?.map(Arc::new);
    Ok(fetch::Settings {
        start_max_age,
        repeat_max_age,
        pinned_max_age,
        last_good_max_age,
        last_good_default,
        last_good_after,
        cache_bytes,
        sessions: max_sessions,
        reads_per_mount,
        reads_per_store,
        tries,
        budget: mount_budget,
        metrics: Arc::new(Metrics::new(policy.is_some())),
        policy,
    })
}

async fn serve(args: Serve) -> Result<(), Failed> {
    let mut stop = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut forget = signal(SignalKind::hangup()).map_err(no_signals)?;
    let engine = engine(&args.engine)?;
    let (policy, metrics) = (engine.policy.clone(), engine.metrics.clone());
    let (opened, http) = open(&args.stores, &engine, false)?;
    let volumes = || Arc::new(Volumes::new(args.max_volumes, engine.repeat_max_age));
    let served = choose(opened, &args.backends)?;
    let served: Vec<_> = served.into_iter().map(|backend| Served { backend, volumes: volumes() }).collect();
    let settings = server::Settings {
        directories: args.socket_dir.clone(),
        budget: args.engine.mount_budget,
        grace: args.grace,
        most_answer: args.max_answer_bytes,
        wait_for_socket: args.wait_for_socket,
    };
    let health = Arc::new(Health::default());
    let pages = admin::Pages {
        health: health.clone(),
        metrics: metrics.clone(),
        http,
        served: served.clone().into(),
        policy: policy.clone(),
        started: Instant::now(),
    };
    if let Some(policy) = policy {
        tokio::spawn(watch(policy, signal(SignalKind::hangup()).map_err(no_signals)?));
    }
    // Before the sockets: probes are answered while we wait for one.
    let (admin, metrics_at) = listeners(&args, pages)?;
    let opened = tokio::select! {
        opened = server::open(&served, &metrics, &settings, &health) => opened,
        _ = stop.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let running = opened.map_err(|error| Failed::outside(error.to_string()))?;
    health.ready().await.map_err(Failed::outside)?;
    let sockets: Vec<_> = running.sockets.iter().map(|path| path.display().to_string()).collect();
    tracing::info!(
        sockets = sockets.join(" "),
        admin,
        metrics = metrics_at,
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
            _ = forget.recv() => admin::forget(&served),
            _ = sweep.tick() => served.iter().for_each(|served| served.backend.sweep()),
        }
    }
    tracing::info!("stopping");
    // The listeners answer to the end: alive, no longer ready.
    running.stop().await;
    Ok(())
}

/// Looks at the policy's file from time to time and at each signal; apart from the loop that waits for
/// the end, as a file system may hang.
async fn watch(policy: Arc<Policy>, mut again: Signal) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = again.recv() => {}
        }
        let policy = policy.clone();
        // A panic would be a fault of ours; the rules stay.
        let _ = tokio::task::spawn_blocking(move || policy.refresh()).await;
    }
}

/// Opens the listeners for the operator and for probes and serves on them; gives their addresses.
fn listeners(args: &Serve, pages: admin::Pages) -> Result<(String, Option<String>), Failed> {
    if !args.admin_addr.ip().is_loopback() {
        return Err(Failed::input(format!(
            "--admin-addr {} is not on loopback: it is for the operator of this node alone; for kubelet and Prometheus \
             open a listener with --metrics-addr",
            args.admin_addr
        )));
    }
    let open = |flag: &str, address: SocketAddr, router: Router| {
        let failed = |error| Failed::outside(format!("cannot listen on {address} ({flag}): {error}"));
        let listener = admin::listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(address)
    };
    let metrics =
        args.metrics_addr.map(|address| open("--metrics-addr", address, admin::probes(pages.clone())));
    let admin = open("--admin-addr", args.admin_addr, admin::router(pages))?;
    Ok((admin, metrics.transpose()?))
}

fn no_signals(error: std::io::Error) -> Failed {
    Failed::outside(format!("cannot listen to signals: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Args, Command};

    fn chosen(flags: &[&str]) -> Result<Vec<&'static str>, String> {
        let typed = ["keyferry", "serve"].iter().chain(flags);
        let Command::Serve(args) = Args::try_parse_from(typed).map_err(|error| error.to_string())?.command
        else {
            unreachable!("serve was typed")
        };
        let engine = engine(&args.engine).map_err(|failed| failed.text)?;
        let (opened, _) = open(&args.stores, &engine, false).map_err(|failed| failed.text)?;
        let all = choose(opened, &args.backends).map_err(|failed| failed.text)?;
        Ok(all.iter().map(|backend| backend.name()).collect())
    }

    #[test]
    fn backends_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap(), ["azure"]);
        assert_eq!(chosen(&["--local-root", "/"]).unwrap(), ["azure", "local"]);
        assert_eq!(chosen(&["--local-root", "/", "--backends", "local"]).unwrap(), ["local"]);
        assert_eq!(chosen(&["--local-root", "/", "--backends", "local,azure"]).unwrap(), ["azure", "local"]);
        let twice = ["--local-root", "/", "--backends", "local", "--backends", "local"];
        assert_eq!(chosen(&twice).unwrap(), ["local"]);
    }

    #[test]
    fn a_backend_that_is_unknown_or_off_is_an_error() {
        let text = chosen(&["--backends", "azur"]).unwrap_err();
        assert!(text.contains("azure, local") && text.contains("'azur'"), "{text}");
        assert!(chosen(&["--backends", "azure,local"]).unwrap_err().contains("--local-root"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_policy_is_found_without_a_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, "rules: []").unwrap();
        let policy = Arc::new(Policy::open(&path, &backends::NAMES).unwrap());
        tokio::spawn(watch(policy.clone(), signal(SignalKind::hangup()).unwrap()));
        // As a mounted ConfigMap is swapped: another file at the same path.
        std::fs::write(dir.path().join("next"), "rules: [{name: a, namespaces: [a]}]").unwrap();
        std::fs::rename(dir.path().join("next"), &path).unwrap();
        let end = tokio::time::Instant::now() + 3 * LOOK;
        while policy.rules().count() == 0 && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(policy.rules().count(), 1);
    }
}

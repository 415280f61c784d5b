//! `keyferry serve`: the CSI door, until a signal.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::Failed;
use super::args::{Engine, Serve, Stores};
use crate::backends::{self, azure};
use crate::fetch;
use crate::gather::Gather;
use crate::http::Http;
use crate::kube;
use crate::server::{self, admin, dial};
use crate::telemetry::{logs, metrics::Metrics};

/// How often old values are dropped.
const SWEEP: Duration = Duration::from_secs(30);
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

/// Opens the backends that the flags switch on.
pub(super) fn open(
    stores: &Stores,
    engine: &fetch::Settings,
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

/// The engine's bounds from the flags.
pub(super) fn engine(args: &Engine) -> fetch::Settings {
    let Engine {
        start_max_age,
        repeat_max_age,
        pinned_max_age,
        cache_bytes,
        max_sessions,
        reads_per_mount,
        reads_per_store,
        tries,
        mount_budget,
    } = *args;
    fetch::Settings {
        start_max_age,
        repeat_max_age,
        pinned_max_age,
        cache_bytes,
        sessions: max_sessions,
        reads_per_mount,
        reads_per_store,
        tries,
        budget: mount_budget,
    }
}

async fn serve(args: Serve) -> Result<(), Failed> {
    let mut stop = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut forget = signal(SignalKind::hangup()).map_err(no_signals)?;
    let (backends, http) = open(&args.stores, &engine(&args.engine))?;
    let metrics = Arc::new(Metrics::default());
    let settings = server::Settings {
        directories: args.socket_dir.clone(),
        budget: args.engine.mount_budget,
        grace: args.grace,
        most_answer: args.max_answer_bytes,
        most_volumes: args.max_volumes,
    };
    let listener = TcpListener::bind(args.admin_addr).await.map_err(|error| {
        Failed::outside(format!("cannot listen on {} (--admin-addr): {error}", args.admin_addr))
    })?;
    let running = server::open(&backends, &metrics, &settings)
        .await
        .map_err(|error| Failed::outside(error.to_string()))?;
    let pages = admin::Pages {
        sockets: Arc::new(running.sockets.clone()),
        metrics,
        http,
        backends: Arc::new(backends.clone()),
    };
    let admin_address = listener.local_addr().map_or_else(|_| args.admin_addr.to_string(), |a| a.to_string());
    let admin = tokio::spawn(axum::serve(listener, admin::router(pages)).into_future());
    dial::healthy(&running.sockets, Duration::from_secs(5)).await.map_err(Failed::outside)?;
    let sockets: Vec<_> = running.sockets.iter().map(|path| path.display().to_string()).collect();
    tracing::info!(
        sockets = sockets.join(" "),
        admin = admin_address,
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
            _ = forget.recv() => {
                backends.iter().for_each(|backend| backend.forget());
                tracing::info!("all values and sessions are forgotten; the next calls ask the stores");
            }
            _ = sweep.tick() => backends.iter().for_each(|backend| backend.sweep()),
        }
    }
    tracing::info!("stopping");
    running.stop().await;
    admin.abort();
    Ok(())
}

fn no_signals(error: std::io::Error) -> Failed {
    Failed::outside(format!("cannot listen to signals: {error}"))
}

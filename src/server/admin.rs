//! Liveness, readiness and metrics over HTTP: on loopback for the node's operator, and where
//! `--metrics-addr` says for kubelet and Prometheus.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use tokio::net::{TcpListener, TcpSocket};

use super::health::Health;
use crate::gather::Gather;
use crate::http::Http;
use crate::telemetry::metrics::Metrics;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// State of the sockets.
    pub health: Arc<Health>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Client whose counters are shown.
    pub http: Http,
    /// Backends whose memory is shown.
    pub backends: Arc<Vec<Arc<dyn Gather>>>,
}

/// Listens at `address`, beside another process that does the same: in an upgrade on the node's own
/// network the old and the new server run side by side for a while.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// `/healthz`, `/readyz` and `/metrics`: for everyone who reaches the node.
pub fn probes(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

async fn live(State(pages): State<Pages>) -> impl IntoResponse {
    probe(pages.health.live().await)
}

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    probe(pages.health.ready().await)
}

fn probe(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(failed) => (StatusCode::SERVICE_UNAVAILABLE, format!("{failed}\n")),
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    for backend in pages.backends.iter() {
        let (entries, bytes) = backend.kept();
        pages.metrics.kept(backend.name(), entries, bytes);
    }
    pages.metrics.http(&pages.http.stats());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], pages.metrics.text())
}

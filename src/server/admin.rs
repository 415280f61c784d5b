//! The loopback listener for the node's operator: liveness, readiness, metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::dial;
use crate::gather::Gather;
use crate::http::Http;
use crate::telemetry::metrics::Metrics;

/// Time that a socket has to answer a probe.
const PROBE: Duration = Duration::from_secs(5);

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// Sockets that must answer.
    pub sockets: Arc<Vec<PathBuf>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Client whose counters are shown.
    pub http: Http,
    /// Backends whose memory is shown.
    pub backends: Arc<Vec<Arc<dyn Gather>>>,
}

/// `/healthz` and `/readyz` dial our own sockets; `/metrics` is for Prometheus.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(health))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

async fn health(State(pages): State<Pages>) -> impl IntoResponse {
    match dial::healthy(&pages.sockets, PROBE).await {
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

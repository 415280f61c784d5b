//! Liveness, readiness and metrics over HTTP: on loopback for the node's operator, and where
//! `--metrics-addr` says for kubelet and Prometheus.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use tokio::net::{TcpListener, TcpSocket};

use super::health::Health;
use super::overview::Overview;
use super::{Served, page};
use crate::http::Http;
use crate::policy::Policy;
use crate::telemetry::metrics::{Class, Metrics};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Header that a program sends to be allowed an action.
const OWN_HEADER: &str = "x-keyferry";

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// State of the sockets.
    pub health: Arc<Health>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Client whose counters are shown.
    pub http: Http,
    /// Backends and volumes whose state is shown.
    pub served: Arc<[Served]>,
    /// The policy in force.
    pub policy: Option<Arc<Policy>>,
    /// Start of the process.
    pub started: Instant,
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

/// What [`probes`] has, and the operator's page, `/status.json` and `/forget`: for loopback alone.
pub fn router(pages: Pages) -> Router {
    let own = Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .route("/forget", post(forget_all))
        .layer(middleware::from_fn(local_name))
        .with_state(pages.clone());
    probes(pages).merge(own)
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
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], pages.metrics.scrape(|metrics| take_over(&pages, metrics)))
}

/// Sets the values that others keep.
fn take_over(pages: &Pages, metrics: &Metrics) {
    let mut classes = Vec::new();
    for Served { backend, volumes } in pages.served.iter() {
        let (entries, bytes) = backend.kept();
        metrics.kept(backend.name(), entries, bytes);
        metrics.volumes(backend.name(), volumes.served());
        let backend = backend.name();
        let class = |(namespace, class, at)| (Class { backend, namespace, class }, at);
        classes.extend(volumes.classes().into_iter().map(class));
    }
    metrics.classes(classes);
    metrics.http(&pages.http.stats());
    if let Some(policy) = &pages.policy {
        metrics.policy(policy.good());
    }
}

async fn page(State(pages): State<Pages>) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, page::CONTENT_POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, page::html(&Overview::collect(&pages).await))
}

async fn status(State(pages): State<Pages>) -> impl IntoResponse {
    // A tree of texts and numbers always becomes JSON.
    let text = serde_json::to_string(&Overview::collect(&pages).await).unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text)
}

/// Forgets all values and sessions, so that the next calls ask the stores.
pub fn forget(served: &[Served]) {
    served.iter().for_each(|served| served.backend.forget());
    tracing::info!("all values and sessions are forgotten; the next calls ask the stores");
}

/// Only for a person or a program at this node: a page elsewhere, open in the operator's browser, can
/// neither set our header without asking us first nor pass for our own page.
async fn forget_all(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let own_page = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    if own_page {
        forget(&pages.served);
        return Redirect::to("/").into_response();
    }
    if headers.contains_key(OWN_HEADER) {
        forget(&pages.served);
        return "forgotten\n".into_response();
    }
    let text = format!(
        "refused: send the header {OWN_HEADER}: forget, such as curl -X POST -H '{OWN_HEADER}: forget'\n"
    );
    (StatusCode::FORBIDDEN, text).into_response()
}

/// Refuses a browser that was led here under a stranger's name (DNS rebinding).
async fn local_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_local(host) {
        return next.run(request).await;
    }
    let text =
        "refused: reach this page as localhost or 127.0.0.1, for example through kubectl port-forward\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost:8990", "LOCALHOST", "127.0.0.1:1", "[::1]:8990"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.test", "localhost.evil.test", "10.0.0.1:8990", "127.0.0.1.evil.test", "a b"] {
            assert!(!is_local(host), "{host}");
        }
    }
}

//! Counters for Prometheus.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::error::Kind;
use crate::http::Stats;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    backend: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Source {
    backend: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Backend {
    backend: &'static str,
}

/// Namespace and name of a class: not a closed list, so these are bounded where they come from
/// (`server/volumes.rs`).
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Class {
    /// Backend that serves it.
    pub backend: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub class: String,
}

/// How the reads of one mount were answered.
#[derive(Debug, Clone, Copy)]
pub struct Mounted {
    /// Upstream reads.
    pub requests: u64,
    /// Answers from memory.
    pub hits: u64,
    /// Answers of another mount's read.
    pub joined: u64,
    /// Logins.
    pub logins: u64,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    mounts: Family<Result, Counter>,
    seconds: Family<Backend, Histogram, fn() -> Histogram>,
    reads: Family<Source, Counter>,
    cached: Family<Backend, Gauge>,
    bytes: Family<Backend, Gauge>,
    opened: Counter,
    silent: Counter,
    requests: Counter,
    repeat_failures: Family<Result, Counter>,
    store_requests: Family<Result, Counter>,
    store_seconds: Family<Backend, Histogram, fn() -> Histogram>,
    volumes: Family<Backend, Gauge>,
    classes: Family<Class, Gauge<f64, AtomicU64>>,
    policy: Gauge,
    /// Held while values that are taken over at a scrape are set and read.
    scrape: Mutex<()>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Upper bounds of the duration histogram, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 110.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Metrics {
    /// All metrics; that of the policy only where there is a policy.
    pub fn new(policy: bool) -> Self {
        let histogram = (|| Histogram::new(BOUNDS)) as fn() -> Histogram;
        let mut metrics = Self {
            registry: Registry::with_prefix("keyferry"),
            mounts: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            reads: Family::default(),
            cached: Family::default(),
            bytes: Family::default(),
            opened: Counter::default(),
            silent: Counter::default(),
            requests: Counter::default(),
            repeat_failures: Family::default(),
            store_requests: Family::default(),
            store_seconds: Family::new_with_constructor(histogram),
            volumes: Family::default(),
            classes: Family::default(),
            policy: Gauge::default(),
            scrape: Mutex::default(),
        };
        metrics.register();
        if policy {
            let help = "Whether the policy file as last seen is in force";
            metrics.registry.register("policy_ok", help, metrics.policy.clone());
        }
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of this process", version);
        r.register("mounts", "Mounts by backend and result (ok or kind of problem)", self.mounts.clone());
        r.register("mount_seconds", "Time of a mount in seconds", self.seconds.clone());
        let help = "Failed mounts of volumes that were mounted before, by kind of problem";
        r.register("repeat_failures", help, self.repeat_failures.clone());
        r.register("reads", "Objects by where the answer came from", self.reads.clone());
        let help = "Requests to stores and login services by result (ok or kind of problem)";
        r.register("store_requests", help, self.store_requests.clone());
        let help = "Time of a request to a store or login service in seconds";
        r.register("store_request_seconds", help, self.store_seconds.clone());
        r.register("volumes", "Mounted volumes that the driver still asks for", self.volumes.clone());
        let help = "When a class that is still asked for was last mounted with success";
        r.register("class_last_success_timestamp_seconds", help, self.classes.clone());
        r.register("cached_values", "Values in memory", self.cached.clone());
        r.register("cached_bytes", "Bytes of the values in memory, with overhead", self.bytes.clone());
        r.register("connections_opened", "Connections to stores", self.opened.clone());
        let help = "Connections given up because no answer came";
        r.register("connections_silent", help, self.silent.clone());
        let help = "Requests sent by the HTTP client, of all stores and login services";
        r.register("http_requests", help, self.requests.clone());
    }

    /// Counts a mount; `kind` is the kind of its failure.
    pub fn mounted(&self, backend: &'static str, kind: Option<Kind>, time: Duration) {
        let result = kind.map_or("ok", Kind::name);
        self.mounts.get_or_create(&Result { backend, result }).inc();
        self.seconds.get_or_create(&Backend { backend }).observe(time.as_secs_f64());
    }

    /// Counts a failed mount of a volume that was mounted before.
    pub fn repeat_failed(&self, backend: &'static str, kind: Kind) {
        self.repeat_failures.get_or_create(&Result { backend, result: kind.name() }).inc();
    }

    /// Counts a request to a store or its login service; `kind` is the kind of its failure.
    pub fn asked(&self, backend: &'static str, kind: Option<Kind>, time: Duration) {
        let result = kind.map_or("ok", Kind::name);
        self.store_requests.get_or_create(&Result { backend, result }).inc();
        self.store_seconds.get_or_create(&Backend { backend }).observe(time.as_secs_f64());
    }

    /// Sets how many volumes a backend serves.
    pub fn volumes(&self, backend: &'static str, count: usize) {
        self.volumes.get_or_create(&Backend { backend }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets when each class was last mounted, in seconds since 1970; all others are forgotten.
    pub fn classes(&self, all: impl IntoIterator<Item = (Class, f64)>) {
        self.classes.clear();
        for (class, at) in all {
            self.classes.get_or_create(&class).set(at);
        }
    }

    /// Sets whether the policy file is in force.
    pub fn policy(&self, ok: bool) {
        self.policy.set(i64::from(ok));
    }

    /// Counts the reads of a mount.
    pub fn reads(&self, backend: &'static str, mounted: &Mounted) {
        let Mounted { requests, hits, joined, logins } = *mounted;
        for (source, n) in [("store", requests), ("memory", hits), ("joined", joined), ("login", logins)] {
            if n > 0 {
                self.reads.get_or_create(&Source { backend, source }).inc_by(n);
            }
        }
    }

    /// Sets what a backend keeps in memory.
    pub fn kept(&self, backend: &'static str, entries: usize, bytes: usize) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.cached.get_or_create(&Backend { backend }).set(gauge(entries));
        self.bytes.get_or_create(&Backend { backend }).set(gauge(bytes));
    }

    /// Takes over what the HTTP client counted.
    pub fn http(&self, stats: &Stats) {
        let Stats { opened, dropped_silent, requests } = *stats;
        let all = [(&self.opened, opened), (&self.silent, dropped_silent), (&self.requests, requests)];
        for (counter, now) in all {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// Lets `fill` set what is taken over from elsewhere, and gives the text; one at a time.
    pub fn scrape(&self, fill: impl FnOnce(&Self)) -> String {
        let _one = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        fill(self);
        self.text()
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t49_labels_come_from_closed_lists() {
        let metrics = Metrics::default();
        for _ in 0..3 {
            metrics.mounted("azure", None, Duration::from_millis(3));
            for kind in Kind::ALL {
                metrics.mounted("azure", Some(kind), Duration::ZERO);
            }
        }
        let text = metrics.text();
        assert!(text.contains("keyferry_mounts_total{backend=\"azure\",result=\"ok\"} 3"), "{text}");
        assert_eq!(text.matches("keyferry_mounts_total{").count(), 1 + Kind::ALL.len());
    }
}

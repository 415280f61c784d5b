//! Counters for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
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
}

/// Upper bounds of the duration histogram, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 110.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("keyferry");
        let (mounts, reads) = (Family::default(), Family::default());
        let (cached, bytes) = (Family::default(), Family::default());
        let seconds = Family::new_with_constructor((|| Histogram::new(BOUNDS)) as fn() -> Histogram);
        registry.register("mounts", "Mounts by backend and result (ok or kind of problem)", mounts.clone());
        registry.register("mount_seconds", "Time of a mount in seconds", seconds.clone());
        registry.register("reads", "Objects by where the answer came from", reads.clone());
        registry.register("cached_values", "Values in memory", cached.clone());
        registry.register("cached_bytes", "Bytes of the values in memory, with overhead", bytes.clone());
        let (opened, silent, requests) = (Counter::default(), Counter::default(), Counter::default());
        registry.register("connections_opened", "Connections to stores", opened.clone());
        registry.register(
            "connections_silent",
            "Connections given up because no answer came",
            silent.clone(),
        );
        registry.register("http_requests", "Requests to stores and login services", requests.clone());
        Self { registry, mounts, seconds, reads, cached, bytes, opened, silent, requests }
    }
}

impl Metrics {
    /// Counts a mount; `kind` is the kind of its failure.
    pub fn mounted(&self, backend: &'static str, kind: Option<Kind>, time: Duration) {
        let result = kind.map_or("ok", Kind::name);
        self.mounts.get_or_create(&Result { backend, result }).inc();
        self.seconds.get_or_create(&Backend { backend }).observe(time.as_secs_f64());
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

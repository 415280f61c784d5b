//! What a stand-in saw. Never headers or bodies; of the query only parameters that carry nothing secret.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Query parameters whose values may be shown.
const SHOWN: [&str; 8] = [
    "api-version",
    "maxresults",
    "$skiptoken",
    "resource",
    "client_id",
    "object_id",
    "mi_res_id",
    "authorization_endpoint",
];

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Logged {
    /// `entra`, `vault` or `imds`.
    pub service: &'static str,
    /// Its method.
    pub method: String,
    /// The host it asked for.
    pub host: String,
    /// Its path and query.
    pub path: String,
    /// The answer's status; 0 while there is none, and for a request that never got one.
    pub status: u16,
    /// The client id, once proven (at Entra: as claimed, if known).
    pub client: Option<String>,
    /// When it came, since the stand-in's start.
    pub start: Duration,
    /// When it was answered or given up.
    pub end: Option<Duration>,
    /// The number of its connection.
    pub connection: u64,
}

/// The list of requests, in the order in which they came.
pub struct Log {
    epoch: Instant,
    list: Mutex<List>,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
}

#[derive(Default)]
struct List {
    /// The number of the first entry: grows when the list is cleared.
    first: usize,
    entries: Vec<Logged>,
}

impl Default for Log {
    fn default() -> Self {
        let list = Mutex::default();
        Self { epoch: Instant::now(), list, in_flight: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }
}

impl Log {
    /// Notes a request; the entry is completed by the guard.
    pub fn begin(self: &Arc<Self>, mut entry: Logged) -> Open {
        entry.start = self.epoch.elapsed();
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
        let mut list = self.list.lock().unwrap();
        list.entries.push(entry);
        Open { log: self.clone(), number: list.first + list.entries.len() - 1, status: 0, client: None }
    }

    /// Gives all requests so far.
    pub fn all(&self) -> Vec<Logged> {
        self.list.lock().unwrap().entries.clone()
    }

    /// Forgets all requests so far, and the peak.
    pub fn clear(&self) {
        let mut list = self.list.lock().unwrap();
        list.first += list.entries.len();
        list.entries.clear();
        self.peak.store(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Tells how many requests were open at once, at most.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

/// A request without an answer so far; ends when dropped, also when the client goes away.
pub struct Open {
    log: Arc<Log>,
    number: usize,
    /// The status it was answered with.
    pub status: u16,
    /// Who asked.
    pub client: Option<String>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.log.in_flight.fetch_sub(1, Ordering::Relaxed);
        let end = self.log.epoch.elapsed();
        let mut list = self.log.list.lock().unwrap();
        let entry = self.number.checked_sub(list.first).and_then(|at| list.entries.get_mut(at));
        if let Some(entry) = entry {
            (entry.status, entry.client, entry.end) = (self.status, self.client.take(), Some(end));
        }
    }
}

/// Gives path and query as the log may show them.
pub fn shown(path: &str, query: Option<&str>) -> String {
    let Some(query) = query else { return path.to_owned() };
    let shown: Vec<_> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if !SHOWN.contains(&name) => format!("{name}=(not shown)"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{path}?{}", shown.join("&"))
}

//! The state of this process for the node's operator, as data: `/status.json`, and what the page shows.
//! Ids and versions of objects, texts of errors and names of identities; never a value or a token.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::admin::Pages;
use super::volumes::View;
use crate::fetch::{Identity, limit};

/// Everything that is shown. Times are in seconds before or from now.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Version of this process.
    pub version: &'static str,
    /// Time since its start.
    pub uptime: f64,
    /// Why it is not ready, if it is not.
    pub not_ready: Option<String>,
    /// Its sockets.
    pub sockets: Vec<Socket>,
    /// The policy, if there is one.
    pub policy: Option<PolicyState>,
    /// Volumes, failing ones first.
    pub volumes: Vec<Volume>,
    /// Stores and login services that were asked.
    pub stores: Vec<Store>,
    /// Identities that are logged in.
    pub identities: Vec<Login>,
}

/// A socket.
#[derive(Debug, Serialize)]
pub struct Socket {
    /// Its path.
    pub path: String,
    /// Whether the file there is this process's.
    pub ours: bool,
    /// Why no keyferry answers there.
    pub failure: Option<String>,
}

/// The policy.
#[derive(Debug, Serialize)]
pub struct PolicyState {
    /// Its file.
    pub file: String,
    /// Rules in force.
    pub rules: usize,
    /// Whether the file as last seen is in force.
    pub ok: bool,
}

/// An error and its age.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Time since.
    pub ago: f64,
    /// Kind of problem, where there is one.
    pub kind: Option<&'static str>,
    /// The text.
    pub text: String,
}

/// How a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The last call failed.
    Failing,
    /// The last call brought files.
    Ok,
    /// Nobody asks any more.
    Gone,
}

/// A volume.
#[derive(Debug, Serialize)]
pub struct Volume {
    /// How it is.
    pub state: State,
    /// Backend that serves it.
    pub backend: &'static str,
    /// Namespace of pod and class.
    pub namespace: String,
    /// Pod; empty for the sync controller.
    pub pod: String,
    /// Class.
    pub class: String,
    /// Number of its objects.
    pub count: usize,
    /// Ids and versions of the first of them.
    pub objects: Vec<(String, String)>,
    /// Time since the first call.
    pub age: f64,
    /// Time since the last call.
    pub asked: f64,
    /// Time since the last success.
    pub success: Option<f64>,
    /// Time until a call makes us ask the store; 0 if the next one does.
    pub refresh: f64,
    /// The last failure.
    pub error: Option<Failure>,
}

/// A store or login service.
#[derive(Debug, Serialize)]
pub struct Store {
    /// Backend that asks it.
    pub backend: &'static str,
    /// Its name.
    pub name: String,
    /// Requests answered, with or without success.
    pub requests: u64,
    /// Those without success.
    pub failures: u64,
    /// Half of the latest requests took at most so long.
    pub median: Option<f64>,
    /// Of a hundred of the latest requests 99 took at most so long.
    pub p99: Option<f64>,
    /// Rest of the pause that it asked for.
    pub throttled: Option<f64>,
    /// Time since the last success.
    pub success: Option<f64>,
    /// The last failure.
    pub error: Option<Failure>,
}

/// An identity that is logged in.
#[derive(Debug, Serialize)]
pub struct Login {
    /// Backend that uses it.
    pub backend: &'static str,
    /// Its name in classes.
    pub identity: String,
    /// Where it was proven.
    pub login_at: String,
    /// Sessions in memory.
    pub sessions: usize,
    /// Time until the last of them ends.
    pub lasts: Option<f64>,
}

impl Overview {
    /// Looks at everything, sockets over new connections.
    pub async fn collect(pages: &Pages) -> Self {
        let sockets = pages.health.sockets().await.into_iter().map(|socket| Socket {
            path: socket.path.display().to_string(),
            ours: socket.ours,
            failure: socket.failure,
        });
        let now = Instant::now();
        let (mut volumes, mut stores, mut identities) = (Vec::new(), Vec::new(), Vec::new());
        for served in pages.served.iter() {
            let backend = served.backend.name();
            volumes.extend(served.volumes.views().into_iter().map(|view| volume(backend, view, now)));
            stores.extend(served.backend.stores().into_iter().map(|state| store(backend, state, now)));
            identities
                .extend(served.backend.identities().into_iter().map(|known| login(backend, known, now)));
        }
        volumes.sort_by(|a, b| {
            let key = |v: &Volume| (v.state, v.backend);
            key(a)
                .cmp(&key(b))
                .then_with(|| (&a.namespace, &a.pod, &a.class).cmp(&(&b.namespace, &b.pod, &b.class)))
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime: pages.started.elapsed().as_secs_f64(),
            not_ready: pages.health.ready().await.err(),
            sockets: sockets.collect(),
            policy: pages.policy.as_ref().map(|policy| PolicyState {
                file: policy.path().display().to_string(),
                rules: policy.rules().count(),
                ok: policy.good(),
            }),
            volumes,
            stores,
            identities,
        }
    }

    /// Volumes in a state.
    pub fn count(&self, state: State) -> usize {
        self.volumes.iter().filter(|volume| volume.state == state).count()
    }
}

fn ago(now: Instant, then: Instant) -> f64 {
    now.duration_since(then).as_secs_f64()
}

fn rest(now: Instant, end: Instant) -> f64 {
    end.duration_since(now).as_secs_f64()
}

fn volume(backend: &'static str, view: View, now: Instant) -> Volume {
    let state = match (view.gone(now), view.failing()) {
        (true, _) => State::Gone,
        (false, true) => State::Failing,
        (false, false) => State::Ok,
    };
    Volume {
        state,
        backend,
        age: ago(now, view.since),
        asked: ago(now, view.asked),
        success: view.success.map(|(at, _)| ago(now, at)),
        refresh: view.read.map_or(0.0, |read| rest(now, read + view.max_age)),
        error: view.error.map(|(at, kind, text)| Failure {
            ago: ago(now, at),
            kind: Some(kind.name()),
            text,
        }),
        namespace: view.namespace,
        pod: view.pod,
        class: view.class,
        count: view.count,
        objects: view.objects,
    }
}

fn store(backend: &'static str, state: limit::State, now: Instant) -> Store {
    let traffic = state.traffic;
    let mut times: Vec<_> = traffic.times.into_iter().collect();
    times.sort_unstable();
    let at = |hundredth: usize| {
        let place = (times.len() * hundredth).div_ceil(100).saturating_sub(1);
        times.get(place).map(Duration::as_secs_f64)
    };
    Store {
        backend,
        name: state.name,
        requests: traffic.requests,
        failures: traffic.failures,
        median: at(50),
        p99: at(99),
        throttled: state.held_until.map(|end| rest(now, end)),
        success: traffic.last_success.map(|at| ago(now, at)),
        error: traffic.last_error.map(|(at, text)| Failure { ago: ago(now, at), kind: None, text }),
    }
}

fn login(backend: &'static str, known: Identity, now: Instant) -> Login {
    Login {
        backend,
        identity: known.name,
        login_at: known.login_at,
        sessions: known.sessions,
        lasts: known.until.map(|end| rest(now, end)),
    }
}

//! What can go wrong, and where a try stands when its time is over.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::{Counters, held};

/// Kind of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The name does not exist.
    NoSuchHost,
    /// The name could not be looked up: the resolver failed or did not answer.
    Resolver,
    /// No address could be connected to; they answered with an error.
    Refused,
    /// No address answered the connection attempt in time.
    ConnectTimeout,
    /// TLS failed: certificate, name, version.
    Tls,
    /// The connection was accepted and then no answer, or not all of it, came in time.
    Silent,
    /// The connection was closed before the end of the answer.
    Closed,
    /// The body is longer than the limit.
    TooLarge,
    /// Not HTTP, or a request that cannot be sent.
    Protocol,
    /// The trusted authorities could not be read.
    Roots,
    /// The proxy could not be reached or did not open the way.
    Proxy,
}

/// Why a try got no answer. Holds no header field and no body.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Kind.
    pub kind: FailureKind,
    /// Host asked for.
    pub host: String,
    /// Address connected to or tried last; the proxy's, if there is one.
    pub address: Option<SocketAddr>,
    /// Time from the call to the failure.
    pub after: Duration,
    /// What happened.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        write!(f, ": {} (after {:.1} s)", self.detail, self.after.as_secs_f64())
    }
}

impl Error for Failure {}

/// A [`Failure`] before it is known whose it is; one may be shared by all who waited for it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: FailureKind,
    pub(super) address: Option<SocketAddr>,
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn new(kind: FailureKind, address: Option<SocketAddr>, detail: impl Into<String>) -> Self {
        Self { kind, address, detail: detail.into() }
    }

    pub(super) fn protocol(error: &dyn Error) -> Self {
        Self::new(FailureKind::Protocol, None, format!("the request cannot be sent: {error}"))
    }

    pub(super) fn at(self, host: &str, started: Instant) -> Failure {
        let detail = self.detail.replace(['\r', '\n'], " ");
        Failure {
            kind: self.kind,
            host: host.to_owned(),
            address: self.address,
            after: started.elapsed(),
            detail,
        }
    }
}

/// Fate of one connection, shared by the pool and everyone who uses it.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) address: SocketAddr,
    bad: AtomicBool,
}

impl Mark {
    pub(super) fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, bad: AtomicBool::new(false) })
    }

    /// Takes the connection out of use; true for the first who does.
    pub(super) fn spoil(&self) -> bool {
        !self.bad.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_bad(&self) -> bool {
        self.bad.load(Ordering::Relaxed)
    }
}

/// Step a try has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for a connection of the pool.
    #[default]
    Waiting,
    Resolving,
    Connecting,
    Tunnel,
    Handshake,
    Sent,
    Body,
}

/// Where a try stands, for the text if its time is over.
#[derive(Default)]
pub(super) struct Progress(Mutex<Step>);

#[derive(Default)]
struct Step {
    stage: Stage,
    address: Option<SocketAddr>,
    mark: Option<Arc<Mark>>,
}

impl Progress {
    pub(super) fn stage(&self, stage: Stage) {
        held(&self.0).stage = stage;
    }

    /// Back to waiting, with no connection.
    pub(super) fn restart(&self) {
        *held(&self.0) = Step::default();
    }

    pub(super) fn connecting(&self, address: SocketAddr) {
        let mut step = held(&self.0);
        step.stage = Stage::Connecting;
        step.address = Some(address);
    }

    pub(super) fn connected(&self, mark: &Arc<Mark>) {
        held(&self.0).mark = Some(Arc::clone(mark));
    }

    pub(super) fn sending(&self, mark: &Arc<Mark>) {
        *held(&self.0) =
            Step { stage: Stage::Sent, address: Some(mark.address), mark: Some(Arc::clone(mark)) };
    }

    /// The time is over: marks the connection, counts it, and says what was missing.
    pub(super) fn overdue(&self, counters: &Counters) -> Fault {
        let step = held(&self.0);
        if step.mark.as_ref().is_some_and(|mark| mark.spoil()) {
            counters.dropped_silent.fetch_add(1, Ordering::Relaxed);
        }
        let (kind, detail) = match step.stage {
            Stage::Waiting => (FailureKind::ConnectTimeout, "no connection became free in time"),
            Stage::Resolving => (FailureKind::Resolver, "the name was not resolved in time"),
            Stage::Connecting => (FailureKind::ConnectTimeout, "no answer to the connection attempt"),
            Stage::Tunnel => (FailureKind::Proxy, "the proxy accepted the connection and did not answer"),
            Stage::Handshake => {
                (FailureKind::Silent, "accepted the connection and did not answer the TLS handshake")
            }
            Stage::Sent => (FailureKind::Silent, "accepted the connection and did not answer the request"),
            Stage::Body => (FailureKind::Silent, "stopped in the middle of the answer"),
        };
        Fault::new(kind, step.address, detail)
    }
}

/// Error and its sources in one line, repetitions left out.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

/// Whether the connection was gone, as opposed to a refusal of this one request. `text` is the
/// [`chain`] of `error`.
pub(super) fn lost(error: &hyper::Error, http2: bool, text: &str) -> bool {
    if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
        return true;
    }
    if error.is_user() || error.is_parse() {
        return false;
    }
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return gone(io.kind());
        }
        next = source.source();
    }
    // The HTTP/2 errors hide their cause: all but the reset of a single stream end the connection.
    http2 && !text.contains("stream error")
}

fn gone(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

//! Connections kept for the next request, by authority.
//!
//! HTTP/2: one connection for all requests. HTTP/1.1: one request at a time on each connection, as
//! many connections as the limit allows, in the order of arrival. As long as it is not known which
//! of the two an authority speaks, and whenever its HTTP/2 connection is to be opened again, one
//! request opens a connection and the others wait for it, and share its failure.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::connect::{Opened, Opener, Sender, Task};
use super::failure::{FailureKind, Fault, Mark, Progress};
use super::{Target, held};

/// Connections without a request are closed after this time.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// How often idle connections are looked for, as long as there are any.
const SWEEP: Duration = Duration::from_secs(5);
/// How long an idle connection may take to be ready; one that is not is replaced.
const READY: Duration = Duration::from_millis(100);

/// All connections of a client.
pub(super) struct Pool {
    authorities: Mutex<HashMap<Target, Arc<Authority>>>,
    limit: usize,
    sweeping: AtomicBool,
}

/// Connections to one authority.
struct Authority {
    /// Held by the one request that opens a connection for all.
    turn: Semaphore,
    /// One for each HTTP/1.1 connection in use.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    http1: bool,
    shared: Option<Arc<Shared>>,
    idle: Vec<Idle>,
    /// Connections opened in turn or failed to; who waited meanwhile takes over the outcome.
    attempts: u64,
    failed: Option<Fault>,
}

/// HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    mark: Arc<Mark>,
    used: Mutex<Instant>,
    _task: Task,
}

/// HTTP/1.1 connection between two requests.
struct Idle {
    line: Line,
    since: Instant,
}

/// HTTP/1.1 connection.
struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    mark: Arc<Mark>,
    _task: Task,
}

/// Right to send one request on a connection. Dropped before [`Lease::finish`], it closes an
/// HTTP/1.1 connection and leaves an HTTP/2 one alone.
pub(super) struct Lease {
    way: Way,
    mark: Arc<Mark>,
    reused: bool,
}

enum Way {
    Single { line: Line, authority: Arc<Authority>, permit: OwnedSemaphorePermit },
    Shared(Arc<Shared>),
}

/// What a look at the state showed.
enum Glance {
    Shared(Arc<Shared>),
    Http1,
    /// A connection has to be opened in turn; the number of those opened before.
    Open(u64),
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { authorities: Mutex::default(), limit, sweeping: AtomicBool::new(false) }
    }

    /// Gives a connection to `target`; with `fresh` not one that was idle.
    pub(super) async fn lease(
        self: &Arc<Self>,
        opener: &Opener,
        target: &Target,
        progress: &Progress,
        fresh: bool,
    ) -> Result<Lease, Fault> {
        progress.restart();
        let authority = self.authority(target);
        // Before anything can fail: a host that is never reached must not stay in the map either.
        self.sweep_later();
        let lease = loop {
            let before = match authority.glance() {
                Glance::Shared(shared) => break Lease::shared(shared, true),
                Glance::Http1 => break authority.single(opener, target, progress, fresh).await?,
                Glance::Open(before) => before,
            };
            let _turn = authority.turn.acquire().await.map_err(|_| closing())?;
            if let Some(outcome) = authority.outcome_since(before) {
                outcome?;
                continue;
            }
            let opened = opener.open(target, progress).await;
            break authority.settle(opened)?.lease(&authority).await?;
        };
        Ok(lease)
    }

    /// Drops the connections to `target` that were marked as bad.
    pub(super) fn prune(&self, target: &Target) {
        let found = held(&self.authorities).get(target).cloned();
        if let Some(authority) = found {
            drop(authority.glance());
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        held(&self.authorities).is_empty()
    }

    fn authority(&self, target: &Target) -> Arc<Authority> {
        let mut authorities = held(&self.authorities);
        if let Some(found) = authorities.get(target) {
            return Arc::clone(found);
        }
        let state = State { http1: !target.https, ..State::default() };
        let made = Arc::new(Authority {
            turn: Semaphore::new(1),
            permits: Arc::new(Semaphore::new(self.limit)),
            state: Mutex::new(state),
        });
        authorities.insert(target.clone(), Arc::clone(&made));
        made
    }

    /// Makes sure that idle connections are looked for.
    fn sweep_later(self: &Arc<Self>) {
        if !self.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Drops what was idle too long; true if nothing is left.
    fn sweep(&self) -> bool {
        let mut authorities = held(&self.authorities);
        // An authority that only the map knows has no lease and no one waiting.
        authorities.retain(|_, authority| !authority.sweep() || Arc::strong_count(authority) > 1);
        let empty = authorities.is_empty();
        if empty {
            self.sweeping.store(false, Ordering::Release);
        }
        empty
    }
}

/// Runs until the pool is empty or gone.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        if pool.upgrade().is_none_or(|pool| pool.sweep()) {
            return;
        }
    }
}

/// Connection opened in turn.
enum Settled {
    Shared(Arc<Shared>),
    Line(Line),
}

impl Settled {
    async fn lease(self, authority: &Arc<Authority>) -> Result<Lease, Fault> {
        match self {
            Self::Shared(shared) => Ok(Lease::shared(shared, false)),
            Self::Line(line) => {
                let permit = authority.permit().await?;
                Ok(Lease::single(line, authority, permit, false))
            }
        }
    }
}

impl Authority {
    /// What can be used now; forgets connections that cannot.
    fn glance(&self) -> Glance {
        let mut state = held(&self.state);
        if let Some(shared) = &state.shared {
            if shared.usable() {
                return Glance::Shared(Arc::clone(shared));
            }
            state.shared = None;
        }
        if state.http1 { Glance::Http1 } else { Glance::Open(state.attempts) }
    }

    /// Outcome of the last attempt, if there was one since `before`.
    fn outcome_since(&self, before: u64) -> Option<Result<(), Fault>> {
        let state = held(&self.state);
        (state.attempts != before).then(|| state.failed.clone().map_or(Ok(()), Err))
    }

    /// Records the outcome of an attempt.
    fn settle(&self, opened: Result<Opened, Fault>) -> Result<Settled, Fault> {
        let mut state = held(&self.state);
        state.attempts += 1;
        let Opened { mark, task, sender } = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                state.failed = Some(fault.clone());
                return Err(fault);
            }
        };
        state.failed = None;
        match sender {
            Sender::Http1(sender) => {
                state.http1 = true;
                Ok(Settled::Line(Line { sender, mark, _task: task }))
            }
            Sender::Http2(sender) => {
                state.http1 = false;
                state.idle.clear();
                let used = Mutex::new(Instant::now());
                let shared = Arc::new(Shared { sender, mark, used, _task: task });
                state.shared = Some(Arc::clone(&shared));
                Ok(Settled::Shared(shared))
            }
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closing())
    }

    /// Gives an HTTP/1.1 connection, when it is this request's turn.
    async fn single(
        self: &Arc<Self>,
        opener: &Opener,
        target: &Target,
        progress: &Progress,
        fresh: bool,
    ) -> Result<Lease, Fault> {
        let permit = self.permit().await?;
        while let Some(mut line) = self.take_idle() {
            if !fresh && matches!(timeout(READY, line.sender.ready()).await, Ok(Ok(()))) {
                return Ok(Lease::single(line, self, permit, true));
            }
        }
        let opened = opener.open(target, progress).await?;
        match self.settle(Ok(opened))? {
            Settled::Shared(shared) => Ok(Lease::shared(shared, false)),
            Settled::Line(line) => Ok(Lease::single(line, self, permit, false)),
        }
    }

    /// The connection that was used last, if any is still good.
    fn take_idle(&self) -> Option<Line> {
        let mut state = held(&self.state);
        while let Some(idle) = state.idle.pop() {
            if idle.usable() {
                return Some(idle.line);
            }
        }
        None
    }

    /// Drops what was idle too long; true if nothing is left.
    fn sweep(&self) -> bool {
        let mut state = held(&self.state);
        state.idle.retain(Idle::usable);
        // A connection in use is known to more than the state.
        let spent = |shared: &Arc<Shared>| !shared.usable() && Arc::strong_count(shared) == 1;
        if state.shared.as_ref().is_some_and(spent) {
            state.shared = None;
        }
        state.idle.is_empty() && state.shared.is_none()
    }
}

impl Shared {
    fn usable(self: &Arc<Self>) -> bool {
        let idle = Arc::strong_count(self) == 1 && held(&self.used).elapsed() >= IDLE_LIMIT;
        !idle && !self.mark.is_bad() && !self.sender.is_closed()
    }
}

impl Idle {
    fn usable(&self) -> bool {
        self.since.elapsed() < IDLE_LIMIT && !self.line.mark.is_bad() && !self.line.sender.is_closed()
    }
}

impl Lease {
    fn shared(shared: Arc<Shared>, reused: bool) -> Self {
        Self { mark: Arc::clone(&shared.mark), way: Way::Shared(shared), reused }
    }

    fn single(line: Line, authority: &Arc<Authority>, permit: OwnedSemaphorePermit, reused: bool) -> Self {
        let mark = Arc::clone(&line.mark);
        Self { way: Way::Single { line, authority: Arc::clone(authority), permit }, mark, reused }
    }

    /// Whether the connection served or may have served other requests before.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.way, Way::Shared(_))
    }

    pub(super) fn mark(&self) -> &Arc<Mark> {
        &self.mark
    }

    /// Sends and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match &mut self.way {
            Way::Single { line, .. } => line.sender.send_request(request).await,
            Way::Shared(shared) => {
                // Requests above the server's number of streams wait inside the connection.
                let mut sender = shared.sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// The answer was read to its end: the connection may serve the next request.
    pub(super) fn finish(self) {
        match self.way {
            Way::Single { line, authority, permit } => {
                if !line.sender.is_closed() {
                    held(&authority.state).idle.push(Idle { line, since: Instant::now() });
                }
                drop(permit); // only now, so that the next request finds the connection
            }
            Way::Shared(shared) => *held(&shared.used) = Instant::now(),
        }
    }
}

/// The semaphores are never closed; this keeps the code free of panics.
fn closing() -> Fault {
    Fault::new(FailureKind::Protocol, None, "the client is shutting down")
}

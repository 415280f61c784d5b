//! Reads, made as rarely and as parallel as the rules allow.
//!
//! One read for many waiters ([`cache`]), bounded and paced per store ([`limit`]), within one
//! deadline. Every key holds the proven principal and is compared in full: a value is served only to
//! a caller who has proven the same principal to the store.

pub mod cache;
pub mod limit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use ring::hmac;
use tokio::time::{Instant, sleep};

use crate::backends::{Backend, Login};
use crate::call::Occasion;
use crate::error::{Kind, Problem, Retry};
use crate::plan::{Credential, Plan, Reading};
use crate::policy::Policy;
use crate::telemetry::metrics::Metrics;
use cache::{Cache, Served, Started};
use limit::Limits;

/// Bounds, ages and rules; every one is a flag of `serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Age a value may have in a first mount.
    pub start_max_age: Duration,
    /// Age a value may have in a repeat.
    pub repeat_max_age: Duration,
    /// Age a value of a pinned version may have.
    pub pinned_max_age: Duration,
    /// Bytes of values kept per backend.
    pub cache_bytes: usize,
    /// Sessions kept per backend.
    pub sessions: usize,
    /// Reads under way per mount.
    pub reads_per_mount: usize,
    /// Reads under way per store.
    pub reads_per_store: usize,
    /// Tries of one read.
    pub tries: u32,
    /// Longest time for one mount.
    pub budget: Duration,
    /// What namespaces may use; without it, everything.
    pub policy: Option<Arc<Policy>>,
    /// Where requests to stores are counted.
    pub metrics: Arc<Metrics>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start_max_age: Duration::from_secs(2),
            repeat_max_age: Duration::from_secs(60),
            pinned_max_age: Duration::from_secs(600),
            cache_bytes: 16 << 20,
            sessions: 4096,
            reads_per_mount: 128,
            reads_per_store: 256,
            tries: 4,
            budget: Duration::from_secs(110),
            policy: None,
            metrics: Arc::default(),
        }
    }
}

/// How the reads of one mount were answered.
#[derive(Debug, Default)]
pub struct Tally {
    /// Upstream reads made for this mount.
    pub requests: AtomicU64,
    /// Answers from memory.
    pub hits: AtomicU64,
    /// Answers of a read that another mount had under way.
    pub joined: AtomicU64,
    /// Logins made for this mount.
    pub logins: AtomicU64,
}

impl Tally {
    fn count(&self, served: Served) {
        match served {
            Served::Hit => &self.hits,
            Served::Joined => &self.joined,
            Served::Fetched => &self.requests,
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

/// Keyed hash of what a caller presented. The key is random and lives as long as the process.
type Fingerprint = [u8; 32];

/// Who is logged in where.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SessionKey<T> {
    target: T,
    fingerprint: Option<Fingerprint>,
}

/// Which value, for whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ValueKey<T, R> {
    target: T,
    principal: Arc<str>,
    read: R,
}

/// A session in the cache.
pub struct Session<S> {
    session: S,
    principal: Arc<str>,
    /// The identity as the class names it, and where it was proven: for the operator's page.
    shown: (String, String),
}

/// An identity with sessions, as the operator's page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The identity, as classes name it.
    pub name: String,
    /// Where it was proven.
    pub login_at: String,
    /// Sessions in memory: one for each credential and target.
    pub sessions: usize,
    /// End of the one that lasts longest.
    pub until: Option<Instant>,
}

type Sessions<B> = Cache<SessionKey<<B as Backend>::Target>, Session<<B as Backend>::Session>>;
type Values<B> = Cache<ValueKey<<B as Backend>::Target, <B as Backend>::Read>, Reading>;

/// The reads of one backend.
pub struct Fetch<B: Backend> {
    backend: Arc<B>,
    settings: Settings,
    sessions: Arc<Sessions<B>>,
    values: Arc<Values<B>>,
    limits: Arc<Limits>,
    key: hmac::Key,
    /// Greatest `maxAge` that a class asked for, in seconds: values must live so long.
    class_age: AtomicU64,
}

impl<B: Backend> Fetch<B> {
    /// Makes empty caches for `backend`.
    pub fn new(backend: Arc<B>, settings: &Settings) -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .expect("the operating system gives random bytes");
        Self {
            backend,
            sessions: Arc::new(Cache::new(settings.sessions)),
            values: Arc::new(Cache::new(settings.cache_bytes)),
            limits: Arc::new(Limits::new(settings.reads_per_store)),
            settings: settings.clone(),
            key,
            class_age: AtomicU64::new(0),
        }
    }

    /// Forgets every value and session, so that the next calls ask the store.
    pub fn forget(&self) {
        self.sessions.clear();
        self.values.clear();
    }

    /// Drops what has become too old to serve.
    pub fn sweep(&self) {
        self.sessions.sweep(Duration::MAX);
        let class_age = Duration::from_secs(self.class_age.load(Ordering::Relaxed));
        self.values.sweep(self.settings.repeat_max_age.max(self.settings.pinned_max_age).max(class_age));
    }

    /// Values now in memory: entries and bytes.
    pub fn kept(&self) -> (usize, usize) {
        self.values.size()
    }

    /// The stores that were asked.
    pub fn stores(&self) -> Vec<limit::State> {
        self.limits.states()
    }

    /// The identities that are logged in, by name.
    pub fn identities(&self) -> Vec<Identity> {
        let mut all: BTreeMap<(String, String), (usize, Option<Instant>)> = BTreeMap::new();
        self.sessions.each(|_, session, until| {
            let entry = all.entry(session.shown.clone()).or_default();
            *entry = (entry.0 + 1, entry.1.max(until));
        });
        let identity = |((name, login_at), (sessions, until))| Identity { name, login_at, sessions, until };
        all.into_iter().map(identity).collect()
    }

    fn asking(&self, at: &str) -> Asking {
        Asking {
            backend: B::NAME,
            at: at.to_owned(),
            limits: self.limits.clone(),
            metrics: self.settings.metrics.clone(),
            tries: self.settings.tries,
            until: Instant::now() + self.settings.budget,
        }
    }

    fn fingerprint(&self, credential: &Credential) -> Option<Fingerprint> {
        let secret = match credential {
            Credential::Node => return None,
            Credential::Token(secret) | Credential::Password(secret) | Credential::Certificate(secret) => {
                secret
            }
        };
        let tag = hmac::sign(&self.key, secret.expose().as_bytes());
        tag.as_ref().try_into().ok()
    }

    /// Proves the caller's identity, or finds that this very credential was proven before.
    pub async fn session(&self, plan: &Plan<B>, tally: &Tally) -> Result<Arc<Session<B::Session>>, Problem> {
        let key = SessionKey { target: plan.target.clone(), fingerprint: self.fingerprint(&plan.credential) };
        let (session, served) = self
            .sessions
            .get(key, Duration::MAX, |sent| {
                // Only a flight needs copies that live as long as it does.
                let (backend, asking) = (self.backend.clone(), self.asking(&plan.login_at));
                let (target, credential) = (plan.target.clone(), plan.credential.clone());
                let shown = (B::reach(plan).identity, plan.login_at.clone());
                async move {
                    let login = asking.retrying(&sent, || backend.login(&target, &credential)).await?;
                    let Login { session, principal, lasts } = login;
                    let value = Session { session, principal: principal.into(), shown };
                    Ok(Started { value, weight: 1, lasts })
                }
            })
            .await?;
        if served == Served::Fetched {
            tally.logins.fetch_add(1, Ordering::Relaxed);
        }
        Ok(session)
    }

    /// Forgets a session that the store no longer accepts; one that is newer stays.
    pub fn drop_session(&self, plan: &Plan<B>, session: &Arc<Session<B::Session>>) {
        let key = SessionKey { target: plan.target.clone(), fingerprint: self.fingerprint(&plan.credential) };
        self.sessions.remove(&key, session);
    }

    /// Makes `reads` where and as whom `plan` says, in their order; each has its own outcome.
    pub async fn all(
        &self,
        plan: &Plan<B>,
        reads: &[B::Read],
        session: &Arc<Session<B::Session>>,
        age: Duration,
        tally: &Tally,
    ) -> Vec<Result<Arc<Reading>, Problem>> {
        let reads: Vec<_> = reads.iter().map(|read| self.one(plan, session, read, age, tally)).collect();
        stream::iter(reads).buffered(self.settings.reads_per_mount.max(1)).collect().await
    }

    async fn one(
        &self,
        plan: &Plan<B>,
        session: &Arc<Session<B::Session>>,
        read: &B::Read,
        age: Duration,
        tally: &Tally,
    ) -> Result<Arc<Reading>, Problem> {
        let key = ValueKey {
            target: plan.target.clone(),
            principal: session.principal.clone(),
            read: read.clone(),
        };
        let pinned_age = self.settings.pinned_max_age;
        // A pinned value never changes, so it is as fresh as its last confirmation allows.
        let accept =
            |reading: &Reading| if reading.pinned && !age.is_zero() { pinned_age.max(age) } else { age };
        let (reading, served) = self
            .values
            .get_by(key, age, accept, |sent| {
                let (backend, session) = (self.backend.clone(), session.clone());
                let (target, read, asking) = (plan.target.clone(), read.clone(), self.asking(&plan.read_at));
                async move {
                    let reading =
                        asking.retrying(&sent, || backend.read(&target, &session.session, &read)).await?;
                    let weight = reading.value.len() + reading.version.len() + ENTRY_OVERHEAD;
                    Ok(Started { value: reading, weight, lasts: Duration::MAX })
                }
            })
            .await?;
        tally.count(served);
        Ok(reading)
    }

    /// The age that a value may have.
    pub fn max_age(&self, occasion: Occasion, class: Option<Duration>) -> Duration {
        if let Some(age) = class {
            self.class_age.fetch_max(age.as_secs() + 1, Ordering::Relaxed);
        }
        match occasion {
            Occasion::First => self.settings.start_max_age,
            Occasion::Repeat => class.unwrap_or(self.settings.repeat_max_age),
        }
    }
}

/// What an entry costs besides its value, about.
const ENTRY_OVERHEAD: usize = 512;

/// How one store is asked.
struct Asking {
    backend: &'static str,
    at: String,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    tries: u32,
    until: Instant,
}

impl Asking {
    /// Tries until it works, the problem is lasting, the tries are used up or the time is over.
    async fn retrying<T, F>(&self, sent: &cache::Sent, attempt: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let mut made = 0;
        loop {
            let place = self.limits.enter(&self.at, self.until).await?;
            sent.now();
            made += 1;
            let result = self.counted(attempt()).await;
            let problem = match result {
                Ok(value) => return Ok(value),
                Err(problem) => problem,
            };
            drop(place);
            let (most, asked) = match problem.retry {
                Retry::No => return Err(problem),
                Retry::Once => (2, None),
                Retry::After(asked) => (self.tries, asked),
            };
            let wait = asked.unwrap_or_else(|| limit::backoff(made));
            if made >= most || Instant::now() + wait >= self.until {
                return Err(tried(problem, made, asked));
            }
            // A throttled store holds for everyone; other trouble is between this read and the store.
            if problem.kind == Kind::Throttled {
                self.limits.hold(&self.at, Instant::now() + wait);
            } else {
                sleep(wait).await;
            }
        }
    }

    /// One try, with its time and outcome noted.
    async fn counted<T>(&self, attempt: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let start = Instant::now();
        let result = attempt.await;
        let (time, problem) = (start.elapsed(), result.as_ref().err());
        self.limits.note(&self.at, time, problem);
        self.metrics.asked(self.backend, problem.map(|problem| problem.kind), time);
        result
    }
}

fn tried(mut problem: Problem, made: u32, asked: Option<Duration>) -> Problem {
    let asked = asked.map_or(String::new(), |wait| format!(", the store asked to wait {}s", wait.as_secs()));
    problem.what = format!("{} (tries: {made}{asked})", problem.what);
    problem
}

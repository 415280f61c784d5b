//! Reads, made as rarely and as parallel as the rules allow.
//!
//! One read for many waiters ([`cache`]), bounded and paced per store ([`limit`]), within one
//! deadline. Every key holds the proven principal and is compared in full: a value is served only to
//! a caller who has proven the same principal to the store.

pub mod cache;
pub mod limit;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use ring::hmac;
use tokio::time::{Instant, sleep};

use crate::backends::{Backend, Login};
use crate::call::{ClassAges, Occasion};
use crate::error::{Kind, Problem, Retry};
use crate::plan::{Answer, Credential, Plan, Reading};
use crate::policy::Policy;
use crate::telemetry::metrics::Metrics;
use cache::{Cache, Fallback, Served, Started};
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
    /// Age a last good value may have while its store is down, whatever a class says; zero is never.
    pub last_good_max_age: Duration,
    /// The same for classes that say nothing.
    pub last_good_default: Duration,
    /// Time that a mount gives the store before it takes last good values.
    pub last_good_after: Duration,
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
            last_good_max_age: Duration::ZERO,
            last_good_default: Duration::ZERO,
            last_good_after: Duration::from_secs(3),
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
        let counter = match served {
            Served::Hit => &self.hits,
            Served::Joined => &self.joined,
            Served::Fetched => &self.requests,
            // Counted with the files that are made of them.
            Served::LastGood(_) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How old the values of one mount may be.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// At most, where the store is not asked.
    pub fresh: Duration,
    /// At most, while the store is down; zero is never.
    pub last_good: Duration,
    /// When the mount has waited long enough for a store that may be down.
    pub patience: Instant,
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
type Values<B> = Cache<ValueKey<<B as Backend>::Target, <B as Backend>::Read>, Known>;

/// What a store said of an object. That there is none is an answer as well: it ages like a value, so many
/// volumes with an optional object that does not exist are still one read.
enum Known {
    Found(Arc<Reading>),
    Missing(Problem),
}

impl Known {
    fn new(result: Result<Reading, Problem>) -> Result<Started<Self>, Problem> {
        let (value, weight) = match result {
            Ok(reading) => {
                let weight = reading.value.len() + reading.version.len();
                (Self::Found(Arc::new(reading)), weight)
            }
            Err(problem) if problem.kind == Kind::NotFound => {
                let weight = problem.what.len() + problem.hint.as_ref().map_or(0, String::len);
                (Self::Missing(problem), weight)
            }
            Err(problem) => return Err(problem),
        };
        Ok(Started { value, weight: weight + ENTRY_OVERHEAD, lasts: Duration::MAX })
    }

    fn pinned(&self) -> bool {
        matches!(self, Self::Found(reading) if reading.pinned)
    }
}

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

    /// Since when `store` is down, and its latest error.
    pub fn down(&self, store: &str) -> Option<(Instant, String)> {
        self.limits.down(store)
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
        ages: Ages,
        tally: &Tally,
    ) -> Vec<Result<Answer, Problem>> {
        let reads: Vec<_> = reads.iter().map(|read| self.one(plan, session, read, ages, tally)).collect();
        stream::iter(reads).buffered(self.settings.reads_per_mount.max(1)).collect().await
    }

    async fn one(
        &self,
        plan: &Plan<B>,
        session: &Arc<Session<B::Session>>,
        read: &B::Read,
        ages: Ages,
        tally: &Tally,
    ) -> Result<Answer, Problem> {
        let key = || ValueKey {
            target: plan.target.clone(),
            principal: session.principal.clone(),
            read: read.clone(),
        };
        let (fresh, pinned) = (ages.fresh, self.settings.pinned_max_age);
        // A pinned value never changes, so it is as fresh as its last confirmation allows.
        let accept = |known: &Known| {
            if known.pinned() && !fresh.is_zero() { pinned.max(fresh) } else { fresh }
        };
        let fallback = Fallback { max_age: ages.last_good, until: ages.patience };
        let fallback = (!ages.last_good.is_zero()).then_some(fallback);
        let result = self.values.get_by(key(), fresh, accept, fallback, |sent| {
            let (backend, session) = (self.backend.clone(), session.clone());
            let (key, asking, values) = (key(), self.asking(&plan.read_at), self.values.clone());
            async move {
                let ask = || backend.read(&key.target, &session.session, &key.read);
                let result = asking.retrying(&sent, ask).await;
                Known::new(result).inspect_err(|problem| disown(&values, &key, problem.kind))
            }
        });
        let (known, served) =
            result.await.map_err(|problem| self.explained(problem, &plan.read_at, ages.last_good))?;
        tally.count(served);
        let last_good = match served {
            Served::LastGood(read_at) => Some(read_at),
            Served::Hit | Served::Joined | Served::Fetched => None,
        };
        match (&*known, last_good) {
            (Known::Found(reading), _) => Ok(Answer { reading: reading.clone(), last_good }),
            (Known::Missing(problem), None) => Err(problem.clone()),
            (Known::Missing(problem), Some(read_at)) => {
                let (ago, hint) =
                    (whole_seconds(read_at.elapsed()), problem.hint.as_deref().unwrap_or_default());
                let hint = format!("{hint}; that was {ago} ago, and {} is in trouble now", plan.read_at);
                Err(problem.clone().hint(hint))
            }
        }
    }

    /// Says of trouble that passes how long it lasts, and why no last good value helped (tracker T12).
    fn explained(&self, mut problem: Problem, store: &str, last_good: Duration) -> Problem {
        if !problem.kind.passing() {
            return problem;
        }
        let why = if last_good.is_zero() {
            let most = humantime::format_duration(self.settings.last_good_max_age);
            format!(
                "no last good value is allowed (lastGoodMaxAge of the class; --last-good-max-age is {most})"
            )
        } else {
            let most = humantime::format_duration(last_good);
            format!("no value that this identity read in the last {most} is in memory (lastGoodMaxAge)")
        };
        let hint = problem.hint.take().map_or(String::new(), |hint| format!("{hint}; "));
        let down = self.down(store).map_or(String::new(), |(since, _)| {
            let down = whole_seconds(since.elapsed());
            format!("{store} has been in trouble for {down}, and ")
        });
        problem.hint(format!("{hint}{down}{why}"))
    }

    /// The ages that values may have in a mount that has logged in now and may take `left`.
    pub fn ages(&self, occasion: Occasion, class: ClassAges, left: Duration) -> Ages {
        let Settings { start_max_age, repeat_max_age, last_good_max_age, last_good_default, .. } =
            self.settings;
        if let Some(age) = class.max_age {
            self.class_age.fetch_max(age.as_secs() + 1, Ordering::Relaxed);
        }
        Ages {
            fresh: match occasion {
                Occasion::First => start_max_age,
                Occasion::Repeat => class.max_age.unwrap_or(repeat_max_age),
            },
            last_good: class.last_good.unwrap_or(last_good_default).min(last_good_max_age),
            patience: Instant::now() + self.settings.last_good_after.min(left / 2),
        }
    }
}

/// A time for people.
pub fn whole_seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

/// Forgets what a store has refused, so that no later outage brings it back. An identity that has lost one
/// of its objects has perhaps lost all. A refusal of what it never had tells nothing: or else whoever
/// shares the identity could spoil the outage of the others.
fn disown<T, R>(values: &Arc<Cache<ValueKey<T, R>, Known>>, key: &ValueKey<T, R>, kind: Kind)
where
    ValueKey<T, R>: Eq + Hash + Send + Sync + 'static,
    T: Eq,
{
    let lost = match kind {
        Kind::Unauthenticated => true,
        Kind::Denied => values.forget(key),
        // Replaces the value that was kept.
        Kind::NotFound => false,
        Kind::Config | Kind::Refused | Kind::Shape | Kind::Bug => false,
        Kind::Throttled | Kind::Unavailable | Kind::Deadline => false,
    };
    if lost {
        values.forget_all(|other| other.principal == key.principal && other.target == key.target);
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

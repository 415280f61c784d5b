//! The corridor that every door uses: plan, log in, read, shape.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

use crate::backends::Backend;
use crate::call::{Call, ClassAges};
use crate::error::{Kind, Problem, Problems, one_line};
use crate::fetch::{Fetch, Identity, Session, Settings, Tally, limit, whole_seconds};
use crate::files::{self, File};
use crate::plan::{Answers, Plan};
use crate::policy::{Policy, Reach};

/// What a call brought.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Files in the user's order.
    pub files: Vec<File>,
    /// Objects and the versions that were read, in the user's order.
    pub versions: Vec<(String, String)>,
    /// Oddities for the log.
    pub warnings: Vec<String>,
    /// Optional objects that the store does not have, in the user's order.
    pub absent: Vec<Absent>,
    /// What is served only because a store is down.
    pub last_good: Option<LastGood>,
}

/// An optional object that the store does not have (tracker T08).
#[derive(Debug, Clone)]
pub struct Absent {
    /// Its id.
    pub object: String,
    /// Whether its file holds the entry's default, or is left out.
    pub given: bool,
}

/// Last good values that stand in for a store that is down (tracker T12).
#[derive(Debug, Clone)]
pub struct LastGood {
    /// Objects that were not read anew.
    pub objects: usize,
    /// When the oldest of them was read.
    pub read_at: Instant,
    /// The store, and what is known of its trouble, in one line.
    pub store: String,
}

/// What `check` and `--explain` need to know of a plan.
#[derive(Debug)]
pub struct Outline {
    /// Upstream reads.
    pub reads: usize,
    /// Paths that would be written.
    pub paths: Vec<String>,
    /// Where they go, and as whom: what the policy is asked about.
    pub reach: Reach,
    /// Oddities.
    pub warnings: Vec<String>,
}

/// A backend with its caches, behind one object-safe face.
#[async_trait]
pub trait Gather: Send + Sync {
    /// Name of the backend.
    fn name(&self) -> &'static str;
    /// Makes the files of a call.
    async fn gather(&self, call: &Call, tally: &Tally) -> Result<Gathered, Problems>;
    /// Checks a class with the real parser, without any request.
    fn check(&self, call: &Call) -> Result<Outline, Problems>;
    /// Forgets all values and sessions.
    fn forget(&self);
    /// Drops what is too old to serve.
    fn sweep(&self);
    /// Entries and bytes in memory.
    fn kept(&self) -> (usize, usize);
    /// The stores that were asked, and what came of it.
    fn stores(&self) -> Vec<limit::State> {
        Vec::new()
    }
    /// The identities that are logged in.
    fn identities(&self) -> Vec<Identity> {
        Vec::new()
    }
}

/// A backend and its reads.
pub struct Store<B: Backend> {
    backend: Arc<B>,
    fetch: Fetch<B>,
    policy: Option<Arc<Policy>>,
}

impl<B: Backend> Store<B> {
    /// Puts `backend` behind empty caches.
    pub fn new(backend: B, settings: &Settings) -> Self {
        let backend = Arc::new(backend);
        Self { fetch: Fetch::new(backend.clone(), settings), backend, policy: settings.policy.clone() }
    }

    /// Plans the call; problems of engine parameters come with those of the backend.
    fn plan(&self, call: &Call) -> Result<(Plan<B>, ClassAges), Problems> {
        let (plan, ages) = (self.backend.plan(call), call.parameters.ages());
        let (plan, ages, mut problems) = match (plan, ages) {
            (Ok(plan), Ok(ages)) => return Ok((plan, ages)),
            (plan, ages) => (plan.err(), ages.err(), Vec::new()),
        };
        problems.extend(ages.into_iter().flatten());
        problems.extend(plan.into_iter().flat_map(Problems::into_list));
        Err(Problems::some(problems).expect("one of both has failed"))
    }

    /// Before anything is sent or looked up in memory.
    fn allow(&self, plan: &Plan<B>, call: &Call) -> Result<(), Problem> {
        let Some(policy) = &self.policy else { return Ok(()) };
        policy.rules().allow(&call.pod.namespace, B::NAME, &B::reach(plan))
    }

    async fn run(
        &self,
        plan: &Plan<B>,
        call: &Call,
        class: ClassAges,
        tally: &Tally,
    ) -> Result<Gathered, Problems> {
        let ages = || self.fetch.ages(call.occasion, class, call.deadline.duration_since(Instant::now()));
        let mut session = self.login(plan, tally).await?;
        let mut readings = self.fetch.all(plan, &session, ages(), tally).await;
        if refused(&readings) {
            // The store no longer takes this session: one more try with a new one.
            self.fetch.drop_session(plan, &session);
            session = self.login(plan, tally).await?;
            readings = self.fetch.all(plan, &session, ages(), tally).await;
        }
        let mut gathered = files::make(&plan.outputs, &readings, call.mode)?;
        gathered.last_good = self.last_good(plan, &readings);
        Ok(gathered)
    }

    fn last_good(&self, plan: &Plan<B>, readings: &Answers) -> Option<LastGood> {
        let old = || readings.iter().flatten().filter_map(|answer| answer.last_good);
        let store = match self.fetch.down(&plan.read_at) {
            Some((since, error)) => {
                let down = whole_seconds(since.elapsed());
                format!("{}, in trouble for {down}: {}", plan.read_at, one_line(&error))
            }
            None => format!("{}, which does not answer in time", plan.read_at),
        };
        old().min().map(|read_at| LastGood { objects: old().count(), read_at, store })
    }

    async fn login(&self, plan: &Plan<B>, tally: &Tally) -> Result<Arc<Session<B::Session>>, Problems> {
        self.fetch.session(plan, tally).await.map_err(|mut problem| {
            if let Some(first) = plan.outputs.first() {
                problem.what = format!("{}{}", first.label, problem.what);
            }
            problem.into()
        })
    }

    fn named(&self, call: &Call, problems: Problems) -> Problems {
        problems.of(B::ERROR_PREFIX, B::NAME, call.class_name().as_deref())
    }
}

fn refused(readings: &Answers) -> bool {
    readings.iter().any(|reading| matches!(reading, Err(p) if p.kind == Kind::Unauthenticated))
}

#[async_trait]
impl<B: Backend> Gather for Store<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    async fn gather(&self, call: &Call, tally: &Tally) -> Result<Gathered, Problems> {
        let work = async {
            let (plan, ages) = self.plan(call)?;
            self.allow(&plan, call)?;
            match timeout_at(call.deadline, self.run(&plan, call, ages, tally)).await {
                Ok(gathered) => gathered.map(|mut g| {
                    g.warnings.splice(0..0, plan.warnings);
                    g
                }),
                Err(_) => Err(late(&plan.login_at, &plan.read_at)),
            }
        };
        work.await.map_err(|problems| self.named(call, problems))
    }

    fn check(&self, call: &Call) -> Result<Outline, Problems> {
        let (plan, _) = self.plan(call).map_err(|problems| self.named(call, problems))?;
        let reach = B::reach(&plan);
        let paths = plan.outputs.iter().map(|output| output.path.to_string()).collect();
        Ok(Outline { reads: plan.reads.len(), paths, reach, warnings: plan.warnings })
    }

    fn forget(&self) {
        self.fetch.forget();
    }

    fn sweep(&self) {
        self.fetch.sweep();
    }

    fn kept(&self) -> (usize, usize) {
        self.fetch.kept()
    }

    fn stores(&self) -> Vec<limit::State> {
        self.fetch.stores()
    }

    fn identities(&self) -> Vec<Identity> {
        self.fetch.identities()
    }
}

fn late(login_at: &str, read_at: &str) -> Problems {
    Problem::new(
        Kind::Deadline,
        format!("no complete answer from {login_at} and {read_at} in the time this call may take (context deadline exceeded)"),
    )
    .hint("see the log of this node for single tries; check network and load of the store")
    .into()
}

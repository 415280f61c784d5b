//! The corridor that every door uses: plan, log in, read, shape.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

use crate::backends::Backend;
use crate::call::{Call, ClassAges};
use crate::entry::Dialect;
use crate::error::{Kind, Problem, Problems, Warning, one_line};
use crate::fetch::{Ages, Fetch, Identity, Session, Settings, Tally, limit, whole_seconds};
use crate::files::{self, File};
use crate::plan::{Account, Answer, Answers, Output, Plan};
use crate::policy::{Policy, Reach};
use crate::series::Unfolded;

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

/// What `check` and `--explain` need to know of a class.
#[derive(Debug)]
pub struct Outline {
    /// What is wrong, also what a mount would forgive.
    pub problems: Vec<Problem>,
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// Files of the entries that are right.
    pub files: Vec<Output>,
    /// Files of which there are as many as the store has versions, and at most how many; the first of each.
    pub series: Vec<(Output, usize)>,
    /// What would be done; nothing where there are problems.
    pub account: Option<Account>,
    /// Where it goes, and as whom: what the policy is asked about.
    pub reach: Reach,
}

/// A backend with its caches, behind one object-safe face.
#[async_trait]
pub trait Gather: Send + Sync {
    /// Name of the backend.
    fn name(&self) -> &'static str;
    /// How its classes are written.
    fn dialect(&self) -> Dialect {
        Dialect::NONE
    }
    /// Makes the files of a call.
    async fn gather(&self, call: &Call, tally: &Tally) -> Result<Gathered, Problems>;
    /// Checks a class with the real parser, without any request.
    fn check(&self, call: &Call) -> Outline;
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
    fn plan(&self, call: &Call) -> (Plan<B>, ClassAges, Vec<Problem>) {
        let (plan, mut problems) = self.backend.plan(call);
        let ages = call.parameters.ages().unwrap_or_else(|wrong| {
            problems.splice(0..0, wrong);
            ClassAges::default()
        });
        (plan, ages, problems)
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
        let mut read = self.read(plan, &session, ages(), tally).await;
        if refused(&read.readings) {
            // The store no longer takes this session: one more try with a new one.
            self.fetch.drop_session(plan, &session);
            session = self.login(plan, tally).await?;
            read = self.read(plan, &session, ages(), tally).await;
        }
        if let Some(clashes) = Problems::some(read.clashes) {
            return Err(clashes);
        }
        let mut gathered = files::make(&read.outputs, &read.readings, call.mode)?;
        gathered.warnings.splice(0..0, read.warnings);
        gathered.last_good = self.last_good(plan, &read.readings);
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

    /// Reads what the plan names, and then what its series turn out to hold.
    async fn read<'a>(
        &self,
        plan: &'a Plan<B>,
        session: &Arc<Session<B::Session>>,
        ages: Ages,
        tally: &Tally,
    ) -> ReadPlan<'a> {
        let mut readings = self.fetch.all(plan, &plan.reads, session, ages, tally).await;
        if plan.series.is_empty() {
            let outputs = Cow::Borrowed(plan.outputs.as_slice());
            return ReadPlan { outputs, readings, clashes: Vec::new(), warnings: Vec::new() };
        }
        let Unfolded { outputs, reads, clashes, warnings } = plan.unfold(&readings);
        let wanted: Vec<_> = reads.iter().filter_map(|read| read.as_ref().ok().cloned()).collect();
        let mut answers = self.fetch.all(plan, &wanted, session, ages, tally).await.into_iter();
        let answered = reads.into_iter().map(|read| read.and_then(|_| answers.next().expect("one a read")));
        readings.extend(answered);
        ReadPlan { outputs: Cow::Owned(outputs), readings, clashes, warnings }
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

/// Files to make, and the answers that they are made from.
struct ReadPlan<'a> {
    outputs: Cow<'a, [Output]>,
    readings: Vec<Result<Answer, Problem>>,
    clashes: Vec<Problem>,
    warnings: Vec<String>,
}

fn refused(readings: &Answers) -> bool {
    readings.iter().any(|reading| matches!(reading, Err(p) if p.kind == Kind::Unauthenticated))
}

#[async_trait]
impl<B: Backend> Gather for Store<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn dialect(&self) -> Dialect {
        B::DIALECT
    }

    async fn gather(&self, call: &Call, tally: &Tally) -> Result<Gathered, Problems> {
        let work = async {
            let (mut plan, ages, mut problems) = self.plan(call);
            if !problems.is_empty() {
                problems.append(&mut plan.slips);
            }
            if let Some(problems) = Problems::some(problems) {
                return Err(problems);
            }
            self.allow(&plan, call)?;
            match timeout_at(call.deadline, self.run(&plan, call, ages, tally)).await {
                Ok(gathered) => gathered.map(|mut g| {
                    let odd = plan.warnings.iter().filter(|warning| warning.rule.at_mount());
                    let slips = plan.slips.iter().map(ToString::to_string);
                    g.warnings.splice(0..0, odd.map(ToString::to_string).chain(slips));
                    g
                }),
                Err(_) => Err(late(&plan.login_at, &plan.read_at)),
            }
        };
        work.await.map_err(|problems| self.named(call, problems))
    }

    fn check(&self, call: &Call) -> Outline {
        let (plan, _, mut problems) = self.plan(call);
        problems.extend_from_slice(&plan.slips);
        let series =
            plan.series.iter().flat_map(|all| all.outputs.iter().map(|output| (output.clone(), all.most)));
        let series = series.collect();
        let account = problems.is_empty().then(|| self.backend.explain(&plan));
        let reach = B::reach(&plan);
        Outline { problems, warnings: plan.warnings, files: plan.outputs, series, account, reach }
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

//! The corridor that every door uses: plan, log in, read, shape.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout_at;

use crate::backends::Backend;
use crate::call::Call;
use crate::error::{Kind, Problem, Problems};
use crate::fetch::{Fetch, Session, Settings, Tally};
use crate::files::{self, File};
use crate::plan::{Output, Plan, Reading};
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
}

/// What `check` and `--explain` need to know of a plan.
#[derive(Debug)]
pub struct Outline {
    /// Upstream reads.
    pub reads: usize,
    /// Paths that would be written.
    pub paths: Vec<String>,
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
}

/// A backend and its reads.
pub struct Store<B: Backend> {
    backend: Arc<B>,
    fetch: Fetch<B>,
}

impl<B: Backend> Store<B> {
    /// Puts `backend` behind empty caches.
    pub fn new(backend: B, settings: &Settings) -> Self {
        let backend = Arc::new(backend);
        Self { fetch: Fetch::new(backend.clone(), settings), backend }
    }

    /// Plans the call; problems of engine parameters come with those of the backend.
    fn plan(&self, call: &Call) -> Result<(Plan<B>, Option<Duration>), Problems> {
        match (self.backend.plan(call), call.parameters.max_age()) {
            (Ok(plan), Ok(age)) => Ok((plan, age)),
            (Ok(_), Err(problem)) => Err(problem.into()),
            (Err(problems), Ok(_)) => Err(problems),
            (Err(problems), Err(problem)) => {
                let mut list = problems.into_list();
                list.insert(0, problem);
                Err(Problems::some(list).expect("one problem was added"))
            }
        }
    }

    async fn run(
        &self,
        plan: &Plan<B>,
        call: &Call,
        age: Duration,
        tally: &Tally,
    ) -> Result<Gathered, Problems> {
        let mut session = self.login(plan, tally).await?;
        let mut read = self.read(plan, &session, age, tally).await;
        if refused(&read.readings) {
            // The store no longer takes this session: one more try with a new one.
            self.fetch.drop_session(plan, &session);
            session = self.login(plan, tally).await?;
            read = self.read(plan, &session, age, tally).await;
        }
        if let Some(clashes) = Problems::some(read.clashes) {
            return Err(clashes);
        }
        let mut gathered = files::make(&read.outputs, &read.readings, call.mode)?;
        gathered.warnings.splice(0..0, read.warnings);
        Ok(gathered)
    }

    /// Reads what the plan names, and then what its series turn out to hold.
    async fn read<'a>(
        &self,
        plan: &'a Plan<B>,
        session: &Arc<Session<B::Session>>,
        age: Duration,
        tally: &Tally,
    ) -> ReadPlan<'a> {
        let mut readings = self.fetch.all(plan, &plan.reads, session, age, tally).await;
        if plan.series.is_empty() {
            let outputs = Cow::Borrowed(plan.outputs.as_slice());
            return ReadPlan { outputs, readings, clashes: Vec::new(), warnings: Vec::new() };
        }
        let Unfolded { outputs, reads, clashes, warnings } = plan.unfold(&readings);
        let wanted: Vec<_> = reads.iter().filter_map(|read| read.as_ref().ok().cloned()).collect();
        let mut answers = self.fetch.all(plan, &wanted, session, age, tally).await.into_iter();
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
    readings: Vec<Result<Arc<Reading>, Problem>>,
    clashes: Vec<Problem>,
    warnings: Vec<String>,
}

fn refused(readings: &[Result<Arc<Reading>, Problem>]) -> bool {
    readings.iter().any(|reading| matches!(reading, Err(p) if p.kind == Kind::Unauthenticated))
}

#[async_trait]
impl<B: Backend> Gather for Store<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    async fn gather(&self, call: &Call, tally: &Tally) -> Result<Gathered, Problems> {
        let work = async {
            let (plan, class_age) = self.plan(call)?;
            let age = self.fetch.max_age(call.occasion, class_age);
            match timeout_at(call.deadline, self.run(&plan, call, age, tally)).await {
                Ok(gathered) => gathered.map(|mut g| {
                    let slips = plan.slips.iter().map(ToString::to_string);
                    g.warnings.splice(0..0, plan.warnings.into_iter().chain(slips));
                    g
                }),
                Err(_) => Err(late(&plan.login_at, &plan.read_at)),
            }
        };
        work.await.map_err(|problems| self.named(call, problems))
    }

    fn check(&self, call: &Call) -> Result<Outline, Problems> {
        let (plan, _) = self.plan(call).map_err(|problems| self.named(call, problems))?;
        if let Some(slips) = Problems::some(plan.slips) {
            return Err(self.named(call, slips));
        }
        let series = plan.series.iter().flat_map(|series| &series.outputs);
        let paths = plan.outputs.iter().chain(series).map(|output| output.path.to_string()).collect();
        Ok(Outline { reads: plan.reads.len(), paths, warnings: plan.warnings })
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
}

fn late(login_at: &str, read_at: &str) -> Problems {
    Problem::new(
        Kind::Deadline,
        format!("no complete answer from {login_at} and {read_at} in the time this call may take (context deadline exceeded)"),
    )
    .hint("see the log of this node for single tries; check network and load of the store")
    .into()
}

//! Two identities never share: whatever is mounted, changed, refused and repeated in whatever order, an
//! answer holds only what the store gives to the principal that the presented token proves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyferry::backends::{Backend, Login};
use keyferry::call::{Call, Occasion, Parameters, Pod, Tokens};
use keyferry::error::{Kind, Problem, Retry, Spot};
use keyferry::fetch::{Settings, Tally};
use keyferry::gather::{Gather, Store};
use keyferry::path::{Mode, RelPath};
use keyferry::plan::{Account, Credential, Form, Missing, Only, Output, Plan, Reading};
use keyferry::policy::Reach;
use keyferry::secret::{SecretBytes, SecretText};
use proptest::prelude::*;

/// What the store knows: who each token is, and how often each value was changed; and its troubles.
#[derive(Default)]
pub(crate) struct World {
    pub accepted: BTreeMap<String, usize>,
    pub version: usize,
    /// Principals that may read nothing.
    pub refused: BTreeSet<usize>,
    /// Whether reads are answered as if with 503.
    pub down: bool,
    /// Whether logins are.
    pub login_down: bool,
    /// Time of a read.
    pub latency: Duration,
    /// Reads that were begun.
    pub reads: usize,
}

/// A store whose values name their reader.
pub(crate) struct Mirror(pub Arc<Mutex<World>>);

fn down() -> Problem {
    Problem::new(Kind::Unavailable, "503").retry(Retry::After(None))
}

impl Backend for Mirror {
    const NAME: &'static str = "mirror";
    const ERROR_PREFIX: &'static str = "";
    type Target = String;
    type Read = String;
    type Session = usize;

    fn plan(&self, call: &Call) -> (Plan<Self>, Vec<Problem>) {
        let credential = Credential::Token(SecretText::new(call.parameters.text("token").to_owned()));
        let target = call.parameters.text("target").to_owned();
        let mut plan = Plan::new(target, credential, "login".into(), "store".into());
        let read = plan.read(call.parameters.text("object").to_owned());
        plan.outputs.push(Output {
            read,
            only: Only::Always,
            steps: vec![],
            path: RelPath::new("f").unwrap(),
            mode: None,
            id: "f".into(),
            missing: Missing::Fails,
            label: String::new(),
            spot: Spot::default(),
        });
        (plan, vec![])
    }

    fn explain(&self, _: &Plan<Self>) -> Account {
        Account::default()
    }

    fn reach(plan: &Plan<Self>) -> Reach {
        Reach { addresses: vec![plan.target.clone()], identity: "token".into(), caseless: false }
    }

    async fn login(&self, _: &String, credential: &Credential) -> Result<Login<usize>, Problem> {
        let Credential::Token(token) = credential else { unreachable!("plans give tokens") };
        tokio::task::yield_now().await;
        let who = {
            let world = self.0.lock().unwrap();
            if world.login_down {
                return Err(down());
            }
            world.accepted.get(token.expose()).copied()
        };
        let who = who.ok_or_else(|| Problem::new(Kind::Unauthenticated, "unknown token"))?;
        Ok(Login { session: who, principal: format!("p{who}"), lasts: Duration::from_secs(600) })
    }

    async fn read(&self, target: &String, who: &usize, read: &String) -> Result<Reading, Problem> {
        let (version, down_now, latency, refused) = {
            let mut world = self.0.lock().unwrap();
            world.reads += 1;
            (world.version, world.down, world.latency, world.refused.contains(who))
        };
        tokio::time::sleep(latency).await;
        if down_now {
            return Err(down());
        }
        if refused || read == "forbidden" {
            return Err(Problem::new(Kind::Denied, "403"));
        }
        let value = SecretBytes::from(format!("{target} {read} p{who}"));
        Ok(Reading { value, version: version.to_string(), form: Form::Plain, pinned: read == "pinned" })
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Mounts at once: (token, target, object, repeat).
    Mounts(Vec<(u8, u8, u8, bool)>),
    /// The store changes.
    Change,
    /// Time passes.
    Wait(u64),
    /// The operator asks for fresh values.
    Forget,
    /// The store goes down, or comes back.
    Down(bool),
    /// A principal loses its rights, or has them again.
    Refuse(usize, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mount = (0..6_u8, 0..2_u8, 0..3_u8, any::<bool>());
    prop::collection::vec(
        prop_oneof![
            4 => prop::collection::vec(mount, 1..8).prop_map(Step::Mounts),
            1 => Just(Step::Change),
            1 => (0..5000_u64).prop_map(Step::Wait),
            1 => Just(Step::Forget),
            1 => any::<bool>().prop_map(Step::Down),
            1 => (0..2_usize, any::<bool>()).prop_map(|(who, on)| Step::Refuse(who, on)),
        ],
        1..20,
    )
}

fn call(token: u8, target: u8, object: u8, repeat: bool) -> Call {
    let object = if object == 0 { "pinned".to_owned() } else { format!("o{object}") };
    let map = [("token", format!("t{token}")), ("target", format!("s{target}")), ("object", object)];
    Call {
        parameters: Parameters::new(&map.map(|(k, v)| (k.to_owned(), v)).into()),
        pod: Pod::default(),
        class: None,
        tokens: Tokens::default(),
        secrets: None,
        mode: Mode::DEFAULT,
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        occasion: if repeat { Occasion::Repeat } else { Occasion::First },
    }
}

async fn play(steps: Vec<Step>) {
    // Tokens 0 and 1 are of one principal, 2 and 3 of another, 4 and 5 of nobody.
    let accepted = (0..4_usize).map(|n| (format!("t{n}"), n / 2)).collect();
    let world = Arc::new(Mutex::new(World { accepted, ..World::default() }));
    let minute = Duration::from_secs(60);
    let settings = Settings { last_good_max_age: minute, last_good_default: minute, ..Settings::default() };
    let store = Arc::new(Store::new(Mirror(world.clone()), &settings));
    for step in steps {
        match step {
            Step::Change => world.lock().unwrap().version += 1,
            Step::Wait(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
            Step::Forget => store.forget(),
            Step::Down(down) => world.lock().unwrap().down = down,
            Step::Refuse(who, true) => drop(world.lock().unwrap().refused.insert(who)),
            Step::Refuse(who, false) => drop(world.lock().unwrap().refused.remove(&who)),
            Step::Mounts(mounts) => {
                let mounts = mounts.into_iter().map(|(token, target, object, repeat)| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let call = call(token, target, object, repeat);
                        (
                            token,
                            target,
                            call.parameters.text("object").to_owned(),
                            store.gather(&call, &Tally::default()).await,
                        )
                    })
                });
                for mount in futures_util::future::join_all(mounts).await {
                    let (token, target, object, got) = mount.unwrap();
                    if token >= 4 {
                        assert_eq!(got.unwrap_err().kind(), Kind::Unauthenticated);
                        continue;
                    }
                    let want = format!("s{target} {object} p{}", token / 2);
                    let world = world.lock().unwrap();
                    match got {
                        Ok(got) => assert_eq!(got.files[0].contents.expose(), want.as_bytes()),
                        Err(problems) if world.down => assert_eq!(problems.kind(), Kind::Unavailable),
                        Err(problems) => {
                            assert_eq!(problems.kind(), Kind::Denied);
                            assert!(world.refused.contains(&usize::from(token / 2)));
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn two_identities_never_share(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps));
    }
}

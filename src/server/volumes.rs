//! The volumes served: which were mounted before, to tell a first mount from a repeat, and what became
//! of each, for metrics and the operator's page.
//!
//! A user who changes a secret and restarts pods must see the new value, while the driver asks again
//! for every volume each minute, changed or not (driver.md 9.2). A volume counts as seen once it was
//! mounted with success and with the same parameters. Those that never were are kept apart, so that
//! failing pods displace nobody. No value is kept, only ids and versions of objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ring::digest;
use tokio::time::Instant;

use super::request::Volume;
use crate::call::{Call, Occasion, Parameters};
use crate::error::{self, Kind, Problems};
use crate::proto::ObjectVersion;

/// Time after which a volume that is not asked for is taken for gone: the driver never says so.
pub const GONE: Duration = Duration::from_secs(600);
/// Volumes remembered that were never mounted.
const MOST_FAILED: usize = 256;
/// Classes of one backend that are told apart in metrics.
const MOST_CLASSES: usize = 1000;
/// Objects of a volume that are shown.
const MOST_OBJECTS: usize = 20;
/// Longest text of an error that is kept.
const MOST_TEXT: usize = 2 << 10;

/// Hash of the parameters of a volume.
pub type Shape = [u8; 32];

/// What is known of a volume.
#[derive(Debug, Clone)]
pub struct View {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod; empty for the sync controller's calls, which belong to none.
    pub pod: String,
    /// Name of the class.
    pub class: String,
    /// First call.
    pub since: Instant,
    /// Last call.
    pub asked: Instant,
    /// Last call with success.
    pub success: Option<(Instant, SystemTime)>,
    /// Last success for which the store was asked.
    pub read: Option<Instant>,
    /// Age that its values may have in a repeat.
    pub max_age: Duration,
    /// Last failure: when, its kind, its text.
    pub error: Option<(Instant, Kind, String)>,
    /// Number of its objects.
    pub count: usize,
    /// Ids and versions of the first of them.
    pub objects: Vec<(String, String)>,
}

impl View {
    /// Whether the last call failed.
    pub fn failing(&self) -> bool {
        match (&self.success, &self.error) {
            (Some((success, _)), Some((error, ..))) => error > success,
            (success, _) => success.is_none(),
        }
    }

    /// Whether the driver no longer asks for it.
    pub fn gone(&self, now: Instant) -> bool {
        now.duration_since(self.asked) > GONE
    }

    fn note(&mut self, call: &Call, outcome: &Outcome<'_>) {
        let now = Instant::now();
        self.asked = now;
        if self.pod != call.pod.name {
            self.pod.clone_from(&call.pod.name);
        }
        match outcome {
            Outcome::Mounted { objects, asked_store } => {
                self.success = Some((now, SystemTime::now()));
                if *asked_store || self.read.is_none() {
                    self.read = Some(now);
                }
                self.keep(objects);
            }
            Outcome::Failed(problems) => {
                let text = error::cut(problems.to_string(), MOST_TEXT);
                self.error = Some((now, problems.kind(), text));
            }
        }
    }

    /// Most repeats bring the objects that are known already, and cost no memory.
    fn keep(&mut self, objects: &[ObjectVersion]) {
        self.count = objects.len();
        let shown = &objects[..objects.len().min(MOST_OBJECTS)];
        let known = self.objects.iter().map(|(id, version)| (id.as_str(), version.as_str()));
        if !known.eq(shown.iter().map(|object| (object.id.as_str(), object.version.as_str()))) {
            self.objects = shown.iter().map(|o| (o.id.clone(), o.version.clone())).collect();
        }
    }
}

/// How a mount ended.
pub enum Outcome<'a> {
    /// With files.
    Mounted {
        /// The objects of the answer.
        objects: &'a [ObjectVersion],
        /// Whether the store was asked for any of them.
        asked_store: bool,
    },
    /// With problems.
    Failed(&'a Problems),
}

struct Seen {
    /// Of the last success; nothing where there was none.
    shape: Option<Shape>,
    used: u64,
    view: View,
}

#[derive(Default)]
struct Inner {
    seen: HashMap<Arc<Volume>, Seen>,
    /// Mounted volumes by last use.
    mounted: BTreeMap<u64, Arc<Volume>>,
    /// Volumes that never were, by last use.
    failed: BTreeMap<u64, Arc<Volume>>,
    clock: u64,
}

/// The volumes of one backend, bounded; the longest unused goes first.
pub struct Volumes {
    inner: Mutex<Inner>,
    most: usize,
    repeat_max_age: Duration,
}

impl Volumes {
    /// Remembers up to `most` volumes, whose values may be `repeat_max_age` old unless the class says
    /// otherwise.
    pub fn new(most: usize, repeat_max_age: Duration) -> Self {
        Self { inner: Mutex::new(Inner::default()), most: most.max(1), repeat_max_age }
    }

    /// First mount or repeat, and whether the volume was mounted before with whatever parameters.
    pub fn occasion(&self, volume: Option<&Volume>, shape: &Shape) -> (Occasion, bool) {
        let inner = self.lock();
        match volume.and_then(|volume| inner.seen.get(volume)).and_then(|seen| seen.shape) {
            Some(known) if known == *shape => (Occasion::Repeat, true),
            known => (Occasion::First, known.is_some()),
        }
    }

    /// Notes how a call ended. One that belongs to no volume is kept under its class.
    pub fn note(&self, volume: Option<Volume>, call: &Call, shape: Shape, outcome: &Outcome<'_>) {
        let volume = volume.unwrap_or_else(|| Volume {
            target_path: String::new(),
            pod_uid: call.class_name().unwrap_or_default(),
        });
        let mut inner = self.lock();
        let Inner { seen, mounted, failed, clock } = &mut *inner;
        *clock += 1;
        let key = seen.get_key_value(&volume).map_or_else(|| Arc::new(volume), |(key, _)| key.clone());
        let known = seen.entry(key.clone()).or_insert_with(|| Seen {
            shape: None,
            used: 0,
            view: first(call, self.repeat_max_age),
        });
        mounted.remove(&known.used);
        failed.remove(&known.used);
        known.used = *clock;
        known.view.note(call, outcome);
        if matches!(outcome, Outcome::Mounted { .. }) && known.shape.replace(shape) != Some(shape) {
            known.view.max_age = max_age(call, self.repeat_max_age);
        }
        if known.shape.is_some() {
            mounted.insert(*clock, key);
        } else {
            failed.insert(*clock, key);
        }
        for (order, most) in [(mounted, self.most), (failed, MOST_FAILED)] {
            if order.len() > most
                && let Some((_, oldest)) = order.pop_first()
            {
                seen.remove(&oldest);
            }
        }
    }

    /// All that is known of each.
    pub fn views(&self) -> Vec<View> {
        self.lock().seen.values().map(|seen| seen.view.clone()).collect()
    }

    /// How many mounted volumes are still asked for.
    pub fn served(&self) -> usize {
        let now = Instant::now();
        let served = |seen: &&Seen| seen.shape.is_some() && !seen.view.gone(now);
        self.lock().seen.values().filter(served).count()
    }

    /// When each class that is still asked for was last mounted, in seconds since 1970: only those that
    /// ever were, so that failing mounts with names of their own add nothing.
    pub fn classes(&self) -> Vec<(String, String, f64)> {
        let now = Instant::now();
        let inner = self.lock();
        let mut classes: BTreeMap<(&str, &str), (Option<SystemTime>, bool)> = BTreeMap::new();
        for view in inner.seen.values().map(|seen| &seen.view) {
            let (success, asked) = classes.entry((&view.namespace, &view.class)).or_default();
            *success = (*success).max(view.success.map(|(_, at)| at));
            *asked |= !view.gone(now);
        }
        let told = classes.into_iter().filter(|(_, (_, asked))| *asked);
        let told = told.filter_map(|((namespace, class), (success, _))| {
            let since = success?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Some((namespace.to_owned(), class.to_owned(), since.as_secs_f64()))
        });
        told.take(MOST_CLASSES).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first(call: &Call, repeat_max_age: Duration) -> View {
    let now = Instant::now();
    View {
        namespace: call.pod.namespace.clone(),
        pod: call.pod.name.clone(),
        class: call.class.clone().unwrap_or_default(),
        since: now,
        asked: now,
        success: None,
        read: None,
        max_age: max_age(call, repeat_max_age),
        error: None,
        count: 0,
        objects: Vec::new(),
    }
}

fn max_age(call: &Call, otherwise: Duration) -> Duration {
    call.parameters.max_age().ok().flatten().unwrap_or(otherwise)
}

/// Hashes the parameters, each length first, so that no two sets look alike.
pub fn shape(parameters: &Parameters) -> Shape {
    let mut context = digest::Context::new(&digest::SHA256);
    for (key, value) in parameters.pairs() {
        for text in [key, value] {
            context.update(&text.len().to_le_bytes());
            context.update(text.as_bytes());
        }
    }
    let mut shape = Shape::default();
    shape.copy_from_slice(context.finish().as_ref());
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Pod, Tokens};
    use crate::error::Problem;
    use crate::path::Mode;

    fn volume(n: usize) -> Volume {
        Volume { target_path: format!("/v{n}"), pod_uid: "u".into() }
    }

    fn call(class: &str) -> Call {
        Call {
            parameters: Parameters::default(),
            pod: Pod { name: "web-0".into(), namespace: "shop".into(), ..Pod::default() },
            class: Some(class.into()),
            tokens: Tokens::default(),
            secrets: None,
            mode: Mode::DEFAULT,
            deadline: Instant::now(),
            occasion: Occasion::First,
        }
    }

    fn volumes(most: usize) -> Volumes {
        Volumes::new(most, Duration::from_secs(60))
    }

    fn mounted(volumes: &Volumes, n: usize, class: &str) {
        let objects = [ObjectVersion { id: "secret/db".into(), version: "1".into() }];
        let outcome = Outcome::Mounted { objects: &objects, asked_store: false };
        volumes.note(Some(volume(n)), &call(class), [0; 32], &outcome);
    }

    fn failed(volumes: &Volumes, n: usize, class: &str) {
        let problems = Problem::new(Kind::Denied, "no").into();
        volumes.note(Some(volume(n)), &call(class), [0; 32], &Outcome::Failed(&problems));
    }

    #[tokio::test]
    async fn a_changed_class_is_a_first_mount() {
        let volumes = volumes(10);
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]), (Occasion::First, false));
        mounted(&volumes, 1, "c");
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]), (Occasion::Repeat, true));
        assert_eq!(volumes.occasion(Some(&volume(1)), &[1; 32]), (Occasion::First, true));
        assert_eq!(volumes.occasion(None, &[0; 32]), (Occasion::First, false));
    }

    #[tokio::test]
    async fn the_longest_unused_goes_first() {
        let volumes = volumes(2);
        for n in [1, 2, 1, 3] {
            mounted(&volumes, n, "c");
        }
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]).0, Occasion::Repeat);
        assert_eq!(volumes.occasion(Some(&volume(2)), &[0; 32]).0, Occasion::First);
    }

    #[tokio::test]
    async fn failures_displace_no_mounted_volume_and_are_bounded() {
        let volumes = volumes(2);
        mounted(&volumes, 1, "c");
        for n in 100..2000 {
            failed(&volumes, n, &format!("class-{n}"));
        }
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]).0, Occasion::Repeat);
        assert_eq!(volumes.views().len(), 1 + MOST_FAILED);
        failed(&volumes, 1, "c");
        assert_eq!(
            volumes.occasion(Some(&volume(1)), &[0; 32]).0,
            Occasion::Repeat,
            "a failure is no change"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn t34_a_class_is_told_while_it_is_asked_for_and_only_if_it_ever_succeeded() {
        let volumes = volumes(10);
        let classes = || volumes.classes().into_iter().map(|(_, class, _)| class).collect::<Vec<_>>();
        mounted(&volumes, 1, "good");
        failed(&volumes, 2, "never");
        assert_eq!((classes(), volumes.served()), (vec!["good".to_owned()], 1));
        let at = volumes.classes()[0].2;
        tokio::time::advance(GONE).await;
        failed(&volumes, 1, "good");
        assert_eq!(volumes.classes()[0].2, at, "the age grows while it fails");
        assert!(volumes.views().iter().any(|view| view.class == "good" && view.failing()));
        tokio::time::advance(GONE + Duration::from_secs(1)).await;
        assert_eq!((classes(), volumes.served()), (Vec::new(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_knows_when_the_store_was_asked() {
        let volumes = volumes(10);
        mounted(&volumes, 1, "c");
        let read = volumes.views()[0].read;
        tokio::time::advance(Duration::from_secs(5)).await;
        mounted(&volumes, 1, "c");
        let view = volumes.views().remove(0);
        assert_eq!((view.read, view.count, view.failing()), (read, 1, false));
        assert!(view.asked > read.unwrap());
    }
}

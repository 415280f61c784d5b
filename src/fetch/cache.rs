//! A bounded cache in which one flight serves many waiters.
//!
//! Invariants: keys are compared in full; a value counts as read at the moment its request was sent,
//! so a waiter never gets an answer to a question older than it allows; a flight runs in a task of its
//! own, so a cancelled caller cancels nobody else, and ends when nobody waits any more; errors go to
//! those who wait and are then forgotten; dropped values are wiped by their own types.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{Kind, Problem};

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Memory.
    Hit,
    /// A flight that was under way.
    Joined,
    /// A flight of this caller.
    Fetched,
}

/// What a flight brought.
pub struct Started<V> {
    /// The value.
    pub value: V,
    /// Its share of the cache's bound.
    pub weight: usize,
    /// Its own life.
    pub lasts: Duration,
}

/// When the current try of a flight was sent; empty while it waits.
#[derive(Clone, Default)]
pub struct Sent(Arc<Mutex<Option<Instant>>>);

impl Sent {
    /// Notes that a try goes out now.
    pub fn now(&self) {
        *self.lock() = Some(Instant::now());
    }

    fn at(&self) -> Option<Instant> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Outcome<V> = Option<Result<Arc<V>, Problem>>;

/// A request under way. Waiters hold it; the last one to let go ends its task.
struct Flight<V> {
    sent: Sent,
    outcome: watch::Receiver<Outcome<V>>,
    task: AbortHandle,
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Kept<V> {
    value: Arc<V>,
    read_at: Instant,
    ends_at: Option<Instant>,
    weight: usize,
}

struct Slot<V> {
    kept: Option<Kept<V>>,
    flight: Weak<Flight<V>>,
    used: u64,
}

struct Inner<K, V> {
    slots: HashMap<Arc<K>, Slot<V>>,
    order: BTreeMap<u64, Arc<K>>,
    clock: u64,
    weight: usize,
    /// Grows when everything is forgotten, so that flights from before leave nothing.
    epoch: u64,
}

/// The cache; see the module's page.
pub struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    most: usize,
}

impl<K: Eq + Hash + Send + Sync + 'static, V: Send + Sync + 'static> Cache<K, V> {
    /// Makes a cache that keeps weights up to `most`.
    pub fn new(most: usize) -> Self {
        let inner = Inner { slots: HashMap::new(), order: BTreeMap::new(), clock: 0, weight: 0, epoch: 0 };
        Self { inner: Mutex::new(inner), most }
    }

    /// The value for `key`, at most `max_age` old, from memory, from a flight under way, or from `start`.
    pub async fn get<F>(
        self: &Arc<Self>,
        key: K,
        max_age: Duration,
        start: impl FnOnce(Sent) -> F,
    ) -> Result<(Arc<V>, Served), Problem>
    where
        F: Future<Output = Result<Started<V>, Problem>> + Send + 'static,
    {
        self.get_by(key, max_age, |_| max_age, start).await
    }

    /// As [`Cache::get`], with an age that depends on the value.
    pub async fn get_by<F>(
        self: &Arc<Self>,
        key: K,
        max_age: Duration,
        accept: impl Fn(&V) -> Duration,
        start: impl FnOnce(Sent) -> F,
    ) -> Result<(Arc<V>, Served), Problem>
    where
        F: Future<Output = Result<Started<V>, Problem>> + Send + 'static,
    {
        let (flight, served) = {
            let mut inner = self.lock();
            let key = inner.touch(key);
            let now = Instant::now();
            let slot = inner.slots.get_mut(&key).expect("touch made the slot");
            if let Some(kept) = slot.kept.as_ref().filter(|kept| kept.serves(now, accept(&kept.value))) {
                return Ok((kept.value.clone(), Served::Hit));
            }
            match slot.flight.upgrade().filter(|flight| flight.joins(now, max_age)) {
                Some(flight) => (flight, Served::Joined),
                None => {
                    let epoch = inner.epoch;
                    let flight = self.launch(key.clone(), epoch, start);
                    if let Some(slot) = inner.slots.get_mut(&key) {
                        slot.flight = Arc::downgrade(&flight);
                    }
                    (flight, Served::Fetched)
                }
            }
        };
        let mut outcome = flight.outcome.clone();
        let answer = match outcome.wait_for(Option::is_some).await {
            Ok(value) => value.clone(),
            Err(_) => None,
        };
        match answer {
            Some(result) => result.map(|value| (value, served)),
            None => Err(Problem::new(Kind::Bug, "a shared read ended without an answer")),
        }
    }

    fn launch<F>(self: &Arc<Self>, key: Arc<K>, epoch: u64, start: impl FnOnce(Sent) -> F) -> Arc<Flight<V>>
    where
        F: Future<Output = Result<Started<V>, Problem>> + Send + 'static,
    {
        let sent = Sent::default();
        let (tell, outcome) = watch::channel(None);
        let (cache, stamp) = (Arc::downgrade(self), sent.clone());
        let work = AssertUnwindSafe(start(sent.clone())).catch_unwind();
        let task = tokio::spawn(async move {
            let brought = work.await.unwrap_or_else(|_| {
                Err(Problem::new(Kind::Bug, "reading from the store panicked")
                    .hint("please report it with the log of this node"))
            });
            let result = match brought {
                Ok(started) => Ok(keep(&cache, &key, epoch, &stamp, started)),
                Err(problem) => {
                    if let Some(cache) = cache.upgrade() {
                        cache.lock().forget_failed(&key, &stamp);
                    }
                    Err(problem)
                }
            };
            tell.send_replace(Some(result));
        });
        Arc::new(Flight { sent, outcome, task: task.abort_handle() })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.slots.clear();
        inner.order.clear();
        inner.weight = 0;
    }

    /// Forgets `value`, unless another one has taken its place.
    pub fn remove(&self, key: &K, value: &Arc<V>) {
        let mut inner = self.lock();
        let kept = inner.slots.get(key).and_then(|slot| slot.kept.as_ref());
        if !kept.is_some_and(|kept| Arc::ptr_eq(&kept.value, value)) {
            return;
        }
        if let Some(slot) = inner.slots.remove(key) {
            inner.order.remove(&slot.used);
            inner.weight -= slot.kept.map_or(0, |kept| kept.weight);
        }
    }

    /// Drops values older than `max_age`, and slots that hold nothing.
    pub fn sweep(&self, max_age: Duration) {
        let now = Instant::now();
        let mut inner = self.lock();
        let Inner { slots, order, weight, .. } = &mut *inner;
        slots.retain(|_, slot| {
            if let Some(old) = slot.kept.take_if(|kept| !kept.serves(now, max_age)) {
                *weight -= old.weight;
            }
            let used = slot.kept.is_some() || slot.flight.strong_count() > 0;
            if !used {
                order.remove(&slot.used);
            }
            used
        });
        slots.shrink_to_fit();
    }

    /// Values kept, and their weight.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.slots.len(), inner.weight)
    }

    /// Calls `see` with every value that is still good, and when its own life ends.
    pub fn each(&self, mut see: impl FnMut(&K, &V, Option<Instant>)) {
        let now = Instant::now();
        for (key, slot) in &self.lock().slots {
            if let Some(kept) = slot.kept.as_ref().filter(|kept| kept.ends_at.is_none_or(|end| now < end)) {
                see(key, &kept.value, kept.ends_at);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts what a flight brought into the cache, unless everything was forgotten meanwhile.
fn keep<K: Eq + Hash + Send + Sync + 'static, V: Send + Sync + 'static>(
    cache: &Weak<Cache<K, V>>,
    key: &Arc<K>,
    epoch: u64,
    sent: &Sent,
    started: Started<V>,
) -> Arc<V> {
    let value = Arc::new(started.value);
    let Some(cache) = cache.upgrade() else { return value };
    let read_at = sent.at().unwrap_or_else(Instant::now);
    let ends_at = Instant::now().checked_add(started.lasts);
    let mut inner = cache.lock();
    if inner.epoch == epoch {
        inner.insert(key, Kept { value: value.clone(), read_at, ends_at, weight: started.weight });
        inner.shrink_to(cache.most);
    }
    value
}

impl<V> Kept<V> {
    fn serves(&self, now: Instant, max_age: Duration) -> bool {
        let young = !max_age.is_zero() && now.duration_since(self.read_at) <= max_age;
        young && self.ends_at.is_none_or(|end| now < end)
    }
}

impl<V> Flight<V> {
    /// Whether its answer will be fresh enough for someone who comes now.
    fn joins(&self, now: Instant, max_age: Duration) -> bool {
        let open = self.outcome.borrow().is_none();
        open && self.sent.at().is_none_or(|sent| now.duration_since(sent) <= max_age)
    }
}

impl<K: Eq + Hash, V> Inner<K, V> {
    /// Finds or makes the slot and moves it to the end of the order of use.
    fn touch(&mut self, key: K) -> Arc<K> {
        self.clock += 1;
        let key = match self.slots.get_key_value(&key) {
            Some((known, slot)) => {
                let known = known.clone();
                self.order.remove(&slot.used);
                known
            }
            None => Arc::new(key),
        };
        let slot = self.slots.entry(key.clone()).or_insert(Slot { kept: None, flight: Weak::new(), used: 0 });
        slot.used = self.clock;
        self.order.insert(self.clock, key.clone());
        key
    }

    fn insert(&mut self, key: &Arc<K>, kept: Kept<V>) {
        // The slot is gone if it was removed while the flight was under way: then nothing is kept.
        if let Some(slot) = self.slots.get_mut(key) {
            let newer = slot.kept.as_ref().is_none_or(|old| old.read_at <= kept.read_at);
            if newer {
                self.weight += kept.weight;
                self.weight -= slot.kept.replace(kept).map_or(0, |old| old.weight);
            }
        }
    }

    /// Drops the slot that a failed flight leaves, unless it has a value or a newer flight.
    fn forget_failed(&mut self, key: &Arc<K>, sent: &Sent) {
        let Some(slot) = self.slots.get(key) else { return };
        let newer = slot.flight.upgrade().is_some_and(|flight| !Arc::ptr_eq(&flight.sent.0, &sent.0));
        if slot.kept.is_none() && !newer {
            self.order.remove(&slot.used);
            self.slots.remove(key);
        }
    }

    fn shrink_to(&mut self, most: usize) {
        while self.weight > most {
            let Some((_, key)) = self.order.pop_first() else { return };
            if let Some(slot) = self.slots.remove(&key) {
                self.weight -= slot.kept.map_or(0, |kept| kept.weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const AGE: Duration = Duration::from_secs(2);

    fn answer(value: u32, weight: usize) -> Result<Started<u32>, Problem> {
        Ok(Started { value, weight, lasts: Duration::MAX })
    }

    #[tokio::test(start_paused = true)]
    async fn t01_many_waiters_share_one_flight() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let count = Arc::new(AtomicUsize::new(0));
        let waiters = (0..100).map(|_| {
            let (cache, count) = (cache.clone(), count.clone());
            tokio::spawn(async move {
                cache
                    .get(1, AGE, |sent| async move {
                        sent.now();
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        count.fetch_add(1, Ordering::SeqCst);
                        answer(7, 1)
                    })
                    .await
            })
        });
        for waiter in futures_util::future::join_all(waiters).await {
            assert_eq!(*waiter.unwrap().unwrap().0, 7);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_leader_cancels_nobody_else() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let slow = |sent: Sent| async move {
            sent.now();
            tokio::time::sleep(Duration::from_secs(1)).await;
            answer(7, 1)
        };
        let leader = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(1, AGE, slow).await.map(|_| ()) }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let waiter = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(1, AGE, |_| async { answer(8, 1) }).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        leader.abort();
        assert_eq!(*waiter.await.unwrap().unwrap().0, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_ends_when_nobody_waits() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let done = Arc::new(AtomicUsize::new(0));
        let seen = done.clone();
        let call = cache.get(1, AGE, |_| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            seen.fetch_add(1, Ordering::SeqCst);
            answer(7, 1)
        });
        assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(done.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_question_is_not_joined() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let first = tokio::spawn({
            let cache = cache.clone();
            async move {
                cache
                    .get(1, AGE, |sent| async move {
                        sent.now();
                        tokio::time::sleep(Duration::from_secs(30)).await;
                        answer(1, 1)
                    })
                    .await
            }
        });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (value, served) = cache.get(1, AGE, |_| async { answer(2, 1) }).await.unwrap();
        assert_eq!((*value, served), (2, Served::Fetched));
        assert_eq!(*first.await.unwrap().unwrap().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_shared_and_forgotten() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let failed = cache.get(1, AGE, |_| async { Err(Problem::config("no")) }).await;
        assert!(failed.is_err());
        assert_eq!(cache.size(), (0, 0), "not even a slot is left");
        assert_eq!(*cache.get(1, AGE, |_| async { answer(2, 1) }).await.unwrap().0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_an_error_of_this_read() {
        let cache = Arc::new(Cache::<u8, u32>::new(1000));
        let failed = cache.get(1, AGE, |_| async { panic!("made to panic") }).await;
        assert_eq!(failed.unwrap_err().kind, Kind::Bug);
        assert_eq!(*cache.get(1, AGE, |_| async { answer(2, 1) }).await.unwrap().0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn values_age_and_the_least_used_go_first() {
        let cache = Arc::new(Cache::<u8, u32>::new(2));
        for key in [1, 2, 1, 3] {
            cache.get(key, AGE, |_| async move { answer(u32::from(key), 1) }).await.unwrap();
        }
        assert_eq!(cache.size().1, 2);
        assert_eq!(cache.get(1, AGE, |_| async { answer(9, 1) }).await.unwrap().1, Served::Hit);
        assert_eq!(cache.get(2, AGE, |_| async { answer(9, 1) }).await.unwrap().1, Served::Fetched);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(cache.get(2, AGE, |_| async { answer(9, 1) }).await.unwrap().1, Served::Fetched);
        cache.clear();
        assert_eq!(cache.size(), (0, 0));
    }
}

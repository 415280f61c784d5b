//! One limiter per store for all mounts of the node: bounded concurrency, and one pause for
//! everyone when the store asks for it, instead of everyone asking again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::error::{self, Kind, Problem};

/// Stores remembered; idle ones are dropped first.
const MOST_STORES: usize = 1024;

/// Times of requests kept for each store.
const MOST_TIMES: usize = 128;
/// Longest text of an error that is kept.
const MOST_TEXT: usize = 1 << 10;

struct Store {
    places: Arc<Semaphore>,
    held_until: Option<Instant>,
    traffic: Traffic,
}

/// What the requests to one store came to.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Requests answered, with or without success.
    pub requests: u64,
    /// Those without success.
    pub failures: u64,
    /// How long the latest ones took, in no order.
    pub times: VecDeque<Duration>,
    /// End of the latest with success.
    pub last_success: Option<Instant>,
    /// End and problem of the latest without.
    pub last_error: Option<(Instant, String)>,
}

/// A store, as the operator's page shows it.
#[derive(Debug, Clone)]
pub struct State {
    /// Its name.
    pub name: String,
    /// End of the pause that it asked for.
    pub held_until: Option<Instant>,
    /// Its requests.
    pub traffic: Traffic,
}

/// The limiters, by name of the store.
pub struct Limits {
    stores: Mutex<HashMap<String, Store>>,
    places: usize,
}

impl Limits {
    /// Allows `places` requests at once to each store.
    pub fn new(places: usize) -> Self {
        Self { stores: Mutex::new(HashMap::new()), places: places.max(1) }
    }

    /// Waits for the end of a pause and for a place. A pause beyond `until` is an error at once.
    pub async fn enter(&self, store: &str, until: Instant) -> Result<OwnedSemaphorePermit, Problem> {
        loop {
            let (places, held) = self.look(store);
            if let Some(held) = held.filter(|held| *held > Instant::now()) {
                if held >= until {
                    let wait = held.duration_since(Instant::now()).as_secs();
                    return Err(Problem::new(
                        Kind::Throttled,
                        format!("{store} is throttled (429) and asked to wait {wait}s more, which is longer than this call may take"),
                    )
                    .hint("wait, or raise the limits of the store"));
                }
                sleep_until(held).await;
                continue;
            }
            let place = places.acquire_owned().await.expect("the semaphore is never closed");
            // A pause may have begun while we waited for the place.
            if self.look(store).1.is_none_or(|held| held <= Instant::now()) {
                return Ok(place);
            }
        }
    }

    /// Lets nobody ask `store` before `until`.
    pub fn hold(&self, store: &str, until: Instant) {
        let mut stores = self.lock();
        if let Some(store) = stores.get_mut(store) {
            store.held_until = Some(store.held_until.map_or(until, |held| held.max(until)));
        }
    }

    /// Notes what a request came to.
    pub fn note(&self, store: &str, time: Duration, problem: Option<&Problem>) {
        let now = Instant::now();
        let text = problem.map(|problem| error::cut(problem.to_string(), MOST_TEXT));
        let mut stores = self.lock();
        let Some(store) = stores.get_mut(store) else { return };
        let traffic = &mut store.traffic;
        traffic.requests += 1;
        if traffic.times.len() >= MOST_TIMES {
            traffic.times.pop_front();
        }
        traffic.times.push_back(time);
        match text {
            Some(text) => {
                traffic.failures += 1;
                traffic.last_error = Some((now, text));
            }
            None => traffic.last_success = Some(now),
        }
    }

    /// All stores, by name.
    pub fn states(&self) -> Vec<State> {
        let stores = self.lock();
        let state = |(name, store): (&String, &Store)| State {
            name: name.clone(),
            held_until: store.held_until.filter(|held| *held > Instant::now()),
            traffic: store.traffic.clone(),
        };
        let mut states: Vec<_> = stores.iter().map(state).collect();
        states.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        states
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Store>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, store: &str) -> (Arc<Semaphore>, Option<Instant>) {
        let mut stores = self.lock();
        if stores.len() >= MOST_STORES && !stores.contains_key(store) {
            let now = Instant::now();
            stores.retain(|_, s| Arc::strong_count(&s.places) > 1 || s.held_until.is_some_and(|h| h > now));
        }
        let places = self.places;
        let store = stores.entry(store.to_owned()).or_insert_with(|| Store {
            places: Arc::new(Semaphore::new(places)),
            held_until: None,
            traffic: Traffic::default(),
        });
        (store.places.clone(), store.held_until)
    }
}

/// Wait before try `made + 1`: 0.8 s doubling to 10 s, with jitter of a third either way.
pub fn backoff(made: u32) -> Duration {
    let base = Duration::from_millis(800).saturating_mul(1 << made.saturating_sub(1).min(6));
    let mut byte = [0_u8];
    // Without random bytes the wait is merely not spread.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    base.min(Duration::from_secs(10)).mul_f64(0.67 + 0.66 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn t02_a_pause_holds_for_everyone() {
        let limits = Limits::new(8);
        let start = Instant::now();
        let far = start + Duration::from_secs(100);
        drop(limits.enter("kv", far).await.unwrap());
        limits.hold("kv", start + Duration::from_secs(7));
        drop(limits.enter("kv", far).await.unwrap());
        assert!(start.elapsed() >= Duration::from_secs(7));
        drop(limits.enter("other", far).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_beyond_the_deadline_fails_at_once() {
        let limits = Limits::new(8);
        let start = Instant::now();
        drop(limits.enter("kv", start + Duration::from_secs(9)).await.unwrap());
        limits.hold("kv", start + Duration::from_secs(60));
        let problem = limits.enter("kv", start + Duration::from_secs(9)).await.unwrap_err();
        assert_eq!(problem.kind, Kind::Throttled);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_requests_come_to_is_kept_within_bounds() {
        let limits = Limits::new(8);
        drop(limits.enter("kv", Instant::now() + Duration::from_secs(9)).await.unwrap());
        for n in 0..1000 {
            let problem = Problem::config("x".repeat(5000));
            limits.note("kv", Duration::from_millis(n), (n % 10 == 0).then_some(&problem));
        }
        limits.note("unknown", Duration::ZERO, None);
        let states = limits.states();
        let [State { name, traffic, .. }] = states.as_slice() else { panic!("{states:?}") };
        assert_eq!((name.as_str(), traffic.requests, traffic.failures), ("kv", 1000, 100));
        assert_eq!(traffic.times.len(), MOST_TIMES);
        assert!(traffic.last_error.as_ref().unwrap().1.len() < 2 * MOST_TEXT);
    }

    #[test]
    fn backoff_grows_and_is_bounded() {
        for made in 1..40 {
            assert!(backoff(made) <= Duration::from_millis(13_400), "{made}");
        }
    }
}

//! A stand-in's notion of now, which tests can shift so that expiry needs no waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that can be ahead of or behind the real one.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicI64>);

impl Clock {
    /// Tells the seconds since 1970.
    pub fn now(&self) -> u64 {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        real.saturating_add_signed(self.0.load(Ordering::Relaxed))
    }

    /// Moves the clock by some seconds, back if negative.
    pub fn shift(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Tells now as RFC 3339 text.
    pub fn text(&self) -> String {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.now())).to_string()
    }
}

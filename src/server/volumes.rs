//! Which volumes were mounted before, to tell a first mount from a repeat.
//!
//! A user who changes a secret and restarts pods must see the new value, while the driver asks again
//! for every volume each minute, changed or not (driver.md 9.2). A volume counts as seen once it was
//! mounted with success and with the same parameters.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::digest;

use super::request::Volume;
use crate::call::{Occasion, Parameters};

/// Hash of the parameters of a volume.
pub type Shape = [u8; 32];

struct Seen {
    shape: Shape,
    used: u64,
}

#[derive(Default)]
struct Inner {
    seen: HashMap<Volume, Seen>,
    order: BTreeMap<u64, Volume>,
    clock: u64,
}

/// The volumes seen, bounded; the longest unused goes first.
pub struct Volumes {
    inner: Mutex<Inner>,
    most: usize,
}

impl Volumes {
    /// Remembers up to `most` volumes.
    pub fn new(most: usize) -> Self {
        Self { inner: Mutex::new(Inner::default()), most: most.max(1) }
    }

    /// First mount or repeat.
    pub fn occasion(&self, volume: Option<&Volume>, shape: &Shape) -> Occasion {
        let inner = self.lock();
        match volume.and_then(|volume| inner.seen.get(volume)) {
            Some(seen) if seen.shape == *shape => Occasion::Repeat,
            _ => Occasion::First,
        }
    }

    /// Notes a success.
    pub fn note(&self, volume: Volume, shape: Shape) {
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        if let Some(old) = inner.seen.insert(volume.clone(), Seen { shape, used }) {
            inner.order.remove(&old.used);
        }
        inner.order.insert(used, volume);
        if inner.seen.len() > self.most
            && let Some((_, oldest)) = inner.order.pop_first()
        {
            inner.seen.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    fn volume(n: usize) -> Volume {
        Volume { target_path: format!("/v{n}"), pod_uid: "u".into() }
    }

    #[test]
    fn a_changed_class_is_a_first_mount() {
        let volumes = Volumes::new(10);
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]), Occasion::First);
        volumes.note(volume(1), [0; 32]);
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]), Occasion::Repeat);
        assert_eq!(volumes.occasion(Some(&volume(1)), &[1; 32]), Occasion::First);
        assert_eq!(volumes.occasion(None, &[0; 32]), Occasion::First);
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let volumes = Volumes::new(2);
        for n in [1, 2, 1, 3] {
            volumes.note(volume(n), [0; 32]);
        }
        assert_eq!(volumes.occasion(Some(&volume(1)), &[0; 32]), Occasion::Repeat);
        assert_eq!(volumes.occasion(Some(&volume(2)), &[0; 32]), Occasion::First);
    }
}

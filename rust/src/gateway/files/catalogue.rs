//! Which file holds a SOP Instance: a memory of bounded size for what the index said.

use std::sync::Arc;

use hashbrown::HashMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::base::fork_lock::ForkLock;

/// A number for a UID or a source and a UID; equal numbers mean equal names for all practical purposes, and
/// the file itself is asked for its UID before its bytes are sent.
pub fn digest(source: &str, uid: &str) -> u128 {
    xxh3_128_with_seed(uid.as_bytes(), xxh3_64(source.as_bytes()))
}

/// Paths by SOP Instance UID, within a budget of entries: those that were asked for last stay.
pub struct Catalogue {
    generations: ForkLock<Generations>,
    cap: usize,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u128, Arc<str>>,
    old: HashMap<u128, Arc<str>>,
}

impl Catalogue {
    /// At most `2 * cap` entries.
    pub fn new(cap: usize) -> Self {
        Self { generations: ForkLock::new(Generations::default()), cap }
    }

    /// The path of an instance.
    pub fn path(&self, name: u128) -> Option<Arc<str>> {
        let mut generations = self.generations.lock();
        if let Some(path) = generations.young.get(&name) {
            return Some(path.clone());
        }
        let path = generations.old.remove(&name)?;
        generations.insert(name, path.clone(), self.cap);
        Some(path)
    }

    /// Notes the path of an instance.
    pub fn put(&self, name: u128, path: &str) {
        self.generations.lock().insert(name, path.into(), self.cap);
    }

    /// Forgets an instance.
    pub fn forget(&self, name: u128) {
        let mut generations = self.generations.lock();
        generations.young.remove(&name);
        generations.old.remove(&name);
    }
}

impl Generations {
    fn insert(&mut self, name: u128, path: Arc<str>, cap: usize) {
        if self.young.len() >= cap {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_use_stay_and_the_number_is_bounded() {
        let catalogue = Catalogue::new(10);
        catalogue.put(0, "kept");
        for name in 1..1000 {
            catalogue.put(name, "x");
            assert_eq!(catalogue.path(0).as_deref(), Some("kept"));
            let generations = catalogue.generations.lock();
            assert!(generations.young.len() + generations.old.len() <= 21);
        }
        catalogue.forget(0);
        assert!(catalogue.path(0).is_none());
    }
}

//! Which file holds a SOP Instance: a memory of bounded size for what the index said.

use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Time for which an instance of which no better copy was found is taken to have none.
const IN_VAIN: Duration = Duration::from_secs(1);
/// Instances of which that is noted.
const MOST_NOTED: usize = 4096;

/// Instances whose copies were looked through in vain a moment ago: the index is not asked at every request.
pub struct InVain {
    noted: ForkLock<HashMap<u128, Instant>>,
}

impl Default for InVain {
    fn default() -> Self {
        Self { noted: ForkLock::new(HashMap::new()) }
    }
}

impl InVain {
    /// Whether it was noted a moment ago.
    pub fn holds(&self, name: u128) -> bool {
        self.noted.lock().get(&name).is_some_and(|noted| noted.elapsed() < IN_VAIN)
    }

    /// Notes an instance.
    pub fn note(&self, name: u128) {
        let mut noted = self.noted.lock();
        if noted.len() >= MOST_NOTED {
            noted.retain(|_, each| each.elapsed() < IN_VAIN);
        }
        if noted.len() < MOST_NOTED {
            noted.insert(name, Instant::now());
        }
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

    #[test]
    fn what_was_in_vain_is_forgotten_and_its_number_is_bounded() {
        let in_vain = InVain::default();
        in_vain.note(0);
        assert!(in_vain.noted.lock().contains_key(&0) && !in_vain.holds(1));
        let Some(before) = Instant::now().checked_sub(IN_VAIN) else { return };
        in_vain.noted.lock().insert(0, before);
        assert!(!in_vain.holds(0));
        (1..10_000).for_each(|name| in_vain.note(name));
        assert!(in_vain.noted.lock().len() <= MOST_NOTED);
    }
}

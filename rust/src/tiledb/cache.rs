//! Decoded chunks, kept within a byte budget; one flight per chunk.
//!
//! Second chance: a hit marks an entry, eviction passes a marked entry once. Counters are those of this
//! process, and true.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::blocks::Block;

/// Identity of a chunk: the state of the file that holds it, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Digest of path, size, modification time and inode.
    pub file: u128,
    /// Number within the file's index.
    pub chunk: u32,
}

/// Bookkeeping bytes charged for each entry beside its cells.
pub const OVERHEAD: u64 = 160;

/// Counters since the process began (or the cache was cleared).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks found decoded.
    pub hits: u64,
    /// Chunks that had to be decoded by a read that may use the cache.
    pub misses: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes of cells decoded.
    pub bytes_decoded: u64,
    /// Entries removed for others.
    pub evictions: u64,
    /// Bytes charged now.
    pub bytes_held: u64,
    /// Most bytes that may be charged.
    pub budget: u64,
    /// Entries now.
    pub entries: u64,
}

struct Entry {
    cells: Block,
    marked: bool,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry, RandomState>,
    queue: VecDeque<Key>,
    flying: HashSet<Key, RandomState>,
    stats: Stats,
}

/// The cache of one process.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
    landed: Condvar,
}

/// What a lookup found.
pub enum Found {
    /// The decoded cells.
    Cells(Block),
    /// The caller decodes, and then lands it.
    Decode,
    /// Another thread is decoding it: ask again with [`Cache::wait`].
    Flying,
}

impl Cache {
    /// An empty cache of `budget` bytes; 0 keeps nothing.
    pub fn new(budget: u64) -> Self {
        let cache = Self::default();
        cache.lock().stats.budget = budget;
        cache
    }

    // A panic while the lock is held cannot leave it inconsistent: no invariant spans two statements there.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the budget; evicts what no longer fits.
    pub fn set_budget(&self, budget: u64) {
        let mut state = self.lock();
        state.stats.budget = budget;
        state.shrink(0);
    }

    /// Current counters.
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { entries: state.entries.len() as u64, ..state.stats }
    }

    /// Forgets every entry and every counter.
    pub fn clear(&self) {
        let mut state = self.lock();
        let budget = state.stats.budget;
        (state.entries, state.queue) = (HashMap::default(), VecDeque::new());
        state.stats = Stats { budget, ..Stats::default() };
    }

    /// Counts work that bypassed or filled the cache.
    pub fn count(&self, bytes_read: u64, bytes_decoded: u64) {
        let mut state = self.lock();
        state.stats.bytes_read += bytes_read;
        state.stats.bytes_decoded += bytes_decoded;
    }

    /// Looks chunks up in one go. With `fly`, the caller becomes responsible for what is [`Found::Decode`].
    pub fn look_up(&self, keys: impl Iterator<Item = Key>, fly: bool) -> Vec<Found> {
        let mut state = self.lock();
        let state = &mut *state;
        let idle = state.stats.budget == 0;
        keys.map(|key| {
            if idle {
                return Found::Decode;
            }
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.marked = true;
                state.stats.hits += 1;
                return Found::Cells(entry.cells.clone());
            }
            if fly && !state.flying.insert(key) {
                return Found::Flying;
            }
            state.stats.misses += 1;
            Found::Decode
        })
        .collect()
    }

    /// Ends a flight; with cells, keeps them when they fit.
    pub fn land(&self, key: Key, cells: Option<Block>) {
        let mut state = self.lock();
        state.flying.remove(&key);
        if let Some(cells) = cells {
            state.insert(key, cells);
        }
        drop(state);
        self.landed.notify_all();
    }

    /// Waits until a flight has ended; None when it brought nothing that was kept.
    pub fn wait(&self, key: Key) -> Option<Block> {
        let mut state = self.lock();
        while state.flying.contains(&key) {
            state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let found = state.entries.get(&key).map(|entry| entry.cells.clone());
        match found {
            Some(_) => state.stats.hits += 1,
            None => state.stats.misses += 1,
        }
        found
    }
}

impl State {
    fn insert(&mut self, key: Key, cells: Block) {
        let weight = weight(&cells);
        if weight > self.stats.budget || self.entries.contains_key(&key) {
            return;
        }
        self.shrink(weight);
        self.stats.bytes_held += weight;
        self.entries.insert(key, Entry { cells, marked: false });
        self.queue.push_back(key);
    }

    /// Evicts until `room` more bytes fit.
    fn shrink(&mut self, room: u64) {
        while self.stats.bytes_held + room > self.stats.budget {
            let Some(key) = self.queue.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if std::mem::take(&mut entry.marked) {
                self.queue.push_back(key);
                continue;
            }
            self.stats.bytes_held -= weight(&entry.cells);
            self.stats.evictions += 1;
            self.entries.remove(&key);
        }
    }
}

fn weight(cells: &Block) -> u64 {
    cells.memory_bytes() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::blocks::AlignedBytes;
    use super::*;

    fn key(chunk: u32) -> Key {
        Key { file: 7, chunk }
    }

    fn cells(count: usize) -> Block {
        Block::Plain(Arc::new(AlignedBytes::zeroed(count)))
    }

    #[test]
    fn never_holds_more_than_the_budget_and_counts_truly() {
        let cache = Cache::new(10 * weight(&cells(128)));
        for chunk in 0..50 {
            assert!(matches!(cache.look_up([key(chunk)].into_iter(), true)[..], [Found::Decode]));
            cache.land(key(chunk), Some(cells(128)));
            assert!(cache.stats().bytes_held <= cache.stats().budget);
        }
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.evictions, stats.misses, stats.hits), (10, 40, 50, 0));
        cache.set_budget(0);
        assert_eq!((cache.stats().entries, cache.stats().bytes_held), (0, 0));
    }

    #[test]
    fn a_hit_survives_one_eviction() {
        let cache = Cache::new(2 * weight(&cells(64)));
        for chunk in 0..2 {
            cache.look_up([key(chunk)].into_iter(), true);
            cache.land(key(chunk), Some(cells(64)));
        }
        cache.look_up([key(0)].into_iter(), true);
        cache.look_up([key(2)].into_iter(), true);
        cache.land(key(2), Some(cells(64)));
        assert!(matches!(cache.look_up([key(0)].into_iter(), true)[..], [Found::Cells(_)]));
        assert!(matches!(cache.look_up([key(1)].into_iter(), false)[..], [Found::Decode]));
    }

    #[test]
    fn a_second_reader_waits_for_the_first() {
        let cache = Arc::new(Cache::new(1 << 20));
        cache.look_up([key(1)].into_iter(), true);
        assert!(matches!(cache.look_up([key(1)].into_iter(), true)[..], [Found::Flying]));
        let waiting = {
            let cache = Arc::clone(&cache);
            std::thread::spawn(move || cache.wait(key(1)).map(|c| c.memory_bytes()))
        };
        cache.land(key(1), Some(cells(3)));
        assert_eq!(waiting.join().unwrap(), Some(cells(3).memory_bytes()));
    }
}

//! The cache of decoded chunks of one process: a byte budget, and one decoder per chunk at a time.
//!
//! Eviction is "second chance": a hit marks an entry, and a marked entry is passed over once. A process that has
//! joined a [`Node`] stores the chunks of shared reads there; their chunks of one value, which take no memory, stay
//! here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;

use super::super::codec::Cells;
use super::super::output::scatter::Target;
use super::super::runs::Run;
use super::key::Key;
use super::node::{Node, Shared};
use super::slabs::{Slabs, Slot};

/// Bytes charged for each entry beside its cells, for the maps that hold it.
pub const OVERHEAD: u64 = 160;

/// Counters since the process began or the cache was cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks that were in the cache.
    pub hits: u64,
    /// Chunks that were not, although the read may use the cache.
    pub misses: u64,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Bytes of cells decoded.
    pub bytes_decoded: u64,
    /// Entries removed to make room.
    pub evictions: u64,
    /// Bytes that all entries are charged with now.
    pub bytes_held: u64,
    /// Most bytes that all entries may be charged with.
    pub budget: u64,
    /// Number of entries now.
    pub entries: u64,
}

/// The cells of a decoded chunk in memory of their own; cells of one value take none.
#[derive(Clone, Debug)]
pub enum Block {
    /// Cell after cell.
    Plain(Arc<Slot>),
    /// Cell after cell, in memory that other processes use too.
    Shared(Shared),
    /// Cells of one value, as [`Cells::Constant`].
    Constant([u8; 8], usize),
}

impl Block {
    /// Bytes of memory that the cells take.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Plain(slot) => slot.memory_bytes(),
            Self::Shared(_) | Self::Constant(..) => 0,
        }
    }

    /// The cells, to copy from.
    pub fn cells(&self) -> Cells<'_> {
        match self {
            Self::Plain(slot) => Cells::Plain(slot.bytes()),
            Self::Shared(shared) => shared.cells(),
            Self::Constant(value, bytes) => Cells::Constant(*value, *bytes),
        }
    }

    /// Whether what was copied from the cells counts: other processes may take shared memory away.
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Shared(shared) => shared.is_valid(),
            Self::Plain(_) | Self::Constant(..) => true,
        }
    }
}

struct Entry {
    cells: Block,
    marked: bool,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry, RandomState>,
    queue: VecDeque<Key>,
    in_progress: HashSet<Key, RandomState>,
    stats: Stats,
}

/// The cache of one process.
#[derive(Default)]
pub struct Cache {
    state: Mutex<State>,
    finished: Condvar,
    slabs: Arc<Slabs>,
    node: OnceLock<&'static Node>,
    shares_all: AtomicBool,
}

/// The answer to a look-up of one chunk.
pub enum Lookup {
    /// The chunk is here, decoded.
    Cells(Block),
    /// The chunk is not here: the caller decodes it and reports with [`Cache::finish`].
    Decode,
    /// Another thread is decoding the chunk: wait with [`Cache::wait`].
    InProgress,
}

impl Cache {
    /// An empty cache of `budget` bytes; a budget of 0 keeps nothing.
    pub fn new(budget: u64) -> Self {
        let cache = Self::default();
        cache.lock().stats.budget = budget;
        cache
    }

    // A poisoned lock is safe to use: no invariant spans two statements under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the budget and evicts entries until it holds.
    pub fn set_budget(&self, budget: u64) {
        let mut state = self.lock();
        state.stats.budget = budget;
        state.shrink(0);
        drop(state);
        self.slabs.trim(budget);
    }

    /// Takes up shared memory for the reads that ask for it, with `every_read` for all; the first memory stays.
    pub fn join(&self, node: &'static Node, every_read: bool) {
        let _ = self.node.set(node);
        self.shares_all.fetch_or(every_read, Ordering::Relaxed);
    }

    /// The shared memory, if this process has joined one.
    pub fn node(&self) -> Option<&'static Node> {
        self.node.get().copied()
    }

    fn node_for(&self, shared: bool) -> Option<&'static Node> {
        self.node().filter(|_| shared || self.shares_all.load(Ordering::Relaxed))
    }

    /// Copies cells of `cell` (1, 2, 4 or 8) bytes into memory of the cache; `None` when there is none.
    pub fn copy_of(&self, key: Key, cells: Cells<'_>, cell: usize, shared: bool) -> Option<Block> {
        if let Cells::Constant(value, bytes) = cells {
            return Some(Block::Constant(value, bytes));
        }
        let count = (cells.len() / cell) as u64;
        let all = Run { count, ..Run::ONE };
        // SAFETY: the only view of memory that is written here alone.
        let copy = |out: &mut [u8]| unsafe { Target::new(out, cell).copy(&all, cells, 0) };
        if let Some(node) = self.node_for(shared) {
            return node.insert(key, cells.len(), copy).map(Block::Shared);
        }
        let budget = self.lock().stats.budget;
        let mut slot = self.slabs.take(cells.len(), budget)?;
        copy(slot.bytes_mut());
        Some(Block::Plain(Arc::new(slot)))
    }

    /// Bytes of memory that decoded chunks take now, those that wait for reuse included.
    pub fn resident(&self) -> u64 {
        self.slabs.resident()
    }

    /// Current counters.
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { entries: state.entries.len() as u64, ..state.stats }
    }

    /// Removes every entry and resets every counter.
    pub fn clear(&self) {
        let mut state = self.lock();
        let budget = state.stats.budget;
        (state.entries, state.queue) = (HashMap::default(), VecDeque::new());
        state.stats = Stats { budget, ..Stats::default() };
        drop(state);
        self.slabs.trim(0);
    }

    /// Adds bytes read and decoded to the counters.
    pub fn count(&self, bytes_read: u64, bytes_decoded: u64) {
        let mut state = self.lock();
        state.stats.bytes_read += bytes_read;
        state.stats.bytes_decoded += bytes_decoded;
    }

    /// Looks up many chunks under one lock.
    ///
    /// With `claim`, other readers wait for every chunk that is answered with [`Lookup::Decode`].
    pub fn look_up(&self, keys: impl Iterator<Item = Key>, claim: bool, shared: bool) -> Vec<Lookup> {
        let node = self.node_for(shared);
        let mut state = self.lock();
        let state = &mut *state;
        let is_off = state.stats.budget == 0 && node.is_none();
        keys.map(|key| {
            if is_off {
                return Lookup::Decode;
            }
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.marked = true;
                state.stats.hits += 1;
                return Lookup::Cells(entry.cells.clone());
            }
            if let Some(shared) = node.and_then(|node| node.find(key)) {
                state.stats.hits += 1;
                return Lookup::Cells(Block::Shared(shared));
            }
            if claim && !state.in_progress.insert(key) {
                return Lookup::InProgress;
            }
            state.stats.misses += 1;
            Lookup::Decode
        })
        .collect()
    }

    /// Ends the claim on a chunk and wakes waiters; keeps its cells when they fit into the budget.
    pub fn finish(&self, key: Key, cells: Option<Block>) {
        let mut state = self.lock();
        state.in_progress.remove(&key);
        if let Some(cells) = cells.filter(|cells| !matches!(cells, Block::Shared(_))) {
            state.insert(key, cells);
        }
        drop(state);
        self.finished.notify_all();
    }

    /// Waits until nobody decodes the chunk; `None` when its cells were not kept.
    pub fn wait(&self, key: Key, shared: bool) -> Option<Block> {
        let mut state = self.lock();
        while state.in_progress.contains(&key) {
            state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let found = state.entries.get(&key).map(|entry| entry.cells.clone());
        let found =
            found.or_else(|| self.node_for(shared).and_then(|node| node.find(key)).map(Block::Shared));
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

    /// Evicts entries until `room` more bytes fit.
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
    use super::*;

    fn key(chunk: u32) -> Key {
        Key { file: 7, chunk }
    }

    fn cells(count: usize) -> Block {
        Cache::new(0).copy_of(key(0), Cells::Plain(&vec![7; count]), 1, false).unwrap()
    }

    #[test]
    fn stays_within_the_budget_and_counts_evictions() {
        let cache = Cache::new(10 * weight(&cells(128)));
        for chunk in 0..50 {
            assert!(matches!(cache.look_up([key(chunk)].into_iter(), true, false)[..], [Lookup::Decode]));
            cache.finish(key(chunk), Some(cells(128)));
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
            cache.look_up([key(chunk)].into_iter(), true, false);
            cache.finish(key(chunk), Some(cells(64)));
        }
        cache.look_up([key(0)].into_iter(), true, false);
        cache.look_up([key(2)].into_iter(), true, false);
        cache.finish(key(2), Some(cells(64)));
        assert!(matches!(cache.look_up([key(0)].into_iter(), true, false)[..], [Lookup::Cells(_)]));
        assert!(matches!(cache.look_up([key(1)].into_iter(), false, false)[..], [Lookup::Decode]));
    }

    #[test]
    fn a_second_reader_waits_for_the_first() {
        let cache = Arc::new(Cache::new(1 << 20));
        cache.look_up([key(1)].into_iter(), true, false);
        assert!(matches!(cache.look_up([key(1)].into_iter(), true, false)[..], [Lookup::InProgress]));
        let waiting = {
            let cache = Arc::clone(&cache);
            std::thread::spawn(move || cache.wait(key(1), false).map(|c| c.memory_bytes()))
        };
        cache.finish(key(1), Some(cells(3)));
        assert_eq!(waiting.join().unwrap(), Some(cells(3).memory_bytes()));
    }
}

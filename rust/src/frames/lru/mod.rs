//! The bookkeeping of tier 1: which entries stay within a budget of bytes.
//!
//! One least-recently-used list a class, slots in a slab, an index of 32-bit slot numbers. No clock, no
//! lock, no Python: the time comes in, the lock is around it ([`crate::frames::cache`]).
//!
//! Invariants, checked by [`Lru::validate`] under test after every operation:
//! - `used` is the sum of the entries' weights and of the pending accesses, and never exceeds `budget`,
//!   not even within an operation: first evict, then insert.
//! - The accesses of a key are in one place until they are drained: its slot, or else [`Pending`].

mod accesses;
mod accounts;
mod bytes;
mod index;
mod slab;
#[cfg(test)]
mod tests;
mod validate;

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;

pub use accounts::{Access, Cause, Class, Counters, Evicted, EvictionLog, Pending};
use bytes::Bytes;
use index::Index;
use slab::Slab;
pub use slab::{KEY_CAP, META_CAP, NIL, Record, Slot};

/// How a record shall be stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Put {
    /// Its class; a scan never demotes an entry that is there.
    pub class: Class,
    /// The last access that the database knows of (µs), 0 if none.
    pub used_at: i64,
    /// Set for preloading: enter as the *oldest* entry, evict nothing, leave live entries alone, and
    /// keep `used` below this.
    pub preload_limit: Option<u64>,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is in.
    Yes,
    /// Larger than one entry may be; an old value of that key is gone.
    Oversize,
    /// No room that it may take.
    NoRoom,
    /// A preloaded record met a live entry, which won.
    Exists,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// A bulk reader (a training epoch): neither promotes nor counts.
    pub scan: bool,
    /// Microseconds since 1970.
    pub now: i64,
}

/// An entry on its way out.
struct Removed {
    record: Bytes,
    key_len: usize,
    accesses: Option<(u32, i64)>,
}

/// A weighted least-recently-used set of records.
pub struct Lru {
    slab: Slab,
    index: Index,
    hasher: RandomState,
    budget: u64,
    max_entry_fraction: f64,
    debounce_us: u64,
    entries_bytes: u64,
    class_bytes: [u64; 3],
    dirty: usize,
    counters: Counters,
    log: EvictionLog,
    pending: Pending,
}

impl Lru {
    /// Accounted bytes of an entry beside its record: the slot, and its bucket in an index that is half full.
    pub const OVERHEAD: u64 = size_of::<Slot>() as u64 + 24;

    /// An empty set. `debounce_us`: accesses closer together count once.
    pub fn new(budget: u64, max_entry_fraction: f64, debounce_us: u64) -> Self {
        Self {
            slab: Slab::default(),
            index: Index::default(),
            hasher: RandomState::default(),
            budget,
            max_entry_fraction,
            debounce_us,
            entries_bytes: 0,
            class_bytes: [0; 3],
            dirty: 0,
            counters: Counters::default(),
            log: EvictionLog::default(),
            pending: Pending::default(),
        }
    }

    /// Bytes that may be used.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes that are used: records, overhead, pending accesses.
    pub fn used(&self) -> u64 {
        self.entries_bytes + self.pending.bytes()
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.slab.live()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the entries of one class.
    pub fn class_bytes(&self, class: Class) -> u64 {
        self.class_bytes.get(class as usize).copied().unwrap_or_default()
    }

    /// Entries and departed keys with accesses to drain.
    pub fn dirty(&self) -> usize {
        self.dirty + self.pending.keys()
    }

    /// Accounted bytes of the accesses of departed entries.
    pub fn pending_bytes(&self) -> u64 {
        self.pending.bytes()
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The log of evictions.
    pub fn log(&mut self) -> &mut EvictionLog {
        &mut self.log
    }

    /// The weight of a record of so many bytes: what the heap takes for it, since that is what the budget buys.
    pub fn weight(bytes: usize) -> u64 {
        Bytes::taken(bytes) + Self::OVERHEAD
    }

    /// The entry of a key, as a look-up: counts, promotes.
    #[inline]
    pub fn get(&mut self, key: &[u8], request: Request) -> Option<&Slot> {
        let Some(id) = self.find(key) else {
            self.counters.misses += 1;
            return None;
        };
        self.counters.hits += 1;
        if !request.scan {
            self.access(id, request.now);
        }
        Some(self.slab.slot(id))
    }

    /// The entry of a key, without any trace.
    pub fn peek(&self, key: &[u8]) -> Option<&Slot> {
        self.find(key).map(|id| self.slab.slot(id))
    }

    /// A number for [`Lru::touch`]: valid until the entry leaves, never that of another key.
    pub fn id(&self, key: &[u8]) -> Option<u64> {
        self.find(key).map(|id| self.public_id(id))
    }

    /// Look-ups of many ids; those of departed entries are misses. Returns the hits.
    pub fn touch(&mut self, ids: &[u64], request: Request) -> usize {
        const AHEAD: usize = 12;
        const NEIGHBOURS_AHEAD: usize = 5;
        let mut hits = 0;
        for (position, &id) in ids.iter().enumerate() {
            if let Some(&soon) = ids.get(position + AHEAD) {
                self.slab.prefetch(soon as u32);
            }
            if let Some(&next) = ids.get(position + NEIGHBOURS_AHEAD) {
                self.slab.prefetch_neighbours(next as u32);
            }
            if self.slab.checked(id as u32, (id >> 32) as u32).is_some() {
                hits += 1;
                if !request.scan {
                    self.access(id as u32, request.now);
                }
            }
        }
        self.counters.hits += hits as u64;
        self.counters.misses += (ids.len() - hits) as u64;
        hits
    }

    /// Stores a record under its key, replacing an older one.
    pub fn put(&mut self, record: Record, put: Put) -> Stored {
        let weight = Self::weight(record.bytes.len());
        let hash = self.hash(record.key());
        let old = self.find_hashed(hash, record.key());
        if old.is_some() && put.preload_limit.is_some() {
            return Stored::Exists;
        }
        let class = match old.map(|id| self.slab.slot(id).class()) {
            Some(existing) if put.class == Class::Scan => existing,
            _ => put.class,
        };
        let used_at = old.map_or(0, |id| self.slab.slot(id).used_at).max(put.used_at);
        let carried = match old {
            Some(id) => self.remove_slot(id, Cause::Replaced).accesses,
            None => self.pending.take(record.key()),
        };
        let verdict = self.admit(weight, class, put.preload_limit);
        if verdict != Stored::Yes {
            self.stash(record.key(), carried);
            return verdict;
        }
        let Some(id) = self.slab.add(record, class, put.preload_limit.is_some()) else {
            return Stored::NoRoom;
        };
        self.index.insert(hash, id);
        self.grow(class, weight);
        let slot = self.slab.slot_mut(id);
        slot.used_at = used_at;
        if let Some((count, last)) = carried {
            slot.delta = count;
            slot.used_at = slot.used_at.max(last);
            self.dirty += usize::from(slot.set_dirty(true));
        }
        Stored::Yes
    }

    /// Removes a key; true if it was there. Its accesses stay to be drained.
    pub fn invalidate(&mut self, key: &[u8]) -> bool {
        let found = self.find(key);
        if let Some(id) = found {
            self.evict(id, Cause::Invalidated);
        }
        found.is_some()
    }

    /// Moves the budget towards `target`, evicting at most `most` entries; true when it is reached.
    pub fn resize_step(&mut self, target: u64, most: usize) -> bool {
        for _ in 0..most {
            if self.used() <= target {
                break;
            }
            let pinned = self.slab.oldest(Class::Pinned);
            match self.victim().or((pinned != NIL).then_some(pinned)) {
                Some(id) => self.evict(id, Cause::Resize),
                None => {
                    let lost = self.pending.drain();
                    self.counters.access_dropped +=
                        lost.iter().map(|lost| u64::from(lost.count)).sum::<u64>();
                }
            }
        }
        self.budget = target.max(self.used());
        self.budget == target
    }

    /// Keys from the most to the least recently used, class by class (normal, scan, pinned).
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        [Class::Normal, Class::Scan, Class::Pinned].into_iter().flat_map(|class| {
            let first = self.slab.newest(class);
            std::iter::successors((first != NIL).then_some(first), |&id| {
                let older = self.slab.slot(id).older;
                (older != NIL).then_some(older)
            })
            .map(|id| self.slab.slot(id).key())
        })
    }

    #[inline]
    fn find(&self, key: &[u8]) -> Option<u32> {
        self.find_hashed(self.hash(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.index.find(hash, |id| {
            let slot = self.slab.slot(id);
            // The neighbours will be relinked: their cache misses shall overlap that of the key.
            self.slab.prefetch(slot.older);
            self.slab.prefetch(slot.newer);
            slot.key() == key
        })
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        let hash = hasher.finish();
        (hash ^ hash >> 32) as u32
    }

    fn public_id(&self, id: u32) -> u64 {
        u64::from(self.slab.slot(id).generation) << 32 | u64::from(id)
    }

    /// Whether an entry of that weight may enter, after evicting what must go for it.
    fn admit(&mut self, weight: u64, class: Class, preload_limit: Option<u64>) -> Stored {
        if weight as f64 > self.max_entry_fraction * self.budget as f64 {
            self.counters.rejected_oversize += 1;
            return Stored::Oversize;
        }
        if let Some(limit) = preload_limit {
            let fits = self.used() + weight <= limit.min(self.budget);
            return if fits { Stored::Yes } else { Stored::NoRoom };
        }
        let pinned = self.class_bytes(Class::Pinned);
        let refused = match class {
            Class::Scan if self.used() + weight > self.budget => &mut self.counters.rejected_scan,
            Class::Pinned if pinned + weight > self.budget / 2 => &mut self.counters.rejected_pinned,
            _ if pinned + self.pending.bytes() + weight > self.budget => &mut self.counters.rejected_pinned,
            _ if self.make_room(weight) => return Stored::Yes,
            _ => &mut self.counters.rejected_pinned,
        };
        *refused += 1;
        Stored::NoRoom
    }

    fn make_room(&mut self, weight: u64) -> bool {
        while self.used() + weight > self.budget {
            match self.victim() {
                Some(id) => self.evict(id, Cause::Capacity),
                None => return false,
            }
        }
        true
    }

    fn victim(&self) -> Option<u32> {
        [Class::Scan, Class::Normal].map(|class| self.slab.oldest(class)).into_iter().find(|&id| id != NIL)
    }

    fn evict(&mut self, id: u32, cause: Cause) {
        let removed = self.remove_slot(id, cause);
        // Who needs room for one needs it for the next: its key shall be here by then.
        self.slab.prefetch_key(self.slab.oldest(Class::Normal));
        let key = removed.record.as_slice().get(..removed.key_len).unwrap_or_default();
        self.stash(key, removed.accesses);
    }

    /// Takes an entry out of every list and sum; its accesses are the caller's now.
    fn remove_slot(&mut self, id: u32, cause: Cause) -> Removed {
        let slot = self.slab.slot(id);
        let (class, weight) = (slot.class(), Self::weight(slot.record.len()));
        let hash = self.hash(slot.key());
        let key_len = slot.key().len();
        let accesses = slot.is_dirty().then_some((slot.delta, slot.used_at));
        self.log.push(Evicted { id: self.public_id(id), weight, cause, class });
        if let Some(count) = self.counters.evicted.get_mut(cause as usize) {
            *count += 1;
        }
        self.dirty -= usize::from(accesses.is_some());
        self.index.remove(hash, id);
        self.shrink(class, weight);
        Removed { record: self.slab.take(id), key_len, accesses }
    }

    fn grow(&mut self, class: Class, weight: u64) {
        self.entries_bytes += weight;
        if let Some(bytes) = self.class_bytes.get_mut(class as usize) {
            *bytes += weight;
        }
    }

    fn shrink(&mut self, class: Class, weight: u64) {
        self.entries_bytes -= weight;
        if let Some(bytes) = self.class_bytes.get_mut(class as usize) {
            *bytes -= weight;
        }
    }
}

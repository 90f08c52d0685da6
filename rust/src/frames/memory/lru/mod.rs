//! A least-recently-used set of records within a budget of bytes: what tier 1 keeps.
//!
//! Entries are slots of a slab, linked in one list for each class and found by an index of 32-bit slot
//! numbers. The caller passes the time in and holds a lock ([`crate::frames::memory::cache`]).
//!
//! Invariants, checked by [`Lru::validate`] after every operation under test:
//! - `used` is the sum of the weights of entries and pending accesses. It never exceeds `budget`, not even
//!   within an operation: eviction comes before insertion.
//! - Until they are drained, the accesses of a key are counted in one place: its slot, or [`Pending`].

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

pub use accounts::{Access, Cause, Class, Counters, Eviction, EvictionLog, Pending};
use bytes::Bytes;
use index::Index;
use slab::Slab;
pub use slab::{KEY_CAP, META_CAP, NIL, Record, Slot};

/// How to store a record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Put {
    /// Its class; a put of class scan never demotes an existing entry.
    pub class: Class,
    /// Last access according to the database, in microseconds since 1970; 0 for none.
    pub used_at: i64,
    /// For preloading: the bytes that may be used. The record enters as the *oldest* entry; nothing is
    /// evicted and no existing entry is replaced.
    pub preload_limit: Option<u64>,
}

/// The outcome of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The record was stored.
    Stored,
    /// The record is larger than one entry may be; an older value of its key was removed.
    Oversize,
    /// There was no room that a record of its class may take.
    NoRoom,
    /// A record of a preload found an entry of its key, which stays.
    Exists,
}

/// How a look-up counts.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whether it belongs to a scan (a training epoch), which neither promotes nor counts.
    pub scan: bool,
    /// Microseconds since 1970.
    pub now: i64,
}

/// An entry that was taken out of the slab, and its accesses that were not drained: count and last time.
struct Removal {
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
    /// Accounted bytes of an entry beside its record: a slot, and the buckets of an index that is half full.
    pub const OVERHEAD: u64 = size_of::<Slot>() as u64 + 24;

    /// An empty set. An entry takes at most `max_entry_fraction` of the budget; accesses of a key that are
    /// less than `debounce_us` apart count once.
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

    /// Accounted bytes that may be used.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Accounted bytes in use: records, overhead, pending accesses.
    pub fn used(&self) -> u64 {
        self.entries_bytes + self.pending.bytes()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.slab.live()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Accounted bytes of the entries of one class.
    pub fn class_bytes(&self, class: Class) -> u64 {
        self.class_bytes.get(class as usize).copied().unwrap_or_default()
    }

    /// Number of keys with accesses to drain, whether their entries are here or were removed.
    pub fn dirty(&self) -> usize {
        self.dirty + self.pending.keys()
    }

    /// Accounted bytes of the accesses of removed entries.
    pub fn pending_bytes(&self) -> u64 {
        self.pending.bytes()
    }

    /// The counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The log of evictions.
    pub fn log(&mut self) -> &mut EvictionLog {
        &mut self.log
    }

    /// The weight of a record of `bytes` bytes: what the heap takes for it, and the overhead.
    pub fn weight(bytes: usize) -> u64 {
        Bytes::heap_size(bytes) + Self::OVERHEAD
    }

    /// Looks up the entry of a key: counts the access and promotes the entry.
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

    /// Returns the entry of a key without counting or promoting.
    pub fn peek(&self, key: &[u8]) -> Option<&Slot> {
        self.find(key).map(|id| self.slab.slot(id))
    }

    /// A number for [`Lru::touch`]: valid until the entry is removed, and never that of another key.
    pub fn id(&self, key: &[u8]) -> Option<u64> {
        self.find(key).map(|id| self.public_id(id))
    }

    /// Looks up many ids; those of removed entries are misses. Returns the number of hits.
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
            if self.slab.current(id as u32, (id >> 32) as u32).is_some() {
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
    pub fn put(&mut self, record: Record, put: Put) -> PutOutcome {
        let weight = Self::weight(record.size());
        let hash = self.hash(record.key());
        let old = self.find_hashed(hash, record.key());
        if old.is_some() && put.preload_limit.is_some() {
            return PutOutcome::Exists;
        }
        let class = match old.map(|id| self.slab.slot(id).class()) {
            Some(existing) if put.class == Class::Scan => existing,
            _ => put.class,
        };
        let used_at = old.map_or(0, |id| self.slab.slot(id).used_at).max(put.used_at);
        let accesses = match old {
            Some(id) => self.remove_slot(id, Cause::Replaced).accesses,
            None => self.pending.take(record.key()),
        };
        let outcome = self.admit(weight, class, put.preload_limit);
        if outcome != PutOutcome::Stored {
            self.keep_accesses(record.key(), accesses);
            return outcome;
        }
        let Some(id) = self.slab.add(record, class, put.preload_limit.is_some()) else {
            return PutOutcome::NoRoom;
        };
        self.index.insert(hash, id);
        self.grow(class, weight);
        let slot = self.slab.slot_mut(id);
        slot.used_at = used_at;
        if let Some((count, last)) = accesses {
            slot.delta = count;
            slot.used_at = slot.used_at.max(last);
            self.dirty += usize::from(slot.set_dirty(true));
        }
        PutOutcome::Stored
    }

    /// Removes a key and returns whether it was there; its accesses can still be drained.
    pub fn invalidate(&mut self, key: &[u8]) -> bool {
        let found = self.find(key);
        if let Some(id) = found {
            self.evict(id, Cause::Invalidated);
        }
        found.is_some()
    }

    /// Moves the budget towards `target` by at most `most` evictions; returns whether it is reached.
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

    /// The keys from the most to the least recently used, class by class (normal, scan, pinned).
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

    /// Appends last use and id ([`Lru::id`]) of the entries in the slots `from..from + most`; returns the next
    /// `from`, `None` at the end.
    pub fn ids_step(&mut self, from: u32, most: u32, out: &mut Vec<(i64, u64)>) -> Option<u32> {
        let end = from.saturating_add(most);
        for id in from..end.min(self.slab.len() as u32) {
            if let Some(slot) = self.slab.live_slot(id) {
                out.push((slot.used_at, u64::from(slot.generation) << 32 | u64::from(id)));
            }
        }
        ((end as usize) < self.slab.len()).then_some(end)
    }

    /// The entry of an id, unless it was removed.
    pub fn slot_of(&self, id: u64) -> Option<&Slot> {
        self.slab.current(id as u32, (id >> 32) as u32)
    }

    #[inline]
    fn find(&self, key: &[u8]) -> Option<u32> {
        self.find_hashed(self.hash(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u32, key: &[u8]) -> Option<u32> {
        self.index.find(hash, |id| {
            let slot = self.slab.slot(id);
            // The neighbours will be relinked: fetch them while the key is fetched.
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

    /// Makes room for an entry of that weight, or says why it may not enter.
    fn admit(&mut self, weight: u64, class: Class, preload_limit: Option<u64>) -> PutOutcome {
        if weight as f64 > self.max_entry_fraction * self.budget as f64 {
            self.counters.rejected_oversize += 1;
            return PutOutcome::Oversize;
        }
        if let Some(limit) = preload_limit {
            let fits = self.used() + weight <= limit.min(self.budget);
            return if fits { PutOutcome::Stored } else { PutOutcome::NoRoom };
        }
        let pinned = self.class_bytes(Class::Pinned);
        let rejections = match class {
            Class::Scan if self.used() + weight > self.budget => &mut self.counters.rejected_scan,
            Class::Pinned if pinned + weight > self.budget / 2 => &mut self.counters.rejected_pinned,
            _ if pinned + self.pending.bytes() + weight > self.budget => &mut self.counters.rejected_pinned,
            _ if self.make_room(weight) => return PutOutcome::Stored,
            _ => &mut self.counters.rejected_pinned,
        };
        *rejections += 1;
        PutOutcome::NoRoom
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
        let removal = self.remove_slot(id, cause);
        // More evictions are likely to follow: fetch the next key now.
        self.slab.prefetch_key(self.slab.oldest(Class::Normal));
        let key = removal.record.as_slice().get(..removal.key_len).unwrap_or_default();
        self.keep_accesses(key, removal.accesses);
    }

    /// Takes an entry out of every list and sum; the caller takes over its accesses.
    fn remove_slot(&mut self, id: u32, cause: Cause) -> Removal {
        let slot = self.slab.slot(id);
        let (class, weight) = (slot.class(), Self::weight(slot.record.len()));
        let hash = self.hash(slot.key());
        let key_len = slot.key().len();
        let accesses = slot.is_dirty().then_some((slot.delta, slot.used_at));
        self.log.push(Eviction { id: self.public_id(id), weight, cause, class });
        if let Some(count) = self.counters.evicted.get_mut(cause as usize) {
            *count += 1;
        }
        self.dirty -= usize::from(accesses.is_some());
        self.index.remove(hash, id);
        self.shrink(class, weight);
        Removal { record: self.slab.take(id), key_len, accesses }
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

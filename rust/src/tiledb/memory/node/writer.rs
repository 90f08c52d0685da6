//! The one writer of the shared memory: room for new chunks, eviction by second chance, recovery.

use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fcntl_lock};
use rustix::io::Errno;

use super::super::key::Key;
use super::{
    AT_CHANGING, AT_EVICTIONS, AT_FRESH, AT_HAND, AT_USED, CLASSES, HEADER, LEAST, LINE, MARK, Node,
    PER_SLAB, SLAB, Shared, WORDS, class_of, index_words, slots, table_bytes,
};

/// Entries that a writer looks at for room.
const LOOKS: usize = 4096;
/// Attempts to get the lock of another process, each a turn of the scheduler.
const ATTEMPTS: usize = 64;

impl Node {
    /// Stores a chunk of `bytes` bytes, which `fill` writes; `None` where there is no room, or another process
    /// writes for long.
    pub fn insert(&'static self, key: Key, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Option<Shared> {
        let class = class_of(bytes).filter(|_| bytes > 0)?;
        let _held = self.lock()?;
        if let Some(found) = self.find(key) {
            return (found.bytes == bytes).then_some(found); // another process was faster
        }
        self.set(AT_CHANGING, 1);
        let stored = self.store(key, class, bytes, fill);
        self.set(AT_CHANGING, 0);
        stored
    }

    fn store(
        &'static self,
        key: Key,
        class: usize,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Shared> {
        let entry = self.room(class).filter(|entry| *entry < self.slabs * PER_SLAB)?;
        self.empty(entry); // a writer that ended amid a change may have left something
        let place = self.places(key).find(|place| self.get(*place) == 0)?; // after evictions, which move entries
        let (slab, slot) = (entry / PER_SLAB, entry % PER_SLAB);
        let offset = table_bytes(self.slabs) + slab * SLAB + slot * ((LEAST << class) + LINE);
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return None;
        }
        let sequence = self.begin(entry);
        self.entry(entry, 1).store(key.file as u64, Ordering::Relaxed);
        self.entry(entry, 2).store((key.file >> 64) as u64, Ordering::Relaxed);
        self.entry(entry, 3).store(u64::from(key.chunk) | (bytes as u64) << 32, Ordering::Relaxed);
        self.entry(entry, 4).store(offset as u64, Ordering::Relaxed);
        self.entry(entry, MARK).store(0, Ordering::Relaxed);
        // SAFETY: inside the memory (checked above); this process holds the writer's lock, and what readers copy
        // meanwhile they throw away, as the sequence number is odd.
        fill(unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), bytes) });
        self.entry(entry, 0).store(sequence.wrapping_add(2), Ordering::Release);
        self.word(place).store(entry as u64 + 1, Ordering::Release);
        Some(Shared { node: self, entry, sequence: sequence.wrapping_add(2), offset, bytes })
    }

    /// Makes an entry's number odd; returns the even one before.
    fn begin(&self, entry: usize) -> u64 {
        let sequence = self.entry(entry, 0).load(Ordering::Relaxed) & !1;
        self.entry(entry, 0).store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        sequence
    }

    /// Forgets what an entry holds.
    fn empty(&self, entry: usize) {
        let key = self.key(entry);
        let sequence = self.begin(entry);
        for word in 1..WORDS {
            self.entry(entry, word).store(0, Ordering::Relaxed);
        }
        self.entry(entry, 0).store(sequence.wrapping_add(2), Ordering::Release);
        if let Some(key) = key {
            self.unlist(key, entry);
        }
    }

    fn key(&self, entry: usize) -> Option<Key> {
        let at = |word| self.entry(entry, word).load(Ordering::Relaxed);
        let file = u128::from(at(1)) | u128::from(at(2)) << 64;
        (at(3) != 0).then_some(Key { file, chunk: at(3) as u32 })
    }

    /// Takes an entry out of the index, and moves later ones of the same run up: readers end at a gap.
    fn unlist(&self, key: Key, entry: usize) {
        let Some(mut gap) = self.places(key).find(|place| self.get(*place) == entry as u64 + 1) else {
            return;
        };
        let count = index_words(self.slabs);
        let mut next = gap;
        for _ in 0..count {
            next = HEADER + ((next - HEADER + 1) & (count - 1));
            let Some(moved) = (self.get(next) as usize).checked_sub(1) else { break };
            let may_move = self.key(moved).is_none_or(|key| self.places(key).any(|place| place == gap));
            if may_move {
                self.word(gap).store(moved as u64 + 1, Ordering::Release);
                gap = next;
            }
        }
        self.set(gap, 0);
    }

    /// An empty entry whose slot has the length of a class.
    fn room(&self, class: usize) -> Option<usize> {
        let fresh = self.get(AT_FRESH + class) as usize;
        let is_open = self.class(fresh / PER_SLAB) == Some(class) && fresh % PER_SLAB < slots(class);
        if fresh > 0 && is_open {
            self.set(AT_FRESH + class, fresh as u64 + 1);
            return Some(fresh);
        }
        let used = self.get(AT_USED) as usize;
        if used < self.slabs && self.allocate(used) {
            self.set(AT_USED, used as u64 + 1);
            return Some(self.open(used, class));
        }
        self.evict(class, used.min(self.slabs))
    }

    /// Gives a slab to a class and returns its first entry.
    fn open(&self, slab: usize, class: usize) -> usize {
        self.set(self.class_word(slab), class as u64 + 1);
        self.set(AT_FRESH + class, (slab * PER_SLAB + 1) as u64);
        slab * PER_SLAB
    }

    fn allocate(&self, slab: usize) -> bool {
        let start = (table_bytes(self.slabs) + slab * SLAB) as u64;
        fallocate(&self.file, FallocateFlags::empty(), start, SLAB as u64).is_ok()
    }

    /// Empties the first entry of a class that was not looked up since the hand passed it; a slab of another
    /// class of which no entry was looked up is taken over.
    fn evict(&self, class: usize, used: usize) -> Option<usize> {
        let mut hand = self.get(AT_HAND + class) as usize;
        let mut looks = 0;
        while looks < LOOKS && used > 0 {
            let slab = hand / PER_SLAB % used;
            let slot = hand % PER_SLAB;
            let entry = slab * PER_SLAB + slot;
            let own = self.class(slab).unwrap_or(class);
            if own != class {
                looks += slots(own);
                hand = (slab + 1) * PER_SLAB;
                let entries = slab * PER_SLAB..slab * PER_SLAB + slots(own);
                let marked = |entry: &usize| self.entry(*entry, MARK).swap(0, Ordering::Relaxed) != 0;
                let fresh = self.get(AT_FRESH + own) as usize;
                let is_filling = fresh / PER_SLAB == slab && fresh % PER_SLAB < slots(own);
                if !is_filling && entries.clone().filter(marked).count() == 0 {
                    entries.for_each(|entry| self.evict_one(entry));
                    self.set(AT_HAND + class, hand as u64);
                    return Some(self.open(slab, class));
                }
                continue;
            }
            looks += 1;
            hand = if slot + 1 < slots(class) { entry + 1 } else { (slab + 1) * PER_SLAB };
            if self.entry(entry, MARK).swap(0, Ordering::Relaxed) == 0 {
                self.evict_one(entry);
                self.set(AT_HAND + class, hand as u64);
                return Some(entry);
            }
        }
        self.set(AT_HAND + class, hand as u64);
        None
    }

    fn evict_one(&self, entry: usize) {
        if self.key(entry).is_some() {
            self.set(AT_EVICTIONS, self.get(AT_EVICTIONS).wrapping_add(1));
        }
        self.empty(entry);
    }

    /// Takes the writer's lock; `None` while another process holds it for long.
    fn lock(&self) -> Option<Held<'_>> {
        let own = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            match fcntl_lock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let held = Held { node: self, _own: own };
                    if self.get(AT_CHANGING) != 0 {
                        self.reset();
                    }
                    return Some(held);
                }
                Err(Errno::AGAIN | Errno::ACCESS) => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
        None
    }

    /// Empties the cache: a writer ended in the middle of a change.
    fn reset(&self) {
        for entry in 0..self.slabs * PER_SLAB {
            if self.entry(entry, 0).load(Ordering::Relaxed) != 0 {
                let sequence = self.begin(entry);
                (1..WORDS).for_each(|word| self.entry(entry, word).store(0, Ordering::Relaxed));
                self.entry(entry, 0).store(sequence.wrapping_add(2), Ordering::Release);
            }
        }
        (HEADER..HEADER + index_words(self.slabs)).for_each(|place| self.set(place, 0));
        (AT_FRESH..AT_HAND + CLASSES).for_each(|word| self.set(word, 0));
        self.set(AT_CHANGING, 0);
    }
}

/// The writer's lock.
struct Held<'a> {
    node: &'a Node,
    _own: MutexGuard<'a, ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = fcntl_lock(&self.node.file, FlockOperation::Unlock);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::attach::make;
    use super::*;

    fn key(number: u32) -> Key {
        Key { file: 1 << 100 | u128::from(number / 7), chunk: number }
    }

    fn is_whole(found: &Shared, number: u32, bytes: usize) -> bool {
        let crate::tiledb::codec::Cells::Plain(cells) = found.cells() else { return false };
        cells.len() == bytes && cells.iter().all(|cell| *cell == number as u8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        /// Against a model: what is found is what was stored last, nothing overlaps, the memory stays in bounds.
        #[test]
        fn what_is_found_is_what_was_stored(
            steps in prop::collection::vec((0_u32..400, 1_usize..300_000), 1..400),
        ) {
            let node = make(13 << 20).unwrap();
            let mut model: HashMap<u32, usize> = HashMap::new();
            for (number, bytes) in steps {
                match node.find(key(number)) {
                    Some(found) => prop_assert!(is_whole(&found, number, model[&number])),
                    None => {
                        let stored = node.insert(key(number), bytes, |out| out.fill(number as u8));
                        if let Some(stored) = stored {
                            model.insert(number, bytes);
                            prop_assert!(is_whole(&stored, number, bytes) && stored.is_valid());
                        }
                    }
                }
            }
            let (used, most) = node.memory();
            prop_assert!(used <= most && most <= 13 << 20);
            let found = model.iter().filter(|(number, bytes)| {
                node.find(key(**number)).is_some_and(|found| is_whole(&found, **number, **bytes))
            });
            prop_assert!(found.count() > 0);
        }
    }

    #[test]
    fn a_working_set_that_fits_is_found_and_what_was_looked_up_outlives_the_rest() {
        let node = make(9 << 20).unwrap(); // two slabs of 63 slots of 64 KiB
        for number in 0..126 {
            assert!(node.insert(key(number), 65_536, |out| out.fill(number as u8)).is_some());
        }
        assert!((0..126).all(|number| node.find(key(number)).is_some_and(|f| is_whole(&f, number, 65_536))));
        assert!(node.insert(key(200), 65_536, |out| out.fill(200)).is_some()); // all were looked up: one goes
        assert!((0..60).filter(|number| node.find(key(*number)).is_some()).count() >= 59);
        let before = node.find(key(100)).unwrap();
        for number in 300..600 {
            node.insert(key(number), 65_536, |out| out.fill(number as u8));
            assert!(
                node.find(key(0)).is_none() || node.find(key(0)).is_some_and(|f| is_whole(&f, 0, 65_536))
            );
        }
        assert!(node.evictions() > 60 && !before.is_valid());
    }

    #[test]
    fn slabs_of_a_length_that_nobody_asks_for_serve_another() {
        let node = make(9 << 20).unwrap();
        for number in 0..126 {
            node.insert(key(number), 65_536, |out| out.fill(1));
        }
        for number in 1000..3000 {
            node.insert(key(number), 8192, |out| out.fill(number as u8));
        }
        let found = (1000..3000).filter(|number| node.find(key(*number)).is_some()).count();
        assert!(found > 900, "{found} of two slabs of 508 slots");
    }

    #[test]
    fn a_writer_that_ended_amid_a_change_leaves_an_empty_cache() {
        let node = make(9 << 20).unwrap();
        node.insert(key(1), 9000, |out| out.fill(1));
        node.insert(key(2), 9000, |out| out.fill(2));
        let halfway = node.find(key(2)).unwrap();
        node.set(AT_CHANGING, 1);
        node.begin(halfway.entry); // as a killed process leaves it
        assert!(node.find(key(2)).is_none() && !halfway.is_valid());
        assert!(node.insert(key(3), 9000, |out| out.fill(3)).is_some());
        assert!(node.find(key(1)).is_none() && node.find(key(2)).is_none());
        assert!(node.find(key(3)).is_some_and(|found| is_whole(&found, 3, 9000)));
        assert!(node.insert(key(2), 9000, |out| out.fill(2)).is_some_and(|found| is_whole(&found, 2, 9000)));
    }

    #[test]
    fn damaged_tables_lead_nowhere() {
        let node = make(9 << 20).unwrap();
        for number in 0..50 {
            node.insert(key(number), 65_536, |out| out.fill(number as u8));
        }
        for at in 1..table_bytes(2) / 8 {
            node.set(at, (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 60));
        }
        for number in 0..200 {
            if let Some(found) = node.find(key(number)) {
                let _ = found.cells().len();
            }
            node.insert(key(number), 65_536, |out| out.fill(number as u8));
        }
    }
}

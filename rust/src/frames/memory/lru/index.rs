//! A hash table from a key's hash to its slot: open addressing in one array, one cache miss for a look-up.
//!
//! A bucket is eight bytes, the hash in the upper half and the slot number in the lower, probed linearly.
//! With the hash in the bucket, slots of other keys are not read, nor any slot when the array grows.

use super::slab::NIL;

const EMPTY: u64 = u64::MAX;
const LEAST: usize = 16;

/// Slot numbers by hash.
pub struct Index {
    /// Their number is a power of two; at most three quarters are in use.
    buckets: Vec<u64>,
    live: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { buckets: vec![EMPTY; LEAST], live: 0 }
    }
}

// Positions are masked with the number of buckets minus one.
#[allow(clippy::indexing_slicing)]
impl Index {
    /// Number of slots in the index.
    pub fn len(&self) -> usize {
        self.live
    }

    /// The slot of that hash for which `same` is true.
    #[inline]
    pub fn find(&self, hash: u32, mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        self.position(hash, &mut same).map(|at| self.buckets[at] as u32)
    }

    /// Adds a slot that is not there yet.
    pub fn insert(&mut self, hash: u32, id: u32) {
        debug_assert_ne!(id, NIL);
        if (self.live + 1) * 4 > self.buckets.len() * 3 {
            self.grow();
        }
        self.live += 1;
        self.place(u64::from(hash) << 32 | u64::from(id));
    }

    /// Removes a slot, if it is there.
    pub fn remove(&mut self, hash: u32, id: u32) {
        let Some(mut hole) = self.position(hash, &mut |other| other == id) else { return };
        self.live -= 1;
        let mask = self.buckets.len() - 1;
        let mut at = hole;
        // Later buckets of the run move up, unless that puts them before their home: no tombstones are
        // needed.
        loop {
            at = (at + 1) & mask;
            let bucket = self.buckets[at];
            if bucket == EMPTY {
                break;
            }
            let from_home = at.wrapping_sub(home(bucket)) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                self.buckets[hole] = bucket;
                hole = at;
            }
        }
        self.buckets[hole] = EMPTY;
    }

    #[inline]
    fn position(&self, hash: u32, same: &mut impl FnMut(u32) -> bool) -> Option<usize> {
        let mask = self.buckets.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let bucket = self.buckets[at & mask];
            if (bucket >> 32) as u32 == hash && bucket != EMPTY && same(bucket as u32) {
                return Some(at & mask);
            }
            if bucket == EMPTY {
                return None;
            }
            at += 1;
        }
    }

    fn place(&mut self, bucket: u64) {
        let mask = self.buckets.len() - 1;
        let mut at = home(bucket) & mask;
        while self.buckets[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.buckets[at] = bucket;
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; self.buckets.len() * 2];
        let old = std::mem::replace(&mut self.buckets, larger);
        old.into_iter().filter(|&bucket| bucket != EMPTY).for_each(|bucket| self.place(bucket));
    }
}

/// The position of a bucket without collisions, before masking.
fn home(bucket: u64) -> usize {
    (bucket >> 32) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few hashes, so that runs are long, wrap around the end, and have equal hashes.
        #[test]
        fn finds_inserts_and_removes_as_a_map_does(ops in prop::collection::vec((0..90_u32, any::<bool>()), 0..400)) {
            let hash = |id: u32| (id % 7).wrapping_mul(0xffff_fff5);
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            for (id, add) in ops {
                if !add {
                    index.remove(hash(id), id);
                    model.remove(&id);
                } else if model.insert(id, hash(id)).is_none() {
                    index.insert(hash(id), id);
                }
                prop_assert_eq!(index.len(), model.len());
                for id in 0..90 {
                    let found = index.find(hash(id), |other| other == id);
                    prop_assert_eq!(found, model.contains_key(&id).then_some(id));
                }
            }
        }
    }
}

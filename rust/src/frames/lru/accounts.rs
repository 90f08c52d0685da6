//! What the cache can account for: classes, causes, counters, the eviction log, accesses that outlive
//! their entry.

use std::collections::VecDeque;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// How an entry is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Enters as most recently used, leaves in order of use.
    #[default]
    Normal = 0,
    /// Enters into free space only, is not promoted by scans, leaves first.
    Scan = 1,
    /// Never evicted; at most half the budget.
    Pinned = 2,
}

/// Why an entry left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// Room was needed.
    Capacity = 0,
    /// A newer value of the same key came.
    Replaced = 1,
    /// Somebody said that it is stale.
    Invalidated = 2,
    /// The budget shrank.
    Resize = 3,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Look-ups that found an entry.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that left, by [`Cause`].
    pub evicted: [u64; 4],
    /// Puts refused because one entry may not be that large.
    pub rejected_oversize: u64,
    /// Scan puts refused because there was no free space.
    pub rejected_scan: u64,
    /// Pinned puts refused because half the budget is pinned, and puts that pinned entries left no room for.
    pub rejected_pinned: u64,
    /// Accesses forgotten because nobody drained them and an eighth of the budget was full of them.
    pub access_dropped: u64,
}

/// One line of the eviction log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The id that [`super::Lru::id`] gave for the key.
    pub id: u64,
    /// Bytes that became free.
    pub weight: u64,
    /// Why.
    pub cause: Cause,
    /// The class at that time.
    pub class: Class,
}

/// The last 65 536 evictions and the number of those before.
#[derive(Default)]
pub struct EvictionLog {
    ring: VecDeque<Evicted>,
    overflow: u64,
}

impl EvictionLog {
    /// Lines that are kept.
    pub const CAP: usize = 65_536;

    pub(super) fn push(&mut self, line: Evicted) {
        if self.ring.len() == Self::CAP {
            self.ring.pop_front();
            self.overflow += 1;
        }
        self.ring.push_back(line);
    }

    /// Lines since the last drain, and how many were lost before them.
    pub fn drain(&mut self) -> (Vec<Evicted>, u64) {
        (std::mem::take(&mut self.ring).into(), std::mem::take(&mut self.overflow))
    }
}

/// Accesses of one key that were not written to the database yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The key.
    pub key: Box<[u8]>,
    /// How many more accesses count.
    pub count: u32,
    /// The last of them, microseconds since 1970.
    pub used_at: i64,
}

/// Accesses of entries that left before they were drained.
#[derive(Default)]
pub struct Pending {
    map: HashMap<Box<[u8]>, (u32, i64), RandomState>,
    bytes: u64,
}

impl Pending {
    /// Accounted bytes beside the key: less than an entry's overhead, so that evicting always frees.
    pub const OVERHEAD: u64 = 56;

    /// Accounted bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.map.len()
    }

    /// Adds to a key, unless that would exceed `cap` bytes: then returns false.
    pub(super) fn add(&mut self, key: &[u8], count: u32, used_at: i64, cap: u64) -> bool {
        if let Some((counted, at)) = self.map.get_mut(key) {
            *counted = counted.saturating_add(count);
            *at = used_at.max(*at);
            return true;
        }
        let weight = key.len() as u64 + Self::OVERHEAD;
        if self.bytes + weight > cap {
            return false;
        }
        self.bytes += weight;
        self.map.insert(key.into(), (count, used_at));
        true
    }

    /// Removes and returns a key's accesses.
    pub(super) fn take(&mut self, key: &[u8]) -> Option<(u32, i64)> {
        let found = self.map.remove(key)?;
        self.bytes -= key.len() as u64 + Self::OVERHEAD;
        Some(found)
    }

    pub(super) fn drain(&mut self) -> Vec<Access> {
        self.bytes = 0;
        std::mem::take(&mut self.map)
            .into_iter()
            .map(|(key, (count, used_at))| Access { key, count, used_at })
            .collect()
    }

    pub(super) fn weight_is_sum(&self) -> bool {
        self.map.keys().map(|key| key.len() as u64 + Self::OVERHEAD).sum::<u64>() == self.bytes
    }
}

//! Classes, causes, counters, the log of evictions, and the accesses of removed entries.

use std::collections::VecDeque;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// How an entry is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Enters as most recently used, is evicted in order of use.
    #[default]
    Normal = 0,
    /// Enters into free space only, is not promoted by scans, is evicted first.
    Scan = 1,
    /// Never evicted; at most half the budget.
    Pinned = 2,
}

/// Why an entry was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// Room was needed.
    Capacity = 0,
    /// A newer value of its key was stored.
    Replaced = 1,
    /// It was invalidated as stale.
    Invalidated = 2,
    /// The budget shrank.
    Resize = 3,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Look-ups that found an entry.
    pub hits: u64,
    /// Look-ups that found none.
    pub misses: u64,
    /// Entries removed, by [`Cause`].
    pub evicted: [u64; 4],
    /// Puts rejected because one entry may not be that large.
    pub rejected_oversize: u64,
    /// Puts of class scan rejected because there was no free space.
    pub rejected_scan: u64,
    /// Puts rejected because of pinned entries: more than half the budget, or no room beside them.
    pub rejected_pinned: u64,
    /// Accesses dropped because those of removed entries filled an eighth of the budget.
    pub access_dropped: u64,
}

/// One entry of the eviction log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The id that [`super::Lru::id`] gave for the key.
    pub id: u64,
    /// Bytes that became free.
    pub weight: u64,
    /// Why it was removed.
    pub cause: Cause,
    /// Its class at that time.
    pub class: Class,
}

/// The last 65 536 evictions, and the number of earlier ones that were lost.
#[derive(Default)]
pub struct EvictionLog {
    ring: VecDeque<Eviction>,
    overflow: u64,
}

impl EvictionLog {
    /// Evictions that are kept.
    pub const CAP: usize = 65_536;

    pub(super) fn push(&mut self, eviction: Eviction) {
        if self.ring.len() == Self::CAP {
            self.ring.pop_front();
            self.overflow += 1;
        }
        self.ring.push_back(eviction);
    }

    /// Returns the evictions since the last drain, and how many earlier ones were lost.
    pub fn drain(&mut self) -> (Vec<Eviction>, u64) {
        (std::mem::take(&mut self.ring).into(), std::mem::take(&mut self.overflow))
    }
}

/// Accesses of one key that are not in the database yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The key.
    pub key: Box<[u8]>,
    /// Number of accesses to add.
    pub count: u32,
    /// Time of the last one, microseconds since 1970.
    pub used_at: i64,
}

/// Accesses of entries that were removed before they were drained.
#[derive(Default)]
pub struct Pending {
    map: HashMap<Box<[u8]>, (u32, i64), RandomState>,
    bytes: u64,
}

impl Pending {
    /// Accounted bytes of a key beside its own: less than the overhead of an entry, so that evicting one
    /// frees bytes.
    pub const OVERHEAD: u64 = 56;

    /// Accounted bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.map.len()
    }

    /// Adds accesses to a key; returns false where that would exceed `cap` accounted bytes.
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

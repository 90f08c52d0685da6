//! Replays a trace of accesses under a policy and a budget, and counts the hits it would have had.
//!
//! Keys are dense numbers and no cache is filled: a million accesses take milliseconds.

use std::collections::BTreeSet;

use crate::base::closed_list::closed_list;

closed_list! {
    /// What is evicted first.
    pub enum Policy {
        /// The least recently used entry, whoever asks.
        Lru = "lru",
        /// As the cache: entries of scans first, then the least recently used; scans enter into free space
        /// only.
        ScanAware = "scan_aware",
        /// The entry that entered first.
        Fifo = "fifo",
        /// The entry that is needed last: the upper bound, as it knows the future.
        Belady = "belady",
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Number of the entry, counted from 0.
    pub key: u32,
    /// Weight of the entry in bytes.
    pub weight: u32,
    /// Whether it belongs to a scan.
    pub scan: bool,
}

/// The hits of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Among all requests.
    pub all: u64,
    /// Among the requests that belong to no scan.
    pub clinical: u64,
}

/// The place of an entry in the order of eviction, smallest first: whether it belongs to no scan, and a rank.
type Place = (bool, u64);

/// Replays `trace` within `budget` bytes; an entry larger than the budget never enters.
pub fn replay(trace: &[Access], policy: Policy, budget: u64) -> Hits {
    let keys = trace.iter().map(|access| access.key as usize + 1).max().unwrap_or(0);
    let next = if policy == Policy::Belady { next_uses(trace, keys) } else { Vec::new() };
    let mut places: Vec<Option<(Place, u64)>> = vec![None; keys];
    let mut order: BTreeSet<(Place, u32)> = BTreeSet::new();
    let (mut used, mut hits) = (0, Hits::default());
    for (now, access) in trace.iter().enumerate() {
        let scan = access.scan && policy == Policy::ScanAware;
        let rank = match policy {
            Policy::Belady => u64::MAX - next.get(now).copied().unwrap_or(u64::MAX),
            _ => now as u64,
        };
        let Some(entry) = places.get_mut(access.key as usize) else { continue };
        if let Some((place, _)) = entry {
            hits.all += 1;
            hits.clinical += u64::from(!access.scan);
            if !scan && policy != Policy::Fifo {
                order.remove(&(*place, access.key));
                *place = (true, rank);
                order.insert((*place, access.key));
            }
            continue;
        }
        let weight = u64::from(access.weight);
        if weight > budget || (scan && used + weight > budget) {
            continue;
        }
        *entry = Some(((!scan, rank), weight));
        while used + weight > budget {
            let Some((_, victim)) = order.pop_first() else { break };
            if let Some((_, freed)) = places.get_mut(victim as usize).and_then(Option::take) {
                used -= freed;
            }
        }
        order.insert(((!scan, rank), access.key));
        used += weight;
    }
    hits
}

/// For each access the position of the next one to its key, or `u64::MAX`.
fn next_uses(trace: &[Access], keys: usize) -> Vec<u64> {
    let mut upcoming = vec![u64::MAX; keys];
    let mut next = vec![u64::MAX; trace.len()];
    for ((position, access), slot) in trace.iter().enumerate().zip(&mut next).rev() {
        if let Some(upcoming) = upcoming.get_mut(access.key as usize) {
            *slot = std::mem::replace(upcoming, position as u64);
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::memory::lru::{Class, Lru, Put, PutOutcome, Record, Request};

    const VALUE: [u8; 33] = [0; 33];

    /// The weight of every entry: a key of four bytes and the value.
    fn weight() -> u64 {
        Lru::weight(4 + VALUE.len())
    }

    fn trace() -> impl Strategy<Value = Vec<Access>> {
        let weight = weight() as u32;
        let access = (0..30_u32, any::<bool>()).prop_map(move |(key, scan)| Access { key, weight, scan });
        prop::collection::vec(access, 0..300)
    }

    fn hits_of_cache(trace: &[Access], entries: u64, hints: bool) -> u64 {
        let mut lru = Lru::new(entries * weight(), 1.0, 0);
        for access in trace {
            let (key, scan) = (access.key.to_le_bytes(), access.scan && hints);
            if lru.get(&key, Request { scan, now: 0 }).is_none() {
                let record = Record::new(&key, b"", &VALUE).unwrap();
                let class = if scan { Class::Scan } else { Class::Normal };
                let stored = lru.put(record, Put { class, ..Put::default() });
                assert!(scan || stored == PutOutcome::Stored);
            }
            // Accesses that were not drained have a weight too; a replay has none.
            lru.forget_accesses();
        }
        lru.counters().hits
    }

    proptest! {
        #[test]
        fn replay_has_the_hits_of_the_cache(trace in trace(), entries in 1..20_u64) {
            prop_assert_eq!(replay(&trace, Policy::Lru, entries * weight()).all, hits_of_cache(&trace, entries, false));
            prop_assert_eq!(replay(&trace, Policy::ScanAware, entries * weight()).all, hits_of_cache(&trace, entries, true));
        }

        #[test]
        fn no_policy_has_more_hits_than_belady(trace in trace(), entries in 1..20_u64) {
            let best = replay(&trace, Policy::Belady, entries * weight()).all;
            for policy in [Policy::Lru, Policy::Fifo] {
                prop_assert!(replay(&trace, policy, entries * weight()).all <= best);
            }
        }
    }

    #[test]
    fn a_cyclic_scan_hits_with_scan_aware_and_never_with_lru() {
        let cycle: Vec<Access> =
            (0..10_000).map(|at| Access { key: at % 100, weight: 10, scan: true }).collect();
        assert_eq!(replay(&cycle, Policy::Lru, 250).all, 0);
        let best = replay(&cycle, Policy::Belady, 250).all;
        assert!(replay(&cycle, Policy::ScanAware, 250).all as f64 >= 0.95 * best as f64);
    }
}

//! Compares random operations with a model that is simple enough to be right: a `Vec` in order of use.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const DEBOUNCE: i64 = 100;

struct Entry {
    key: u8,
    weight: u64,
    value: Vec<u8>,
    class: Class,
    dirty: bool,
}

/// Oldest first; the order within a class is the order of the `Vec`.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    budget: u64,
    pending: BTreeSet<u8>,
    counted: BTreeMap<u8, u64>,
    used_at: BTreeMap<u8, i64>,
}

impl Model {
    fn at(&self, key: u8) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == key)
    }

    fn pending_bytes(&self) -> u64 {
        self.pending.len() as u64 * (1 + Pending::OVERHEAD)
    }

    fn entries_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.weight).sum::<u64>()
    }

    fn used(&self) -> u64 {
        self.entries_bytes() + self.pending_bytes()
    }

    fn pinned(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.class == Class::Pinned).map(|entry| entry.weight).sum()
    }

    fn victim(&self) -> Option<usize> {
        let of = |class| self.entries.iter().position(|entry| entry.class == class);
        of(Class::Scan).or(of(Class::Normal))
    }

    fn remove(&mut self, at: usize) {
        let entry = self.entries.remove(at);
        if entry.dirty {
            self.keep_accesses(entry.key);
        }
    }

    fn keep_accesses(&mut self, key: u8) {
        let cap = (self.budget / 8).min(self.budget - self.entries_bytes());
        if self.pending_bytes() + 1 + Pending::OVERHEAD <= cap {
            self.pending.insert(key);
        }
    }

    fn resize_step(&mut self, target: u64, most: usize) {
        for _ in 0..most {
            if self.used() <= target {
                break;
            }
            match self.victim().or((!self.entries.is_empty()).then_some(0)) {
                Some(at) => self.remove(at),
                None => self.pending.clear(),
            }
        }
        self.budget = target.max(self.used());
    }

    fn put(&mut self, key: u8, value: Vec<u8>, mut class: Class) -> PutOutcome {
        let weight = Lru::weight(5 + value.len());
        let mut dirty = self.pending.remove(&key);
        if let Some(at) = self.at(key) {
            let old = self.entries.remove(at);
            dirty = old.dirty;
            if class == Class::Scan {
                class = old.class;
            }
        }
        let stored = if weight * 2 > self.budget {
            PutOutcome::Oversize
        } else if (class == Class::Scan && self.used() + weight > self.budget)
            || (class == Class::Pinned && self.pinned() + weight > self.budget / 2)
            || (self.pinned() + self.pending_bytes() + weight > self.budget)
        {
            PutOutcome::NoRoom
        } else {
            while self.used() + weight > self.budget
                && let Some(at) = self.victim()
            {
                self.remove(at);
            }
            if self.used() + weight > self.budget { PutOutcome::NoRoom } else { PutOutcome::Stored }
        };
        if stored == PutOutcome::Stored {
            self.entries.push(Entry { key, weight, value, class, dirty });
        } else if dirty {
            self.keep_accesses(key);
        }
        stored
    }
}

#[derive(Clone, Debug)]
enum Op {
    Get { key: u8, scan: bool },
    Put { key: u8, size: u8, class: u8 },
    Preload { key: u8, size: u8 },
    Invalidate { key: u8 },
    Touch { keys: Vec<u8> },
    Resize { budget: u16 },
    Wait { us: u8 },
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..24u8;
    prop_oneof![
        4 => (key.clone(), any::<bool>()).prop_map(|(key, scan)| Op::Get { key, scan }),
        6 => (key.clone(), any::<u8>(), 0..3u8).prop_map(|(key, size, class)| Op::Put { key, size, class }),
        1 => (key.clone(), any::<u8>()).prop_map(|(key, size)| Op::Preload { key, size }),
        1 => key.clone().prop_map(|key| Op::Invalidate { key }),
        1 => prop::collection::vec(key, 0..20).prop_map(|keys| Op::Touch { keys }),
        1 => (0..4000u16).prop_map(|budget| Op::Resize { budget }),
        1 => any::<u8>().prop_map(|us| Op::Wait { us }),
        1 => Just(Op::Drain),
    ]
}

/// Lru and model side by side.
struct Pair {
    lru: Lru,
    model: Model,
    drained: BTreeMap<u8, u64>,
    now: i64,
}

impl Pair {
    fn new(budget: u64) -> Self {
        let model = Model { budget, ..Model::default() };
        Self { lru: Lru::new(budget, 0.5, DEBOUNCE as u64), model, drained: BTreeMap::new(), now: 1_000_000 }
    }

    fn database_says(&self, key: u8) -> i64 {
        self.model.used_at.get(&key).copied().unwrap_or_default()
    }

    fn access(&mut self, key: u8, scan: bool) {
        let Some(at) = self.model.at(key) else { return };
        if scan {
            return;
        }
        self.model.entries[at].dirty = true;
        if self.model.entries[at].class != Class::Pinned {
            let entry = self.model.entries.remove(at);
            self.model.entries.push(Entry { class: Class::Normal, ..entry });
        }
        let last = self.model.used_at.insert(key, self.now).unwrap_or_default();
        if self.now - last > DEBOUNCE {
            *self.model.counted.entry(key).or_default() += 1;
        }
    }

    fn put(&mut self, key: u8, size: u8, class: u8) {
        let class = [Class::Normal, Class::Scan, Class::Pinned][class as usize];
        let value = vec![size; size as usize];
        let record = Record::new(&[key], b"meta", &value).unwrap();
        let used_at = self.database_says(key);
        let stored = self.lru.put(record, Put { class, used_at, preload_limit: None });

        assert_eq!(stored, self.model.put(key, value, class));
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Get { key, scan } => {
                let got =
                    self.lru.get(&[key], Request { scan, now: self.now }).map(|slot| slot.value().to_vec());
                let want = self.model.at(key).map(|at| self.model.entries[at].value.clone());
                assert_eq!(got, want);
                self.access(key, scan);
            }
            Op::Put { key, size, class } => self.put(key, size, class),
            Op::Preload { key, size } => {
                let limit = self.lru.budget() * 4 / 5;
                let before: Vec<_> = self.lru.keys().map(<[u8]>::to_vec).collect();
                let record = Record::new(&[key], b"meta", &vec![size; size as usize]).unwrap();
                let used_at = self.database_says(key);
                let put = Put { class: Class::Normal, used_at, preload_limit: Some(limit) };
                let stored = self.lru.put(record, put);
                let weight = Lru::weight(5 + size as usize);
                if stored == PutOutcome::Stored {
                    assert!(self.lru.used() <= limit && self.model.at(key).is_none());
                    let (value, dirty) = (vec![size; size as usize], self.model.pending.remove(&key));
                    self.model.entries.insert(0, Entry { key, weight, value, class: Class::Normal, dirty });
                } else {
                    assert_eq!(before, self.lru.keys().map(<[u8]>::to_vec).collect::<Vec<_>>());
                    assert_eq!(stored == PutOutcome::Exists, self.model.at(key).is_some());
                    if stored != PutOutcome::Exists && self.model.pending.remove(&key) {
                        self.model.keep_accesses(key);
                    }
                }
            }
            Op::Invalidate { key } => {
                let at = self.model.at(key);
                assert_eq!(self.lru.invalidate(&[key]), at.is_some());
                if let Some(at) = at {
                    self.model.remove(at);
                }
            }
            Op::Touch { keys } => {
                let mut ids: Vec<u64> = keys.iter().filter_map(|&key| self.lru.id(&[key])).collect();
                let hits = ids.len();
                ids.push(u64::MAX);
                assert_eq!(self.lru.touch(&ids, Request { scan: false, now: self.now }), hits);
                keys.into_iter().for_each(|key| self.access(key, false));
            }
            Op::Resize { budget } => {
                while !self.lru.resize_step(budget.into(), 3) {
                    self.lru.validate().unwrap();
                }
                assert_eq!(self.lru.budget(), u64::from(budget));
                while self.model.budget != u64::from(budget) {
                    self.model.resize_step(budget.into(), 3);
                }
            }
            Op::Wait { us } => self.now += i64::from(us),
            Op::Drain => self.drain(),
        }
        self.compare();
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        let mut from = Some(0);
        while let Some(begin) = from {
            from = self.lru.drain_step(begin, 5, &mut out);
        }
        assert_eq!(self.lru.dirty(), 0);
        self.model.pending.clear();
        self.model.entries.iter_mut().for_each(|entry| entry.dirty = false);
        for access in out {
            *self.drained.entry(access.key[0]).or_default() += u64::from(access.count);
            assert_eq!(self.model.used_at[&access.key[0]], access.used_at);
        }
    }

    fn compare(&self) {
        self.lru.validate().unwrap();
        let mut want = Vec::new();
        for class in [Class::Normal, Class::Scan, Class::Pinned] {
            want.extend(self.model.entries.iter().rev().filter(|e| e.class == class).map(|e| vec![e.key]));
        }
        assert_eq!(self.lru.keys().map(<[u8]>::to_vec).collect::<Vec<_>>(), want);
        assert_eq!(self.lru.used(), self.model.used());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_operations_agree_with_the_model(budget in 0..4000u64, ops in prop::collection::vec(op(), 1..120)) {
        let mut pair = Pair::new(budget);
        for op in ops {
            pair.step(op);
        }
        pair.drain();
        let kept: u64 = pair.drained.values().sum();
        let counted: u64 = pair.model.counted.values().sum();
        prop_assert_eq!(kept + pair.lru.counters().access_dropped, counted);
    }
}

fn record(key: &str, size: usize) -> Record {
    Record::new(key.as_bytes(), b"", &vec![0; size]).unwrap()
}

fn filled(keys: &[&str]) -> Lru {
    let mut lru = Lru::new(100_000, 0.5, DEBOUNCE as u64);
    for key in keys {
        assert_eq!(lru.put(record(key, 100), Put::default()), PutOutcome::Stored);
    }
    lru
}

#[test]
fn replacing_one_key_many_times_changes_neither_size_nor_number() {
    let mut lru = filled(&["a", "b"]);
    let used = lru.used();
    for _ in 0..1000 {
        lru.put(record("a", 100), Put::default());
        assert_eq!((lru.used(), lru.len()), (used, 2));
    }
    assert_eq!(lru.counters().evicted, [0, 1000, 0, 0]);
}

#[test]
fn an_oversized_record_evicts_only_the_old_value_of_its_key() {
    let mut lru = filled(&["a", "b"]);
    assert_eq!(lru.put(record("a", 60_000), Put::default()), PutOutcome::Oversize);
    assert!(lru.peek(b"a").is_none() && lru.peek(b"b").is_some());
    assert_eq!(lru.counters().rejected_oversize, 1);
}

#[test]
fn the_id_of_a_removed_entry_touches_no_other() {
    let mut lru = filled(&["a"]);
    let id = lru.id(b"a").unwrap();
    lru.invalidate(b"a");
    lru.put(record("b", 1), Put::default());
    assert_eq!(lru.touch(&[id], Request { scan: false, now: 5000 }), 0);
    assert_eq!(lru.dirty(), 0);
}

#[test]
fn accesses_survive_replacement_eviction_and_a_failed_flush() {
    let mut lru = filled(&["a"]);
    let mut now = 0;
    let mut access = |lru: &mut Lru| {
        now += 1000;
        lru.get(b"a", Request { scan: false, now }).unwrap();
    };
    access(&mut lru);
    lru.put(record("a", 7), Put::default());
    access(&mut lru);
    lru.invalidate(b"a");
    lru.put(record("a", 9), Put::default());
    access(&mut lru);
    let mut out = Vec::new();
    assert_eq!(lru.drain_step(0, 100, &mut out), None);
    assert_eq!(out, [Access { key: (*b"a").into(), count: 3, used_at: 3000 }]);
    lru.restore(&out);
    lru.invalidate(b"a");
    lru.restore(&[Access { key: (*b"a").into(), count: 2, used_at: 2000 }]);
    out.clear();
    lru.drain_step(0, 100, &mut out);
    assert_eq!(out, [Access { key: (*b"a").into(), count: 5, used_at: 3000 }]);
    lru.validate().unwrap();
}

#[test]
fn accesses_count_after_the_clock_was_set_back() {
    let mut lru = filled(&["a"]);
    for now in [1_000_000, 10_000, 10_050, 10_200] {
        lru.get(b"a", Request { scan: false, now });
    }
    let mut out = Vec::new();
    lru.drain_step(0, 100, &mut out);
    assert_eq!((out[0].count, out[0].used_at), (3, 10_200));
}

#[test]
fn eviction_log_keeps_the_last_evictions_and_counts_the_rest() {
    let mut lru = filled(&["a"]);
    for _ in 0..EvictionLog::CAP + 10 {
        lru.put(record("a", 1), Put::default());
    }
    let (evictions, overflow) = lru.log().drain();
    assert_eq!((evictions.len(), overflow), (EvictionLog::CAP, 10));
    assert_eq!(evictions[0].cause, Cause::Replaced);
}

#[test]
fn a_forked_child_keeps_entries_and_forgets_accesses() {
    let mut lru = filled(&["a", "b"]);
    lru.get(b"a", Request { scan: false, now: 1_000_000 });
    lru.get(b"b", Request { scan: false, now: 1_000_000 });
    lru.invalidate(b"b");
    lru.forget_accesses();
    assert_eq!((lru.dirty(), lru.len(), lru.pending_bytes()), (0, 1, 0));
    lru.validate().unwrap();
}

#[test]
fn slot_is_40_bytes() {
    assert_eq!(size_of::<Slot>(), 40);
}

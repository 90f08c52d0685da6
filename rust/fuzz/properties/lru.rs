//! Any sequence of operations: every invariant of the LRU holds after each, and its values agree with those
//! of a map.

use std::collections::HashMap;

use _core::frames::memory::lru::{Class, Lru, Put, PutOutcome, Record, Request};

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    let mut lru = Lru::new(3000, 0.5, 10);
    let mut last: HashMap<u8, u8> = HashMap::new();
    let mut now = 1_000_000;
    for operation in bytes.chunks_exact(3) {
        let &[what, key, size] = operation else { return };
        now += i64::from(what);
        match what % 8 {
            0..=2 => {
                let class = [Class::Normal, Class::Scan, Class::Pinned][usize::from(what % 3)];
                let preload_limit = (what & 128 != 0).then(|| lru.budget() / 2);
                let record = Record::new(&[key], &[], &vec![size; usize::from(size)]).expect("short");
                match lru.put(record, Put { class, used_at: 0, preload_limit }) {
                    PutOutcome::Stored => drop(last.insert(key, size)),
                    PutOutcome::Exists => {}
                    PutOutcome::Oversize | PutOutcome::NoRoom => drop(last.remove(&key)),
                }
            }
            3 | 4 => {
                let found = lru.get(&[key], Request { scan: what & 64 != 0, now });
                if let Some(slot) = found {
                    assert_eq!(
                        last.get(&key).map(|&size| vec![size; usize::from(size)]),
                        Some(slot.value().to_vec())
                    );
                }
            }
            5 => drop(lru.invalidate(&[key])),
            6 => while !lru.resize_step(u64::from(size) * 20, 2) {},
            _ => {
                let mut out = Vec::new();
                let mut from = Some(0);
                while let Some(begin) = from {
                    from = lru.drain_step(begin, 3, &mut out);
                }
                if size % 2 == 0 {
                    lru.restore(&out);
                }
                if let Some(id) = lru.id(&[key]) {
                    assert_eq!(lru.touch(&[id, id ^ 1 << 40], Request { scan: false, now }), 1);
                }
            }
        }
        lru.validate().expect("an invariant");
    }
}

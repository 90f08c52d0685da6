//! The hot set: what memory holds, as one file that is written at a stop and read at the next start.
//!
//! ```text
//! "VOXHOT1\n"   parser version, u32
//! entries, the least recently used first: lengths of key, meta, value (u32 each), last use (i64, µs since
//!               1970), class (u8), then the three
//! number of entries (u64)   CRC-32C of all before (u32)
//! ```
//!
//! Numbers are little endian. A table is compared with its file when it is used, as if it had stayed in memory.

use std::io::Write;

use super::cache::FrameCache;
use super::lru::{Class, Put, PutOutcome, Record};
use crate::base::error::{Error, ErrorKind, Result};
use crate::dicom::PARSER_VERSION;

const MAGIC: &[u8; 8] = b"VOXHOT1\n";
/// Lengths, last use and class of an entry.
const HEAD: usize = 4 * 3 + 8 + 1;
/// Number of entries and checksum.
const FOOTER: usize = 8 + 4;
/// Entries that are copied while the mutex is held: other threads wait for microseconds.
const SLICE: usize = 256;

impl FrameCache {
    /// Writes the hot set; returns the number of entries. Pinned ones are left out: their owner puts them.
    ///
    /// # Errors
    /// `io_error` where `out` fails.
    pub fn save(&self, out: &mut impl Write) -> Result<u64> {
        let mut crc = 0;
        let mut send = |bytes: &[u8]| -> Result<()> {
            crc = crc32c::crc32c_append(crc, bytes);
            Ok(out.write_all(bytes)?)
        };
        send(MAGIC)?;
        send(&u32::from(PARSER_VERSION).to_le_bytes())?;
        let mut ids = Vec::new();
        let mut from = Some(0);
        while let Some(begin) = from {
            from = self.lru.lock().ids_step(begin, SLICE as u32, &mut ids);
        }
        ids.sort_unstable();
        let mut count = 0u64;
        let mut block = Vec::new();
        for slice in ids.chunks(SLICE) {
            block.clear();
            let lru = self.lru.lock();
            for &(used_at, id) in slice {
                let Some(slot) = lru.slot_of(id).filter(|slot| slot.class() != Class::Pinned) else {
                    continue;
                };
                count += 1;
                for part in [slot.key(), slot.meta(), slot.value()] {
                    block.extend((part.len() as u32).to_le_bytes());
                }
                block.extend(used_at.to_le_bytes());
                block.push(slot.class() as u8);
                block.extend(slot.key().iter().chain(slot.meta()).chain(slot.value()));
            }
            drop(lru);
            send(&block)?;
        }
        send(&count.to_le_bytes())?;
        out.write_all(&crc.to_le_bytes())?;
        Ok(count)
    }

    /// Reads what [`FrameCache::save`] wrote; returns the number of entries that are in memory then. Entries
    /// that memory holds already stay as they are.
    ///
    /// # Errors
    /// `bad_table` for anything that [`FrameCache::save`] of this version did not write: nothing is put.
    pub fn restore_hot_set(&self, bytes: &[u8]) -> Result<u64> {
        let mut rest = checked(bytes)?;
        let mut stored = 0;
        while !rest.is_empty() {
            let (record, put) = next_entry(&mut rest).ok_or_else(|| bad("an entry reaches past the end"))?;
            let mut lru = self.lru.lock();
            if lru.peek(record.key()).is_none() {
                stored += u64::from(lru.put(record, put) == PutOutcome::Stored);
            }
        }
        Ok(stored)
    }
}

/// The entries of a file whose frame is right.
fn checked(bytes: &[u8]) -> Result<&[u8]> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("the file does not begin as one"))?;
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("the file is cut"))?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return Err(bad("the checksum does not fit"));
    }
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("the file is cut"))?;
    if u32::from_le_bytes(*version) != u32::from(PARSER_VERSION) {
        return Err(bad("its tables are of another parser version"));
    }
    rest.len().checked_sub(FOOTER).and_then(|end| rest.get(..end)).ok_or_else(|| bad("the file is cut"))
}

fn next_entry(rest: &mut &[u8]) -> Option<(Record, Put)> {
    let (head, body) = rest.split_first_chunk::<HEAD>()?;
    let [k0, k1, k2, k3, m0, m1, m2, m3, v0, v1, v2, v3, used_at @ .., class] = head;
    let lengths = [[*k0, *k1, *k2, *k3], [*m0, *m1, *m2, *m3], [*v0, *v1, *v2, *v3]];
    let [key, meta, value] = lengths.map(|length| u32::from_le_bytes(length) as usize);
    let (key, body) = body.split_at_checked(key)?;
    let (meta, body) = body.split_at_checked(meta)?;
    let (value, body) = body.split_at_checked(value)?;
    *rest = body;
    let class = if *class == Class::Scan as u8 { Class::Scan } else { Class::Normal };
    let used_at = i64::from_le_bytes(*used_at.first_chunk()?);
    Some((Record::new(key, meta, value)?, Put { class, used_at, preload_limit: None }))
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("no saved hot set of this version: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::memory::cached;
    use crate::frames::table::{FrameTable, Items, Layout};

    fn filled(entries: u64) -> FrameCache {
        let cache = FrameCache::new(1 << 24, 0.25, 0);
        for number in 0..entries {
            let items =
                Items { offsets: vec![1000 + number, 5000], lengths: vec![100, number], frame_first: None };
            let table = FrameTable { layout: Layout::Items(items), ..FrameTable::default() };
            let record = cached::record(&format!("/{number}"), &table, None).unwrap();
            let put = Put { class: Class::Normal, used_at: (number * 7 % 1000) as i64, preload_limit: None };
            cache.lru.lock().put(record, put);
        }
        cache
    }

    fn entries(cache: &FrameCache) -> Vec<([Vec<u8>; 3], i64)> {
        let lru = cache.lru.lock();
        let mut found: Vec<_> = lru
            .keys()
            .filter_map(|key| lru.peek(key))
            .map(|slot| ([slot.key(), slot.meta(), slot.value()].map(<[u8]>::to_vec), slot.used_at))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_saved_hot_set_comes_back() {
        let cache = filled(1000);
        let mut saved = Vec::new();
        assert_eq!(cache.save(&mut saved).unwrap(), 1000);
        let other = FrameCache::new(1 << 24, 0.25, 0);
        assert_eq!(other.restore_hot_set(&saved).unwrap(), 1000);
        assert_eq!(entries(&other), entries(&cache));
        let newest = other.lru.lock().keys().next().map(<[u8]>::to_vec);
        assert_eq!(newest.map(|key| other.lru.lock().peek(&key).unwrap().used_at), Some(999));
        assert_eq!(other.restore_hot_set(&saved).unwrap(), 0);
    }

    #[test]
    fn a_small_memory_keeps_the_last_used() {
        let mut saved = Vec::new();
        filled(1000).save(&mut saved).unwrap();
        let small = FrameCache::new(10_000, 0.25, 0);
        assert!(small.restore_hot_set(&saved).unwrap() > 0);
        let lru = small.lru.lock();
        assert!(lru.used() <= 10_000);
        assert!(lru.keys().all(|key| lru.peek(key).unwrap().used_at > 800));
    }

    #[test]
    fn a_damaged_file_puts_nothing() {
        let mut saved = Vec::new();
        filled(10).save(&mut saved).unwrap();
        let cache = FrameCache::new(1 << 20, 0.25, 0);
        for at in 0..saved.len() {
            let mut damaged = saved.clone();
            damaged[at] ^= 1;
            assert!(cache.restore_hot_set(&damaged).is_err());
            assert!(cache.restore_hot_set(&saved[..at]).is_err());
        }
        assert!(cache.lru.lock().is_empty());
    }
}

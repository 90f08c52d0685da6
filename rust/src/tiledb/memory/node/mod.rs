//! Decoded chunks that the processes of one user share: one piece of memory without a name in any folder.
//!
//! Readers take no lock and write nothing but a mark. Each entry has a sequence number, odd while it changes:
//! who copies cells looks at the number before and after, and throws the copy away if it changed. One writer
//! at a time holds a record lock, which the kernel frees when its process ends; a writer that ended amid a
//! change has left a flag, and the next one empties the cache. A writer that finds the lock held for long
//! leaves its chunk out. The memory cannot be made shorter, and is allocated before it is written, so that no
//! access of it is a bus error.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fd::{AsRawFd, OwnedFd};

use super::key::Key;
use crate::tiledb::codec::Cells;

#[cfg(target_os = "linux")]
pub mod attach;
#[cfg(not(target_os = "linux"))]
#[path = "refused.rs"]
pub mod attach;
mod writer;

/// Bytes that slots of one length are cut from.
pub const SLAB: usize = 4 << 20;
/// The shortest slot; longer ones are its doubles.
const LEAST: usize = 8 << 10;
/// Lengths of slots: 8 KiB to 1 MiB.
const CLASSES: usize = 8;
/// Entries of a slab, whatever the length of its slots.
const PER_SLAB: usize = SLAB / LEAST;
/// A cache line between slots: those that begin at one place of a page compete for one part of the processor's
/// cache.
const LINE: usize = 64;

/// "voxtile" and the version of the layout below.
const MAGIC: u64 = u64::from_be_bytes(*b"voxtile\x01");
/// Words of the header: what they hold.
const HEADER: usize = 512;
const AT_MAGIC: usize = 0;
const AT_SLABS: usize = 1;
const AT_CHANGING: usize = 2;
const AT_EVICTIONS: usize = 3;
/// Slabs in use: the first ones.
const AT_USED: usize = 4;
/// For each length of slots: the entry after the last one of its newest slab that was filled.
const AT_FRESH: usize = 8;
/// For each length of slots: the entry that is looked at next for eviction.
const AT_HAND: usize = AT_FRESH + CLASSES;

/// Words of an entry: sequence number, digest of the file (2), number and bytes of the chunk, offset, mark.
const WORDS: usize = 6;
const MARK: usize = 5;
/// Places of the index that are looked at for one key.
const PROBES: usize = 32;

/// The shared memory, as one process sees it.
pub struct Node {
    file: OwnedFd,
    start: *mut u8,
    bytes: usize,
    slabs: usize,
    writer: Mutex<()>,
    /// Stands for words outside of the memory: other processes may have written any number.
    nowhere: AtomicU64,
}

// SAFETY: the memory is accessed through atomics, and copied from as the module's text says.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

/// A chunk that was found; its cells may change at any time (see [`Shared::is_valid`]).
#[derive(Clone, Copy)]
pub struct Shared {
    node: &'static Node,
    entry: usize,
    sequence: u64,
    offset: usize,
    bytes: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Shared({} bytes at {})", self.bytes, self.offset)
    }
}

impl Shared {
    /// The cells, to copy from; the copy counts if [`Shared::is_valid`] is true afterwards.
    pub fn cells(&self) -> Cells<'_> {
        // SAFETY: the range was checked against the length of the memory, which cannot become shorter. Another
        // process may write to it meanwhile: any bytes can be copied, and the copy is thrown away.
        Cells::Plain(unsafe { std::slice::from_raw_parts(self.node.start.add(self.offset), self.bytes) })
    }

    /// Whether what was copied since the look-up are the chunk's cells.
    pub fn is_valid(&self) -> bool {
        fence(Ordering::Acquire);
        self.node.entry(self.entry, 0).load(Ordering::Relaxed) == self.sequence
    }
}

/// Words before the slabs.
fn table_words(slabs: usize) -> usize {
    HEADER + index_words(slabs) + slabs * PER_SLAB * WORDS + slabs
}

fn index_words(slabs: usize) -> usize {
    (slabs * PER_SLAB * 2).next_power_of_two()
}

/// Bytes before the slabs, whole pages.
fn table_bytes(slabs: usize) -> usize {
    (table_words(slabs) * 8).next_multiple_of(rustix::param::page_size())
}

fn class_of(bytes: usize) -> Option<usize> {
    let class = (bytes.max(LEAST).next_power_of_two() / LEAST).trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

fn slots(class: usize) -> usize {
    SLAB / ((LEAST << class) + LINE)
}

impl Node {
    /// Slabs that fit into a budget of bytes together with their tables.
    pub fn slabs_within(budget: u64) -> usize {
        let most = usize::try_from(budget).unwrap_or(usize::MAX) / SLAB;
        (0..=most).rev().find(|&slabs| (table_bytes(slabs) + slabs * SLAB) as u64 <= budget).unwrap_or(0)
    }

    /// Bytes of memory with so many slabs.
    pub fn bytes_of(slabs: usize) -> usize {
        table_bytes(slabs) + slabs * SLAB
    }

    /// Bytes of the tables with so many slabs.
    pub fn bytes_of_tables(slabs: usize) -> usize {
        table_bytes(slabs)
    }

    /// Uses mapped memory; `is_new` memory is all zeros and gets its header.
    ///
    /// `None` for memory that no process of this version made.
    ///
    /// # Safety
    ///
    /// `start` has `bytes` bytes of a map of `file` that is never unmapped.
    pub unsafe fn over(file: OwnedFd, start: *mut u8, bytes: usize, is_new: bool) -> Option<Self> {
        let mut node =
            Self { file, start, bytes, slabs: 0, writer: Mutex::default(), nowhere: AtomicU64::new(0) };
        if is_new {
            let slabs = (0..=bytes / SLAB).rev().find(|&slabs| Self::bytes_of(slabs) <= bytes)?;
            node.word(AT_SLABS).store(slabs as u64, Ordering::Relaxed);
            node.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        }
        let slabs = usize::try_from(node.word(AT_SLABS).load(Ordering::Relaxed)).ok()?;
        let is_ours = node.word(AT_MAGIC).load(Ordering::Acquire) == MAGIC;
        node.slabs = slabs;
        (is_ours && slabs > 0 && slabs <= bytes / SLAB && Self::bytes_of(slabs) <= bytes).then_some(node)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        if at >= self.bytes / 8 {
            return &self.nowhere;
        }
        // SAFETY: the word lies inside the memory, which is aligned to pages and never unmapped.
        unsafe { &*self.start.cast::<AtomicU64>().add(at) }
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Relaxed);
    }

    fn entry(&self, entry: usize, word: usize) -> &AtomicU64 {
        if entry >= self.slabs * PER_SLAB {
            return &self.nowhere;
        }
        self.word(HEADER + index_words(self.slabs) + entry * WORDS + word)
    }

    /// The word that holds the class of a slab's slots, plus one; 0 where it is not in use.
    fn class_word(&self, slab: usize) -> usize {
        HEADER + index_words(self.slabs) + self.slabs * PER_SLAB * WORDS + slab
    }

    fn class(&self, slab: usize) -> Option<usize> {
        (self.get(self.class_word(slab)) as usize).checked_sub(1).filter(|class| *class < CLASSES)
    }

    /// Places of the index where a key may be.
    fn places(&self, key: Key) -> impl Iterator<Item = usize> + use<> {
        let count = index_words(self.slabs);
        let mixed = (key.file as u64 ^ u64::from(key.chunk)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let first = (mixed >> 20) as usize;
        (0..PROBES).map(move |probe| HEADER + (first.wrapping_add(probe) & (count - 1)))
    }

    /// Looks a chunk up, without a lock; may miss one while another process writes.
    pub fn find(&'static self, key: Key) -> Option<Shared> {
        for place in self.places(key) {
            let entry = (self.get(place) as usize).checked_sub(1)?;
            let sequence = self.entry(entry, 0).load(Ordering::Acquire);
            if sequence % 2 == 1 || !self.is_of(entry, key) {
                continue;
            }
            let bytes = (self.entry(entry, 3).load(Ordering::Relaxed) >> 32) as usize;
            let offset = self.entry(entry, 4).load(Ordering::Relaxed) as usize;
            let is_inside = offset >= table_bytes(self.slabs)
                && offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
            let found = Shared { node: self, entry, sequence, offset, bytes };
            if is_inside && found.is_valid() {
                if self.entry(entry, MARK).load(Ordering::Relaxed) == 0 {
                    self.entry(entry, MARK).store(1, Ordering::Relaxed);
                }
                return Some(found);
            }
        }
        None
    }

    fn is_of(&self, entry: usize, key: Key) -> bool {
        let at = |word| self.entry(entry, word).load(Ordering::Relaxed);
        at(1) == key.file as u64
            && at(2) == (key.file >> 64) as u64
            && at(3) as u32 == key.chunk
            && at(3) != 0
    }

    /// Bytes of memory in use, and at most.
    pub fn memory(&self) -> (u64, u64) {
        let used = (self.get(AT_USED) as usize).min(self.slabs);
        ((table_bytes(self.slabs) + used * SLAB) as u64, self.bytes as u64)
    }

    /// Entries that writers of all processes removed to make room.
    pub fn evictions(&self) -> u64 {
        self.get(AT_EVICTIONS)
    }

    /// The descriptor of the memory in this process.
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

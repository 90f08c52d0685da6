//! Memory of decoded chunks: slabs of pages beside the heap, cut into slots of one length.
//!
//! In the heap, blocks that live long and arrays that live shortly alternate, and neither leaves room for the
//! other: 292 MB of blocks took 1.7 GB. Slots of one length are reused in place, and a free slot gives its
//! pages back when another length needs them.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::base::kernel::{Pages, advise_pages};

/// Bytes that are mapped at once; a longer slot has a slab of its own.
const SLAB: usize = 8 << 20;
/// Slots from this length on are not rounded up to pages.
const LONG: usize = 16 << 10;
/// A cache line. Slots that begin at one place of a page would compete for one part of the processor's cache.
const LINE: usize = 64;

/// All slabs of one cache.
#[derive(Debug, Default)]
pub struct Slabs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    classes: HashMap<usize, Class, RandomState>,
    /// Most bytes that all slots may have in memory, used or free.
    resident: u64,
    maps: Vec<(usize, usize)>,
}

/// The free slots of one length, by address.
#[derive(Debug, Default)]
struct Class {
    /// In memory.
    ready: Vec<usize>,
    /// Not in memory; with the bytes that using the slot brings there.
    absent: Vec<(usize, usize)>,
}

/// One slot in use; free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    start: NonNull<u8>,
    bytes: usize,
    owner: Arc<Slabs>,
}

// SAFETY: a slot owns its bytes, as a box does.
unsafe impl Send for Slot {}
// SAFETY: shared slots are only read.
unsafe impl Sync for Slot {}

/// Bytes of memory that a slot for this many bytes takes.
pub fn slot_bytes(bytes: usize) -> usize {
    if bytes < LONG { bytes.max(1).next_multiple_of(page()) } else { bytes.next_multiple_of(LINE) + LINE }
}

fn page() -> usize {
    rustix::param::page_size()
}

impl Slabs {
    // A poisoned lock is safe to use: lists of free slots are changed by single pushes and pops.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot of at least `bytes` bytes; `None` when the system has no memory.
    ///
    /// Free slots of other lengths give back their pages until all slots fit into `limit` bytes.
    pub fn take(self: &Arc<Self>, bytes: usize, limit: u64) -> Option<Slot> {
        let length = slot_bytes(bytes);
        let mut state = self.lock();
        let class = state.classes.entry(length).or_default();
        let start = match class.ready.pop() {
            Some(start) => start,
            None => {
                let (start, missing) = match class.absent.pop() {
                    Some(found) => found,
                    None => state.map(length)?,
                };
                state.give_back(limit.saturating_sub(missing as u64));
                state.resident += missing as u64;
                drop(state);
                bring_in(start, length);
                start
            }
        };
        Some(Slot { start: NonNull::new(start as *mut u8)?, bytes, owner: Arc::clone(self) })
    }

    /// Gives back the pages of free slots until all slots fit into `limit` bytes.
    pub fn trim(&self, limit: u64) {
        self.lock().give_back(limit);
    }

    /// Most bytes that all slots have in memory now.
    pub fn resident(&self) -> u64 {
        self.lock().resident
    }
}

/// Brings the whole pages of a slot into memory by one call, not by a fault for each.
fn bring_in(start: usize, length: usize) {
    let (first, end) = (start.next_multiple_of(page()), (start + length) / page() * page());
    if first < end {
        // SAFETY: the pages belong to a slot that nobody else has. Where the system refuses, they come one by one.
        let _ = unsafe { advise_pages(first as *mut _, end - first, Pages::Wanted) };
    }
}

impl State {
    /// Maps a slab of slots of one length; returns one of them and the bytes that it will take.
    fn map(&mut self, length: usize) -> Option<(usize, usize)> {
        let size = SLAB.max(length).next_multiple_of(page());
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new map at an address of the system's choice.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, flags) }.ok()?;
        for pages in [Pages::Small, Pages::NotForChildren] {
            // A huge page would bring slots into memory that nobody uses; a forked child starts with an empty
            // cache. SAFETY: advice on the new map.
            let _ = unsafe { advise_pages(start.cast(), size, pages) };
        }
        let start = start as usize;
        self.maps.push((start, size));
        let class = self.classes.entry(length).or_default();
        class.absent.extend((0..size / length).rev().map(|n| (start + n * length, length)));
        class.absent.pop()
    }

    fn give_back(&mut self, limit: u64) {
        for (length, class) in &mut self.classes {
            while self.resident > limit {
                let Some(start) = class.ready.pop() else { break };
                // Pages that the slot shares with its neighbours stay.
                let (first, end) = (start.next_multiple_of(page()), (start + length) / page() * page());
                // SAFETY: the pages belong to a free slot of a map of this module.
                let is_given =
                    first < end && unsafe { advise_pages(first as *mut _, end - first, Pages::Unused) };
                let freed = if is_given { end - first } else { 0 };
                self.resident -= freed as u64;
                class.absent.push((start, freed));
            }
        }
    }
}

impl Drop for Slabs {
    fn drop(&mut self) {
        for (start, size) in self.lock().maps.drain(..) {
            // SAFETY: a map of this module; no slot is left, as each holds the slabs.
            let _ = unsafe { munmap(start as *mut _, size) };
        }
    }
}

impl Slot {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slot has that many bytes and is not handed out twice.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        slot_bytes(self.bytes) as u64
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.owner.lock();
        if let Some(class) = state.classes.get_mut(&slot_bytes(self.bytes)) {
            class.ready.push(self.start.as_ptr() as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        /// Against a model: slots in use keep their bytes, never overlap, and free ones go to stay in the limit.
        #[test]
        fn slots_keep_their_bytes_and_free_slots_leave_when_the_limit_asks(
            steps in prop::collection::vec((1_usize..200_000, any::<bool>()), 1..80),
        ) {
            let slabs = Arc::new(Slabs::default());
            let mut used: Vec<(Slot, u8)> = Vec::new();
            for (number, (bytes, drops)) in steps.into_iter().enumerate() {
                if drops && !used.is_empty() {
                    used.swap_remove(bytes % used.len());
                }
                let held: u64 = used.iter().map(|(slot, _)| slot.memory_bytes()).sum();
                let mut slot = slabs.take(bytes, held + slot_bytes(bytes) as u64).unwrap();
                slot.bytes_mut().fill(number as u8);
                used.push((slot, number as u8));
                for (slot, value) in &used {
                    // Ends and every 64th byte: any overlap of slots changes one of these.
                    let (bytes, sparse) = (slot.bytes(), slot.bytes().iter().step_by(64));
                    prop_assert!(bytes.last() == Some(value) && sparse.clone().all(|byte| byte == value));
                }
                // Edges of free long slots share pages with neighbours and stay: two pages a slot at most.
                let held: u64 = used.iter().map(|(slot, _)| slot.memory_bytes()).sum();
                prop_assert!(slabs.resident() <= held + (number as u64 + 1) * 2 * page() as u64);
            }
            used.clear();
            slabs.trim(0);
            prop_assert!(slabs.resident() <= 80 * 2 * page() as u64);
        }
    }

    #[test]
    fn a_free_slot_is_used_again() {
        let slabs = Arc::new(Slabs::default());
        let first = slabs.take(65_536, u64::MAX).unwrap().bytes().as_ptr() as usize;
        let second = slabs.take(65_536, u64::MAX).unwrap().bytes().as_ptr() as usize;
        assert_eq!(first, second);
        assert_eq!(slabs.resident(), slot_bytes(65_536) as u64);
    }
}

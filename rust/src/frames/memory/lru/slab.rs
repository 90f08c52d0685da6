//! Slots in one growing array, linked by 32-bit numbers.

use super::accounts::Class;
use super::bytes::Bytes;

/// The slot number that means "none".
pub const NIL: u32 = u32::MAX;
/// Longest key in bytes; paths of the operating system are shorter.
pub const KEY_CAP: usize = (1 << 13) - 1;
/// Longest metadata of a record in bytes.
pub const META_CAP: usize = (1 << 16) - 1;

const DIRTY: u32 = 1 << 31;

/// One entry, in 40 bytes: with a million entries of one frame each, every byte more costs a megabyte.
pub struct Slot {
    /// Key, metadata and value, in this order; empty in a free slot.
    pub record: Bytes,
    /// Towards the least recently used.
    pub older: u32,
    /// Towards the most recently used; in a free slot, the next free one.
    pub newer: u32,
    /// Length of the key (13 bits), of the metadata (16), class (2), dirty (1).
    shape: u32,
    /// Last access, microseconds since 1970; 0 for none.
    pub used_at: i64,
    /// Number of accesses that were not drained yet.
    pub delta: u32,
    /// Counts the entries that this slot had, so that ids of former ones are recognised.
    pub generation: u32,
}

impl Slot {
    /// The key's bytes.
    pub fn key(&self) -> &[u8] {
        self.record.as_slice().get(..self.key_len()).unwrap_or_default()
    }

    /// The metadata that the caller stores beside the value.
    pub fn meta(&self) -> &[u8] {
        self.record.as_slice().get(self.key_len()..self.value_at()).unwrap_or_default()
    }

    /// The cached bytes.
    pub fn value(&self) -> &[u8] {
        self.record.as_slice().get(self.value_at()..).unwrap_or_default()
    }

    fn key_len(&self) -> usize {
        (self.shape & 0x1fff) as usize
    }

    fn value_at(&self) -> usize {
        self.key_len() + (self.shape >> 13 & 0xffff) as usize
    }

    /// The class, whose list the slot is in.
    pub fn class(&self) -> Class {
        match self.shape >> 29 & 3 {
            0 => Class::Normal,
            1 => Class::Scan,
            _ => Class::Pinned,
        }
    }

    fn set_class(&mut self, class: Class) {
        self.shape = self.shape & !(3 << 29) | (class as u32) << 29;
    }

    /// Whether there are accesses to drain.
    pub fn is_dirty(&self) -> bool {
        self.shape & DIRTY != 0
    }

    /// Sets or clears the mark of [`Slot::is_dirty`]; returns whether that changed it.
    pub fn set_dirty(&mut self, dirty: bool) -> bool {
        let changed = self.is_dirty() != dirty;
        self.shape = if dirty { self.shape | DIRTY } else { self.shape & !DIRTY };
        changed
    }
}

/// A record to store: assembled outside the lock, then moved in.
pub struct Record {
    pub(super) bytes: Bytes,
    key_len: u32,
    meta_len: u32,
}

impl Record {
    /// Copies the parts; `None` if key or metadata exceed their caps, or all three 4 GiB.
    pub fn new(key: &[u8], meta: &[u8], value: &[u8]) -> Option<Self> {
        if key.len() > KEY_CAP || meta.len() > META_CAP {
            return None;
        }
        let bytes = Bytes::concat([key, meta, value])?;
        Some(Self { bytes, key_len: key.len() as u32, meta_len: meta.len() as u32 })
    }

    /// The key's bytes.
    pub fn key(&self) -> &[u8] {
        self.bytes.as_slice().get(..self.key_len as usize).unwrap_or_default()
    }

    /// The bytes of its metadata.
    pub fn meta(&self) -> &[u8] {
        let (start, length) = (self.key_len as usize, self.meta_len as usize);
        self.bytes.as_slice().get(start..start + length).unwrap_or_default()
    }

    /// The bytes of its value.
    pub fn value(&self) -> &[u8] {
        let start = self.key_len as usize + self.meta_len as usize;
        self.bytes.as_slice().get(start..).unwrap_or_default()
    }

    /// Length of key, meta and value in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// Both ends of a linked list of slots.
#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
}

/// The slots and their lists, one for each class.
pub struct Slab {
    slots: Vec<Slot>,
    free: u32,
    lists: [List; 3],
    live: usize,
}

impl Default for Slab {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NIL, lists: [List { oldest: NIL, newest: NIL }; 3], live: 0 }
    }
}

// Links, ends of lists and ids of the index always are numbers of existing slots, as `Lru::validate` checks
// after every operation under test. Numbers from outside go through `current` and `live_slot`.
#[allow(clippy::indexing_slicing)]
impl Slab {
    /// Number of slots in use.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Number of slots, free ones included: ids are below it.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of an id from the index or a list.
    #[inline]
    pub fn slot(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    /// The slot of an id from the index or a list.
    #[inline]
    pub fn slot_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    /// The slot of an id from outside, if it is in use by the entry of that generation.
    #[inline]
    pub fn current(&self, id: u32, generation: u32) -> Option<&Slot> {
        self.slots.get(id as usize).filter(|slot| slot.generation == generation && !slot.record.is_empty())
    }

    /// The slot of any number, if it is in use.
    pub fn live_slot(&mut self, id: u32) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize).filter(|slot| !slot.record.is_empty())
    }

    /// Prefetches a slot that will be needed soon; any number is allowed.
    #[inline]
    pub fn prefetch(&self, id: u32) {
        prefetch(self.slots.as_ptr().wrapping_add(id as usize).cast());
    }

    /// Prefetches the slots that will be relinked when this one is promoted.
    #[inline]
    pub fn prefetch_neighbours(&self, id: u32) {
        if let Some(slot) = self.slots.get(id as usize) {
            self.prefetch(slot.older);
            self.prefetch(slot.newer);
        }
    }

    /// Prefetches the key of a slot.
    #[inline]
    pub fn prefetch_key(&self, id: u32) {
        if let Some(slot) = self.slots.get(id as usize) {
            let key = slot.record.as_slice().as_ptr();
            prefetch(key);
            prefetch(key.wrapping_add(64));
        }
    }

    /// Least recently used slot of a class, or [`NIL`].
    pub fn oldest(&self, class: Class) -> u32 {
        self.lists[class as usize].oldest
    }

    /// Most recently used slot of a class, or [`NIL`].
    pub fn newest(&self, class: Class) -> u32 {
        self.lists[class as usize].newest
    }

    /// Puts a record into a slot, as the newest or `oldest` of its class; `None` when 2^32 - 1 slots exist.
    pub fn add(&mut self, record: Record, class: Class, oldest: bool) -> Option<u32> {
        let shape = record.key_len | record.meta_len << 13 | (class as u32) << 29;
        let id = if self.free == NIL {
            let id = u32::try_from(self.slots.len()).ok().filter(|&id| id != NIL)?;
            let (older, newer) = (NIL, NIL);
            self.slots.push(Slot {
                record: record.bytes,
                older,
                newer,
                shape,
                used_at: 0,
                delta: 0,
                generation: 0,
            });
            id
        } else {
            let id = self.free;
            let slot = &mut self.slots[id as usize];
            self.free = slot.newer;
            slot.record = record.bytes;
            slot.shape = shape;
            id
        };
        self.live += 1;
        if oldest {
            self.link_oldest(id, class)
        } else {
            self.link_newest(id, class)
        }
        Some(id)
    }

    /// Frees a slot and returns its record.
    pub fn take(&mut self, id: u32) -> Bytes {
        self.unlink(id);
        let slot = &mut self.slots[id as usize];
        slot.used_at = 0;
        slot.delta = 0;
        slot.generation = slot.generation.wrapping_add(1);
        slot.newer = self.free;
        self.free = id;
        self.live -= 1;
        std::mem::take(&mut slot.record)
    }

    /// Makes the slot the newest of `class`.
    #[inline(always)]
    pub fn promote(&mut self, id: u32, class: Class) {
        if self.lists[class as usize].newest == id {
            return;
        }
        self.unlink(id);
        self.slots[id as usize].set_class(class);
        self.link_newest(id, class);
    }

    fn link_newest(&mut self, id: u32, class: Class) {
        let list = &mut self.lists[class as usize];
        let before = std::mem::replace(&mut list.newest, id);
        if before == NIL {
            list.oldest = id;
        } else {
            self.slots[before as usize].newer = id;
        }
        let slot = &mut self.slots[id as usize];
        slot.older = before;
        slot.newer = NIL;
    }

    fn link_oldest(&mut self, id: u32, class: Class) {
        let list = &mut self.lists[class as usize];
        let after = std::mem::replace(&mut list.oldest, id);
        if after == NIL {
            list.newest = id;
        } else {
            self.slots[after as usize].older = id;
        }
        let slot = &mut self.slots[id as usize];
        slot.newer = after;
        slot.older = NIL;
    }

    fn unlink(&mut self, id: u32) {
        let Slot { older, newer, .. } = self.slots[id as usize];
        let class = self.slots[id as usize].class();
        let list = &mut self.lists[class as usize];
        if older == NIL {
            list.oldest = newer;
        }
        if newer == NIL {
            list.newest = older;
        }
        if older != NIL {
            self.slots[older as usize].newer = newer;
        }
        if newer != NIL {
            self.slots[newer as usize].older = older;
        }
    }
}

#[inline]
fn prefetch(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, and addresses without memory are ignored.
        unsafe { _mm_prefetch(place.cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

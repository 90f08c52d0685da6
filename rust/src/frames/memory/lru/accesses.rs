//! Accesses: counted in the slot, kept when the entry is removed, drained to be written, restored when
//! writing failed.

use super::{Access, Class, Lru, Pending};

impl Lru {
    /// Promotes an entry and counts its access.
    #[inline(always)]
    pub(super) fn access(&mut self, id: u32, now: i64) {
        match self.slab.slot(id).class() {
            Class::Normal => self.slab.promote(id, Class::Normal),
            Class::Scan => {
                let weight = Self::weight(self.slab.slot(id).record.len());
                self.shrink(Class::Scan, weight);
                self.slab.promote(id, Class::Normal);
                self.grow(Class::Normal, weight);
            }
            Class::Pinned => {}
        }
        let slot = self.slab.slot_mut(id);
        // The distance, not the age: after the clock was set back, a future `used_at` must not suppress
        // counting.
        if now.abs_diff(slot.used_at) > self.debounce_us {
            slot.delta = slot.delta.saturating_add(1);
            slot.used_at = now;
        }
        slot.used_at = slot.used_at.max(now);
        self.dirty += usize::from(slot.set_dirty(true));
    }

    /// Moves the accesses of the slots `from..from + most` to `out`; returns the next `from`, `None` at the
    /// end.
    pub fn drain_step(&mut self, from: u32, most: u32, out: &mut Vec<Access>) -> Option<u32> {
        if from == 0 {
            out.extend(self.pending.drain());
        }
        let end = from.saturating_add(most);
        for id in from..end.min(self.slab.len() as u32) {
            if let Some(slot) = self.slab.live_slot(id).filter(|slot| slot.is_dirty()) {
                out.push(Access { key: slot.key().into(), count: slot.delta, used_at: slot.used_at });
                slot.delta = 0;
                slot.set_dirty(false);
                self.dirty -= 1;
            }
        }
        ((end as usize) < self.slab.len()).then_some(end)
    }

    /// Counts drained accesses again that could not be written.
    pub fn restore(&mut self, accesses: &[Access]) {
        for access in accesses {
            if let Some(id) = self.find(&access.key) {
                let slot = self.slab.slot_mut(id);
                slot.delta = slot.delta.saturating_add(access.count);
                slot.used_at = slot.used_at.max(access.used_at);
                self.dirty += usize::from(slot.set_dirty(true));
            } else {
                let weight = access.key.len() as u64 + Pending::OVERHEAD;
                self.make_room(weight);
                self.keep_accesses(&access.key, Some((access.count, access.used_at)));
            }
        }
    }

    /// Forgets every access and eviction but keeps the entries: for a forked child, whose parent reports
    /// them.
    pub fn forget_accesses(&mut self) {
        self.pending.drain();
        self.log.drain();
        self.dirty = 0;
        for id in 0..self.slab.len() as u32 {
            if let Some(slot) = self.slab.live_slot(id) {
                slot.delta = 0;
                slot.set_dirty(false);
            }
        }
    }

    /// Keeps the accesses of a key without entry; beyond an eighth of the budget they are dropped and counted
    /// so.
    pub(super) fn keep_accesses(&mut self, key: &[u8], accesses: Option<(u32, i64)>) {
        let Some((count, used_at)) = accesses else { return };
        let room = self.budget.saturating_sub(self.entries_bytes);
        if !self.pending.add(key, count, used_at, room.min(self.budget / 8)) {
            self.counters.access_dropped += u64::from(count);
        }
    }
}

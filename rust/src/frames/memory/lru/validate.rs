//! The check of all invariants.

use super::{Class, Lru, NIL};

impl Lru {
    /// Checks every invariant; for tests and fuzzing, linear in the number of entries.
    ///
    /// # Errors
    /// A sentence about the first invariant that does not hold.
    pub fn validate(&self) -> Result<(), String> {
        let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
        let (mut live, mut dirty, mut bytes) = (0, 0, 0);
        for class in [Class::Normal, Class::Scan, Class::Pinned] {
            let (mut older, mut id, mut class_bytes) = (NIL, self.slab.oldest(class), 0);
            while id != NIL {
                let slot = self.slab.slot(id);
                check(slot.older == older, "links do not mirror each other")?;
                check(slot.class() == class, "slot in the list of another class")?;
                check(self.find(slot.key()) == Some(id), "index and slot disagree")?;
                class_bytes += Self::weight(slot.record.len());
                dirty += usize::from(slot.is_dirty());
                live += 1;
                check(live <= self.slab.len(), "cycle in a list")?;
                (older, id) = (id, slot.newer);
            }
            check(self.slab.newest(class) == older, "newest is not the end of its list")?;
            check(self.class_bytes(class) == class_bytes, "bytes of a class")?;
            bytes += class_bytes;
        }
        check(live == self.slab.live() && live == self.index.len(), "number of entries")?;
        check(dirty == self.dirty, "number of dirty entries")?;
        check(bytes == self.entries_bytes && self.pending.weight_is_sum(), "sum of weights")?;
        check(self.used() <= self.budget, "used exceeds the budget")
    }
}

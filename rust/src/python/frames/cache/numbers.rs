//! What a memory counts, as a dict.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::frames::memory::lru::{Class, Lru};

/// Numbers of one moment: taken under the mutex, made a dict without it.
pub(super) struct Numbers {
    plain: [(&'static str, u64); 13],
    evicted: [(&'static str, u64); 4],
}

impl Numbers {
    pub(super) fn of(lru: &Lru) -> Self {
        let counters = lru.counters();
        let [capacity, replaced, invalidated, resize] = counters.evicted;
        Self {
            plain: [
                ("budget", lru.budget()),
                ("used", lru.used()),
                ("entries", lru.len() as u64),
                ("hits", counters.hits),
                ("misses", counters.misses),
                ("rejected_oversize", counters.rejected_oversize),
                ("rejected_scan", counters.rejected_scan),
                ("rejected_pinned", counters.rejected_pinned),
                ("access_dropped", counters.access_dropped),
                ("dirty", lru.dirty() as u64),
                ("pending_bytes", lru.pending_bytes()),
                ("pinned_bytes", lru.class_bytes(Class::Pinned)),
                ("scan_bytes", lru.class_bytes(Class::Scan)),
            ],
            evicted: [
                ("capacity", capacity),
                ("replaced", replaced),
                ("invalidated", invalidated),
                ("resize", resize),
            ],
        }
    }

    pub(super) fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, evicted) = (PyDict::new(py), PyDict::new(py));
        self.plain.iter().try_for_each(|(name, number)| stats.set_item(name, number))?;
        self.evicted.iter().try_for_each(|(name, number)| evicted.set_item(name, number))?;
        stats.set_item("evicted", evicted)?;
        Ok(stats)
    }
}

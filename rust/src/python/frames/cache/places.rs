//! Where a frame of a table in memory lies.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use crate::base::error::{Error, ErrorKind};
use crate::frames::memory::cached;
use crate::frames::memory::lru::Slot;
use crate::frames::packed::Table;

fn no_frame(frame: impl std::fmt::Display, slot: &Slot) -> PyErr {
    let frames = Table::from_memory(slot.value()).map_or(0, |view| view.frames());
    PyIndexError::new_err(format!("frame {frame} of {frames}, counted from 0"))
}

fn limit_of(slot: &Slot) -> u64 {
    cached::limit(slot.meta()).filter(|&limit| limit != 0).unwrap_or(u64::MAX)
}

/// Offset and length of a frame that is one range.
#[inline]
pub(super) fn locate(slot: &Slot, frame: i64) -> PyResult<(u64, u64)> {
    let index = usize::try_from(frame).unwrap_or(usize::MAX);
    let Some(view) = Table::from_memory(slot.value()).filter(|view| index < view.frames()) else {
        return Err(no_frame(frame, slot));
    };
    if let Some(native) = view.native() {
        let (start, end) = native.range(index as u64, limit_of(slot));
        return Ok((start, end - start));
    }
    let items = view.items_of(index);
    if items.len() != 1 {
        let detail = format!("frame {frame} lies in {} fragments: ask for its ranges", items.len());
        return Err(Error::new(ErrorKind::FragmentedFrame, detail).into());
    }
    view.item(items.start).ok_or_else(|| no_frame(frame, slot))
}

/// The ranges of a frame, offset and length, in their order.
pub(super) fn ranges(slot: &Slot, frame: i64) -> PyResult<Vec<(u64, u64)>> {
    let index = usize::try_from(frame).unwrap_or(usize::MAX);
    match Table::from_memory(slot.value()).filter(|view| index < view.frames()) {
        Some(view) => Ok(view.ranges(index, limit_of(slot)).collect()),
        None => Err(no_frame(frame, slot)),
    }
}

/// Checks that ranges lie within a file: as many offsets as lengths, each with its Item header before it.
pub(super) fn check(offsets: &[u64], lengths: &[u64]) -> PyResult<()> {
    if offsets.len() != lengths.len() {
        let detail = format!("{} offsets and {} lengths", offsets.len(), lengths.len());
        return Err(PyValueError::new_err(detail));
    }
    let outside = |(&offset, &length): (&u64, &u64)| offset < 8 || offset.checked_add(length).is_none();
    match offsets.iter().zip(lengths).position(outside) {
        Some(index) => Err(PyValueError::new_err(format!("range {index} lies outside of any file"))),
        None => Ok(()),
    }
}

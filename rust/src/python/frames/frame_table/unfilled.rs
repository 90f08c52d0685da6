//! `bytes` objects that a read fills: to copy a large frame into one takes longer than to read it.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::dicom::read::fill::length;
use crate::frames::table::FrameTable;

/// The `bytes` of some frames, which Python does not see before they are filled.
pub struct Unfilled<'py>(Vec<(Bound<'py, PyBytes>, usize)>);

impl<'py> Unfilled<'py> {
    /// Makes those of frames of a table; `None` where it does not tell their lengths, or they cannot be those of a file
    /// of its size.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn new(py: Python<'py>, table: &FrameTable, frames: &[usize]) -> PyResult<Option<Self>> {
        let Some(lengths) = frames.iter().map(|&frame| length(table, frame)).collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let made = lengths.into_iter().map(|length| {
            let size = ffi::Py_ssize_t::try_from(length).unwrap_or(ffi::Py_ssize_t::MAX);
            // SAFETY: the GIL is held, and without bytes to copy this is a new object of `size` bytes, or an exception.
            let object = unsafe {
                Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))
            };
            Ok((object?.cast_into::<PyBytes>()?, length))
        });
        made.collect::<PyResult<_>>().map(|made| Some(Self(made)))
    }

    /// Their memory, to be written.
    pub fn places(&mut self) -> Vec<&mut [u8]> {
        let place = |(bytes, length): &mut (Bound<'py, PyBytes>, usize)| {
            // SAFETY: it has `length` bytes, and nobody else has the object; an empty one, which all share, has none. They
            // hold nothing yet: whoever takes a place writes to it alone, and the object is dropped unless all was.
            unsafe { std::slice::from_raw_parts_mut(ffi::PyBytes_AsString(bytes.as_ptr()).cast(), *length) }
        };
        self.0.iter_mut().map(place).collect()
    }

    /// The objects, once every byte of them was written.
    pub fn filled(self) -> Vec<Bound<'py, PyBytes>> {
        self.0.into_iter().map(|(bytes, _)| bytes).collect()
    }
}

//! Sources as Python passes them: a path, bytes, a file descriptor, or an object with `read` and `size`.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Bytes, FileSource, Fingerprint, RangedSource, Source};
use crate::python::paths::local_path_of;

/// Most threads that read one file: more of them wait for one another in the page cache.
const MOST_READERS: usize = 4;

/// Calls `work` with the source that `object` stands for, without the GIL where nothing of Python is touched.
pub fn with_source<R: Send>(
    object: &Bound<'_, PyAny>,
    work: impl FnOnce(&dyn Source) -> Result<R> + Send,
) -> PyResult<R> {
    let py = object.py();
    if let Ok(bytes) = object.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return Ok(py.detach(|| work(&Bytes(bytes)))?);
    }
    if object.is_instance_of::<PyInt>() {
        let fd: i32 = object.extract()?;
        if fd < 0 {
            return Err(PyValueError::new_err(format!("a file descriptor cannot be {fd}")));
        }
        // SAFETY: the caller lends an open descriptor for the call; a closed one is an EBADF, not a danger.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        return Ok(py.detach(|| work(&FileSource::new(fd)?.with_readers(readers())))?);
    }
    if let (Ok(read), Ok(size)) = (object.getattr("read"), object.getattr("size")) {
        return with_reader(&read, size.extract()?, work);
    }
    if let Ok(path) = local_path_of(object) {
        return Ok(py.detach(|| work(&FileSource::open(&path)?.with_readers(readers())))?);
    }
    let Ok(buffer) = PyBuffer::<u8>::get(object) else {
        let kind = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "a source is a path, bytes, a file descriptor or a RangedSource, not {kind}"
        )));
    };
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err("the buffer must be C-contiguous"));
    }
    // SAFETY: the buffer is pinned while `buffer` lives and holds `item_count` bytes. Others may write to it
    // only while the GIL is free, so it stays held, and the bytes are read as cells, never as plain memory.
    let cells =
        unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<Cell<u8>>(), buffer.item_count()) };
    Ok(work(&Cells(cells))?)
}

/// Threads that read one file. Computed once: Linux reads files of /proc for it, in 25 us.
fn readers() -> usize {
    static READERS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS));
    *READERS
}

fn with_reader<R>(
    read: &Bound<'_, PyAny>,
    size: u64,
    work: impl FnOnce(&dyn Source) -> Result<R>,
) -> PyResult<R> {
    let raised = RefCell::new(None);
    let source = RangedSource::new(
        |offset, length| {
            let bytes = read.call1((offset, length)).and_then(|bytes| bytes.extract::<Vec<u8>>());
            bytes.map_err(|error| {
                let detail = format!("the reader raised: {error}");
                raised.replace(Some(error));
                Error::at(ErrorKind::IoError, offset, detail)
            })
        },
        size,
    );
    work(&source).map_err(|error| {
        let error = PyErr::from(error);
        if let Some(cause) = raised.take() {
            error.set_cause(read.py(), Some(cause));
        }
        error
    })
}

/// A Python buffer, read as cells while the GIL is held: other threads may write to it when it is released.
struct Cells<'a>(&'a [Cell<u8>]);

impl Source for Cells<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_size(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.0.get(start..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer.iter_mut().zip(rest).for_each(|(to, from)| *to = from.get());
        Ok(count)
    }
}

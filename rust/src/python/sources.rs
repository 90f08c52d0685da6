//! Sources as Python passes them: a path, bytes, a file descriptor, an object with `read` and `size`, or one with
//! `open_ranges` and `fetch`, whose ranges are requests to a remote machine.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::{LazyLock, Mutex, PoisonError};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::planned::{Cost, Fetch, Planned};
use crate::base::source::{Bytes, Etag, FileSource, Fingerprint, Range, Source};
use crate::frames::table::FrameTable;
use crate::python::errors::SourceError;
use crate::python::gil::{Release, attach};
use crate::python::paths::local_path_of;

/// Most threads that read one file: more of them wait for one another in the page cache.
const MOST_READERS: usize = 4;

/// The state of a file or object as Python has it: size, mtime_ns, ctime_ns, inode, etag; None for what there is not.
pub(super) type State = (u64, Option<i64>, Option<i64>, Option<u64>, Option<String>);

pub(super) fn state_of(Fingerprint { size, mtime_ns, ctime_ns, inode, etag }: Fingerprint) -> State {
    (size, mtime_ns, ctime_ns, inode, etag.map(|etag| etag.to_string()))
}

pub(super) fn fingerprint_of((size, mtime_ns, ctime_ns, inode, etag): State) -> Fingerprint {
    let etag = etag.and_then(|etag| Etag::from(&etag).ok());
    Fingerprint { size, mtime_ns, ctime_ns, inode, etag }
}

/// Calls `work` with the source that `object` stands for, without the GIL where nothing of Python is touched.
pub fn with_source<R: Send>(
    object: &Bound<'_, PyAny>,
    work: impl FnOnce(&dyn Source) -> Result<R> + Send,
) -> PyResult<R> {
    let py = object.py();
    if let Ok(bytes) = object.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return Ok(py.release(|| work(&Bytes(bytes)))?);
    }
    if object.is_instance_of::<PyInt>() {
        let fd: i32 = object.extract()?;
        if fd < 0 {
            return Err(PyValueError::new_err(format!("a file descriptor cannot be {fd}")));
        }
        // SAFETY: the caller lends an open descriptor for the call; a closed one is an EBADF, not a danger.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        return Ok(py.release(|| work(&FileSource::new(fd)?.with_readers(readers())))?);
    }
    if let (Ok(read), Ok(size)) = (object.getattr("read"), object.getattr("size")) {
        return with_reader(&read, size.extract()?, work);
    }
    if object.hasattr("open_ranges")? {
        return with_object(object, work);
    }
    if let Ok(path) = local_path_of(object) {
        return Ok(py.release(|| work(&FileSource::open(&path)?.with_readers(readers())))?);
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

/// Calls `work` with what a function reads by ranges, one after another.
fn with_reader<R: Send>(
    read: &Bound<'_, PyAny>,
    size: u64,
    work: impl FnOnce(&dyn Source) -> Result<R> + Send,
) -> PyResult<R> {
    let fetch = Fetcher { read: Reads::One(read.clone().unbind()), raised: Mutex::new(None) };
    let source = Planned::new(fetch, Fingerprint::of_size(size), Cost::default(), Vec::new());
    run(read.py(), source, work)
}

/// Calls `work` with an object that Python reads by ranges, without the GIL but for the requests.
///
/// `open_ranges()` returns the state of the object, what a request costs in bytes, and the object's first bytes;
/// `fetch([(start, end), ...])` the bytes of ranges, asked for at the same time.
fn with_object<R: Send>(
    object: &Bound<'_, PyAny>,
    work: impl FnOnce(&dyn Source) -> Result<R> + Send,
) -> PyResult<R> {
    let py = object.py();
    let opened = object.call_method0("open_ranges")?;
    let (state, bridge, head): (State, u64, Bound<'_, PyAny>) = opened.extract()?;
    let head = PyBuffer::<u8>::get(&head)?.to_vec(py)?;
    let fetch = Fetcher { read: Reads::Several(object.getattr("fetch")?.unbind()), raised: Mutex::new(None) };
    let cost = Cost { bridge, ..Cost::default() };
    run(py, Planned::new(fetch, fingerprint_of(state), cost, head), work)
}

fn run<R: Send>(
    py: Python<'_>,
    source: Planned<Fetcher>,
    work: impl FnOnce(&dyn Source) -> Result<R> + Send,
) -> PyResult<R> {
    py.release(|| work(&source)).map_err(|error| match source.into_fetch().raised.into_inner() {
        Ok(Some(raised)) if raised.is_instance_of::<SourceError>(py) => raised,
        Ok(Some(raised)) => {
            let error = PyErr::from(error);
            error.set_cause(py, Some(raised));
            error
        }
        _ => error.into(),
    })
}

/// Reads the table of an object of which `open` makes a source, for a thread of the core.
pub fn read_object(
    open: &Py<PyAny>,
    object: &Py<PyAny>,
    work: impl FnOnce(&dyn Source) -> Result<FrameTable> + Send,
) -> Result<FrameTable> {
    read_changed_object(open, object, None, work)?
        .ok_or_else(|| Error::new(ErrorKind::IoError, "the opener made no source of it"))
}

/// As [`read_object`]; `None` where the object still has the state `known`, as `open` finds out.
pub fn read_changed_object(
    open: &Py<PyAny>,
    object: &Py<PyAny>,
    known: Option<Fingerprint>,
    work: impl FnOnce(&dyn Source) -> Result<FrameTable> + Send,
) -> Result<Option<FrameTable>> {
    attach(|py| {
        let source = match known {
            Some(known) => open.bind(py).call1((object, state_of(known)))?,
            None => open.bind(py).call1((object,))?,
        };
        if source.is_none() {
            return Ok(None);
        }
        let table = with_source(&source, work)?;
        // Stores plan the first reads of further objects by it.
        if let Some(place) = table.pixel_data_pos
            && source.hasattr("note_header")?
        {
            source.call_method1("note_header", (place,))?;
        }
        Ok(Some(table))
    })
    .map_err(|error| attach(|py| error_of(py, &error)))
}

/// A function of Python's that reads.
enum Reads {
    /// `read(offset, length)`.
    One(Py<PyAny>),
    /// `fetch([(start, end), ...])`.
    Several(Py<PyAny>),
}

struct Fetcher {
    read: Reads,
    raised: Mutex<Option<PyErr>>,
}

impl Fetch for Fetcher {
    fn fetch(&self, ranges: &[Range]) -> Result<Vec<Vec<u8>>> {
        attach(|py| {
            let bytes = |part: &Bound<'_, PyAny>| PyBuffer::<u8>::get(part)?.to_vec(py);
            let fetched: PyResult<Vec<_>> = match &self.read {
                Reads::One(read) => ranges
                    .iter()
                    .map(|(start, end)| bytes(&read.bind(py).call1((*start, end - start))?))
                    .collect(),
                Reads::Several(fetch) => fetch
                    .bind(py)
                    .call1((ranges.to_vec(),))
                    .and_then(|parts| parts.try_iter()?.map(|part| bytes(&part?)).collect()),
            };
            fetched.map_err(|raised| {
                let mut error = error_of(py, &raised);
                error.offset = error.offset.or(ranges.first().map(|&(start, _)| start));
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(raised);
                error
            })
        })
    }
}

/// What Python raised, as an error of the core.
fn error_of(py: Python<'_>, raised: &PyErr) -> Error {
    let parts = || -> PyResult<Error> {
        let value = raised.value(py);
        let kind: String = value.getattr("kind")?.extract()?;
        Ok(Error {
            kind: ErrorKind::from_name(&kind).unwrap_or(ErrorKind::IoError),
            offset: value.getattr("offset")?.extract()?,
            detail: value.getattr("detail")?.extract()?,
            errno: value.getattr("errno").ok().and_then(|errno| errno.extract().ok()),
        })
    };
    parts().unwrap_or_else(|_| Error::new(ErrorKind::IoError, format!("the reader raised: {raised}")))
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

//! `FrameCache`: converts arguments, holds the mutex for less than a microsecond, wraps the result. No Python
//! object is stored inside.

mod numbers;
mod places;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayString;
use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use crate::base::fork_lock::Guard;
use crate::base::source::{FileSource, is_resident};
use crate::frames::memory::cache::{
    FrameCache, class_of, fill_frames, fill_resident_frames, look_up, may_be_resident, read_frames,
    read_resident_frames, request,
};
use crate::frames::memory::cached;
use crate::frames::memory::lru::{Access, Class, Lru, Put, PutOutcome};
use crate::frames::table::{FrameTable, ItemsView, Layout, LayoutView};
use crate::python::frames::frame_table::unfilled::Unfilled;
use crate::python::frames::frame_table::{PyFrameTable, number};
use crate::python::gil::Release;
use crate::python::sources::{State, state_of, with_source};

use numbers::Numbers;

/// Look-ups that are done with the GIL held, and for which other threads wait for the mutex.
const TOUCHED_WITH_GIL: usize = 256;

#[pyclass(frozen, subclass, weakref, module = "voxtier._core", name = "FrameCache")]
pub(crate) struct PyFrameCache {
    pub(crate) cache: Arc<FrameCache>,
}

type Arrays<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

impl PyFrameCache {
    /// Takes the mutex. Waits without the GIL: a holder never needs it, but a waiter with it stops every thread.
    #[inline]
    fn lock(&self, py: Python<'_>) -> Guard<'_, Lru> {
        loop {
            if let Some(guard) = self.cache.lru.try_lock() {
                return guard;
            }
            py.release(|| drop(self.cache.lru.lock()));
        }
    }
}

fn parse_class(klass: &str) -> PyResult<Class> {
    class_of(klass)
        .ok_or_else(|| PyValueError::new_err(format!("klass is 'normal', 'scan' or 'pinned', not {klass:?}")))
}

#[pymethods]
impl PyFrameCache {
    #[new]
    #[pyo3(signature = (budget_bytes, *, policy="lru", max_entry_fraction=0.25, debounce_seconds=600.0))]
    fn new(
        budget_bytes: i64,
        policy: &str,
        max_entry_fraction: f64,
        debounce_seconds: f64,
    ) -> PyResult<Self> {
        let Ok(budget) = u64::try_from(budget_bytes) else {
            return Err(PyValueError::new_err(format!("budget_bytes = {budget_bytes}: must be >= 0")));
        };
        if policy != "lru" {
            return Err(PyValueError::new_err(format!("policy = {policy:?}: only 'lru' is built in")));
        }
        if !(max_entry_fraction > 0.0 && max_entry_fraction <= 1.0) {
            return Err(PyValueError::new_err(format!(
                "max_entry_fraction = {max_entry_fraction}: in (0, 1]"
            )));
        }
        if !(0.0..=1e9).contains(&debounce_seconds) {
            return Err(PyValueError::new_err(format!("debounce_seconds = {debounce_seconds}: 0 to 1e9")));
        }
        let debounce_us = (debounce_seconds * 1e6) as u64;
        Ok(Self { cache: Arc::new(FrameCache::new(budget, max_entry_fraction, debounce_us)) })
    }

    #[pyo3(signature = (key, *, scan=false))]
    fn touch(&self, py: Python<'_>, key: &str, scan: bool) -> bool {
        let request = request(scan);
        self.lock(py).get(key.as_bytes(), request).is_some()
    }

    #[pyo3(signature = (key, frame, *, scan=false))]
    fn locate(
        &self,
        py: Python<'_>,
        key: &str,
        #[pyo3(from_py_with = number)] frame: i64,
        scan: bool,
    ) -> PyResult<Option<(u64, u64)>> {
        let request = request(scan);
        self.lock(py).get(key.as_bytes(), request).map(|slot| places::locate(slot, frame)).transpose()
    }

    #[pyo3(signature = (key, frames, *, scan=false))]
    fn locate_many<'py>(
        &self,
        py: Python<'py>,
        key: &str,
        frames: PyReadonlyArray1<'py, i64>,
        scan: bool,
    ) -> PyResult<Option<Arrays<'py>>> {
        let frames = frames.as_slice()?;
        let request = request(scan);
        let mut guard = self.lock(py);
        let Some(slot) = guard.get(key.as_bytes(), request) else { return Ok(None) };
        let (mut offsets, mut lengths) = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
        for &frame in frames {
            let (offset, length) = places::locate(slot, frame)?;
            offsets.push(offset.cast_signed());
            lengths.push(length.cast_signed());
        }
        drop(guard);
        Ok(Some((PyArray1::from_vec(py, offsets), PyArray1::from_vec(py, lengths))))
    }

    #[pyo3(signature = (key, frame, *, scan=false))]
    fn ranges(
        &self,
        py: Python<'_>,
        key: &str,
        #[pyo3(from_py_with = number)] frame: i64,
        scan: bool,
    ) -> PyResult<Option<Vec<(u64, u64)>>> {
        let request = request(scan);
        let mut guard = self.lock(py);
        let Some(slot) = guard.get(key.as_bytes(), request) else { return Ok(None) };
        places::ranges(slot, frame).map(Some)
    }

    fn table(&self, py: Python<'_>, key: &str) -> Option<PyFrameTable> {
        let guard = self.lock(py);
        let slot = guard.peek(key.as_bytes())?;
        let (meta, value) = (slot.meta().to_vec(), slot.value().to_vec());
        drop(guard);
        py.release(|| cached::decode(&meta, &value)).map(Into::into)
    }

    fn etag(&self, py: Python<'_>, key: &str) -> Option<String> {
        cached::decode_meta(self.lock(py).peek(key.as_bytes())?.meta())?.1
    }

    /// The state of the file that the table of a key describes.
    fn state(&self, py: Python<'_>, key: &str) -> Option<State> {
        let guard = self.lock(py);
        let (table, _) = cached::decode_meta(guard.peek(key.as_bytes())?.meta())?;
        Some(state_of(table.fingerprint))
    }

    #[pyo3(signature = (key, source, frames, *, scan=false, align=false))]
    #[allow(clippy::too_many_arguments)] // mirrors the Python signature
    fn read<'py>(
        &self,
        py: Python<'py>,
        key: &str,
        source: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = number)] frames: Vec<u32>,
        scan: bool,
        align: bool,
    ) -> PyResult<Option<Vec<Bound<'py, PyBytes>>>> {
        let request = request(scan);
        let mut guard = self.lock(py);
        let found = look_up(&mut guard, key, &frames, request);
        drop(guard);
        match found {
            None => Ok(None),
            Some(Err((position, table))) => {
                with_source(source, |source| table.check_describes(source))?;
                let frame = frames.get(position).copied().unwrap_or_default();
                Err(PyIndexError::new_err(format!(
                    "frame {frame}, counted from 0: the file has no such frame"
                )))
            }
            Some(Ok(selected)) => {
                let table = &selected.table;
                let all: Vec<usize> = (0..table.frames()).collect();
                let unfilled = if align { None } else { Unfilled::new(py, table, &all)? };
                if let Some(mut bytes) = unfilled {
                    let places = bytes.places();
                    with_source(source, |source| fill_frames(source, table, &all, places))?;
                    return Ok(Some(bytes.filled()));
                }
                let mut read = with_source(source, |source| read_frames(source, table))?;
                if align {
                    selected.align(&frames, &mut read);
                }
                Ok(Some(read.iter().map(|bytes| PyBytes::new(py, bytes)).collect()))
            }
        }
    }

    #[pyo3(signature = (key, fd, frames, *, scan=false, align=false))]
    #[allow(clippy::too_many_arguments)] // mirrors the Python signature
    fn read_resident<'py>(
        &self,
        py: Python<'py>,
        key: &str,
        fd: i32,
        #[pyo3(from_py_with = number)] frames: Vec<u32>,
        scan: bool,
        align: bool,
    ) -> PyResult<Option<Vec<Bound<'py, PyBytes>>>> {
        let guard = self.lock(py);
        let selection =
            guard.peek(key.as_bytes()).and_then(|slot| cached::select(slot.meta(), slot.value(), &frames));
        drop(guard);
        let Some(Ok(selected)) = selection else { return Ok(None) };
        if fd < 0 {
            return Err(PyValueError::new_err(format!("a file descriptor cannot be {fd}")));
        }
        // SAFETY: the caller lends an open descriptor for the call; a closed one is an EBADF, not a danger.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // With the GIL: what never waits takes less than handing the GIL to a thread that computes.
        match &selected.table.layout {
            Layout::Items(items) if items.offsets.first().is_some_and(|&first| is_resident(fd, first)) => {}
            _ => return Ok(None),
        }
        let (source, table) = (FileSource::new(fd)?, &selected.table);
        let all: Vec<usize> = (0..table.frames()).collect();
        if !may_be_resident(table) {
            return Ok(None);
        }
        let read = match if align { None } else { Unfilled::new(py, table, &all)? } {
            Some(mut bytes) => {
                fill_resident_frames(&source, table, &all, bytes.places())?.map(|()| bytes.filled())
            }
            None => read_resident_frames(&source, table)?.map(|mut read| {
                if align {
                    selected.align(&frames, &mut read);
                }
                read.iter().map(|bytes| PyBytes::new(py, bytes)).collect()
            }),
        };
        if read.is_some() {
            self.lock(py).get(key.as_bytes(), request(scan));
        }
        Ok(read)
    }

    #[pyo3(signature = (key, offsets, lengths, *, ts_uid="", pixel_data_pos=None, etag=None, klass="normal"))]
    #[allow(clippy::too_many_arguments)] // mirrors the Python signature
    fn put(
        &self,
        py: Python<'_>,
        key: &str,
        offsets: &Bound<'_, PyArray1<u64>>,
        lengths: &Bound<'_, PyArray1<u64>>,
        ts_uid: &str,
        pixel_data_pos: Option<u64>,
        etag: Option<&str>,
        klass: &str,
    ) -> PyResult<bool> {
        // SAFETY: both are read before the GIL is released, so that no Python code writes to them meanwhile.
        // numpy's own check of borrows would take a third of the time of a put.
        let (offsets, lengths) = unsafe { (offsets.as_slice()?, lengths.as_slice()?) };
        places::check(offsets, lengths)?;
        let transfer_syntax_uid = ArrayString::from(ts_uid)
            .map_err(|_| PyValueError::new_err(format!("ts_uid = {ts_uid:.80?}: at most 64 characters")))?;
        let table = FrameTable { transfer_syntax_uid, pixel_data_pos, ..FrameTable::default() };
        let layout = LayoutView::Items(ItemsView { offsets, lengths, frame_first: None });
        let put = Put { class: parse_class(klass)?, ..Put::default() };
        let record = cached::record_of(key, &table, layout, etag)?;
        Ok(self.lock(py).put(record, put) == PutOutcome::Stored)
    }

    #[pyo3(signature = (key, table, *, etag=None, klass="normal", last_used_us=0))]
    fn put_table(
        &self,
        py: Python<'_>,
        key: &str,
        table: &Bound<'_, PyFrameTable>,
        etag: Option<&str>,
        klass: &str,
        last_used_us: i64,
    ) -> PyResult<bool> {
        let put = Put { class: parse_class(klass)?, used_at: last_used_us, preload_limit: None };
        let record = cached::record(key, &table.get().table, etag)?;
        Ok(self.lock(py).put(record, put) == PutOutcome::Stored)
    }

    #[pyo3(signature = (rows, *, klass="normal"))]
    fn put_rows(&self, py: Python<'_>, rows: &[u8], klass: &str) -> PyResult<(Vec<String>, u64)> {
        let class = parse_class(klass)?;
        Ok(py.release(|| self.cache.put_rows(rows, class))?)
    }

    fn preload_rows(&self, py: Python<'_>, rows: &[u8], limit: u64) -> PyResult<(u64, u64, u64)> {
        Ok(py.release(|| self.cache.preload_rows(rows, limit))?)
    }

    #[pyo3(signature = (keys, tables, *, klass="normal"))]
    fn put_packed_many(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        tables: Vec<PyBackedBytes>,
        klass: &str,
    ) -> PyResult<(u64, u64, u64)> {
        if keys.len() != tables.len() {
            let detail = format!("{} keys and {} tables", keys.len(), tables.len());
            return Err(PyValueError::new_err(detail));
        }
        let put = Put { class: parse_class(klass)?, ..Put::default() };
        Ok(py.release(|| {
            self.cache.put_packed_many(keys.iter().zip(tables.iter().map(|table| &**table)), put)
        }))
    }

    fn packed_bytes(&self, py: Python<'_>, key: &str) -> Option<usize> {
        Some(self.lock(py).peek(key.as_bytes())?.value().len())
    }

    fn key_id(&self, py: Python<'_>, key: &str) -> Option<u64> {
        self.lock(py).id(key.as_bytes())
    }

    #[pyo3(signature = (ids, *, scan=false))]
    fn touch_many(&self, py: Python<'_>, ids: &Bound<'_, PyArray1<u64>>, scan: bool) -> PyResult<usize> {
        let request = request(scan);
        if ids.len() <= TOUCHED_WITH_GIL {
            let mut guard = self.lock(py);
            // SAFETY: read while the GIL and the mutex are held, so that no Python code writes to it meanwhile.
            return Ok(guard.touch(unsafe { ids.as_slice()? }, request));
        }
        let ids = ids.try_readonly()?;
        let ids = ids.as_slice()?;
        let slices = ids.chunks(TOUCHED_WITH_GIL);
        Ok(py.release(|| slices.map(|slice| self.cache.lru.lock().touch(slice, request)).sum()))
    }

    fn invalidate(&self, py: Python<'_>, key: &str) -> bool {
        self.lock(py).invalidate(key.as_bytes())
    }

    fn resize(&self, py: Python<'_>, budget_bytes: i64) -> PyResult<()> {
        let Ok(budget) = u64::try_from(budget_bytes) else {
            return Err(PyValueError::new_err(format!("budget_bytes = {budget_bytes}: must be >= 0")));
        };
        py.release(|| self.cache.resize(budget));
        Ok(())
    }

    fn drain_access<'py>(
        &self,
        py: Python<'py>,
    ) -> (Vec<String>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>) {
        let drained = py.release(|| self.cache.drain());
        let counts = PyArray1::from_iter(py, drained.iter().map(|access| i64::from(access.count)));
        let times = PyArray1::from_iter(py, drained.iter().map(|access| access.used_at));
        let keys = drained.iter().map(|access| String::from_utf8_lossy(&access.key).into_owned());
        (keys.collect(), counts, times)
    }

    fn restore_access(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        counts: Vec<u32>,
        times: Vec<i64>,
    ) -> PyResult<()> {
        if keys.len() != counts.len() || keys.len() != times.len() {
            return Err(PyValueError::new_err("keys, counts and times differ in length"));
        }
        let rows = keys.into_iter().zip(counts).zip(times);
        let accesses: Vec<Access> = rows
            .map(|((key, count), used_at)| Access { key: key.into_bytes().into(), count, used_at })
            .collect();
        py.release(|| self.cache.restore(&accesses));
        Ok(())
    }

    #[allow(clippy::type_complexity)] // four arrays and a number, named in the stub
    fn drain_evicted<'py>(
        &self,
        py: Python<'py>,
    ) -> (
        Bound<'py, PyArray1<u64>>,
        Bound<'py, PyArray1<u64>>,
        Bound<'py, PyArray1<u8>>,
        Bound<'py, PyArray1<u8>>,
        u64,
    ) {
        let (lines, overflow) = self.lock(py).log().drain();
        (
            PyArray1::from_iter(py, lines.iter().map(|line| line.id)),
            PyArray1::from_iter(py, lines.iter().map(|line| line.weight)),
            PyArray1::from_iter(py, lines.iter().map(|line| line.cause as u8)),
            PyArray1::from_iter(py, lines.iter().map(|line| line.class as u8)),
            overflow,
        )
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let numbers = Numbers::of(&self.lock(py));
        numbers.to_dict(py)
    }

    fn validate(&self, py: Python<'_>) -> PyResult<()> {
        self.lock(py).validate().map_err(PyValueError::new_err)
    }

    fn keys(&self, py: Python<'_>) -> Vec<String> {
        self.lock(py).keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    fn __contains__(&self, py: Python<'_>, key: &str) -> bool {
        self.lock(py).peek(key.as_bytes()).is_some()
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.lock(py).len()
    }

    /// Before `fork`: takes the mutex.
    fn _before_fork(&self, py: Python<'_>) {
        py.release(|| self.cache.lru.hold());
    }

    /// After `fork`, in the parent: releases the mutex.
    fn _after_fork_in_parent(&self) {
        // SAFETY: `os.register_at_fork` calls it on the thread that called `_before_fork`.
        unsafe { self.cache.lru.release() };
    }

    /// After `fork`, in the child: releases its copy of the mutex; the parent reports accesses and evictions.
    fn _after_fork_in_child(&self) {
        // SAFETY: `os.register_at_fork` calls it in the child, on the copy of the thread that called
        // `_before_fork`.
        unsafe { self.cache.lru.release() };
        self.cache.lru.lock().forget_accesses();
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyFrameCache>()
}

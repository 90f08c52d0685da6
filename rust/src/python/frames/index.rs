//! `Indexer`: reads batches of files, returns rows for COPY and a report on each file.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::frame_table::parse_verify;
use super::row::storable_path;
use super::table_reader::drop_detached;
use crate::base::error::Error;
use crate::base::parallel_read::ParallelReader;
use crate::base::source::{Fingerprint, is_address};
use crate::dicom;
use crate::frames::index::{Indexed, Job, Known, index_object, index_path};
use crate::frames::row::{FileState, next_state};
use crate::python::fingerprint::{State, fingerprint_of};
use crate::python::sources::read_changed_object;

/// Files in one job of the pool.
const CHUNK: usize = 8;
/// Bytes of rows after which a part of a batch is returned: 5,000 slides make a gigabyte of rows.
const MOST_BYTES: usize = 16 << 20;
/// Time after which a part is returned: on slow storage, people want to see progress and Ctrl-C to work.
const LONGEST: Duration = Duration::from_secs(1);

#[pyclass(frozen, module = "voxtier._core", name = "Indexer")]
struct Indexer {
    reader: Mutex<Option<ParallelReader<Job, (u32, Indexed)>>>,
    threads: usize,
}

/// Rows for COPY, and what came of each path by its number.
type Batch = (Vec<u8>, Vec<(u32, Indexed)>);
/// Path, outcome, frames, first cut frame; kind, text, offset and detail of the error.
type Report = (
    Py<PyAny>,
    &'static str,
    usize,
    Option<u32>,
    Option<&'static str>,
    Option<String>,
    Option<u64>,
    Option<String>,
);

#[pymethods]
impl Indexer {
    #[new]
    #[pyo3(signature = (source, *, threads, verify, opener=None, verify_objects="ends"))]
    fn new(
        source: String,
        threads: usize,
        verify: &str,
        opener: Option<Py<PyAny>>,
        verify_objects: &str,
    ) -> PyResult<Self> {
        if threads == 0 || threads > 1024 {
            return Err(PyValueError::new_err(format!("threads must be 1 to 1024, not {threads}")));
        }
        let (verify, verify_objects) = (parse_verify(verify)?, parse_verify(verify_objects)?);
        let reader = ParallelReader::start(threads, threads * 4, move |job: Job, buffer| {
            let is_remote = job.path.as_ref().is_ok_and(|path| is_address(path));
            let Some(open) = opener.as_ref().filter(|_| is_remote) else {
                return (job.id, index_path(&source, job, verify, buffer));
            };
            let read = |path: &str, known: Option<Fingerprint>, state: &mut Option<Fingerprint>| {
                let address = Python::attach(|py| PyString::new(py, path).into_any().unbind());
                read_changed_object(open, &address, known, |object| {
                    *state = Some(object.fingerprint());
                    dicom::read_table(object, verify_objects, buffer)
                })
            };
            (job.id, index_object(&source, job, read))
        });
        Ok(Self { reader: Mutex::new(Some(reader.map_err(Error::from)?)), threads })
    }

    #[pyo3(signature = (paths, states=None, listed=None, *, first=0))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        paths: &Bound<'py, PyList>,
        states: Option<&[u8]>,
        listed: Option<Vec<Option<State>>>,
        first: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<Report>)> {
        let listed = listed.unwrap_or_else(|| vec![None; paths.len()]);
        if listed.len() != paths.len() {
            return Err(PyValueError::new_err("paths and listed must be of one length"));
        }
        let mut known: Vec<Option<FileState<'_>>> = (0..paths.len()).map(|_| None).collect();
        let mut rest = states.unwrap_or_default();
        while let Some(state) = next_state(&mut rest)? {
            let Ok(state) = state else { continue };
            let at = usize::try_from(state.number).ok().and_then(|number| number.checked_sub(first + 1));
            if let Some(place) = at.and_then(|at| known.get_mut(at)) {
                *place = Some(state);
            }
        }
        let work = paths.iter().zip(listed).zip(known).zip(0_u32..);
        let work = work.map(|(((path, listed), known), id)| Work::of(id, &path, listed, known));
        let work = work.collect::<PyResult<Vec<Work>>>()?;
        let (rows, outcomes) = py.detach(|| self.read_all(work)).map_err(PyRuntimeError::new_err)?;
        let reports = outcomes
            .into_iter()
            .map(|(id, indexed)| Ok(report(paths.get_item(id as usize)?.unbind(), indexed)));
        Ok((PyBytes::new(py, &rows), reports.collect::<PyResult<_>>()?))
    }
}

/// A file of a batch: an object in the state of its row takes no thread, nor its path a copy.
enum Work {
    Unchanged { id: u32, frames: usize },
    Job(Job),
}

impl Work {
    fn of(
        id: u32,
        path: &Bound<'_, PyAny>,
        listed: Option<State>,
        known: Option<FileState<'_>>,
    ) -> PyResult<Self> {
        let is_it = |state: &FileState<'_>| path.extract::<&str>().is_ok_and(|path| path == state.path);
        let known = known
            .filter(is_it)
            .and_then(|state| state.lasting().map(|fingerprint| Known { fingerprint, frames: state.frames }));
        let listed = listed.map(fingerprint_of);
        if let Some((Known { fingerprint, frames }, now)) = known.zip(listed)
            && fingerprint.covers(&now)
        {
            return Ok(Self::Unchanged { id, frames });
        }
        let known = known.filter(|_| listed.is_none());
        Ok(Self::Job(Job { id, path: storable_path(path)?, known }))
    }
}

impl Indexer {
    /// Runs a batch through the pool, or as much of its beginning as the limits allow; the rows are joined,
    /// the outcomes come in order of completion.
    fn read_all(&self, work: Vec<Work>) -> Result<Batch, &'static str> {
        let reader = self.reader.lock().map_err(|_| "the indexer failed before")?;
        let reader = reader.as_ref().ok_or("the indexer has ended")?;
        let mut outcomes = Vec::with_capacity(work.len());
        let mut rows = Vec::new();
        let jobs = work.iter().filter(|each| matches!(each, Work::Job(_))).count();
        let chunk = (jobs / (self.threads * 4)).clamp(1, CHUNK);
        let mut work = work.into_iter();
        let began = Instant::now();
        let mut in_flight = 0;
        loop {
            while in_flight < self.threads * 2 && rows.len() < MOST_BYTES && began.elapsed() < LONGEST {
                let mut batch = Vec::with_capacity(chunk);
                while batch.len() < chunk
                    && let Some(next) = work.next()
                {
                    match next {
                        Work::Unchanged { id, frames } => outcomes.push((id, Indexed::Unchanged { frames })),
                        Work::Job(job) => batch.push(job),
                    }
                }
                if batch.is_empty() {
                    break;
                }
                in_flight += 1;
                if !reader.submit(batch) {
                    return Err("the reading threads are gone (forked process?)");
                }
            }
            if in_flight == 0 {
                return Ok((rows, outcomes));
            }
            for (id, mut indexed) in reader.wait().ok_or("the reading threads are gone (forked process?)")? {
                if let Indexed::Row { row, .. } = &mut indexed {
                    rows.append(row);
                }
                outcomes.push((id, indexed));
            }
            in_flight -= 1;
        }
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        drop_detached(self.reader.get_mut().ok().and_then(Option::take));
    }
}

fn report(path: Py<PyAny>, indexed: Indexed) -> Report {
    let (status, frames, truncated_from, error) = match indexed {
        Indexed::Unchanged { frames } => ("unchanged", frames, None, None),
        Indexed::Refused(error) => ("refused", 0, None, Some(error)),
        Indexed::Row { found, .. } => (found.status, found.frames, found.truncated_from, found.error),
    };
    let kind = error.as_ref().map(|error| error.kind.name());
    let text = error.as_ref().map(Error::to_string);
    let offset = error.as_ref().and_then(|error| error.offset);
    (path, status, frames, truncated_from, kind, text, offset, error.map(|error| error.detail))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Indexer>()
}

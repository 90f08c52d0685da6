//! `Indexer`: reads batches of files, returns rows for COPY and a report on each file.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::frame_table::parse_verify;
use super::row::{StatesByPath, storable_path};
use super::table_reader::drop_detached;
use crate::base::error::Error;
use crate::base::parallel_read::ParallelReader;
use crate::base::source::{Fingerprint, is_address};
use crate::dicom;
use crate::frames::index::{Indexed, Job, Known, Told, index_object, index_path};
use crate::frames::row::FileState;
use crate::python::gil::{Release, attach};
use crate::python::sources::{State, fingerprint_of, read_changed_object};

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
            let read = |path: &str, known: Option<Fingerprint>, told: &mut Told| {
                let address = attach(|py| PyString::new(py, path).into_any().unbind());
                read_changed_object(open, &address, known, |object| {
                    told.fingerprint = Some(object.fingerprint());
                    dicom::read_table_or_uids(object, verify_objects, buffer, &mut told.uids)
                })
            };
            (job.id, index_object(&source, job, read))
        });
        Ok(Self { reader: Mutex::new(Some(reader.map_err(Error::from)?)), threads })
    }

    #[pyo3(signature = (paths, states=None))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        paths: &Bound<'py, PyList>,
        states: Option<&[u8]>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<Report>)> {
        let states = StatesByPath::new(states.unwrap_or_default())?;
        let jobs = paths.iter().zip(0_u32..).map(|(path, id)| {
            let known = path.cast::<PyString>().ok().and_then(|path| known(&states, path));
            Ok(Job { id, path: storable_path(&path)?, known })
        });
        let jobs = jobs.collect::<PyResult<Vec<Job>>>()?;
        let (rows, outcomes) = py.release(|| self.read_all(jobs)).map_err(PyRuntimeError::new_err)?;
        let reports = outcomes
            .into_iter()
            .map(|(id, indexed)| Ok(report(paths.get_item(id as usize)?.unbind(), indexed)));
        Ok((PyBytes::new(py, &rows), reports.collect::<PyResult<_>>()?))
    }
}

/// The state in which a file need not be read again, and its frames.
fn known(states: &StatesByPath<'_>, path: &Bound<'_, PyString>) -> Option<Known> {
    let (state, _) = states.of(path)?;
    let FileState { frames, truncated_from, .. } = *state;
    state.lasting().map(|fingerprint| Known { fingerprint, frames, truncated_from })
}

/// Takes out the objects whose listing gave the state of their row: they take no thread, nor a copy of a path.
///
/// The states that are left are of the files among the other paths, not of objects that have changed.
#[pyfunction]
fn take_unchanged<'py>(
    py: Python<'py>,
    paths: &Bound<'py, PyList>,
    states: &[u8],
    listed: Vec<Option<State>>,
) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyBytes>)> {
    if listed.len() != paths.len() {
        return Err(PyValueError::new_err("paths and listed must be of one length"));
    }
    let states = StatesByPath::new(states)?;
    let (unchanged, left, mut left_states) = (PyList::empty(py), PyList::empty(py), Vec::new());
    let (status, none) = (intern!(py, "unchanged"), py.None());
    for (path, listed) in paths.iter().zip(listed) {
        if let Ok(text) = path.cast::<PyString>() {
            if let Some(listed) = listed.map(fingerprint_of) {
                if let Some(known) = known(&states, text).filter(|known| known.fingerprint.covers(&listed)) {
                    let cut = known.truncated_from;
                    unchanged.append((path, status, known.frames, cut, &none, &none, &none, &none))?;
                    continue;
                }
            } else if let Some((_, record)) = states.of(text) {
                left_states.extend_from_slice(record);
            }
        }
        left.append(path)?;
    }
    Ok((unchanged, left, PyBytes::new(py, &left_states)))
}

impl Indexer {
    /// Runs a batch through the pool, or as much of its beginning as the limits allow; the rows are joined,
    /// the outcomes come in order of completion.
    fn read_all(&self, jobs: Vec<Job>) -> Result<Batch, &'static str> {
        let reader = self.reader.lock().map_err(|_| "the indexer failed before")?;
        let reader = reader.as_ref().ok_or("the indexer has ended")?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        let mut rows = Vec::new();
        let chunk = (jobs.len() / (self.threads * 4)).clamp(1, CHUNK);
        let mut jobs = jobs.into_iter();
        let began = Instant::now();
        let mut in_flight = 0;
        loop {
            while in_flight < self.threads * 2 && rows.len() < MOST_BYTES && began.elapsed() < LONGEST {
                let batch: Vec<Job> = jobs.by_ref().take(chunk).collect();
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
        Indexed::Unchanged(known) => {
            let said = known.map(|known| (known.frames, known.truncated_from));
            let (frames, cut) = said.unwrap_or_default();
            ("unchanged", frames, cut, None)
        }
        Indexed::Refused(error) => ("refused", 0, None, Some(error)),
        Indexed::Row { found, .. } => (found.status, found.frames, found.truncated_from, found.error),
    };
    let kind = error.as_ref().map(|error| error.kind.name());
    let text = error.as_ref().map(Error::to_string);
    let offset = error.as_ref().and_then(|error| error.offset);
    (path, status, frames, truncated_from, kind, text, offset, error.map(|error| error.detail))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Indexer>()?;
    module.add_function(wrap_pyfunction!(take_unchanged, module)?)
}

//! `Indexer`: reads batches of files, returns rows for COPY and a report on each file.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::frame_table::{State, fingerprint_of, parse_verify};
use super::row::storable_path;
use crate::base::error::Error;
use crate::base::parallel_read::ParallelReader;
use crate::frames::index::{Indexed, Job, index_path};

/// Files in one job of the pool.
const CHUNK: usize = 8;
/// Bytes of rows after which a part of a batch is returned: 5,000 slides make a gigabyte of rows.
const MOST_BYTES: usize = 16 << 20;
/// Time after which a part is returned: on slow storage, people want to see progress and Ctrl-C to work.
const LONGEST: Duration = Duration::from_secs(1);

#[pyclass(frozen, module = "voxtier._core", name = "Indexer")]
struct Indexer {
    reader: Mutex<ParallelReader<Job, (u32, Indexed)>>,
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
    #[pyo3(signature = (source, *, threads, verify))]
    fn new(source: String, threads: usize, verify: &str) -> PyResult<Self> {
        if threads == 0 || threads > 1024 {
            return Err(PyValueError::new_err(format!("threads must be 1 to 1024, not {threads}")));
        }
        let verify = parse_verify(verify)?;
        let reader = ParallelReader::start(threads, threads * 4, move |job: Job, buffer| {
            (job.id, index_path(&source, job, verify, buffer))
        });
        Ok(Self { reader: Mutex::new(reader.map_err(Error::from)?), threads })
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        paths: &Bound<'py, PyList>,
        fingerprints: Vec<Option<State>>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<Report>)> {
        if fingerprints.len() != paths.len() {
            return Err(PyValueError::new_err("paths and fingerprints must be of one length"));
        }
        let jobs = paths.iter().zip(fingerprints).zip(0_u32..).map(|((path, fingerprint), id)| {
            Ok(Job { id, path: storable_path(&path)?, known: fingerprint.map(fingerprint_of) })
        });
        let jobs = jobs.collect::<PyResult<Vec<Job>>>()?;
        let (rows, outcomes) = py.detach(|| self.read_all(jobs)).map_err(PyRuntimeError::new_err)?;
        let reports = outcomes
            .into_iter()
            .map(|(id, indexed)| Ok(report(paths.get_item(id as usize)?.unbind(), indexed)));
        Ok((PyBytes::new(py, &rows), reports.collect::<PyResult<_>>()?))
    }
}

impl Indexer {
    /// Runs a batch through the pool, or as much of its beginning as the limits allow; the rows are joined,
    /// the outcomes come in order of completion.
    fn read_all(&self, jobs: Vec<Job>) -> Result<Batch, &'static str> {
        let reader = self.reader.lock().map_err(|_| "the indexer failed before")?;
        let expected = jobs.len();
        let mut outcomes = Vec::with_capacity(expected);
        let mut rows = Vec::new();
        let chunk = (expected / (self.threads * 4)).clamp(1, CHUNK);
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

fn report(path: Py<PyAny>, indexed: Indexed) -> Report {
    let (status, frames, truncated_from, error) = match indexed {
        Indexed::Unchanged => ("unchanged", 0, None, None),
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

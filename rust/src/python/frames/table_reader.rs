//! `TableReader`: many files read in parallel, their tables handed out in order of completion.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyIterator;

use super::frame_table::{PyFrameTable, parse_verify};
use crate::base::error::{Error, ErrorKind};
use crate::base::parallel_read::ParallelReader;
use crate::base::source::{FileSource, Fingerprint, Source, is_address};
use crate::base::window::Buffer;
use crate::dicom;
use crate::frames::table::FrameTable;
use crate::python::gil::Release;
use crate::python::paths::local_path_of;
use crate::python::sources::{State, read_object, state_of};

/// Time that a batch of paths should take. Waking a thread costs as much as reading some small files, so these
/// go in large batches; slides and files on cold storage go one by one, and no table waits for others.
const BATCH_TIME: Duration = Duration::from_micros(500);
/// Paths of the first batches of all threads: few files still use many threads.
const FIRST_BATCHES: usize = 16;
/// Batches for each thread: one is read while the others wait.
const SHARE: usize = 3;
/// Most paths that are read ahead: their tables may all be large.
const MOST_AHEAD: usize = 512;

/// A file to read.
enum Place {
    Local(PathBuf),
    /// What the caller's function opens: an address, an open file.
    Remote(Py<PyAny>),
}

/// Paths and the number by which the caller's own objects are kept; the outcomes come in the same order.
type Job = (u64, Vec<Place>);
type Outcomes = (u64, Vec<Outcome>, Duration);
/// A table, or why there is none and the state of the file for which that holds.
type Outcome = Result<FrameTable, Box<(Error, Option<Fingerprint>)>>;

/// An iterator over `(path, table, error, fingerprint)`: batch by batch in order of completion.
#[pyclass(frozen, module = "voxtier._core", name = "TableReader")]
struct TableReader {
    state: Mutex<ReaderState>,
    reader: Mutex<Option<ParallelReader<Job, Outcomes>>>,
    threads: usize,
    opens: bool,
}

struct ReaderState {
    paths: Option<Py<PyIterator>>,
    /// The caller's own objects, until their outcome is returned.
    pending: HashMap<u64, Vec<Py<PyAny>>>,
    ready: VecDeque<(Py<PyAny>, Outcome)>,
    submitted: u64,
    /// Paths that the threads read now.
    in_flight: usize,
    /// Paths in the next batch.
    batch: usize,
}

type Row = (Py<PyAny>, Option<PyFrameTable>, Option<Py<PyAny>>, Option<State>);

#[pymethods]
impl TableReader {
    #[new]
    #[pyo3(signature = (paths, *, threads, verify, opener=None))]
    fn new(
        paths: &Bound<'_, PyAny>,
        threads: usize,
        verify: &str,
        opener: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        if threads == 0 || threads > 1024 {
            return Err(PyValueError::new_err(format!("threads must be 1 to 1024, not {threads}")));
        }
        let verify = parse_verify(verify)?;
        let opens = opener.is_some();
        let read = move |place: &Place, buffer: &mut Buffer| {
            let path = match (place, &opener) {
                (Place::Local(path), _) => path,
                (Place::Remote(object), Some(open)) => {
                    let mut state = None;
                    let read = read_object(open, object, |source| {
                        state = Some(source.fingerprint());
                        dicom::read_table(source, verify, buffer)
                    });
                    return read.map_err(|error| Box::new((error, state)));
                }
                (Place::Remote(_), None) => {
                    return Err(Box::new((Error::new(ErrorKind::InvalidArgument, "not a path"), None)));
                }
            };
            let file = FileSource::open(path).map_err(|error| Box::new((error, None)))?;
            dicom::read_table(&file, verify, buffer)
                .map_err(|error| Box::new((error, Some(file.fingerprint()))))
        };
        let reader = ParallelReader::start(threads, threads * SHARE, move |(number, paths): Job, buffer| {
            let begin = Instant::now();
            let outcomes = paths.iter().map(|path| read(path, buffer)).collect();
            (number, outcomes, begin.elapsed())
        });
        let reader = reader.map_err(Error::from)?;
        let state = ReaderState {
            paths: Some(paths.try_iter()?.unbind()),
            pending: HashMap::new(),
            ready: VecDeque::new(),
            submitted: 0,
            in_flight: 0,
            batch: (FIRST_BATCHES / threads).max(1),
        };
        Ok(Self { state: Mutex::new(state), reader: Mutex::new(Some(reader)), threads, opens })
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Row>> {
        let Ok(mut state) = self.state.try_lock() else {
            return Err(PyValueError::new_err("the reader is already in use by another thread"));
        };
        let mut guard = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = guard.as_ref() else { return Ok(None) };
        state.fill(py, reader, self)?;
        while state.ready.is_empty() && state.in_flight > 0 {
            let Some(batches) = py.release(|| reader.wait()) else { return Err(readers_gone()) };
            state.take(batches, self.threads);
            state.fill(py, reader, self)?;
        }
        let Some((path, outcome)) = state.ready.pop_front() else {
            let finished = guard.take();
            py.release(|| drop(finished));
            return Ok(None);
        };
        Ok(Some(match outcome {
            Ok(table) => (path, Some(table.into()), None, None),
            Err(refusal) => {
                let (error, state) = *refusal;
                (path, None, Some(PyErr::from(error).into_value(py).into_any()), state.map(state_of))
            }
        }))
    }
}

impl Drop for TableReader {
    /// The threads may wait for the GIL, which the last owner holds.
    fn drop(&mut self) {
        let reader = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        drop_detached(reader);
    }
}

impl ReaderState {
    /// Keeps the threads busy without reading far ahead in the caller's iterator, and without waiting for a
    /// slow one while there is something to hand out.
    fn fill(
        &mut self,
        py: Python<'_>,
        reader: &ParallelReader<Job, Outcomes>,
        options: &TableReader,
    ) -> PyResult<()> {
        let threads = options.threads;
        let begin = Instant::now();
        while self.in_flight < self.batch * threads * SHARE && self.ready.len() < self.batch {
            let slow = begin.elapsed() > BATCH_TIME;
            if self.paths.is_none() || (slow && !self.ready.is_empty()) {
                break;
            }
            let (objects, files) = self.next_batch(py, self.batch, options.opens)?;
            if files.is_empty() {
                continue;
            }
            self.in_flight += files.len();
            self.submitted += 1;
            self.pending.insert(self.submitted, objects);
            if !py.release(|| reader.submit(vec![(self.submitted, files)])) {
                return Err(readers_gone());
            }
            if let Some(batches) = reader.poll() {
                self.take(batches, threads);
            }
        }
        Ok(())
    }

    fn take(&mut self, batches: Vec<Outcomes>, threads: usize) {
        for (number, outcomes, elapsed) in batches {
            let objects = self.pending.remove(&number).unwrap_or_default();
            self.in_flight = self.in_flight.saturating_sub(objects.len());
            let pace = elapsed.as_nanos() as usize / objects.len().max(1);
            let wanted = BATCH_TIME.as_nanos() as usize / pace.max(1);
            let most = (MOST_AHEAD / (threads * SHARE)).max(1);
            // One slow file says little about the next.
            self.batch = wanted.clamp((self.batch / 2).max(1), (self.batch * 2).min(most).max(1));
            self.ready.extend(objects.into_iter().zip(outcomes));
        }
    }

    fn next_batch(
        &mut self,
        py: Python<'_>,
        wanted: usize,
        opens: bool,
    ) -> PyResult<(Vec<Py<PyAny>>, Vec<Place>)> {
        let (mut objects, mut files) = (Vec::with_capacity(wanted), Vec::with_capacity(wanted));
        let begin = Instant::now();
        for taken in 0..wanted {
            if taken > 0 && begin.elapsed() > BATCH_TIME {
                break;
            }
            let Some(paths) = &self.paths else { break };
            let Some(path) = paths.bind(py).clone().next().transpose()? else {
                self.paths = None;
                break;
            };
            match local_path_of(&path) {
                Ok(file) if opens && file.to_str().is_some_and(is_address) => {
                    files.push(Place::Remote(path.clone().unbind()));
                    objects.push(path.unbind());
                }
                Err(_) if opens => {
                    files.push(Place::Remote(path.clone().unbind()));
                    objects.push(path.unbind());
                }
                Ok(file) => {
                    files.push(Place::Local(file));
                    objects.push(path.unbind());
                }
                Err(error) => {
                    let detail = format!("not a path: {error}");
                    let error = Error::new(ErrorKind::InvalidArgument, detail);
                    self.ready.push_back((path.unbind(), Err(Box::new((error, None)))));
                }
            }
        }
        Ok((objects, files))
    }
}

/// Ends the threads of a reader without the GIL, for which they may wait.
pub(super) fn drop_detached<R: Send>(reader: R) {
    Python::attach(|py| py.release(|| drop(reader)));
}

/// Raised instead of ending early with results missing.
fn readers_gone() -> PyErr {
    Error::new(ErrorKind::IoError, "the reading threads are gone (forked process?)").into()
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TableReader>()
}

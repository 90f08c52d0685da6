//! `verify_tensor_file`, `ParallelVerifier` and `TensorReport`: checks of torch files without the GIL.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;

use crate::base::window::Buffer;
use crate::python::gil::Release;
use crate::torch_file::{self, ALLOWED_GLOBALS, Checks, INERT_GLOBALS, Next, Report, State, verify_file};
use crate::{Error, ErrorKind};

/// The result of a check of one torch file.
#[pyclass(frozen, module = "voxtier._core")]
struct TensorReport(Report);

#[pymethods]
impl TensorReport {
    #[getter]
    fn state(&self) -> &'static str {
        self.0.state().name()
    }

    #[getter]
    fn record(&self) -> Option<&str> {
        self.0.finding.as_ref()?.record.as_deref()
    }

    #[getter]
    fn offset(&self) -> Option<u64> {
        self.0.finding.as_ref()?.offset
    }

    #[getter]
    fn detail(&self) -> &str {
        self.0.finding.as_ref().map_or("", |finding| finding.detail.as_str())
    }

    #[getter]
    fn size(&self) -> u64 {
        self.0.size
    }

    #[getter]
    fn mtime_ns(&self) -> i64 {
        self.0.mtime_ns
    }

    #[getter]
    fn ctime_ns(&self) -> i64 {
        self.0.ctime_ns
    }

    #[getter]
    fn records(&self) -> Vec<(String, u64, u32)> {
        self.0.records.clone()
    }

    #[getter]
    fn refused_globals(&self) -> Vec<String> {
        self.0.refused_globals.clone()
    }

    #[getter]
    fn refused_opcodes(&self) -> Vec<String> {
        self.0.refused_opcodes.clone()
    }

    #[getter]
    fn tensors(&self) -> Vec<(String, String, Vec<i64>, String)> {
        let row = |t: &torch_file::TensorSummary| {
            (t.path.clone(), t.dtype.clone(), t.shape.clone(), t.record.clone())
        };
        self.0.tensors.iter().map(row).collect()
    }

    #[getter]
    fn digest(&self) -> Option<&str> {
        self.0.digest.as_deref()
    }

    fn __repr__(&self) -> String {
        format!("TensorReport(state='{}', size={})", self.0.state().name(), self.0.size)
    }
}

#[pyfunction]
#[pyo3(signature = (path, *, crc=true, content=false, digest=false))]
fn verify_tensor_file(py: Python<'_>, path: PathBuf, crc: bool, content: bool, digest: bool) -> TensorReport {
    let checks = Checks { crc, content, digest };
    TensorReport(py.release(|| verify_file(&path, checks, &mut Buffer::default())))
}

/// An iterator of `(index, report)` in the order in which files finish.
#[pyclass(frozen, module = "voxtier._core")]
struct ParallelVerifier(torch_file::ParallelVerifier);

#[pymethods]
impl ParallelVerifier {
    #[new]
    #[pyo3(signature = (paths, *, crc=true, content=false, digest=false, threads=4))]
    fn new(paths: Vec<PathBuf>, crc: bool, content: bool, digest: bool, threads: usize) -> PyResult<Self> {
        if threads == 0 {
            return Err(Error::new(ErrorKind::InvalidArgument, "threads must be at least 1").into());
        }
        let checks = Checks { crc, content, digest };
        Ok(Self(torch_file::ParallelVerifier::start(paths, checks, threads).map_err(Error::from)?))
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(usize, TensorReport)>> {
        loop {
            match py.release(|| self.0.next(Duration::from_millis(200))) {
                Next::Done(index, report) => return Ok(Some((index, TensorReport(*report)))),
                Next::Waiting => py.check_signals()?,
                Next::Finished => return Ok(None),
            }
        }
    }

    fn stop(&self) {
        self.0.stop();
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let states: Vec<&str> = State::ALL.iter().map(|state| state.name()).collect();
    module.add("TENSOR_STATES", states)?;
    module.add("ALLOWED_GLOBALS", ALLOWED_GLOBALS.to_vec())?;
    module.add("INERT_GLOBALS", INERT_GLOBALS.to_vec())?;
    module.add_class::<TensorReport>()?;
    module.add_class::<ParallelVerifier>()?;
    module.add_function(wrap_pyfunction!(verify_tensor_file, module)?)
}

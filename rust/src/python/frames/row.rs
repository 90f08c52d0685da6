//! Rows of the index: encoded for COPY, decoded from what a look-up or a preload returns.

use std::ffi::OsStr;

use hashbrown::HashMap;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::frame_table::{PyFrameTable, describes};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Fingerprint;
use crate::frames::index::{LONGEST_PATH, storable};
use crate::frames::row::{self, COLUMNS, FileState, next_row, next_state};
use crate::python::paths::path_of;
use crate::python::sources::{State, fingerprint_of};

/// A path as the index holds it, or why it cannot.
pub(super) fn storable_path(path: &Bound<'_, PyAny>) -> PyResult<Result<String>> {
    match path.cast::<PyString>().map(|text| text.to_str()) {
        Ok(Ok(text)) => Ok(storable(OsStr::new(text)).map(str::to_owned)),
        Ok(Err(_)) => {
            Ok(Err(Error::new(ErrorKind::InvalidArgument, "a path that is not UTF-8 cannot be stored")))
        }
        Err(_) => Ok(storable(path_of(path)?.as_os_str()).map(str::to_owned)),
    }
}

/// Why a path cannot be a row of the index, or nothing.
#[pyfunction]
fn path_fault(path: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    Ok(storable_path(path)?.err().map(|error| error.detail))
}

fn kind_of(name: &str) -> PyResult<ErrorKind> {
    ErrorKind::from_name(name).ok_or_else(|| PyValueError::new_err("not one of ERROR_KINDS"))
}

/// The status of a row whose file was refused for a reason of this kind.
#[pyfunction]
fn refused_status(kind: &str) -> PyResult<&'static str> {
    kind_of(kind).map(row::refused_status)
}

#[pyfunction]
fn file_key<'py>(py: Python<'py>, source: &str, path: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(text) = path.cast::<PyString>()
        && let Ok(text) = text.to_str()
    {
        return Ok(PyBytes::new(py, &row::key(source, text.as_bytes())));
    }
    let path = match path_of(path) {
        Ok(path) => path.into_os_string().into_encoded_bytes(),
        // Lone surrogates: no file has such a name, and no row such a key.
        Err(_) => path.call_method1("encode", ("utf-8", "surrogatepass"))?.extract()?,
    };
    Ok(PyBytes::new(py, &row::key(source, &path)))
}

#[pyfunction]
fn file_keys<'py>(source: &str, paths: &Bound<'py, PyList>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    paths.iter().map(|path| file_key(paths.py(), source, &path)).collect()
}

/// Rows, and the paths that cannot be rows, each with its fault.
type Encoded<'py> = (Bound<'py, PyBytes>, Vec<(Bound<'py, PyAny>, String)>);

/// Encodes what came of reading files, each with `path`, `table`, `error` and `fingerprint`.
#[pyfunction]
fn encode_rows<'py>(source: &str, outcomes: &Bound<'py, PyAny>) -> PyResult<Encoded<'py>> {
    let py = outcomes.py();
    let (mut rows, mut refused) = (Vec::new(), Vec::new());
    for outcome in outcomes.try_iter()? {
        let outcome = outcome?;
        let path = outcome.getattr("path")?;
        let name = match storable_path(&path)? {
            Ok(name) => name,
            Err(error) => {
                refused.push((path, error.detail));
                continue;
            }
        };
        let table = outcome.getattr("table")?.extract::<Option<Bound<'_, PyFrameTable>>>()?;
        if let Some(table) = table {
            let table = &table.get().table;
            row::encode(source, &name, Some(table.fingerprint), Ok(table), &mut rows);
        } else {
            let error = outcome.getattr("error")?;
            let error = Error {
                kind: kind_of(error.getattr("kind")?.extract()?)?,
                offset: error.getattr("offset")?.extract()?,
                detail: error.getattr("detail")?.extract()?,
                errno: None,
            };
            let state: Option<State> = outcome.getattr("fingerprint")?.extract()?;
            row::encode(source, &name, state.map(fingerprint_of), Err((&error, None)), &mut rows);
        }
    }
    Ok((PyBytes::new(py, &rows), refused))
}

/// A file that was refused, and the state of the file for which that holds.
#[pyclass(frozen, module = "voxtier._core")]
struct Refusal {
    #[pyo3(get)]
    error: Py<PyAny>,
    state: Option<Fingerprint>,
}

#[pymethods]
impl Refusal {
    #[getter]
    fn size(&self) -> Option<u64> {
        self.state.map(|state| state.size)
    }
    #[getter]
    fn mtime_ns(&self) -> Option<i64> {
        self.state?.mtime_ns
    }
    #[getter]
    fn ctime_ns(&self) -> Option<i64> {
        self.state?.ctime_ns
    }
    #[getter]
    fn inode(&self) -> Option<u64> {
        self.state?.inode
    }

    #[getter]
    fn etag(&self) -> Option<String> {
        Some(self.state?.etag?.to_string())
    }

    fn describes(&self, source: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.state.map_or(Ok(false), |state| describes(state, source))
    }
}

/// Path, a `FrameTable` or a [`Refusal`], last access.
type Decoded = (String, Py<PyAny>, i64);

/// Decodes the first `most` rows that are of use.
#[pyfunction]
#[pyo3(signature = (rows, *, most=None))]
fn decode_rows(py: Python<'_>, rows: &[u8], most: Option<usize>) -> PyResult<Vec<Decoded>> {
    let (mut rest, mut decoded) = (rows, Vec::new());
    while most.is_none_or(|most| decoded.len() < most)
        && let Some(row) = next_row(&mut rest)?
    {
        let Ok(row) = row else { continue };
        let found = match row.outcome {
            Ok(table) => Py::new(py, PyFrameTable::from(table))?.into_any(),
            Err(error) => {
                let error = PyErr::from(error).into_value(py).into_any();
                Py::new(py, Refusal { error, state: row.fingerprint })?.into_any()
            }
        };
        decoded.push((row.path.to_owned(), found, row.used_at));
    }
    Ok(decoded)
}

/// Size, `mtime_ns`, `ctime_ns`, inode, etag; parser version, status, kind of error, frames.
type StateOfFile = (
    Option<u64>,
    Option<i64>,
    Option<i64>,
    Option<u64>,
    Option<String>,
    i64,
    Option<String>,
    usize,
    Option<u32>,
);

/// Decodes what rows say of files, in the order of the paths; none where the index has no row of that path.
#[pyfunction]
fn decode_states(states: &[u8], paths: Vec<Bound<'_, PyString>>) -> PyResult<Vec<Option<StateOfFile>>> {
    let states = StatesByPath::new(states)?;
    let decoded = paths.iter().map(|path| {
        let (state, _) = states.of(path)?;
        let now = state.fingerprint;
        Some((
            now.map(|now| now.size),
            now.and_then(|now| now.mtime_ns),
            now.and_then(|now| now.ctime_ns),
            now.and_then(|now| now.inode),
            now.and_then(|now| now.etag).map(|etag| etag.to_string()),
            state.parser_version,
            state.error_kind.map(str::to_owned),
            state.frames,
            state.truncated_from,
        ))
    });
    Ok(decoded.collect())
}

/// Bytes of a record without a path: the number of its fields, type and length of each.
const SHORTEST_STATE: usize = 84;

/// What the index says of files, by their paths; records that do not decode are left out.
pub(super) struct StatesByPath<'a>(HashMap<&'a str, (FileState<'a>, &'a [u8])>);

impl<'a> StatesByPath<'a> {
    pub(super) fn new(states: &'a [u8]) -> PyResult<Self> {
        let (mut rest, mut found) = (states, HashMap::with_capacity(states.len() / SHORTEST_STATE));
        loop {
            let record = rest;
            let Some(state) = next_state(&mut rest)? else { return Ok(Self(found)) };
            if let Ok(state) = state {
                let length = record.len() - rest.len();
                found.insert(state.path, (state, record.get(..length).unwrap_or_default()));
            }
        }
    }

    /// What the index says of a file, and the record that says so.
    pub(super) fn of(&self, path: &Bound<'_, PyString>) -> Option<&(FileState<'a>, &'a [u8])> {
        self.0.get(path.to_str().ok()?)
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let columns: Vec<_> = COLUMNS.iter().map(|each| (each.name, each.sql_type, each.in_memory)).collect();
    module.add("ROW_COLUMNS", columns)?;
    module.add("MAX_PATH_BYTES", LONGEST_PATH)?;
    module.add_class::<Refusal>()?;
    module.add_function(wrap_pyfunction!(path_fault, module)?)?;
    module.add_function(wrap_pyfunction!(refused_status, module)?)?;
    module.add_function(wrap_pyfunction!(file_key, module)?)?;
    module.add_function(wrap_pyfunction!(file_keys, module)?)?;
    module.add_function(wrap_pyfunction!(encode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(decode_rows, module)?)?;
    module.add_function(wrap_pyfunction!(decode_states, module)?)
}

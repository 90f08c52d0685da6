//! `TileFile`, `Recipe`, the cache of decoded chunks, and `gunzip_range`.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};

use crate::base::error::{Error, ErrorKind};
use crate::python::gil::Release;
use crate::tiledb::codec::Pipeline;
use crate::tiledb::layout::{Grid, Range};
use crate::tiledb::memory::node::{Node, attach};
use crate::tiledb::output::convert::{Normalize, Number, Recipe as Steps, Scale};
use crate::tiledb::output::sink::Sink;
use crate::tiledb::plan::Boxes;
use crate::tiledb::pool::process;
use crate::tiledb::reader::{Effort, TileFile as Reader};

/// Longest gzip file that is inflated in one call: several images may be read at once.
const AT_ONCE: u64 = 64 << 20;

/// The tiles of one fragment of a dense array.
#[pyclass(frozen, module = "voxtier._core")]
pub struct TileFile {
    pub(super) reader: Arc<Reader>,
}

#[pymethods]
impl TileFile {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        shape: Vec<u64>,
        extents: Vec<u64>,
        cell: u32,
        filters: Vec<String>,
    ) -> PyResult<Self> {
        let pipeline = Pipeline::from_names(&filters).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("filters {filters:?} cannot be undone here: let TileDB read the array"),
            )
        })?;
        let reader = py.release(|| Reader::open(&path, Grid::new(&shape, &extents)?, cell, pipeline))?;
        Ok(Self { reader: Arc::new(reader) })
    }

    /// Number of chunks, the units of decoding.
    #[getter]
    fn chunks(&self) -> usize {
        self.reader.chunks()
    }

    #[pyo3(signature = (ranges, out, *, threads=1, keep=true))]
    fn read(
        &self,
        py: Python<'_>,
        ranges: Vec<(u64, u64, u64)>,
        mut out: PyReadwriteArray1<'_, u8>,
        threads: usize,
        keep: bool,
    ) -> PyResult<()> {
        let wanted: Vec<Range> =
            ranges.into_iter().map(|(start, count, step)| Range { start, count, step }).collect();
        let bytes = out.as_slice_mut()?;
        py.release(|| self.reader.read(&wanted, bytes, Effort { threads, keep, shared: false }))?;
        Ok(())
    }

    #[pyo3(signature = (starts, size, out, *, threads=1, keep=true))]
    fn read_patches(
        &self,
        py: Python<'_>,
        starts: PyReadonlyArray1<'_, i64>,
        size: Vec<u64>,
        mut out: PyReadwriteArray1<'_, u8>,
        threads: usize,
        keep: bool,
    ) -> PyResult<()> {
        let starts = starts.as_slice()?;
        let bytes = out.as_slice_mut()?;
        py.release(|| {
            self.reader.read_patches(starts, &size, bytes, Effort { threads, keep, shared: false })
        })?;
        Ok(())
    }

    #[pyo3(signature = (starts, size, out, recipe, *, steps, fill, threads=1, keep=true))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn read_boxes(
        &self,
        py: Python<'_>,
        starts: PyReadonlyArray1<'_, i64>,
        size: Vec<u64>,
        mut out: PyReadwriteArray1<'_, u8>,
        recipe: &Recipe,
        steps: Vec<u64>,
        fill: &[u8],
        threads: usize,
        keep: bool,
    ) -> PyResult<()> {
        let starts = starts.as_slice()?;
        let sink = Sink::new(out.as_slice_mut()?, recipe.steps);
        let mut boxes = Boxes { starts, size: &size, steps: &steps, first: 0, each: 0 };
        boxes.each = boxes.numbers();
        let fill = first_bytes(fill);
        py.release(|| self.reader.read_boxes(&boxes, fill, &sink, Effort { threads, keep, shared: false }))?;
        Ok(())
    }
}

/// The first bytes of a number, as the core takes them.
pub(super) fn first_bytes(bytes: &[u8]) -> [u8; 8] {
    std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
}

/// The steps from stored numbers to those of an output.
#[pyclass(frozen, module = "voxtier._core")]
pub struct Recipe {
    pub(super) steps: Steps,
}

#[pymethods]
impl Recipe {
    #[new]
    #[pyo3(signature = (stored, out, *, slope=1.0, inter=0.0, bits=32, normalize=None))]
    fn new(
        stored: &str,
        out: &str,
        slope: f64,
        inter: f64,
        bits: u32,
        normalize: Option<(f32, f32, f32, f32)>,
    ) -> PyResult<Self> {
        let unknown = |name| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{name:?} is no type of numbers that is read here"),
            )
        };
        let from = Number::from_name(stored).ok_or_else(|| unknown(stored))?;
        let to = Number::from_name(out).ok_or_else(|| unknown(out))?;
        let scale = match bits {
            _ if slope == 1.0 && inter == 0.0 => Scale::Identity,
            32 => Scale::Single(slope as f32, inter as f32),
            _ => Scale::Double(slope, inter),
        };
        let normalize =
            normalize.map(|(low, high, mean, deviation)| Normalize { low, high, mean, deviation });
        Ok(Self { steps: Steps::new(from, to, scale, normalize)? })
    }
}

/// Sets the bytes that decoded chunks may take in this process; 0 switches the cache off.
#[pyfunction]
fn set_tile_budget(py: Python<'_>, budget: u64) {
    py.release(|| process().cache.set_budget(budget));
}

/// Removes all decoded chunks and resets the counters.
#[pyfunction]
fn clear_tile_cache(py: Python<'_>) {
    py.release(|| process().cache.clear());
}

/// Returns the counters of this process's cache of decoded chunks.
#[pyfunction]
fn tile_stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let stats = py.release(|| process().cache.stats());
    let node = process().cache.node();
    let (shared_bytes, shared_budget) = node.map_or((0, 0), Node::memory);
    let found = PyDict::new(py);
    for (name, value) in [
        ("hits", stats.hits),
        ("misses", stats.misses),
        ("bytes_read", stats.bytes_read),
        ("bytes_decoded", stats.bytes_decoded),
        ("evictions", stats.evictions),
        ("bytes_held", stats.bytes_held),
        ("budget", stats.budget),
        ("entries", stats.entries),
        ("shared_bytes", shared_bytes),
        ("shared_budget", shared_budget),
        ("shared_evictions", node.map_or(0, Node::evictions)),
    ] {
        found.set_item(name, value)?;
    }
    Ok(found)
}

/// Takes up new memory for decoded chunks that other processes of the user can join; its descriptor.
#[pyfunction]
#[pyo3(signature = (budget, *, every_read))]
fn make_tile_cache(py: Python<'_>, budget: u64, every_read: bool) -> PyResult<i32> {
    py.release(|| joined(every_read, || attach::make(budget)))
}

/// Takes up the memory behind a path such as `/proc/PID/fd/N`; this process's descriptor.
#[pyfunction]
#[pyo3(signature = (path, *, every_read))]
fn join_tile_cache(py: Python<'_>, path: PathBuf, every_read: bool) -> PyResult<i32> {
    py.release(|| joined(every_read, || attach::join(&path)))
}

/// The descriptor of the memory that the process has joined, which stays the first one.
fn joined(
    every_read: bool,
    attach: impl FnOnce() -> crate::base::error::Result<&'static Node>,
) -> PyResult<i32> {
    let cache = &process().cache;
    let node = cache.node().map_or_else(attach, Ok)?;
    cache.join(node, every_read);
    Ok(node.descriptor())
}

/// Inflates the bytes `offset..offset + count` of a gzip file, fewer when it ends before.
#[pyfunction]
fn gunzip_range(py: Python<'_>, path: PathBuf, offset: u64, count: u64) -> PyResult<Bound<'_, PyArray1<u8>>> {
    let found = py.release(|| crate::base::gzip::gunzip_range(&path, offset, count, AT_ONCE))?;
    let bytes = found.bytes.into_pyarray(py);
    if found.skip == 0 {
        return Ok(bytes);
    }
    let wanted = bytes.get_item(PySlice::new(py, found.skip as isize, isize::MAX, 1))?;
    Ok(wanted.cast_into()?)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("TILEDB_FORMAT_VERSION", crate::tiledb::FORMAT_VERSION)?;
    module.add_class::<TileFile>()?;
    module.add_class::<Recipe>()?;
    module.add_function(wrap_pyfunction!(set_tile_budget, module)?)?;
    module.add_function(wrap_pyfunction!(clear_tile_cache, module)?)?;
    module.add_function(wrap_pyfunction!(tile_stats, module)?)?;
    module.add_function(wrap_pyfunction!(make_tile_cache, module)?)?;
    module.add_function(wrap_pyfunction!(join_tile_cache, module)?)?;
    module.add_function(wrap_pyfunction!(gunzip_range, module)?)
}

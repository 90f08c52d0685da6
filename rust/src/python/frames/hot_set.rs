//! `save_hot_set` and `restore_hot_set`.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::cache::PyFrameCache;
use crate::base::error::{Error, Result};
use crate::frames::memory::cache::FrameCache;
use crate::python::gil::Release;

#[pyfunction]
fn save_hot_set(py: Python<'_>, cache: &Bound<'_, PyFrameCache>, path: PathBuf) -> PyResult<u64> {
    let cache = &cache.get().cache;
    Ok(py.release(|| save(cache, &path))?)
}

#[pyfunction]
fn restore_hot_set(py: Python<'_>, cache: &Bound<'_, PyFrameCache>, path: PathBuf) -> PyResult<u64> {
    let cache = &cache.get().cache;
    let restored = py.release(|| cache.restore_hot_set(&std::fs::read(&path).map_err(Error::from)?));
    Ok(restored?)
}

fn save(cache: &FrameCache, path: &Path) -> Result<u64> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let count = cache.save(&mut out)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(count)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(save_hot_set, module)?)?;
    module.add_function(wrap_pyfunction!(restore_hot_set, module)?)
}

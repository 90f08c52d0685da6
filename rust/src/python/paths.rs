//! Paths as Python gives them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Takes a path that is `str`, `bytes` or `os.PathLike`; names need not be UTF-8.
pub(super) fn path_of(object: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => Ok(PathBuf::from(OsStr::from_bytes(bytes.as_bytes()))),
        Err(_) => object.extract(),
    }
}

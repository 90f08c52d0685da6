//! The bindings: each function converts, releases the GIL, calls the core, and wraps the result.
//!
//! The only folder that imports pyo3. Files are named as in the core; the surface is documented in
//! `python/voxtier/_core.pyi`. The GIL is released and taken as [`gil`] says.

mod errors;
mod frames;
#[cfg(feature = "server")]
mod gateway;
mod gil;
mod paths;
mod resample;
mod sources;
mod tiledb;
mod torch_file;
mod training;

use pyo3::prelude::*;

/// The module `voxtier._core`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    gil::register(module)?;
    errors::register(module)?;
    frames::register(module)?;
    #[cfg(feature = "server")]
    gateway::register(module)?;
    paths::register(module)?;
    resample::register(module)?;
    tiledb::register(module)?;
    torch_file::register(module)?;
    training::register(module)?;
    // The stub declares no `__all__`, so the module must not have one.
    module.delattr("__all__")
}

//! The bindings: each function converts, releases the GIL, calls the core, and wraps the result.
//!
//! The only folder that imports pyo3. Files are named as in the core; the surface is documented in
//! `python/voxtier/_core.pyi`.

mod errors;
mod fingerprint;
mod frames;
#[cfg(feature = "server")]
mod gateway;
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

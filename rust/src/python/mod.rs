//! The bindings: convert, release the GIL, call, wrap. The only folder that imports pyo3.

mod errors;

use pyo3::prelude::*;

/// `voxtier._core`: see `python/voxtier/_core.pyi` for the documented surface.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    errors::register(module)?;
    Ok(())
}

//! The bindings: each function converts, releases the GIL, calls the core, and wraps the result.
//!
//! The only folder that imports pyo3. Files are named as in the core; the surface is documented in
//! `python/voxtier/_core.pyi`.

mod cache;
mod errors;
mod frame_table;
mod index;
mod paths;
mod priority;
mod replay;
mod row;
mod sources;
mod table_reader;
mod tiledb;
mod torch_file;

use pyo3::prelude::*;

/// The module `voxtier._core`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    cache::register(module)?;
    errors::register(module)?;
    frame_table::register(module)?;
    index::register(module)?;
    priority::register(module)?;
    replay::register(module)?;
    row::register(module)?;
    table_reader::register(module)?;
    tiledb::register(module)?;
    torch_file::register(module)?;
    // The stub declares no `__all__`, so the module must not have one.
    module.delattr("__all__")
}

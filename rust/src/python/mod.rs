//! The bindings: convert, release the GIL, call, wrap. The only folder that imports pyo3.

mod cache;
mod errors;
mod frame_table;
mod index;
mod paths;
mod priority;
mod sources;
mod table_reader;
mod tiledb;
mod torch_file;

use pyo3::prelude::*;

/// `voxtier._core`: see `python/voxtier/_core.pyi` for the documented surface.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    cache::register(module)?;
    errors::register(module)?;
    frame_table::register(module)?;
    index::register(module)?;
    priority::register(module)?;
    table_reader::register(module)?;
    tiledb::register(module)?;
    torch_file::register(module)?;
    // The stub has no `__all__`: what it declares is what there is.
    module.delattr("__all__")
}

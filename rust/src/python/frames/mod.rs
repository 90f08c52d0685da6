//! The bindings of `crate::frames` and of the readers of `crate::dicom`.

pub(super) mod cache;
mod frame_table;
mod hot_set;
mod index;
mod metadata;
mod priority;
mod replay;
mod row;
mod slide;
mod table_reader;

use pyo3::prelude::*;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    cache::register(module)?;
    frame_table::register(module)?;
    hot_set::register(module)?;
    index::register(module)?;
    metadata::register(module)?;
    priority::register(module)?;
    replay::register(module)?;
    row::register(module)?;
    slide::register(module)?;
    table_reader::register(module)
}

//! `read_metadata_json`.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::base::window::Buffer;
use crate::dicom::json::{self, BulkData, Options};
use crate::python::sources::with_source;

#[pyfunction]
#[pyo3(signature = (source, *, bulk_data_uri=None, inline_limit=1024, with_transfer_syntax=false, last_tag=None))]
fn read_metadata_json<'py>(
    source: &Bound<'py, PyAny>,
    bulk_data_uri: Option<&str>,
    inline_limit: u32,
    with_transfer_syntax: bool,
    last_tag: Option<u32>,
) -> PyResult<Bound<'py, PyBytes>> {
    let bulk_data = bulk_data_uri.map(|uri| BulkData { uri, inline_limit });
    let options = Options { bulk_data, with_transfer_syntax, last_tag, ..Options::default() };
    let json = with_source(source, |source| json::write(source, &options, &mut Buffer::default()))?;
    Ok(PyBytes::new(source.py(), &json))
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_metadata_json, module)?)
}

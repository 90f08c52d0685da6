//! The only conversion of [`Error`] into the exception classes of `voxtier.errors`.

use pyo3::prelude::*;

use crate::base::error::{Error, ErrorKind};

pyo3::import_exception!(voxtier.errors, FormatError);
pyo3::import_exception!(voxtier.errors, SourceError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let kind = error.kind.name();
        if error.kind.is_environment() {
            SourceError::new_err((kind, error.offset, error.detail, error.errno))
        } else {
            FormatError::new_err((kind, error.offset, error.detail))
        }
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let names = |wanted: fn(&ErrorKind) -> bool| -> Vec<&str> {
        ErrorKind::ALL.iter().filter(|kind| wanted(kind)).map(|kind| kind.name()).collect()
    };
    module.add("ERROR_KINDS", names(|_| true))?;
    module.add("ENVIRONMENT_KINDS", names(|kind| kind.is_environment()))
}

//! `SlideHeader` and `TileMap`: where the tiles of a slide lie.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyBytes};

use crate::base::window::Buffer;
use crate::dicom::slide;
use crate::python::frames::frame_table::describes;
use crate::python::gil::Release;
use crate::python::sources::{State, fingerprint_of, state_of, with_source};

/// What the header of one instance says of tiles.
#[pyclass(frozen, module = "voxtier._core")]
struct SlideHeader(slide::SlideHeader);

#[pymethods]
impl SlideHeader {
    /// Reads the header of a source.
    #[staticmethod]
    fn read(source: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(with_source(source, |source| slide::read(source, &mut Buffer::default()))?))
    }

    /// The header that bytes of `to_bytes` hold.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, stored: &[u8]) -> PyResult<Self> {
        Ok(Self(py.release(|| slide::decode(stored))?))
    }

    /// The header as bytes that are kept; None where it is too large.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        py.release(|| slide::encode(&self.0)).map(|stored| PyBytes::new(py, &stored))
    }

    /// The state of the file that was read.
    #[getter]
    fn state(&self) -> State {
        state_of(self.0.state)
    }

    /// Whether a source may be in that state.
    fn describes(&self, source: &Bound<'_, PyAny>) -> PyResult<bool> {
        describes(self.0.state, source)
    }

    #[getter]
    fn sop_instance_uid(&self) -> &str {
        &self.0.instance
    }

    #[getter]
    fn study_instance_uid(&self) -> &str {
        &self.0.study
    }

    #[getter]
    fn sop_class_uid(&self) -> &str {
        &self.0.sop_class
    }

    #[getter]
    fn series_instance_uid(&self) -> &str {
        &self.0.series
    }

    #[getter]
    fn frame_of_reference_uid(&self) -> &str {
        &self.0.frame_of_reference
    }

    #[getter]
    fn pyramid_uid(&self) -> &str {
        &self.0.pyramid
    }

    #[getter]
    fn image_type(&self) -> Vec<&str> {
        self.0.image_type.split('\\').map(str::trim).collect()
    }

    #[getter]
    fn organization(&self) -> &str {
        &self.0.organization
    }

    #[getter]
    fn total(&self) -> (u64, u64) {
        self.0.total.into()
    }

    #[getter]
    fn tile(&self) -> (u64, u64) {
        self.0.tile.into()
    }

    #[getter]
    fn frames(&self) -> u64 {
        self.0.frames
    }

    #[getter]
    fn spacing(&self) -> Option<(f64, f64)> {
        self.0.spacing.map(Into::into)
    }

    #[getter]
    fn concatenation_uid(&self) -> &str {
        &self.0.concatenation
    }
}

/// Which frame is a tile, over the instances of one level.
#[pyclass(frozen, module = "voxtier._core")]
struct TileMap(slide::TileMap);

#[pymethods]
impl TileMap {
    #[new]
    fn new(parts: Vec<PyRef<'_, SlideHeader>>) -> PyResult<Self> {
        let parts: Vec<&slide::SlideHeader> = parts.iter().map(|part| &part.0).collect();
        Ok(Self(slide::TileMap::new(&parts)?))
    }

    #[getter]
    fn grid(&self) -> (u64, u64) {
        self.0.grid.into()
    }

    #[getter]
    fn paths(&self) -> Vec<String> {
        self.0.paths.clone()
    }

    #[getter]
    fn planes(&self) -> Vec<f64> {
        self.0.planes.clone()
    }

    /// Whether an instance may be in a state: see `Fingerprint::agrees_with`.
    fn agrees_with(&self, instance: usize, state: State) -> bool {
        self.0.states.get(instance).is_some_and(|then| then.agrees_with(&fingerprint_of(state)))
    }

    /// Instance and frame of a tile, or None.
    #[pyo3(signature = (column, row, plane=0, path=0))]
    fn find(&self, column: u64, row: u64, plane: u64, path: u64) -> PyResult<Option<(usize, u64)>> {
        self.0.find(column, row, plane, path).map_err(|error| PyIndexError::new_err(error.detail))
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SlideHeader>()?;
    module.add_class::<TileMap>()
}

//! `PatchSubject`, `BatchEngine`, `PatchChange` and components: batches filled by threads of the core.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::tiledb::{Recipe, TileFile, first_bytes};
use crate::base::error::{Error, ErrorKind};
use crate::python::gil::Release;
use crate::tiledb::output::convert::Number;
use crate::training::components;
use crate::training::engine::{Engine, Order};
use crate::training::finish::{View, finish};
use crate::training::intensity::Change;
use crate::training::labels::Labels;
use crate::training::oblique::Oblique;
use crate::training::places::Place;
use crate::training::random::Philox;
use crate::training::scratch::Scratch;
use crate::training::subjects::{Foreground, Form, Part, Subject};

/// The volumes of one item.
#[pyclass(frozen, module = "voxtier._core")]
pub struct PatchSubject {
    subject: Arc<Subject>,
}

type PartArguments<'py> = (PyRef<'py, TileFile>, PyRef<'py, Recipe>, Vec<u8>, [usize; 3]);
type ForegroundArguments<'py> = (PyReadonlyArray1<'py, u64>, [u64; 3], u64, Option<f64>);

#[pymethods]
impl PatchSubject {
    #[new]
    #[pyo3(signature = (parts, foreground=None))]
    fn new(parts: Vec<PartArguments<'_>>, foreground: Option<ForegroundArguments<'_>>) -> PyResult<Self> {
        let part = |(tiles, recipe, fill, order): PartArguments<'_>| {
            Part::new(Arc::clone(&tiles.reader), recipe.steps, first_bytes(&fill), order)
        };
        let parts = parts.into_iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let foreground = match foreground {
            None => None,
            Some((cumulative, blocks, side, label)) => {
                let cumulative = cumulative.as_slice()?.to_vec();
                Some(Foreground { cumulative, blocks, side, label })
            }
        };
        Ok(Self { subject: Arc::new(Subject { parts, foreground }) })
    }
}

/// Threads that fill batches.
#[pyclass(frozen, module = "voxtier._core")]
pub struct BatchEngine {
    engine: Engine,
    /// The memory of batches in flight: it lives until the engine has finished with it.
    memory: Mutex<HashMap<u64, Py<PyArray1<u8>>>>,
}

type ViewArguments = (Option<[[f64; 3]; 3]>, [bool; 3], bool, Vec<(usize, String, [f64; 3])>);
type OrderArguments<'py> = (PyRef<'py, PatchSubject>, u64, Option<[i64; 3]>, Option<ViewArguments>);

#[pymethods]
impl BatchEngine {
    #[new]
    #[pyo3(signature = (threads, keep, *, shared=false))]
    fn new(py: Python<'_>, threads: usize, keep: bool, shared: bool) -> PyResult<Self> {
        let engine = py.release(|| Engine::start(threads, keep, shared))?;
        Ok(Self { engine, memory: Mutex::default() })
    }

    #[pyo3(signature = (number, memory, orders, *, size, steps, channels, image, mask, key, foreground=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn submit(
        &self,
        number: u64,
        memory: &Bound<'_, PyArray1<u8>>,
        orders: Vec<OrderArguments<'_>>,
        size: [u64; 3],
        steps: [u64; 3],
        channels: usize,
        image: usize,
        mask: usize,
        key: [u64; 2],
        foreground: Option<f64>,
    ) -> PyResult<()> {
        if !self.engine.is_own() {
            return Err(PyRuntimeError::new_err("the engine belongs to the process that forked this one"));
        }
        let order = |(subject, item, start, view): OrderArguments<'_>| -> PyResult<Order> {
            let random = Philox::new(key, [0, 0, 0, item]);
            let place = start.map_or(Place::Drawn { random, foreground }, Place::At);
            let view = view.map(|view| view_of(view, key, item)).transpose()?;
            Ok(Order { subject: Arc::clone(&subject.subject), place, view })
        };
        let orders = orders.into_iter().map(order).collect::<PyResult<_>>()?;
        let form = Form { size, steps, channels, image, mask };
        let (start, bytes) = {
            let mut held =
                memory.try_readwrite().map_err(|error| PyValueError::new_err(error.to_string()))?;
            let bytes = held.as_slice_mut()?;
            (bytes.as_mut_ptr(), bytes.len())
        };
        self.held().insert(number, memory.clone().unbind());
        // SAFETY: the array is held until the batch was waited for or the engine is stopped (`wait`, `stop`), and
        // Python hands it to nobody before.
        unsafe { self.engine.submit(number, form, orders, start, bytes) };
        Ok(())
    }

    /// What became of the orders of a batch: first voxels, and the exceptions of those that failed.
    #[expect(clippy::type_complexity, reason = "pairs for Python")]
    fn wait(
        &self,
        py: Python<'_>,
        number: u64,
        milliseconds: u64,
    ) -> Option<Vec<([i64; 3], Option<Py<PyBaseException>>)>> {
        let outcomes = py.release(|| self.engine.wait(number, Duration::from_millis(milliseconds)))?;
        self.held().remove(&number);
        let each = outcomes
            .into_iter()
            .map(|outcome| (outcome.start, outcome.error.map(|error| PyErr::from(error).into_value(py))));
        Some(each.collect())
    }

    /// Ends the threads; batches that were not waited for are dropped.
    fn stop(&self, py: Python<'_>) {
        py.release(|| self.engine.stop());
        self.held().clear();
    }
}

/// Noise is drawn from a stream of its own, numbered by its place in the list.
fn view_of(view: ViewArguments, key: [u64; 2], item: u64) -> PyResult<View> {
    let (matrix, flip, heaviest, changes) = view;
    let change = |(number, (channel, name, values)): (usize, (usize, String, [f64; 3]))| {
        let [first, second, _] = values;
        let change = match name.as_str() {
            "noise" => {
                let random = Philox::new(key, [0, 1 << 32 | number as u64, 0, item]);
                Change::Noise { random, deviation: first as f32 }
            }
            "blur" => Change::Blur(values),
            "multiply" => Change::Multiply(first as f32),
            "contrast" => Change::Contrast(first as f32),
            "low_resolution" => Change::LowResolution(values),
            "gamma" => Change::Gamma { power: first as f32, inverts: second != 0.0 },
            _ => return Err(PyValueError::new_err(format!("there is no change of intensities {name:?}"))),
        };
        Ok((channel, change))
    };
    let changes = changes.into_iter().enumerate().map(change).collect::<PyResult<_>>()?;
    let labels = if heaviest { Labels::Heaviest } else { Labels::Nearest };
    Ok(View { matrix, flip, labels, changes })
}

/// A patch that another reader reads and the core changes.
#[pyclass(frozen, module = "voxtier._core")]
pub struct PatchChange {
    view: View,
    form: Form,
    oblique: Option<Oblique>,
}

#[pymethods]
impl PatchChange {
    #[new]
    fn new(
        view: ViewArguments,
        start: [i64; 3],
        size: [u64; 3],
        steps: [u64; 3],
        channels: usize,
        key: [u64; 2],
        item: u64,
    ) -> PyResult<Self> {
        let view = view_of(view, key, item)?;
        let form = Form { size, steps, channels, image: 0, mask: 0 };
        let oblique = view.matrix.map(|matrix| form.turn(matrix, start)).transpose()?;
        Ok(Self { view, form, oblique })
    }

    /// First voxel and voxels of the box that a turned patch touches; `None` for one that is not turned.
    #[getter]
    fn touched(&self) -> Option<([i64; 3], [u64; 3])> {
        let oblique = self.oblique.as_ref()?;
        Some((self.form.along(oblique.low()), self.form.along(oblique.count())))
    }

    /// Samples one part from the box, and changes it in place.
    fn finish(
        &self,
        part: usize,
        number: &str,
        touched: Option<PyReadonlyArray1<'_, u8>>,
        mut out: PyReadwriteArray1<'_, u8>,
    ) -> PyResult<()> {
        let unknown = || Error::new(ErrorKind::InvalidArgument, format!("{number:?} is no type of numbers"));
        let kind = Number::from_name(number).ok_or_else(unknown)?;
        let scratch = touched.map(|bytes| Ok::<_, PyErr>(Scratch::of(bytes.as_slice()?))).transpose()?;
        let place = out.as_slice_mut()?;
        if Some(place.len() as u64) != self.form.voxels().checked_mul(kind.bytes() as u64) {
            return Err(Error::new(ErrorKind::InvalidArgument, "the output is no patch of this size").into());
        }
        let from = self.oblique.as_ref().zip(scratch.as_ref());
        finish(&self.view, &self.form, kind, part, from, place)?;
        Ok(())
    }
}

type Components<'py> = (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<u32>>);

/// The class of each connected component, and rows of component, block, part and voxels; `None` for noise.
#[pyfunction]
fn find_components<'py>(
    py: Python<'py>,
    labels: PyReadonlyArray1<'py, u8>,
    shape: [usize; 3],
    side: usize,
) -> PyResult<Option<Components<'py>>> {
    let labels = labels.as_slice()?;
    let Some((classes, parts)) = py.release(|| components::components(labels, shape, side)) else {
        return Ok(None);
    };
    let rows: Vec<u32> = parts.iter().flat_map(|p| [p.component, p.block, p.ordinal, p.voxels]).collect();
    Ok(Some((classes.into_pyarray(py), rows.into_pyarray(py))))
}

/// The voxel of a number in a part of a block.
#[pyfunction]
fn component_voxel(
    labels: PyReadonlyArray1<'_, u8>,
    shape: [usize; 3],
    part: u32,
    number: u32,
) -> PyResult<Option<[usize; 3]>> {
    Ok(components::voxel(labels.as_slice()?, shape, part, number))
}

impl BatchEngine {
    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Py<PyArray1<u8>>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BatchEngine {
    fn drop(&mut self) {
        if self.engine.is_own() {
            self.engine.stop(); // before the memory goes
        }
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PatchSubject>()?;
    module.add_class::<PatchChange>()?;
    module.add_function(wrap_pyfunction!(find_components, module)?)?;
    module.add_function(wrap_pyfunction!(component_voxel, module)?)?;
    module.add_class::<BatchEngine>()
}

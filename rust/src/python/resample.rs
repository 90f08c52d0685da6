//! `ResamplePlan`: the tables of one resampling, and the tensor of a NIfTI file by them. `LabelPicks`: of a label.

use std::path::PathBuf;

use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;

use crate::base::error::{Error, ErrorKind, Result};
use crate::python::gil::Release;
use crate::resample::file::read_voxels;
use crate::resample::picked::Picks;
use crate::resample::plan::{First, Grid, Intensity, Lines, Plan, Resize, Sum};
use crate::resample::volume::{Element, Source, Storage, Volume};

/// Number of inputs, indices, weights of the nearer and of the next voxel.
type Table<'py, T> = (usize, PyReadonlyArray1<'py, u32>, PyReadonlyArray1<'py, T>, PyReadonlyArray1<'py, T>);

fn lines<T: numpy::Element + Copy>((length, index, near, far): &Table<'_, T>) -> PyResult<Lines<T>> {
    let (index, near, far) =
        (index.as_slice()?.to_vec(), near.as_slice()?.to_vec(), far.as_slice()?.to_vec());
    Ok(Lines { length: *length, index, near, far })
}

/// A table for each axis; or, for turned axes, lengths, coordinates, matrix and whether its sums round once.
#[derive(FromPyObject)]
enum Spaced<'py> {
    Oblique([usize; 3], [PyReadonlyArray1<'py, f64>; 3], [[f64; 4]; 3], bool),
    Straight([Table<'py, f64>; 3]),
}

impl Spaced<'_> {
    fn first(&self) -> PyResult<First> {
        Ok(match self {
            Self::Oblique(lengths, [x, y, z], matrix, is_fused) => First::Oblique(Grid {
                lengths: *lengths,
                coordinates: [x.as_slice()?.to_vec(), y.as_slice()?.to_vec(), z.as_slice()?.to_vec()],
                matrix: *matrix,
                is_fused: *is_fused,
            }),
            Self::Straight([x, y, z]) => First::Straight([lines(x)?, lines(y)?, lines(z)?]),
        })
    }
}

/// The tables of one resampling.
#[pyclass(frozen, module = "voxtier._core")]
pub struct ResamplePlan {
    plan: Plan,
}

#[pymethods]
impl ResamplePlan {
    #[new]
    #[pyo3(signature = (spacing, resize, kernels, intensity, *, fused))]
    fn new(
        spacing: Spaced<'_>,
        resize: [Table<'_, f32>; 3],
        kernels: [(PyReadonlyArray1<'_, f32>, String); 3],
        intensity: [f32; 6],
        fused: bool,
    ) -> PyResult<Self> {
        let resized = |table: &Table<'_, f32>, (kernel, sum): &(PyReadonlyArray1<'_, f32>, String)| {
            let sum = Sum::from_name(sum)
                .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("no kernel sums by {sum}")))?;
            PyResult::Ok(Resize { lines: lines(table)?, kernel: kernel.as_slice()?.to_vec(), sum })
        };
        let ([x, y, z], [kernel_x, kernel_y, kernel_z]) = (&resize, &kernels);
        let resize = [resized(x, kernel_x)?, resized(y, kernel_y)?, resized(z, kernel_z)?];
        let [from, by, times, plus, low, high] = intensity;
        let intensity = Intensity { from, by, times, plus, low, high };
        Ok(Self { plan: Plan::new(spacing.first()?, resize, intensity, fused)? })
    }

    /// Makes the tensor of a file; returns whether the voxels are all equal, and whether all are finite. Of such
    /// a volume no tensor is made.
    fn run(
        &self,
        py: Python<'_>,
        source: FileSource,
        storage: FileStorage,
        shape: [usize; 3],
        axes: [(usize, bool); 3],
        mut out: PyReadwriteArray1<'_, f32>,
    ) -> PyResult<(bool, bool)> {
        let out = out.as_slice_mut()?;
        on_volume(py, source, storage, shape, axes, |volume| {
            unless_implausible(volume, || crate::resample::resample(volume, &self.plan, out))
        })
    }

    /// As `run`, but for the volume after the first step.
    fn space(
        &self,
        py: Python<'_>,
        source: FileSource,
        storage: FileStorage,
        shape: [usize; 3],
        axes: [(usize, bool); 3],
        mut out: PyReadwriteArray1<'_, f32>,
    ) -> PyResult<(bool, bool)> {
        let out = out.as_slice_mut()?;
        on_volume(py, source, storage, shape, axes, |volume| {
            unless_implausible(volume, || crate::resample::space(volume, &self.plan, out))
        })
    }
}

/// The voxels of a label that a result takes, by axis.
#[pyclass(frozen, module = "voxtier._core")]
pub struct LabelPicks {
    picks: Picks,
}

#[pymethods]
impl LabelPicks {
    #[new]
    fn new(lengths: [usize; 3], voxels: [PyReadonlyArray1<'_, u32>; 3]) -> PyResult<Self> {
        let [x, y, z] = &voxels;
        let voxels = [x.as_slice()?.to_vec(), y.as_slice()?.to_vec(), z.as_slice()?.to_vec()];
        Ok(Self { picks: Picks::new(lengths, voxels)? })
    }

    /// Copies the voxels of a file.
    fn copy(
        &self,
        py: Python<'_>,
        source: FileSource,
        storage: FileStorage,
        shape: [usize; 3],
        axes: [(usize, bool); 3],
        mut out: PyReadwriteArray1<'_, f32>,
    ) -> PyResult<()> {
        let out = out.as_slice_mut()?;
        on_volume(py, source, storage, shape, axes, |volume| self.picks.copy(volume, out))
    }
}

/// Path, whether it is gzipped, where the voxels begin.
type FileSource = (PathBuf, bool, u64);
/// Type of the voxels, whether the most significant byte comes first, factor, summand.
type FileStorage = (String, bool, Option<f64>, Option<f64>);

/// Makes a tensor of a volume that is finite and not constant; returns whether it is constant, and whether finite.
fn unless_implausible(volume: &Volume<'_>, make: impl FnOnce() -> Result<()>) -> Result<(bool, bool)> {
    let survey = volume.survey();
    if survey.is_finite && !survey.is_constant {
        make()?;
    }
    Ok((survey.is_constant, survey.is_finite))
}

/// Reads a file without the GIL, and calls `work` with its volume.
fn on_volume<T: Send>(
    py: Python<'_>,
    (path, is_gzipped, offset): FileSource,
    (element, is_big_endian, slope, intercept): FileStorage,
    shape: [usize; 3],
    axes: [(usize, bool); 3],
    work: impl FnOnce(&Volume<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let Some(element) = Element::from_name(&element) else {
        let refused = format!("voxels of type {element} are not resampled here");
        return Err(Error::new(ErrorKind::InvalidArgument, refused).into());
    };
    let storage = Storage { element, is_big_endian, slope, intercept };
    let sources = axes.map(|(axis, is_flipped)| Source { axis, is_flipped });
    let done = py.release(|| {
        let count = shape.iter().try_fold(element.bytes() as u64, |all, axis| all.checked_mul(*axis as u64));
        let count = count.ok_or_else(|| {
            Error::new(ErrorKind::LimitExceeded, format!("{shape:?} voxels do not fit into memory"))
        })?;
        let voxels = read_voxels(&path, is_gzipped, offset, count)?;
        let bytes = voxels.bytes.get(voxels.skip..).unwrap_or_default();
        work(&Volume::new(bytes, storage, shape, sources)?)
    })?;
    Ok(done)
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<LabelPicks>()?;
    module.add_class::<ResamplePlan>()
}

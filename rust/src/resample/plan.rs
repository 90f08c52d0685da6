//! The tables of one resampling, checked once: every index that the passes use lies inside its axis.

pub use super::arithmetic::Sum;
use super::arithmetic::{BLOCK, LANES};
use crate::base::error::{Error, ErrorKind, Result};

/// Longest axis of an input, a spaced volume or an output.
const MOST_VOXELS: usize = 1 << 20;

/// Longest kernel: an axis of 2^15 voxels shrunk to one has 65,533 taps.
const MOST_TAPS: usize = 1 << 17;

/// The linear interpolation of one axis: output `j` lies between the voxels `index[j]` and the next one.
///
/// The next voxel of the last one is the last one; its weight is 0 there.
#[derive(Clone, Debug)]
pub struct Lines<T> {
    /// Number of input voxels.
    pub length: usize,
    /// The nearer voxel; never decreases.
    pub index: Vec<u32>,
    /// The weight of `index`.
    pub near: Vec<T>,
    /// The weight of the voxel after it.
    pub far: Vec<T>,
}

impl<T> Lines<T> {
    fn check(&self, axis: usize) -> Result<()> {
        let refuse = |what: &str| {
            Err(Error::new(ErrorKind::InvalidArgument, format!("the table of axis {axis} {what}")))
        };
        let outputs = self.index.len();
        if self.length == 0 || outputs == 0 || self.length > MOST_VOXELS || outputs > MOST_VOXELS {
            return refuse("has no voxels, or too many");
        }
        if self.near.len() != outputs || self.far.len() != outputs {
            return refuse("has another number of weights than of indices");
        }
        if self.index.last().is_none_or(|last| *last as usize >= self.length) || !self.index.is_sorted() {
            return refuse("points outside its axis, or backwards");
        }
        Ok(())
    }

    /// The two voxels of output `j`, which is below the number of outputs.
    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "callers count up to the number of outputs")]
    pub(super) fn pair(&self, j: usize) -> (usize, usize) {
        let near = self.index[j] as usize;
        (near, (near + 1).min(self.length - 1))
    }
}

/// The first step for turned axes: where each output lies in the input, as `affine_grid` says.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Voxels of the input along x, y, z.
    pub lengths: [usize; 3],
    /// Coordinates of the outputs along x, y, z, from -1 to 1.
    pub coordinates: [Vec<f64>; 3],
    /// For the places along x, y, z: what is multiplied with the coordinates along z, y, x, in this order, and
    /// what is added at last.
    pub matrix: [[f64; 4]; 3],
    /// Whether these sums round once for each product.
    pub is_fused: bool,
}

impl Grid {
    fn check(&self) -> Result<()> {
        let is_good = |length: usize| (1..=MOST_VOXELS).contains(&length);
        let outputs = self.coordinates.iter().map(Vec::len);
        if self.lengths.iter().copied().chain(outputs).all(is_good) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidArgument, "a grid without voxels, or with too many"))
    }
}

/// The first step.
#[derive(Clone, Debug)]
pub enum First {
    /// Along x, y, z.
    Straight([Lines<f64>; 3]),
    /// For turned axes.
    Oblique(Grid),
}

impl First {
    /// Voxels of the result along x, y, z.
    fn outputs(&self) -> [usize; 3] {
        match self {
            Self::Straight(lines) => lines.each_ref().map(|axis| axis.index.len()),
            Self::Oblique(grid) => grid.coordinates.each_ref().map(Vec::len),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Straight(lines) => lines.iter().enumerate().try_for_each(|(axis, line)| line.check(axis)),
            Self::Oblique(grid) => grid.check(),
        }
    }
}

/// The second step along one axis: a Gaussian against aliasing, then interpolation.
#[derive(Clone, Debug)]
pub struct Resize {
    /// Interpolation between the spaced voxels.
    pub lines: Lines<f32>,
    /// Weights of the Gaussian, of odd number; empty for none.
    pub kernel: Vec<f32>,
    /// How the Gaussian sums.
    pub sum: Sum,
}

impl Resize {
    /// Whether the kernel is 0, .., 1, .., 0: it changes nothing but the sign of zeros.
    pub(super) fn is_identity(&self) -> bool {
        let middle = self.kernel.len() / 2;
        self.kernel.iter().enumerate().all(|(tap, weight)| *weight == f32::from(u8::from(tap == middle)))
    }
}

/// Linear scaling of intensities, each step rounded to float32: `(v - from) / by * times + plus`, clamped.
#[derive(Clone, Copy, Debug)]
pub struct Intensity {
    /// Subtracted.
    pub from: f32,
    /// Divisor.
    pub by: f32,
    /// Factor.
    pub times: f32,
    /// Added.
    pub plus: f32,
    /// Lowest result.
    pub low: f32,
    /// Highest result.
    pub high: f32,
}

impl Intensity {
    /// Scales and clamps voxels as `ScaleIntensityRange` does.
    #[inline(always)]
    pub(super) fn apply(self, voxels: &mut [f32]) {
        let Self { from, by, times, plus, low, high } = self;
        for voxel in voxels {
            *voxel = ((*voxel - from) / by * times + plus).max(low).min(high);
        }
    }
}

/// Everything that decides the numbers of one resampling.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Spacing.
    pub(super) first: First,
    /// Resizing along x, y, z.
    pub(super) resize: [Resize; 3],
    /// Between the two.
    pub(super) intensity: Intensity,
    /// Whether the interpolation rounds product and sum once.
    pub(super) is_fused: bool,
}

impl Plan {
    /// Checks the tables of the axes x, y, z.
    ///
    /// # Errors
    /// `invalid_argument` for a table whose indices leave its axis, or that does not fit the next one.
    pub fn new(first: First, resize: [Resize; 3], intensity: Intensity, is_fused: bool) -> Result<Self> {
        first.check()?;
        for (axis, (length, second)) in first.outputs().iter().zip(&resize).enumerate() {
            second.lines.check(axis)?;
            let taps = second.kernel.len();
            if second.lines.length != *length || (taps > 0 && taps % 2 == 0) || taps > MOST_TAPS {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("axis {axis}: spacing and resizing do not fit, or a kernel of {taps} weights"),
                ));
            }
        }
        Ok(Self { first, resize, intensity, is_fused })
    }

    /// Voxels of the input along x, y, z.
    pub fn lengths_in(&self) -> [usize; 3] {
        match &self.first {
            First::Straight(lines) => lines.each_ref().map(|axis| axis.length),
            First::Oblique(grid) => grid.lengths,
        }
    }

    /// Voxels after the first step along x, y, z.
    pub fn lengths_spaced(&self) -> [usize; 3] {
        self.first.outputs()
    }

    /// Voxels of the output along x, y, z.
    pub fn lengths_out(&self) -> [usize; 3] {
        self.resize.each_ref().map(|axis| axis.lines.index.len())
    }

    /// Voxels of the output; `None` beyond what a machine can address.
    pub fn voxels_out(&self) -> Option<usize> {
        self.lengths_out().iter().try_fold(1_usize, |product, length| product.checked_mul(*length))
    }
}

/// The last outputs of a Gaussian, which [`Sum::Blocks`] sums in another order: those from place `first` on.
///
/// A place counts the outputs with z fastest, zeros around the axes whose Gaussians follow included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    first: usize,
    /// Number of outputs along x.
    length: usize,
    /// Places from an output to the next along x and y.
    steps: [usize; 2],
    /// Zeros before the first output along y and z.
    zeros: [usize; 2],
}

impl Tail {
    /// The tail of the Gaussian along `axis`; `None` where all outputs are summed in the same order.
    pub(super) fn new(plan: &Plan, axis: usize) -> Option<Self> {
        let Resize { kernel, sum, .. } = plan.resize.get(axis)?;
        if *sum != Sum::Blocks || kernel.len() < BLOCK {
            return None;
        }
        let [x, y, z] = plan.resize.each_ref().map(|resize| resize.lines.length);
        let half = |other: usize| {
            if other > axis { plan.resize.get(other).map_or(0, |resize| resize.kernel.len() / 2) } else { 0 }
        };
        let zeros = [half(1), half(2)];
        let [rows, depth] = [y + 2 * zeros[0], z + 2 * zeros[1]];
        let step = rows.checked_mul(depth)?;
        let total = x.checked_mul(step)?;
        (!total.is_multiple_of(LANES)).then_some(Self {
            first: total - total % LANES,
            length: x,
            steps: [step, depth],
            zeros,
        })
    }

    /// The first output of the row `(y, z)` that belongs to the tail, if one does.
    pub(super) fn begin(&self, y: usize, z: usize) -> Option<usize> {
        let [step, depth] = self.steps;
        let before = (y + self.zeros[0]) * depth + z + self.zeros[1];
        let begin = self.first.saturating_sub(before).div_ceil(step);
        (begin < self.length).then_some(begin)
    }
}

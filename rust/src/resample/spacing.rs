//! The first step: planes of the spaced volume, interpolated in float64 as torch's `grid_sampler_3d` does.
//!
//! The sum over the eight neighbours has one order, and each weight is `(z * y) * x`: rounding decides the
//! bits. Neighbours that would lie past the end have the weight 0.

use super::arithmetic::padded;
use super::oblique::Oblique;
use super::plan::{First, Intensity, Lines, Plan};
use super::volume::Volume;

/// Outputs that are gathered by one shuffle of eight consecutive voxels.
const GROUP: usize = 4;

/// Which voxels of a row the outputs along x take.
struct Columns {
    /// Number of outputs, padded.
    width: usize,
    near: Vec<u32>,
    far: Vec<u32>,
    /// For each group of outputs: the first of eight voxels, and which of them are near and far. Empty where a
    /// group needs voxels that lie farther apart.
    #[cfg(target_arch = "x86_64")]
    groups: Vec<(u32, [i32; 2 * GROUP])>,
}

impl Columns {
    fn new(lines: &Lines<f64>, is_reversed: bool) -> Self {
        let width = padded(lines.index.len());
        let last = lines.length - 1;
        let in_memory = |voxel: usize| if is_reversed { last - voxel } else { voxel } as u32;
        let (mut near, mut far): (Vec<u32>, Vec<u32>) = (0..lines.index.len())
            .map(|j| lines.pair(j))
            .map(|(near, far)| (in_memory(near), in_memory(far)))
            .unzip();
        near.resize(width, near.last().copied().unwrap_or_default());
        far.resize(width, far.last().copied().unwrap_or_default());
        Self {
            width,
            #[cfg(target_arch = "x86_64")]
            groups: groups(&near, &far),
            near,
            far,
        }
    }

    /// Writes the near and the far neighbours of all outputs; `row` has [`Straight::SPARE`] voxels more.
    #[inline(always)]
    fn gather<const AVX2: bool>(&self, row: &[f32], near: &mut [f32], far: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if AVX2 && !self.groups.is_empty() {
            let outs = near.as_chunks_mut::<GROUP>().0.iter_mut().zip(far.as_chunks_mut::<GROUP>().0);
            for ((low, places), (near, far)) in self.groups.iter().zip(outs) {
                if let Some(voxels) = row.get(*low as usize..).and_then(|rest| rest.first_chunk()) {
                    // SAFETY: `AVX2` is true only in code for processors that have it.
                    (*near, *far) = unsafe { shuffle(voxels, places) };
                }
            }
            return;
        }
        let take = |voxel: &u32| row.get(*voxel as usize).copied().unwrap_or_default();
        near.iter_mut().zip(&self.near).for_each(|(out, voxel)| *out = take(voxel));
        far.iter_mut().zip(&self.far).for_each(|(out, voxel)| *out = take(voxel));
    }
}

/// For each group of outputs the first of eight voxels, and which of them are near and far.
#[cfg(target_arch = "x86_64")]
fn groups(near: &[u32], far: &[u32]) -> Vec<(u32, [i32; 2 * GROUP])> {
    let group = |(near, far): (&[u32; GROUP], &[u32; GROUP])| {
        let low = near.iter().chain(far).min().copied().unwrap_or_default();
        let places = near.iter().chain(far).map(|voxel| (voxel - low) as i32);
        let mut all = [0; 2 * GROUP];
        all.iter_mut().zip(places).for_each(|(to, place)| *to = place);
        all.iter().all(|place| *place < 2 * GROUP as i32).then_some((low, all))
    };
    let whole = near.as_chunks::<GROUP>().0.iter().zip(far.as_chunks::<GROUP>().0);
    whole.map(group).collect::<Option<_>>().unwrap_or_default()
}

/// The voxels at eight places, in two halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn shuffle(voxels: &[f32; 2 * GROUP], places: &[i32; 2 * GROUP]) -> ([f32; GROUP], [f32; GROUP]) {
    use std::arch::x86_64::{
        _mm_storeu_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_permutevar8x32_ps,
    };
    let (mut near, mut far) = ([0.0; GROUP], [0.0; GROUP]);
    // SAFETY: the arrays hold what is read and written, and need no alignment.
    unsafe {
        let all = _mm256_permutevar8x32_ps(
            _mm256_loadu_ps(voxels.as_ptr()),
            _mm256_loadu_si256(places.as_ptr().cast()),
        );
        _mm_storeu_ps(near.as_mut_ptr(), _mm256_castps256_ps128(all));
        _mm_storeu_ps(far.as_mut_ptr(), _mm256_extractf128_ps::<1>(all));
    }
    (near, far)
}

/// The neighbours of all outputs of a row: two rows along z, near and far along x.
struct Neighbours {
    /// The row of the input, along y.
    y: Option<usize>,
    /// (z near, x near), (z near, x far), (z far, x near), (z far, x far).
    rows: [Vec<f32>; 4],
}

/// Makes planes of the spaced volume.
pub(super) enum Spacing<'p> {
    Straight(Box<Straight<'p>>),
    Oblique(Box<Oblique<'p>>),
}

impl<'p> Spacing<'p> {
    pub(super) fn new(volume: &'p Volume<'p>, plan: &'p Plan) -> Self {
        match &plan.first {
            First::Straight(lines) => Self::Straight(Box::new(Straight::new(volume, lines, plan.intensity))),
            First::Oblique(grid) => Self::Oblique(Box::new(Oblique::new(volume, grid, plan.intensity))),
        }
    }

    /// Number of voxels that `row` gives.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Straight(spacing) => spacing.columns.width,
            Self::Oblique(spacing) => spacing.width(),
        }
    }

    /// Begins another plane: what is held of the rows of the last one is given up.
    pub(super) fn begin_plane(&mut self) {
        if let Self::Straight(spacing) = self {
            spacing.neighbours.iter_mut().for_each(|neighbours| neighbours.y = None);
        }
    }

    /// Makes the row `y` of the spaced plane `z`; rows of a plane are asked for in ascending order.
    #[inline(always)]
    pub(super) fn row<const AVX2: bool>(&mut self, y: usize, z: usize) -> &[f32] {
        match self {
            Self::Straight(spacing) => spacing.row::<AVX2>(y, z),
            Self::Oblique(spacing) => spacing.row(y, z),
        }
    }
}

/// The first step where no axis is turned: neighbours and weights come from a table for each axis.
pub(super) struct Straight<'p> {
    volume: &'p Volume<'p>,
    axes: &'p [Lines<f64>; 3],
    intensity: Intensity,
    columns: Columns,
    /// Weights along x, padded.
    weights: [Vec<f64>; 2],
    /// Neighbours of two rows, at the parity of the row.
    neighbours: [Neighbours; 2],
    /// One row of the input and [`Self::SPARE`] voxels.
    row: Vec<f32>,
    /// One row of the result.
    spaced: Vec<f32>,
}

impl<'p> Straight<'p> {
    /// Voxels behind a row that a shuffle may read.
    const SPARE: usize = 2 * GROUP;

    fn new(volume: &'p Volume<'p>, axes: &'p [Lines<f64>; 3], intensity: Intensity) -> Self {
        let [lines, ..] = axes;
        let columns = Columns::new(lines, volume.is_reversed());
        let stretch = |weights: &[f64]| {
            let mut all = weights.to_vec();
            all.resize(columns.width, 0.0);
            all
        };
        let weights = [stretch(&lines.near), stretch(&lines.far)];
        let empty = || Neighbours { y: None, rows: std::array::from_fn(|_| vec![0.0; columns.width]) };
        let neighbours = [empty(), empty()];
        let row = vec![0.0; lines.length + Self::SPARE];
        let spaced = vec![0.0; columns.width];
        Self { volume, axes, intensity, columns, weights, neighbours, row, spaced }
    }

    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "z and y count outputs; parities are 0 and 1")]
    fn row<const AVX2: bool>(&mut self, y: usize, z: usize) -> &[f32] {
        let [_, along_y, along_z] = self.axes;
        let depths = along_z.pair(z);
        let (near, far) = along_y.pair(y);
        self.load::<AVX2>(near, depths);
        self.load::<AVX2>(far, depths);
        let rows = (&self.neighbours[near & 1].rows, &self.neighbours[far & 1].rows);
        let weights_z = (along_z.near[z], along_z.far[z]);
        let weights_y = (along_y.near[y], along_y.far[y]);
        sum_neighbours(&mut self.spaced, rows, weights_z, weights_y, &self.weights);
        self.intensity.apply(&mut self.spaced);
        &self.spaced
    }

    /// Gathers the neighbours in the rows `y` of two planes, unless they are the last ones of that parity.
    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "a parity is 0 or 1")]
    fn load<const AVX2: bool>(&mut self, y: usize, depths: (usize, usize)) {
        let neighbours = &mut self.neighbours[y & 1];
        if neighbours.y == Some(y) {
            return;
        }
        neighbours.y = Some(y);
        let [near_near, near_far, far_near, far_far] = &mut neighbours.rows;
        let voxels = self.row.len() - Self::SPARE;
        self.volume.row(y, depths.0, &mut self.row[..voxels]);
        self.columns.gather::<AVX2>(&self.row, near_near, near_far);
        self.volume.row(y, depths.1, &mut self.row[..voxels]);
        self.columns.gather::<AVX2>(&self.row, far_near, far_far);
    }
}

/// The weighted sum of eight neighbours for each voxel of a row, in float64, then rounded to float32.
#[inline(always)]
#[allow(clippy::indexing_slicing, reason = "every row has the length of `spaced`")]
fn sum_neighbours(
    spaced: &mut [f32],
    (near, far): (&[Vec<f32>; 4], &[Vec<f32>; 4]),
    weights_z: (f64, f64),
    weights_y: (f64, f64),
    weights_x: &[Vec<f64>; 2],
) {
    let n = spaced.len();
    let (z0y0, z1y0) = (weights_z.0 * weights_y.0, weights_z.1 * weights_y.0);
    let (z0y1, z1y1) = (weights_z.0 * weights_y.1, weights_z.1 * weights_y.1);
    let [x0, x1] = weights_x.each_ref().map(|weights| &weights[..n]);
    let [z0y0x0, z0y0x1, z1y0x0, z1y0x1] = near.each_ref().map(|row| &row[..n]);
    let [z0y1x0, z0y1x1, z1y1x0, z1y1x1] = far.each_ref().map(|row| &row[..n]);
    for i in 0..n {
        let mut sum = 0.0;
        sum += f64::from(z0y0x0[i]) * (z0y0 * x0[i]);
        sum += f64::from(z1y0x0[i]) * (z1y0 * x0[i]);
        sum += f64::from(z0y1x0[i]) * (z0y1 * x0[i]);
        sum += f64::from(z1y1x0[i]) * (z1y1 * x0[i]);
        sum += f64::from(z0y0x1[i]) * (z0y0 * x1[i]);
        sum += f64::from(z1y0x1[i]) * (z1y0 * x1[i]);
        sum += f64::from(z0y1x1[i]) * (z0y1 * x1[i]);
        sum += f64::from(z1y1x1[i]) * (z1y1 * x1[i]);
        spaced[i] = sum as f32;
    }
}

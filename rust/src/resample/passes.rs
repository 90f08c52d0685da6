//! The second step: Gaussians and linear interpolation, plane by plane along z.
//!
//! Only what the interpolation asks for is kept of a spaced plane: two columns for each output along x, and
//! the rows between which the outputs along y lie.

use std::collections::VecDeque;

use super::arithmetic::{LANES, mix, mix_each, padded, weigh};
use super::plan::{Lines, Plan, Sum, Tail};
use super::spacing::Spacing;
use super::volume::Volume;
use crate::base::error::{Error, ErrorKind, Result};

/// Output planes that are written at once: z is the fastest axis of the output.
const DEPTH: usize = 16;

/// Resamples with or without AVX2 and FMA; both give the same bits.
#[inline(always)]
pub(super) fn run<const AVX2: bool>(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    Passes::new(volume, plan)?.run::<AVX2>(out)
}

/// A plane of the volume between the two steps: `rows` rows of `width` voxels.
type Plane = Vec<f32>;

/// The state of one resampling: tables and scratch, of the size of some planes.
struct Passes<'p> {
    spacing: Spacing<'p>,
    plan: &'p Plan,
    columns: Columns,
    rows: Rows,
    /// A spaced row between the zeros that its Gaussian reads.
    framed: Vec<f32>,
    /// A spaced row after its Gaussian.
    smooth_row: Vec<f32>,
    /// A row whose end is summed as the tail of a Gaussian is.
    tail_row: Vec<f32>,
    /// Of the Gaussians along x, y, z.
    tails: [Option<Tail>; 3],
    /// A row of voxels beyond the volume.
    zeros: Vec<f32>,
    /// A spaced plane after its Gaussian along x, at the columns.
    smooth_x: Plane,
    /// Planes after the Gaussians along x and y, consecutive, for the one along z.
    window: VecDeque<(usize, Plane)>,
    /// The last two planes after all Gaussians.
    smooth: VecDeque<(usize, Plane)>,
    spare: Vec<Plane>,
}

/// The columns that the outputs along x lie between: all near ones, then all far ones.
struct Columns {
    near: Vec<u32>,
    far: Vec<u32>,
    /// Weights of the two, padded.
    weights: [Vec<f32>; 2],
    /// Number of outputs, padded: where the far ones begin.
    half: usize,
}

impl Columns {
    fn new(lines: &Lines<f32>) -> Self {
        let half = padded(lines.index.len());
        let stretch = |weights: &[f32]| {
            let mut all = weights.to_vec();
            all.resize(half, 0.0);
            all
        };
        let pairs = (0..lines.index.len()).map(|x| lines.pair(x));
        let (near, far) = pairs.map(|(near, far)| (near as u32, far as u32)).unzip();
        Self { near, far, weights: [stretch(&lines.near), stretch(&lines.far)], half }
    }

    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "columns lie inside a spaced row, and `to` holds two halves")]
    fn pick(&self, row: &[f32], to: &mut [f32]) {
        let (near, far) = to.split_at_mut(self.half);
        near.iter_mut().zip(&self.near).for_each(|(to, column)| *to = row[*column as usize]);
        far.iter_mut().zip(&self.far).for_each(|(to, column)| *to = row[*column as usize]);
    }

    /// Copies the voxels of the columns from `begin` on.
    fn copy_from(&self, begin: usize, row: &[f32], to: &mut [f32]) {
        for (columns, start) in [(&self.near, 0), (&self.far, self.half)] {
            let first = start + columns.partition_point(|column| (*column as usize) < begin);
            let places = first..start + columns.len();
            if let (Some(to), Some(from)) = (to.get_mut(places.clone()), row.get(places)) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The rows that the outputs along y lie between.
struct Rows {
    /// Their numbers in a spaced plane, ascending.
    taken: Vec<usize>,
    /// For each output, the places of its two rows among them; either equal or neighbours.
    pairs: Vec<(usize, usize)>,
}

impl Rows {
    fn new(lines: &Lines<f32>) -> Self {
        let mut taken: Vec<usize> = Vec::new();
        let mut place = |row: usize| match taken.binary_search(&row) {
            Ok(place) => place,
            Err(place) => {
                taken.insert(place, row); // at the end: rows never decrease
                place
            }
        };
        let pairs = (0..lines.index.len())
            .map(|y| lines.pair(y))
            .map(|(near, far)| (place(near), place(far)))
            .collect();
        Self { taken, pairs }
    }
}

/// A plane of zeros.
fn plane(voxels: Option<usize>) -> Result<Plane> {
    let mut plane = Vec::new();
    let voxels = voxels.unwrap_or(usize::MAX);
    plane.try_reserve_exact(voxels).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("cannot allocate {voxels} voxels of a plane"))
    })?;
    plane.resize(voxels, 0.0);
    Ok(plane)
}

impl<'p> Passes<'p> {
    fn new(volume: &'p Volume<'p>, plan: &'p Plan) -> Result<Self> {
        let [along_x, along_y, _] = &plan.resize;
        let spacing = Spacing::new(volume, plan);
        let columns = Columns::new(&along_x.lines);
        let rows = Rows::new(&along_y.lines);
        let width = spacing.width();
        let smooth_x = plane(along_y.lines.length.checked_mul(2 * columns.half))?;
        Ok(Self {
            framed: plane(Some(width + along_x.kernel.len() + LANES))?,
            smooth_row: plane(Some(width))?,
            tail_row: plane(Some(width.max(2 * columns.half)))?,
            tails: std::array::from_fn(|axis| Tail::new(plan, axis)),
            zeros: plane(Some(2 * columns.half))?,
            smooth_x,
            window: VecDeque::new(),
            smooth: VecDeque::new(),
            spare: Vec::new(),
            spacing,
            plan,
            columns,
            rows,
        })
    }

    /// Number of voxels of a kept row.
    fn width(&self) -> usize {
        2 * self.columns.half
    }

    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "`resample` has compared the output with the plan")]
    fn run<const AVX2: bool>(mut self, out: &mut [f32]) -> Result<()> {
        let plan = self.plan;
        let along_z = &plan.resize[2].lines;
        let [nx, ny, nz] = plan.lengths_out();
        let half = self.columns.half;
        let mut tile = plane(ny.checked_mul(DEPTH * half))?;
        for first in (0..nz).step_by(DEPTH) {
            let depth = DEPTH.min(nz - first);
            for layer in 0..depth {
                let z = first + layer;
                let (near, far) = along_z.pair(z);
                for at in [near, far] {
                    self.provide::<AVX2>(at)?;
                }
                let tile = &mut tile[layer * half..];
                if plan.is_fused {
                    self.interpolate::<true>(z, tile)
                } else {
                    self.interpolate::<false>(z, tile)
                }
            }
            for y in 0..ny {
                let layers = &tile[y * DEPTH * half..(y + 1) * DEPTH * half];
                for x in 0..nx {
                    let to = (x * ny + y) * nz + first;
                    for (layer, voxel) in out[to..to + depth].iter_mut().enumerate() {
                        *voxel = layers[layer * half + x];
                    }
                }
            }
        }
        Ok(())
    }

    /// Interpolates the output plane `z` between the last two planes; `tile` begins with the plane's layer.
    #[inline(always)]
    #[allow(
        clippy::indexing_slicing,
        reason = "planes have `rows.taken` rows of `width`; parities are 0 and 1"
    )]
    fn interpolate<const FUSED: bool>(&self, z: usize, tile: &mut [f32]) {
        let [_, along_y, along_z] = &self.plan.resize;
        let (near, far) = along_z.lines.pair(z);
        let of = |z: usize| self.smooth.iter().find(|(at, _)| *at == z).map_or(&[][..], |(_, plane)| plane);
        let (planes, weights_z) = ((of(near), of(far)), (along_z.lines.near[z], along_z.lines.far[z]));
        let (width, half) = (self.width(), self.columns.half);
        let mut between = [vec![0.0; width], vec![0.0; width]];
        let mut known = [None; 2];
        let mut row = vec![0.0; width];
        for (y, (near, far)) in self.rows.pairs.iter().enumerate() {
            for place in [*near, *far] {
                if known[place & 1] != Some(place) {
                    known[place & 1] = Some(place);
                    let at = place * width..(place + 1) * width;
                    let (a, b) = (&planes.0[at.clone()], &planes.1[at]);
                    mix::<FUSED>(&mut between[place & 1], a, weights_z.0, b, weights_z.1);
                }
            }
            let (a, b) = (&between[near & 1], &between[far & 1]);
            mix::<FUSED>(&mut row, a, along_y.lines.near[y], b, along_y.lines.far[y]);
            let (near, far) = row.split_at(half);
            let [weights_near, weights_far] = &self.columns.weights;
            let to = &mut tile[y * DEPTH * half..y * DEPTH * half + half];
            mix_each::<FUSED>(to, (near, weights_near), (far, weights_far));
        }
    }

    /// Makes sure that the plane `z` after all Gaussians is one of the last two.
    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "the window holds the planes of the taps, in order")]
    fn provide<const AVX2: bool>(&mut self, z: usize) -> Result<()> {
        if self.smooth.iter().any(|(at, _)| *at == z) {
            return Ok(());
        }
        if self.smooth.len() == 2
            && let Some((_, plane)) = self.smooth.pop_front()
        {
            self.spare.push(plane);
        }
        let plan = self.plan;
        let axis = &plan.resize[2];
        let mut smooth = self.empty_plane()?;
        if axis.kernel.is_empty() || axis.is_identity() {
            self.smooth_plane::<AVX2>(z, &mut smooth);
            if axis.is_identity() {
                smooth.iter_mut().for_each(|voxel| *voxel += 0.0); // a sum from zero has no -0
            }
        } else {
            let half = axis.kernel.len() / 2;
            let (first, last) = (z.saturating_sub(half), (z + half).min(axis.lines.length - 1));
            while self.window.front().is_some_and(|(at, _)| *at < first) {
                self.spare.extend(self.window.pop_front().map(|(_, plane)| plane));
            }
            for at in self.window.back().map_or(first, |(at, _)| at + 1)..=last {
                let mut plane = self.empty_plane()?;
                self.smooth_plane::<AVX2>(at, &mut plane);
                self.window.push_back((at, plane));
            }
            let width = self.width();
            let Self { window, zeros, rows, columns, tails, tail_row, .. } = self;
            for (place, (to, y)) in smooth.chunks_exact_mut(width).zip(&rows.taken).enumerate() {
                let row = |tap: usize| match (z + tap).checked_sub(half + first) {
                    Some(at) if at < window.len() => &window[at].1[place * width..(place + 1) * width],
                    _ => &zeros[..],
                };
                weigh(axis.sum, to, &axis.kernel, row);
                if let Some(begin) = tails[2].and_then(|tail| tail.begin(*y, z)) {
                    weigh(Sum::Once, &mut tail_row[..width], &axis.kernel, row);
                    columns.copy_from(begin, tail_row, to);
                }
            }
        }
        self.smooth.push_back((z, smooth));
        Ok(())
    }

    fn empty_plane(&mut self) -> Result<Plane> {
        match self.spare.pop() {
            Some(plane) => Ok(plane),
            None => plane(self.rows.taken.len().checked_mul(self.width())),
        }
    }

    /// Makes the plane `z` after the Gaussians along x and y, at the columns and rows that are taken.
    ///
    /// Inlined nowhere, so that all that is inlined into it is compiled twice and not eight times.
    #[inline(never)]
    fn smooth_plane<const AVX2: bool>(&mut self, z: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if AVX2 {
            // SAFETY: `AVX2` is true only in code for processors that have it.
            return unsafe { self.smooth_plane_avx2(z, out) };
        }
        self.smooth_plane_any::<false>(z, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn smooth_plane_avx2(&mut self, z: usize, out: &mut [f32]) {
        self.smooth_plane_any::<true>(z, out);
    }

    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "rows and planes have the lengths that `new` gave them")]
    fn smooth_plane_any<const AVX2: bool>(&mut self, z: usize, out: &mut [f32]) {
        let [along_x, along_y, _] = &self.plan.resize;
        let width = self.width();
        let Self { spacing, columns, rows, framed, smooth_row, tail_row, smooth_x, tails, zeros, .. } = self;
        let kernel = &along_x.kernel;
        let frame = kernel.len() / 2;
        let voxels = along_x.lines.length;
        let is_plain = kernel.is_empty() || along_x.is_identity();
        spacing.begin_plane();
        for y in 0..along_y.lines.length {
            let row = spacing.row::<AVX2>(y, z);
            let to = &mut smooth_x[y * width..(y + 1) * width];
            if is_plain {
                columns.pick(row, to);
                if !kernel.is_empty() {
                    to.iter_mut().for_each(|voxel| *voxel += 0.0);
                }
                continue;
            }
            framed[frame..frame + voxels].copy_from_slice(&row[..voxels]);
            weigh(along_x.sum, smooth_row, kernel, |tap| &framed[tap..]);
            if let Some(begin) = tails[0].and_then(|tail| tail.begin(y, z)) {
                weigh(Sum::Once, &mut tail_row[..smooth_row.len()], kernel, |tap| &framed[tap..]);
                let end = smooth_row.len();
                smooth_row[begin..].copy_from_slice(&tail_row[begin..end]);
            }
            columns.pick(smooth_row, to);
        }
        let kernel = &along_y.kernel;
        let half = kernel.len() / 2;
        let is_plain = kernel.is_empty() || along_y.is_identity();
        let smooth_x = &smooth_x[..];
        for (to, y) in out.chunks_exact_mut(width).zip(&rows.taken) {
            if is_plain {
                to.copy_from_slice(&smooth_x[y * width..(y + 1) * width]);
                if !kernel.is_empty() {
                    to.iter_mut().for_each(|voxel| *voxel += 0.0);
                }
                continue;
            }
            let row = |tap: usize| match (y + tap).checked_sub(half) {
                Some(at) if at < along_y.lines.length => &smooth_x[at * width..(at + 1) * width],
                _ => &zeros[..],
            };
            weigh(along_y.sum, to, kernel, row);
            if let Some(begin) = tails[1].and_then(|tail| tail.begin(*y, z)) {
                weigh(Sum::Once, &mut tail_row[..width], kernel, row);
                columns.copy_from(begin, tail_row, to);
            }
        }
    }
}

//! The first step for volumes whose axes are turned: a place of its own for each output, as torch computes it.
//!
//! `affine_grid` multiplies a matrix with the coordinates of each output; the order and the roundings of that
//! product are part of the [`Grid`]. `grid_sample` then takes the eight neighbours as for straight volumes.

use super::arithmetic::padded;
use super::plan::{Grid, Intensity};
use super::volume::Volume;

/// Makes rows of the spaced volume.
pub(super) struct Oblique<'p> {
    volume: &'p Volume<'p>,
    grid: &'p Grid,
    intensity: Intensity,
    /// Places along x, y, z of the outputs of a row.
    places: [Vec<f64>; 3],
    /// One row of the result, padded.
    spaced: Vec<f32>,
}

impl<'p> Oblique<'p> {
    pub(super) fn new(volume: &'p Volume<'p>, grid: &'p Grid, intensity: Intensity) -> Self {
        let outputs = grid.coordinates[0].len();
        let places = std::array::from_fn(|_| vec![0.0; outputs]);
        Self { volume, grid, intensity, places, spaced: vec![0.0; padded(outputs)] }
    }

    /// Number of voxels that `row` gives.
    pub(super) fn width(&self) -> usize {
        self.spaced.len()
    }

    /// Makes the row `y` of the spaced plane `z`.
    #[inline(always)]
    pub(super) fn row(&mut self, y: usize, z: usize) -> &[f32] {
        if self.grid.is_fused {
            self.place::<true>(y, z)
        } else {
            self.place::<false>(y, z)
        }
        let volume = self.volume;
        if volume.is_plain() {
            sum_neighbours(volume, &self.places, &mut self.spaced, |offset| volume.plain_voxel(offset));
        } else {
            sum_neighbours(volume, &self.places, &mut self.spaced, |offset| volume.voxel(offset));
        }
        self.intensity.apply(&mut self.spaced);
        &self.spaced
    }

    /// Computes the places of a row.
    #[inline(always)]
    #[allow(clippy::indexing_slicing, reason = "y and z count outputs")]
    fn place<const FUSED: bool>(&mut self, y: usize, z: usize) {
        let [along_x, along_y, along_z] = &self.grid.coordinates;
        for ((places, row), length) in self.places.iter_mut().zip(&self.grid.matrix).zip(self.grid.lengths) {
            let [by_z, by_y, by_x, shift] = *row;
            let start = product_sum::<FUSED>(by_y, along_y[y], by_z * along_z[z]);
            let (length, last) = (length as f64, (length - 1) as f64);
            for (place, x) in places.iter_mut().zip(along_x) {
                let coordinate = product_sum::<FUSED>(by_x, *x, start) + shift;
                *place = (((coordinate + 1.0) * length - 1.0) / 2.0).max(0.0).min(last);
            }
        }
    }
}

#[inline(always)]
fn product_sum<const FUSED: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The weighted sum of the eight neighbours of each place, in float64, then rounded to float32.
#[inline(always)]
fn sum_neighbours(
    volume: &Volume<'_>,
    [along_x, along_y, along_z]: &[Vec<f64>; 3],
    spaced: &mut [f32],
    voxel: impl Fn(usize) -> f32,
) {
    let [nx, ny, nz] = volume.lengths();
    let pair = |place: f64, length: usize| {
        let near = place as usize; // not negative: the floor
        let (below, above) = (near as f64, (near + 1) as f64);
        ((near, (near + 1).min(length - 1)), (above - place, place - below))
    };
    for (((sum, x), y), z) in spaced.iter_mut().zip(along_x).zip(along_y).zip(along_z) {
        let ((x0, x1), (wx0, wx1)) = pair(*x, nx);
        let ((y0, y1), (wy0, wy1)) = pair(*y, ny);
        let ((z0, z1), (wz0, wz1)) = pair(*z, nz);
        let of = |x: usize, y: usize, z: usize| f64::from(voxel(volume.offset([x, y, z])));
        let (z0y0, z1y0, z0y1, z1y1) = (wz0 * wy0, wz1 * wy0, wz0 * wy1, wz1 * wy1);
        let mut all = 0.0;
        all += of(x0, y0, z0) * (z0y0 * wx0);
        all += of(x0, y0, z1) * (z1y0 * wx0);
        all += of(x0, y1, z0) * (z0y1 * wx0);
        all += of(x0, y1, z1) * (z1y1 * wx0);
        all += of(x1, y0, z0) * (z0y0 * wx1);
        all += of(x1, y0, z1) * (z1y0 * wx1);
        all += of(x1, y1, z0) * (z0y1 * wx1);
        all += of(x1, y1, z1) * (z1y1 * wx1);
        *sum = all as f32;
    }
}

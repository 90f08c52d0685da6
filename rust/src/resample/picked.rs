//! Results that need no second step: the spaced volume itself, and labels, whose voxels are copied.

use super::arithmetic::padded;
use super::plan::Plan;
use super::spacing::Spacing;
use super::volume::Volume;
use crate::base::error::{Error, ErrorKind, Result};

/// Output planes that are written at once: z is the fastest axis of the output.
const DEPTH: usize = 16;

/// Writes the volume after the first step, scaled and clipped; axes (x, y, z), z fastest.
#[inline(always)]
pub(super) fn space<const AVX2: bool>(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    let mut spacing = Spacing::new(volume, plan);
    let lengths = plan.lengths_spaced();
    let mut plane = None;
    transpose(lengths, out, |y, z, to| {
        if plane.replace(z) != Some(z) {
            spacing.begin_plane();
        }
        let row = spacing.row::<AVX2>(y, z);
        to.copy_from_slice(row.get(..to.len()).unwrap_or_default());
    })
}

/// Which voxel of the volume each output takes, along x, y, z: nearest neighbours of one or more steps.
#[derive(Clone, Debug)]
pub struct Picks {
    lengths: [usize; 3],
    voxels: [Vec<u32>; 3],
}

impl Picks {
    /// Checks the tables of the axes x, y, z, for a volume of these lengths.
    ///
    /// # Errors
    /// `invalid_argument` for a table that is empty or whose voxels leave their axis.
    pub fn new(lengths: [usize; 3], voxels: [Vec<u32>; 3]) -> Result<Self> {
        for (axis, (length, table)) in lengths.iter().zip(&voxels).enumerate() {
            if table.is_empty() || table.iter().any(|voxel| *voxel as usize >= *length) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("the picks of axis {axis} are none, or leave its {length} voxels"),
                ));
            }
        }
        Ok(Self { lengths, voxels })
    }

    /// Copies the voxels into `out`, whose axes are (x, y, z) with z fastest.
    ///
    /// # Errors
    /// `invalid_argument` where volume, picks and output do not fit each other.
    pub fn copy(&self, volume: &Volume<'_>, out: &mut [f32]) -> Result<()> {
        if volume.lengths() != self.lengths {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the picks are for {:?} voxels, the volume has {:?}", self.lengths, volume.lengths()),
            ));
        }
        let [along_x, along_y, along_z] = &self.voxels;
        let mut row = vec![0.0; self.lengths[0]];
        let last = row.len() - 1;
        let columns: Vec<usize> = along_x
            .iter()
            .map(|voxel| if volume.is_reversed() { last - *voxel as usize } else { *voxel as usize })
            .collect();
        let of = |table: &[u32], place: usize| table.get(place).copied().unwrap_or_default() as usize;
        transpose(self.voxels.each_ref().map(Vec::len), out, |y, z, to| {
            volume.row(of(along_y, y), of(along_z, z), &mut row);
            for (to, column) in to.iter_mut().zip(&columns) {
                *to = row.get(*column).copied().unwrap_or_default();
            }
        })
    }
}

/// Asks for rows along x, and writes them with z fastest, some planes at a time.
#[inline(always)]
#[allow(clippy::indexing_slicing, reason = "the output is compared with the lengths first")]
fn transpose(
    [nx, ny, nz]: [usize; 3],
    out: &mut [f32],
    mut row: impl FnMut(usize, usize, &mut [f32]),
) -> Result<()> {
    if nx.checked_mul(ny).and_then(|plane| plane.checked_mul(nz)) != Some(out.len()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the output has {} voxels instead of {nx} x {ny} x {nz}", out.len()),
        ));
    }
    let width = padded(nx);
    let mut tile = Vec::new();
    let voxels = ny.saturating_mul(DEPTH).saturating_mul(width);
    tile.try_reserve_exact(voxels).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("cannot allocate {voxels} voxels of planes"))
    })?;
    tile.resize(voxels, 0.0);
    for first in (0..nz).step_by(DEPTH) {
        let depth = DEPTH.min(nz - first);
        for layer in 0..depth {
            for y in 0..ny {
                let at = (y * DEPTH + layer) * width;
                row(y, first + layer, &mut tile[at..at + nx]);
            }
        }
        for y in 0..ny {
            let layers = &tile[y * DEPTH * width..(y + 1) * DEPTH * width];
            for x in 0..nx {
                let to = (x * ny + y) * nz + first;
                for (layer, voxel) in out[to..to + depth].iter_mut().enumerate() {
                    *voxel = layers[layer * width + x];
                }
            }
        }
    }
    Ok(())
}

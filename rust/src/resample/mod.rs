//! The tensor of a NIfTI volume, in the bits of MONAI: spacing, intensities, anti-aliasing, interpolation.
//!
//! The arithmetic is that of torch's CPU kernels, in the order of their roundings, so that the result equals
//! MONAI's bit by bit. Everything that depends on a version of torch or MONAI comes as tables and flags in a
//! [`Plan`](plan::Plan), which `tensors/engine/` makes by asking them.
//!
//! ```text
//!   volume::Volume    rows of the file's voxels as float32, in the orientation that is asked for
//!     |
//!   spacing::Spacing  one plane at a time: eight neighbours in float64, then float32, scaled and clipped
//!     |               (turned axes: oblique::Oblique)
//!     |
//!   passes::Passes    Gaussians along x, y, z at the columns, rows and planes that are asked for;
//!     |               linear interpolation along z, y, x
//!   the output        (x, y, z), z fastest, 16 planes at a time
//! ```
//!
//! Without a second step [`space`] writes what the first one gives. Labels are copied by [`picked::Picks`].
//!
//! Nothing of the size of the volume is kept but its bytes and the output.

pub mod file;
pub mod picked;
pub mod plan;
pub mod volume;

mod arithmetic;
mod oblique;
mod passes;
mod spacing;

#[cfg(target_arch = "x86_64")]
use crate::base::cpu::cpu;
use crate::base::error::{Error, ErrorKind, Result};
use plan::Plan;
use volume::Volume;

/// Resamples a volume into `out`, whose axes are (x, y, z) with z fastest.
///
/// # Errors
/// `invalid_argument` where volume, plan and output do not fit each other, `limit_exceeded` where memory is
/// short.
pub fn resample(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    check_input(volume, plan)?;
    if plan.voxels_out() != Some(out.len()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the output has {} voxels, the plan {:?}", out.len(), plan.lengths_out()),
        ));
    }
    #[cfg(target_arch = "x86_64")]
    if cpu().avx2 && cpu().fma {
        // SAFETY: the processor has the instructions.
        return unsafe { resample_avx2(volume, plan, out) };
    }
    passes::run::<false>(volume, plan, out)
}

/// Writes the volume after the first step into `out`: spaced, scaled and clipped.
///
/// # Errors
/// As [`resample`].
pub fn space(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    check_input(volume, plan)?;
    #[cfg(target_arch = "x86_64")]
    if cpu().avx2 && cpu().fma {
        // SAFETY: the processor has the instructions.
        return unsafe { space_avx2(volume, plan, out) };
    }
    picked::space::<false>(volume, plan, out)
}

fn check_input(volume: &Volume<'_>, plan: &Plan) -> Result<()> {
    if volume.lengths() != plan.lengths_in() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the plan is for {:?} voxels, the volume has {:?}", plan.lengths_in(), volume.lengths()),
        ));
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn resample_avx2(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    passes::run::<true>(volume, plan, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn space_avx2(volume: &Volume<'_>, plan: &Plan, out: &mut [f32]) -> Result<()> {
    picked::space::<true>(volume, plan, out)
}

#[cfg(test)]
mod tests;

//! The last pass over a patch: sampled from what it touches, mirrored, and its intensities changed.

use super::intensity::{Change, apply};
use super::labels::Labels;
use super::oblique::Oblique;
use super::scratch::Scratch;
use super::subjects::Form;
use crate::base::error::{Error, ErrorKind, Result};
use crate::tiledb::output::convert::Number;

/// How a patch is changed on its way.
#[derive(Clone, Debug)]
pub struct View {
    /// Place = centre + matrix * (voxel - middle of the patch), along x, y, z; `None` reads it straight.
    pub matrix: Option<[[f64; 3]; 3]>,
    /// Axes x, y, z that are mirrored afterwards.
    pub flip: [bool; 3],
    /// How the mask is sampled.
    pub labels: Labels,
    /// Changes of intensities, each of a channel, in this order.
    pub changes: Vec<(usize, Change)>,
}

/// Finishes one part of a patch in its place in the batch.
///
/// # Errors
/// `invalid_argument` for an image that is not of 32-bit floats but is to be sampled.
pub fn finish(
    view: &View,
    form: &Form,
    number: Number,
    part: usize,
    from: Option<(&Oblique, &Scratch)>,
    place: &mut [u8],
) -> Result<()> {
    let is_mask = part >= form.channels;
    if let Some((oblique, scratch)) = from {
        match (is_mask, number.bytes()) {
            (false, 4) if number == Number::F32 => oblique.sample(scratch.floats(), floats(place)?)?,
            (false, _) => {
                let detail = "turned images are float32: ask for dtype float32";
                return Err(Error::new(ErrorKind::InvalidArgument, detail));
            }
            (true, 1) => oblique.sample_labels::<1>(view.labels, scratch.bytes(), place)?,
            (true, 2) => oblique.sample_labels::<2>(view.labels, scratch.bytes(), place)?,
            (true, 4) => oblique.sample_labels::<4>(view.labels, scratch.bytes(), place)?,
            (true, _) => oblique.sample_labels::<8>(view.labels, scratch.bytes(), place)?,
        }
    }
    for (_, change) in view.changes.iter().filter(|(channel, _)| *channel == part && !is_mask) {
        if number != Number::F32 {
            let detail = "intensities of float32 images are changed: ask for dtype float32";
            return Err(Error::new(ErrorKind::InvalidArgument, detail));
        }
        let size = form.in_memory(form.size).map(|count| count as usize);
        apply(change, size, |widths| form.in_memory(widths), floats(place)?);
    }
    let (flip, size) = (form.in_memory(view.flip), form.in_memory(form.size));
    match number.bytes() {
        1 => mirror::<1>(flip, size, place),
        2 => mirror::<2>(flip, size, place),
        4 => mirror::<4>(flip, size, place),
        _ => mirror::<8>(flip, size, place),
    }
    Ok(())
}

/// The place of an image as floats.
fn floats(place: &mut [u8]) -> Result<&mut [f32]> {
    // SAFETY: any four bytes are a float.
    let (before, floats, after) = unsafe { place.align_to_mut::<f32>() };
    if before.is_empty() && after.is_empty() {
        return Ok(floats);
    }
    Err(Error::new(ErrorKind::InvalidArgument, "the memory of a batch is not aligned for floats"))
}

/// Mirrors numbers of N bytes along the axes (slowest, middle, fastest) in place.
fn mirror<const N: usize>(flip: [bool; 3], size: [u64; 3], place: &mut [u8]) {
    let ([slow_flip, middle_flip, fast_flip], [slow, middle, fast]) =
        (flip, size.map(|count| count as usize));
    let (cells, _) = place.as_chunks_mut::<N>();
    if flip == [false; 3] || cells.len() != slow * middle * fast {
        return;
    }
    let of = |index: usize, count: usize, flips: bool| if flips { count - 1 - index } else { index };
    for row in 0..slow * middle {
        let partner = of(row / middle, slow, slow_flip) * middle + of(row % middle, middle, middle_flip);
        if partner == row && fast_flip {
            cells.get_mut(row * fast..(row + 1) * fast).unwrap_or_default().reverse();
        } else if partner > row {
            let (first, second) = cells.split_at_mut(partner * fast);
            let first = first.get_mut(row * fast..(row + 1) * fast).unwrap_or_default();
            let second = second.get_mut(..fast).unwrap_or_default();
            if fast_flip {
                first.iter_mut().zip(second.iter_mut().rev()).for_each(|(a, b)| std::mem::swap(a, b));
            } else {
                first.swap_with_slice(second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_mirrors_is_its_definition() {
        let size = [3_u64, 4, 5];
        let cells: Vec<u16> = (0..60).collect();
        for bits in 0..8_u8 {
            let flip = [bits & 1 > 0, bits & 2 > 0, bits & 4 > 0];
            let mut bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();
            mirror::<2>(flip, size, &mut bytes);
            for (at, cell) in bytes.chunks_exact(2).enumerate() {
                let index = [at / 20, at / 5 % 4, at % 5];
                let from = [0, 1, 2]
                    .map(|axis| if flip[axis] { size[axis] as usize - 1 - index[axis] } else { index[axis] });
                let wanted = (from[0] * 4 + from[1]) * 5 + from[2];
                assert_eq!(u16::from_le_bytes([cell[0], cell[1]]) as usize, wanted);
            }
        }
    }
}

//! Frames of native (uncompressed) pixels, by checked arithmetic (PS3.5 8.1, 8.2).

use super::dataset::Header;
use super::element::Element;
use crate::base::error::{Error, ErrorKind, Result};
use crate::frames::attributes::Attributes;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Layout, Native};

/// Numbers of frames above this must be plausible for the size of the value.
const FRAMES_BEFORE_DOUBT: u64 = 4096;
const MOST_TIMES_TOO_MANY: u64 = 16;

/// Lays out native frames; the second value is the first frame that is cut.
pub fn lay_out(
    header: &Header,
    pixels: &Element,
    size: u64,
    notes: &mut Notes,
) -> Result<(Layout, Option<u32>)> {
    let declared = u64::from(pixels.length);
    let available = declared.min(size.saturating_sub(pixels.value));
    if declared == 0 {
        notes.add(Note::no_pixel_bytes);
        return Ok((Layout::Empty, None));
    }
    if declared % 2 == 1 {
        notes.add(Note::odd_pixel_length);
    }
    let frames = header.attributes.number_of_frames;
    let frame_bits = bits_of_frame(&header.attributes, pixels, frames, notes)?;
    let expected = frame_bits.checked_mul(u64::from(frames)).map(|bits| bits.div_ceil(8));
    if u64::from(frames) > FRAMES_BEFORE_DOUBT
        && expected.is_none_or(|bytes| bytes / MOST_TIMES_TOO_MANY > declared)
    {
        let detail =
            format!("{frames} frames of {} bytes do not fit {declared} bytes", frame_bits.div_ceil(8));
        return Err(Error::at(ErrorKind::FramesExceedPixelData, pixels.position, detail));
    }
    match expected {
        Some(expected) if expected.checked_add(1).is_some_and(|padded| declared > padded) => {
            notes.add(Note::excess_pixel_data);
        }
        Some(expected) if declared >= expected => {}
        _ => notes.add(Note::short_pixel_data),
    }
    if available < declared {
        notes.add(Note::pixel_data_truncated);
    }
    let whole = available.saturating_mul(8) / frame_bits;
    let cut = u32::try_from(whole).ok().filter(|&whole| whole < frames);
    Ok((Layout::Native(Native { base: pixels.value, frame_bits, frames }), cut))
}

/// Bits of one frame: Rows x Columns x Samples x Bits Allocated, but for 4:2:2 chroma.
fn bits_of_frame(image: &Attributes, pixels: &Element, frames: u32, notes: &mut Notes) -> Result<u64> {
    // Float and Double Float Pixel Data have the width of their VR (PS3.3 C.7.6.24, C.7.6.25).
    let bits = match pixels.tag.0 {
        0x7FE0_0008 => 32,
        0x7FE0_0009 => 64,
        _ => u64::from(image.bits_allocated),
    };
    let (rows, columns) = (u64::from(image.rows), u64::from(image.columns));
    if rows == 0 || columns == 0 || bits == 0 {
        let detail =
            format!("Rows {rows}, Columns {columns}, Bits Allocated {bits}: a native frame has no size");
        return Err(Error::at(ErrorKind::MissingImageAttributes, pixels.position, detail));
    }
    let with = |samples: u64| {
        let product =
            rows.checked_mul(columns).and_then(|cells| cells.checked_mul(bits)?.checked_mul(samples));
        product.ok_or_else(|| {
            let detail =
                format!("{rows} x {columns} pixels of {samples} x {bits} bits: no frame is that large");
            Error::at(ErrorKind::LimitExceeded, pixels.position, detail)
        })
    };
    let full = with(u64::from(image.samples_per_pixel))?;
    let subsampled = image.samples_per_pixel == 3
        && matches!(image.photometric_interpretation.as_str(), "YBR_FULL_422" | "YBR_PARTIAL_422");
    if !subsampled {
        return Ok(full);
    }
    // Two samples a pixel are stored though Samples per Pixel says 3 (PS3.3 C.7.6.3.1.2); some writers
    // store three all the same, and only the length of the value tells.
    let holds_full =
        full.checked_mul(u64::from(frames)).is_some_and(|all| all.div_ceil(8) <= u64::from(pixels.length));
    if holds_full {
        notes.add(Note::ybr422_declared_but_full);
        return Ok(full);
    }
    with(2)
}

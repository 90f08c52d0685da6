//! Frames of native (uncompressed) pixels, by checked arithmetic (PS3.5 8.1, 8.2).

use crate::base::error::{Error, ErrorKind, Result};
use crate::dicom::element::Element;
use crate::dicom::header::{FrameCount, Header};
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Layout, Native};

/// Numbers of frames above this must be plausible for the size of the value.
const FRAMES_BEFORE_DOUBT: u64 = 4096;
const MOST_TIMES_TOO_MANY: u64 = 16;

/// What the first bytes of the value and the transfer syntax say about the pixels.
#[derive(Clone, Copy)]
pub struct Doubt {
    /// Only a value of exactly the declared size is taken for native pixels, for this reason.
    pub unless_exact: Option<&'static str>,
    /// Whether the bytes of each 16-bit word are swapped, so that a part of a word is no range of bytes.
    pub swaps_words: bool,
}

/// Lays out native frames; the second value is the first frame that is cut.
///
/// # Errors
/// `missing_image_attributes`, `frames_exceed_pixel_data`, `bad_number_of_frames`, `ambiguous_frame_size`, and
/// `not_a_frame` where the pixels are in doubt and have not exactly the declared size.
pub fn lay_out(
    header: &mut Header,
    pixels: &Element,
    size: u64,
    doubt: Doubt,
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
    let frame_bits = bits_of_frame(header, pixels, notes)?;
    if header.frame_count == FrameCount::Unusable {
        header.attributes.number_of_frames = proven_count(declared, frame_bits, pixels)?;
        notes.add(Note::number_of_frames_from_length);
    }
    let frames = header.attributes.number_of_frames;
    let begins_in_word = frames > 1 && !frame_bits.is_multiple_of(16);
    if doubt.swaps_words && (begins_in_word || !frame_bits.is_multiple_of(8)) {
        let detail = format!(
            "frames of {frame_bits} bits end within the 16-bit words whose bytes a big endian OW swaps (PS3.5 8.2)"
        );
        return Err(Error::at(ErrorKind::AmbiguousFrameSize, pixels.position, detail));
    }
    let expected = frame_bits.checked_mul(u64::from(frames)).map(|bits| bits.div_ceil(8));
    let is_exact = expected.is_some_and(|bytes| is_size(declared, bytes));
    if let Some(reason) = doubt.unless_exact.filter(|_| !is_exact) {
        let detail = format!("{reason}, and {declared} bytes are not {frames} frames of {frame_bits} bits");
        return Err(Error::at(ErrorKind::NotAFrame, pixels.position, detail));
    }
    if u64::from(frames) > FRAMES_BEFORE_DOUBT
        && expected.is_none_or(|bytes| bytes / MOST_TIMES_TOO_MANY > declared)
    {
        let detail =
            format!("{frames} frames of {} bytes do not fit {declared} bytes", frame_bits.div_ceil(8));
        return Err(Error::at(ErrorKind::FramesExceedPixelData, pixels.position, detail));
    }
    if !is_exact
        && frame_bits.div_ceil(8).checked_mul(u64::from(frames)).is_some_and(|all| is_size(declared, all))
    {
        let detail = format!(
            "{frames} frames of {frame_bits} bits in {declared} bytes: as if each began with a byte of its own, which \
             PS3.5 8.1.1 does not allow"
        );
        return Err(Error::at(ErrorKind::AmbiguousFrameSize, pixels.position, detail));
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

/// Whether a value has exactly this size, with or without its pad byte.
fn is_size(declared: u64, bytes: u64) -> bool {
    declared == bytes || (bytes % 2 == 1 && declared == bytes + 1)
}

/// The number of frames that a value holds, where it holds a whole number of them.
fn proven_count(declared: u64, frame_bits: u64, pixels: &Element) -> Result<u32> {
    let count = declared.saturating_mul(8) / frame_bits;
    let bytes = count.saturating_mul(frame_bits).div_ceil(8);
    match u32::try_from(count) {
        Ok(count @ 1..) if is_size(declared, bytes) => Ok(count),
        _ => {
            let detail = format!(
                "Number of Frames is no number, and {declared} bytes are no whole number of frames of {frame_bits} bits"
            );
            Err(Error::at(ErrorKind::BadNumberOfFrames, pixels.position, detail))
        }
    }
}

/// Bits of one frame: Rows x Columns x Samples x Bits Allocated, but for subsampled chroma.
fn bits_of_frame(header: &Header, pixels: &Element, notes: &mut Notes) -> Result<u64> {
    let image = &header.attributes;
    let frames = u64::from(image.number_of_frames);
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
    let is_color =
        ["RGB", "YBR_", "HSV"].iter().any(|name| image.photometric_interpretation.starts_with(name));
    if is_color && !header.has_samples {
        let color = image.photometric_interpretation;
        let detail = format!("{color} has three samples a pixel, but Samples per Pixel is not there");
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
    if image.samples_per_pixel != 3 {
        return Ok(full);
    }
    // Subsampled chroma stores fewer samples than Samples per Pixel says (PS3.3 C.7.6.3.1.2); some writers
    // store three all the same, and only a length that fits exactly tells.
    let subsampled = match image.photometric_interpretation.as_str() {
        "YBR_FULL_422" | "YBR_PARTIAL_422" => with(2)?,
        "YBR_PARTIAL_420" | "YBR_FULL_420" => full / 2,
        _ => return Ok(full),
    };
    let holds = |bits: u64| {
        bits.checked_mul(frames).is_some_and(|all| is_size(u64::from(pixels.length), all.div_ceil(8)))
    };
    match (holds(subsampled), holds(full)) {
        (true, _) => Ok(subsampled),
        (false, true) => {
            notes.add(Note::ybr422_declared_but_full);
            Ok(full)
        }
        (false, false) => {
            let detail = format!(
                "{} bytes are neither {frames} frames of subsampled chroma ({subsampled} bits each) nor of full ({full})",
                pixels.length
            );
            Err(Error::at(ErrorKind::AmbiguousFrameSize, pixels.position, detail))
        }
    }
}

//! Reads the bytes of a frame by its table.

use super::pixel_data::{align, codec};
use super::{inflate, part10, read_table};
use crate::base::error::Result;
use crate::base::source::{Source, read_exact};
use crate::base::window::{Buffer, Window};
use crate::frames::notes::Notes;
use crate::frames::table::{FrameTable, OffsetsIn, Verify};

/// Reads a frame: its fragments joined, without item headers.
///
/// # Errors
/// `truncated_frame` for a frame past the end of a cut file; `changed_during_read` where the source is not
/// what the table describes.
pub fn read_frame(source: &dyn Source, table: &FrameTable, index: usize) -> Result<Vec<u8>> {
    match read_by_table(source, table, index)? {
        Some(bytes) => Ok(bytes),
        // The table was not held against every Item, and this entry is wrong: walk, read by the walk.
        None => {
            let walked = read_table(source, Verify::All, &mut Buffer::default())?;
            read_frame(source, &walked, index)
        }
    }
}

/// As [`read_frame`]; with `aligned`, a frame of pixels that are no whole bytes is moved to bit 0.
///
/// # Errors
/// As [`read_frame`].
pub fn read_aligned(source: &dyn Source, table: &FrameTable, index: usize, aligned: bool) -> Result<Vec<u8>> {
    let mut bytes = read_frame(source, table, index)?;
    if let Some(bits) = table.frame_bits().filter(|_| aligned) {
        align::to_first_bit(&mut bytes, table.bit_offset(index), bits);
    }
    Ok(bytes)
}

/// Reads a frame; `None` where a table that was not compared with every Item turns out to be wrong.
///
/// # Errors
/// As [`read_frame`].
pub fn read_by_table(source: &dyn Source, table: &FrameTable, index: usize) -> Result<Option<Vec<u8>>> {
    table.check_describes(source)?;
    table.check_readable(index)?;
    let mut out = Vec::new();
    for (start, end) in table.ranges(index) {
        let bytes = match table.offsets_in {
            OffsetsIn::Inflated => inflate_frame(source, start, end)?,
            OffsetsIn::File if table.is_unwalked() => match strip_span(source, start, end, table)? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
            OffsetsIn::File => {
                let length = usize::try_from(end - start).unwrap_or(usize::MAX);
                read_exact(source, start, length)?
            }
        };
        if out.is_empty() { out = bytes } else { out.extend(bytes) }
    }
    Ok(Some(out))
}

/// Whether payloads that an offset table joins can be one frame of this transfer syntax: the first begins an
/// image where each must, and no other does.
fn may_be_frame<'p>(mut payloads: impl Iterator<Item = &'p [u8]>, table: &FrameTable) -> bool {
    let has_markers = part10::has_markers(&table.transfer_syntax_uid);
    let begins = |payload: &[u8]| {
        codec::begins_image(payload) || payload.first_chunk().is_some_and(codec::is_rle_header)
    };
    let first = payloads.next().unwrap_or_default();
    (!has_markers || codec::begins_image(first)) && !payloads.any(begins)
}

/// Bytes that are read behind a span: the next Item's header, and enough of its payload.
const BEHIND: usize = 16;

/// Whether what stands behind a span can: the first Item of another frame, the delimiter, or nothing. A table
/// that was not held against a walk may name Items in the middle of a frame.
fn may_stand_behind(next: &[u8], table: &FrameTable) -> bool {
    match next {
        [0xFE, 0xFF, 0x00, 0xE0, _, _, _, _, payload @ ..] => {
            !part10::has_markers(&table.transfer_syntax_uid) || codec::begins_image(payload)
        }
        [0xFE, 0xFF, 0xDD, 0xE0, ..] => true,
        _ => next.is_empty(),
    }
}

fn inflate_frame(source: &dyn Source, start: u64, end: u64) -> Result<Vec<u8>> {
    let mut buffer = Buffer::default();
    let mut window = Window::new(source, &mut buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    inflate::inflated_range(source, container.dataset, start, end)
}

/// Reads a span that begins with a payload and may go on with further items, and keeps the payloads.
/// `None` where the items do not fit the span: then the offset table was wrong.
fn strip_span(source: &dyn Source, start: u64, end: u64, table: &FrameTable) -> Result<Option<Vec<u8>>> {
    let Some(first) = start.checked_sub(8) else { return Ok(None) };
    let length = usize::try_from(end - first).unwrap_or(usize::MAX);
    let behind = BEHIND.min(usize::try_from(source.size().saturating_sub(end)).unwrap_or(BEHIND));
    let mut bytes = read_exact(source, first, length.saturating_add(behind))?;
    let next = bytes.get(length..).unwrap_or_default();
    if !may_stand_behind(next, table) {
        return Ok(None);
    }
    bytes.truncate(length);
    let item = |at: usize| match bytes.get(at..)?.first_chunk::<8>()? {
        [0xFE, 0xFF, 0x00, 0xE0, length @ ..] => usize::try_from(u32::from_le_bytes(*length)).ok(),
        _ => None,
    };
    let mut payloads = Vec::new();
    let mut position = 0;
    while position < bytes.len() {
        let Some(length) = item(position) else { return Ok(None) };
        let payload = position + 8;
        position = payload.saturating_add(length);
        payloads.push(payload..position);
    }
    let slices = payloads.iter().map(|payload| bytes.get(payload.clone()).unwrap_or_default());
    if position != bytes.len() || !may_be_frame(slices, table) {
        return Ok(None);
    }
    let mut written = 0;
    for payload in payloads {
        let length = payload.len();
        bytes.copy_within(payload, written);
        written += length;
    }
    bytes.truncate(written);
    Ok(Some(bytes))
}

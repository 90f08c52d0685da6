//! Reads the bytes of a frame by its table.

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
            OffsetsIn::File if table.is_unwalked() => match strip_span(source, start, end)? {
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

fn inflate_frame(source: &dyn Source, start: u64, end: u64) -> Result<Vec<u8>> {
    let mut buffer = Buffer::default();
    let mut window = Window::new(source, &mut buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    inflate::inflated_range(source, container.dataset, start, end)
}

/// Reads a span that begins with a payload and may go on with further items, and keeps the payloads.
/// `None` where the items do not fit the span: then the offset table was wrong.
fn strip_span(source: &dyn Source, start: u64, end: u64) -> Result<Option<Vec<u8>>> {
    let Some(first) = start.checked_sub(8) else { return Ok(None) };
    let length = usize::try_from(end - first).unwrap_or(usize::MAX);
    let mut bytes = read_exact(source, first, length)?;
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
    if position != bytes.len() {
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

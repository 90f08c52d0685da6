//! Reads the bytes of a frame by its table.

pub mod fill;

use std::ops::Deref;

use super::pixel_data::before::Before;
use super::pixel_data::{align, codec};
use super::{ATTEMPTS, inflate, part10, read_table};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::planned::MOST_TOGETHER;
use crate::base::source::{Range, Source, read_exact};
use crate::base::window::{Buffer, Window};
use crate::frames::notes::Notes;
use crate::frames::table::{FrameTable, OffsetsIn, Verify};

/// The bytes of a frame. They lie behind the header that was read with them: to move them to the front would
/// cost a copy of a large frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameBytes {
    bytes: Vec<u8>,
    /// The first byte of the frame.
    from: usize,
}

impl From<Vec<u8>> for FrameBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, from: 0 }
    }
}

impl From<FrameBytes> for Vec<u8> {
    fn from(mut frame: FrameBytes) -> Self {
        frame.bytes.drain(..frame.from.min(frame.bytes.len()));
        frame.bytes
    }
}

impl Deref for FrameBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.from..).unwrap_or_default()
    }
}

impl FrameBytes {
    /// Moves `bits` bits, which begin at bit `from` of the first byte, to bit 0.
    pub fn align(&mut self, from: u8, bits: u64) {
        if from == 0 && bits.is_multiple_of(8) {
            return;
        }
        self.bytes.drain(..self.from.min(self.bytes.len()));
        self.from = 0;
        align::to_first_bit(&mut self.bytes, from, bits);
    }
}

/// Reads a frame: its fragments joined, without item headers.
///
/// # Errors
/// `truncated_frame` for a frame past the end of a cut file; `changed_during_read` where the source is not
/// what the table describes.
pub fn read_frame(source: &dyn Source, table: &FrameTable, index: usize) -> Result<FrameBytes> {
    match read_by_table(source, table, index) {
        Ok(Some(bytes)) => Ok(bytes),
        // The table was not held against every Item, and this entry is wrong: walk, read by the walk.
        Ok(None) if table.is_unwalked() => {
            let walked = read_table(source, Verify::All, &mut Buffer::default())?;
            read_by_table(source, &walked, index)?.ok_or_else(other_content)
        }
        Ok(None) => Err(other_content()),
        Err(error) if error.kind == ErrorKind::ChangedDuringRead => {
            read_touched(source, table, index)?.ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// As [`read_frame`]; with `aligned`, a frame of pixels that are no whole bytes is moved to bit 0.
///
/// # Errors
/// As [`read_frame`].
pub fn read_aligned(
    source: &dyn Source,
    table: &FrameTable,
    index: usize,
    aligned: bool,
) -> Result<FrameBytes> {
    let mut bytes = read_frame(source, table, index)?;
    if let Some(bits) = table.frame_bits().filter(|_| aligned) {
        bytes.align(table.bit_offset(index), bits);
    }
    Ok(bytes)
}

fn other_content() -> Error {
    let detail = "the bytes before the frame are not what the table describes: read the file's table again";
    Error::new(ErrorKind::ChangedDuringRead, detail)
}

/// Reads a frame of a file that has the size and the modification time of the table, but was renamed, linked,
/// restored, or had its rights changed: `None` where its table is not the same any more.
fn read_touched(source: &dyn Source, table: &FrameTable, index: usize) -> Result<Option<FrameBytes>> {
    for _ in 0..ATTEMPTS {
        let Some(now) =
            source.renewed().filter(|now| table.fingerprint.agrees_in_content_with(&now.fingerprint()))
        else {
            return Ok(None);
        };
        let fresh = read_table(&*now, table.verified.as_demand(), &mut Buffer::default())?;
        if !fresh.is_of_same_content(table) {
            return Ok(None);
        }
        match read_by_table(&*now, &fresh, index) {
            Err(error) if error.kind == ErrorKind::ChangedDuringRead => {}
            read => return read,
        }
    }
    Ok(None)
}

/// Reads a frame; `None` where the table turns out to be wrong: it was not compared with every Item, or it
/// describes other bytes although the state of the file is that of the table.
///
/// # Errors
/// As [`read_frame`].
pub fn read_by_table(source: &dyn Source, table: &FrameTable, index: usize) -> Result<Option<FrameBytes>> {
    table.check_state(source)?;
    table.check_readable(index)?;
    prefetch(source, table, [index])?;
    let mut out: Option<FrameBytes> = None;
    for (start, end) in table.ranges(index) {
        let bytes = match table.offsets_in {
            OffsetsIn::Inflated => inflate_payload(source, table, start, end)?,
            OffsetsIn::File if table.is_unwalked() => strip_span(source, start, end, table)?,
            OffsetsIn::File => read_payload(source, table, start, end)?,
        };
        let Some(bytes) = bytes else {
            source.check_unchanged()?;
            return Ok(None);
        };
        match &mut out {
            None => out = Some(bytes),
            Some(out) => out.bytes.extend_from_slice(&bytes),
        }
    }
    // Bytes of a file that changed while it was read are not returned.
    source.check_unchanged()?;
    Ok(Some(out.unwrap_or_default()))
}

/// Fetches what the reads of some frames take, where the source is remote: together, not one after another.
///
/// # Errors
/// Those of a request.
pub fn prefetch(
    source: &dyn Source,
    table: &FrameTable,
    frames: impl IntoIterator<Item = usize>,
) -> Result<()> {
    prefetch_ranges(source, table, frames.into_iter().flat_map(|frame| table.ranges(frame)))
}

/// How many of some lengths, one at least, are asked for at the same time: so much is kept until it is read.
pub fn together(lengths: impl Iterator<Item = u64>) -> usize {
    let sums = lengths.scan(0_u64, |sum, length| {
        *sum = sum.saturating_add(length);
        Some(*sum)
    });
    sums.take_while(|&sum| sum <= MOST_TOGETHER).count().max(1)
}

fn prefetch_ranges(
    source: &dyn Source,
    table: &FrameTable,
    ranges: impl IntoIterator<Item = Range>,
) -> Result<()> {
    let Some(remote) = source.remote().filter(|_| table.offsets_in == OffsetsIn::File) else { return Ok(()) };
    let is_unwalked = table.is_unwalked();
    let with_header = |(start, end): Range| {
        let (before, behind) =
            if is_unwalked { (8, BEHIND as u64) } else { (Before::of(table, start).length() as u64, 0) };
        (start.saturating_sub(before), end.saturating_add(behind))
    };
    let ranges: Vec<Range> = ranges.into_iter().map(with_header).collect();
    remote.prefetch(&ranges)
}

/// Reads a payload, and before it the header that must stand there, by one request; `None` where another one
/// stands there.
pub fn read_payload(
    source: &dyn Source,
    table: &FrameTable,
    start: u64,
    end: u64,
) -> Result<Option<FrameBytes>> {
    let before = Before::of(table, start);
    let from = start.saturating_sub(before.length() as u64);
    let length = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
    Ok(without_header(read_exact(source, from, length)?, before))
}

/// Whether the header before each payload is that of the table; no payload is read.
///
/// # Errors
/// `io_error` where a header cannot be read.
pub fn headers_fit(source: &dyn Source, table: &FrameTable) -> Result<bool> {
    for index in 0..table.frames() {
        for (start, end) in table.ranges(index) {
            let before = Before::of(table, start);
            let length = before.length();
            let header = read_exact(source, start.saturating_sub(length as u64), length)?;
            if !before.fits(&header, end.saturating_sub(start)) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn without_header(bytes: Vec<u8>, before: Before) -> Option<FrameBytes> {
    let (header, payload) = bytes.split_at_checked(before.length())?;
    let fits = before.fits(header, payload.len() as u64);
    fits.then_some(FrameBytes { bytes, from: before.length() })
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

/// As [`read_payload`], of a deflated data set.
fn inflate_payload(
    source: &dyn Source,
    table: &FrameTable,
    start: u64,
    end: u64,
) -> Result<Option<FrameBytes>> {
    let mut buffer = Buffer::default();
    let mut window = Window::new(source, &mut buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    let before = Before::of(table, start);
    let from = start.saturating_sub(before.length() as u64);
    Ok(without_header(inflate::inflated_range(source, container.dataset, from, end)?, before))
}

/// Reads a span that begins with a payload and may go on with further items, and keeps the payloads.
/// `None` where the items do not fit the span: then the offset table was wrong.
fn strip_span(source: &dyn Source, start: u64, end: u64, table: &FrameTable) -> Result<Option<FrameBytes>> {
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
    Ok(Some(FrameBytes::from(bytes)))
}

//! Reads frames into memory that was made for them beforehand: nothing is copied behind the read.

use rustix::io::IoSliceMut;

use super::{FrameBytes, other_content, prefetch_ranges, read_touched, together};
use crate::base::error::{ErrorKind, Result};
use crate::base::source::{Range, Source, read_exact_into};
use crate::dicom::pixel_data::before::Before;
use crate::frames::table::{FrameTable, OffsetsIn};

/// Payloads that are read by one request of the system, which takes at most 1,024 buffers: each has two.
const MOST_TOGETHER: usize = 256;
/// Bytes of the longest header before a payload.
const LONGEST_HEADER: usize = 12;

/// The length of a frame, where the table tells it: `None` where Items must be parsed, data inflated, or the frame does
/// not lie in a file of the table's size.
pub fn length(table: &FrameTable, frame: usize) -> Option<usize> {
    if table.offsets_in == OffsetsIn::Inflated || table.is_unwalked() || table.check_readable(frame).is_err()
    {
        return None;
    }
    let size = table.fingerprint.size;
    let within = |&(_, end): &Range| size == 0 || end <= size; // of a table that was put without its file, 0
    table
        .ranges(frame)
        .try_fold(0_usize, |sum, range| sum.checked_add(payload_length(range).filter(|_| within(&range))?))
}

fn payload_length((start, end): (u64, u64)) -> Option<usize> {
    end.checked_sub(start).and_then(|length| usize::try_from(length).ok())
}

/// A payload, and where it comes to.
struct Part<'a> {
    start: u64,
    before: Before,
    header: [u8; LONGEST_HEADER],
    payload: &'a mut [u8],
}

impl Part<'_> {
    /// The first byte that is read: that of the header.
    fn from(&self) -> Option<u64> {
        self.start.checked_sub(self.before.length() as u64)
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.payload.len() as u64)
    }

    fn fits(&self) -> bool {
        let header = self.header.get(..self.before.length()).unwrap_or_default();
        self.before.fits(header, self.payload.len() as u64)
    }
}

/// Reads frames into `places`, each of its [`length`]; neighbours in the file by one request. `false` where another
/// header stands before one of them than the table says: the table is wrong, and what the places hold no frame.
///
/// # Errors
/// As [`super::read_frame`].
pub fn fill(
    source: &dyn Source,
    table: &FrameTable,
    frames: &[usize],
    places: Vec<&mut [u8]>,
) -> Result<bool> {
    if frames.len() != places.len() {
        return Ok(false);
    }
    table.check_state(source)?;
    let mut parts = Vec::new();
    for (&frame, mut place) in frames.iter().zip(places) {
        table.check_readable(frame)?;
        for (start, end) in table.ranges(frame) {
            let split = payload_length((start, end)).and_then(|length| place.split_at_mut_checked(length));
            let Some((payload, rest)) = split else { return Ok(false) };
            let before = Before::of(table, start);
            parts.push(Part { start, before, header: [0; LONGEST_HEADER], payload });
            place = rest;
        }
        if !place.is_empty() {
            return Ok(false);
        }
    }
    // Of a remote source as much is fetched as it keeps, then read.
    let mut rest = parts.as_mut_slice();
    while !rest.is_empty() {
        let (group, others) = rest.split_at_mut(together(rest.iter().map(|part| part.payload.len() as u64)));
        prefetch_ranges(source, table, group.iter().map(|part| (part.start, part.end())))?;
        if !read_parts(source, group)? {
            source.check_unchanged()?;
            return Ok(false);
        }
        rest = others;
    }
    // Bytes of a file that changed while it was read are not returned.
    source.check_unchanged()?;
    Ok(true)
}

/// Reads payloads and the headers before them; `false` where one does not fit.
fn read_parts(source: &dyn Source, parts: &mut [Part<'_>]) -> Result<bool> {
    for run in parts.chunk_by_mut(|one, next| next.from() == Some(one.end())) {
        for some in run.chunks_mut(MOST_TOGETHER) {
            let Some(from) = some.first().and_then(Part::from) else { return Ok(false) };
            let mut buffers = Vec::with_capacity(2 * some.len());
            for part in &mut *some {
                buffers
                    .push(IoSliceMut::new(part.header.get_mut(..part.before.length()).unwrap_or_default()));
                buffers.push(IoSliceMut::new(part.payload));
            }
            read_exact_into(source, from, &mut buffers)?;
            if !some.iter().all(Part::fits) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// As [`super::read_frame`], into memory that was made for the frame: see [`fill`]. Returns its bytes where they are others,
/// as after a change of the file's name.
///
/// # Errors
/// As [`super::read_frame`].
pub fn read_frame_into(
    source: &dyn Source,
    table: &FrameTable,
    index: usize,
    place: &mut [u8],
) -> Result<Option<FrameBytes>> {
    match fill(source, table, &[index], vec![place]) {
        Ok(true) => Ok(None),
        Ok(false) => Err(other_content()),
        Err(error) if error.kind == ErrorKind::ChangedDuringRead => {
            read_touched(source, table, index)?.map(Some).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

//! The walk over the fragments of encapsulated Pixel Data (PS3.5 A.4), at the pace that the storage allows.

use super::element::{Encoding, Tag, UNDEFINED};
use super::notes::{Note, Notes};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Access, Buffer, Source};

/// 12 bytes each while they are walked: 8 Mi fragments are 100 MB, ten times the largest slide we know.
pub const MOST_FRAGMENTS: usize = 8 << 20;
/// After so many items the distance between them is known well enough to choose how to read.
const SAMPLE: u64 = 16;
/// Items closer than this are cheaper to stream over than to visit one by one on cold storage.
const STREAM_BELOW: u64 = 128 * 1024;
const STREAM_CHUNK: usize = 4 << 20;

/// The fragments in file order, the Basic Offset Table's item not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragments {
    /// Absolute offset of each Item tag, ascending; the payload begins 8 bytes later.
    pub tags: Vec<u64>,
    /// Length of each payload, clipped to the file.
    pub lengths: Vec<u32>,
    /// The last fragment declares more than the file holds.
    pub is_cut: bool,
}

impl Fragments {
    /// Number of fragments.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Payload offset and length of a fragment.
    pub fn payload(&self, index: usize) -> Option<(u64, u32)> {
        Some((self.tags.get(index)? + 8, *self.lengths.get(index)?))
    }
}

/// What stands at a place where an Item is expected.
enum Found {
    Item { length: u32 },
    End,
}

/// Walks from `base` (the first byte after the BOT item) to the delimiter or to where the items stop.
pub fn walk(source: &dyn Source, base: u64, encoding: Encoding, notes: &mut Notes) -> Result<Fragments> {
    let size = source.size();
    let mut headers = Headers::new(source, base);
    let mut fragments = Fragments::default();
    let mut position = base;
    loop {
        if fragments.len() as u64 == SAMPLE {
            headers.settle((position - base) / SAMPLE);
        }
        let length = match look(&mut headers, &mut position, encoding, &mut fragments, notes)? {
            Found::End => return Ok(fragments),
            Found::Item { length } => length,
        };
        if fragments.len() >= MOST_FRAGMENTS {
            let detail = format!("more than {MOST_FRAGMENTS} fragments");
            return Err(Error::at(ErrorKind::LimitExceeded, position, detail));
        }
        let payload = position + 8;
        let available = size - payload;
        let clipped = u32::try_from(available).map_or(length, |available| length.min(available));
        fragments.tags.push(position);
        fragments.lengths.push(clipped);
        if length % 2 == 1 {
            notes.add(Note::odd_fragment_length);
        }
        if clipped < length {
            notes.add(Note::last_fragment_truncated);
            fragments.is_cut = true;
            return Ok(fragments);
        }
        position = payload + u64::from(length);
    }
}

/// Classifies what stands at `position`, moving it where a writer miscounted by a byte or three.
fn look(
    headers: &mut Headers<'_>,
    position: &mut u64,
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
) -> Result<Found> {
    let Some(bytes) = headers.at(*position)? else {
        return realign(headers, position, encoding, fragments, notes, Note::no_sequence_delimiter);
    };
    let [a, b, c, d, w, x, y, z] = bytes;
    let length = encoding.u32([w, x, y, z]);
    match encoding.tag([a, b, c, d]) {
        Tag::ITEM if length == UNDEFINED => {
            let detail = "a fragment has no explicit length (PS3.5 A.4)";
            Err(Error::at(ErrorKind::UndefinedFragmentLength, *position, detail))
        }
        Tag::ITEM => Ok(Found::Item { length }),
        Tag::SEQUENCE_DELIMITATION => {
            if length != 0 {
                notes.add(Note::seq_delim_nonzero_length);
            }
            Ok(Found::End)
        }
        Tag(0) => {
            notes.add(Note::no_sequence_delimiter);
            Ok(Found::End)
        }
        _ => realign(headers, position, encoding, fragments, notes, Note::bad_fragment_tag),
    }
}

/// Some writers (Leica) count up to three bytes too many in an Item's length, others forget to count the
/// pad byte: the next Item then stands a little before or after its place.
fn realign(
    headers: &mut Headers<'_>,
    position: &mut u64,
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
    otherwise: Note,
) -> Result<Found> {
    let last_length = fragments.lengths.last().copied().unwrap_or(0);
    let last_is_odd = last_length % 2 == 1;
    for shift in [-1_i64, -2, -3, 1] {
        let fits = if shift < 0 { i64::from(last_length) >= -shift } else { last_is_odd };
        let Some(candidate) = position.checked_add_signed(shift).filter(|_| fits) else { continue };
        let Some([a, b, c, d, w, x, y, z]) = headers.at(candidate)? else { continue };
        let (tag, length) = (encoding.tag([a, b, c, d]), encoding.u32([w, x, y, z]));
        if tag != Tag::ITEM && !(tag == Tag::SEQUENCE_DELIMITATION && length == 0) {
            continue;
        }
        if let (Some(last), Ok(shorter)) = (fragments.lengths.last_mut(), u32::try_from(-shift)) {
            *last -= shorter;
        }
        notes.add(Note::bad_fragment_tag);
        *position = candidate;
        return Ok(if tag == Tag::ITEM && length != UNDEFINED { Found::Item { length } } else { Found::End });
    }
    notes.add(otherwise);
    Ok(Found::End)
}

/// Reads item headers: from memory, one by one while they are resident or far apart, else by streaming.
struct Headers<'s> {
    source: &'s dyn Source,
    memory: Option<&'s [u8]>,
    pace: Pace,
    chunk: Buffer,
    chunk_start: u64,
    chunk_length: usize,
}

#[derive(PartialEq, Eq)]
enum Pace {
    /// Eight bytes each, whatever the storage.
    Single,
    /// Eight bytes each while resident; megabytes at a time where not.
    Stream,
}

impl<'s> Headers<'s> {
    fn new(source: &'s dyn Source, _base: u64) -> Self {
        let memory = source.memory();
        let chunk = Buffer::default();
        Self { source, memory, pace: Pace::Single, chunk, chunk_start: 0, chunk_length: 0 }
    }

    /// Chooses the pace once the mean distance between items is known.
    fn settle(&mut self, mean_distance: u64) {
        if mean_distance < STREAM_BELOW {
            self.pace = Pace::Stream;
            self.source.advise(Access::Sequential);
        }
    }

    fn at(&mut self, position: u64) -> Result<Option<[u8; 8]>> {
        if let Some(memory) = self.memory {
            return Ok(usize::try_from(position).ok().and_then(|p| memory.get(p..)?.first_chunk().copied()));
        }
        if self.pace == Pace::Stream {
            return self.streamed(position);
        }
        crate::source::read_array(self.source, position)
    }

    fn streamed(&mut self, position: u64) -> Result<Option<[u8; 8]>> {
        let chunk_end = self.chunk_start + self.chunk_length as u64;
        if position < self.chunk_start || position + 8 > chunk_end {
            let mut bytes = [0; 8];
            if self.source.read_resident(position, &mut bytes) {
                return Ok(Some(bytes));
            }
            let start = position & !4095;
            let target = self.chunk.at_least(STREAM_CHUNK);
            self.chunk_length = 0;
            self.chunk_length = self.source.read_at(start, target)?;
            self.chunk_start = start;
        }
        let within = usize::try_from(position - self.chunk_start).unwrap_or(usize::MAX);
        let chunk = self.chunk.bytes().get(..self.chunk_length).unwrap_or_default();
        Ok(chunk.get(within..).and_then(|rest| rest.first_chunk().copied()))
    }
}

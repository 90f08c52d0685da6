//! The fragments of encapsulated Pixel Data (PS3.5 A.4), and the walk of one reader over a stretch of them.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Source, first_not_zero, read_array};
use crate::base::window::Buffer;
use crate::dicom::element::{Encoding, Tag, UNDEFINED};
use crate::dicom::pixel_data::codec;
use crate::frames::notes::{Note, Notes};

/// Most fragments of a file: 100 MB at 12 bytes each, ten times those of the largest known slide.
pub const MOST_FRAGMENTS: usize = 8 << 20;
const STREAM_CHUNK: usize = 4 << 20;
/// Headers that are taken to be resident after one that was: asking each time costs an eighth more.
const TRUSTED: u32 = 15;

/// The fragments in file order, without the Basic Offset Table's item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragments {
    /// Absolute offset of each Item tag, ascending; the payload begins 8 bytes later.
    pub tags: Vec<u64>,
    /// Length of each payload, clipped to the file.
    pub lengths: Vec<u32>,
    /// Whether each payload begins as an image does.
    pub begins: Vec<bool>,
    /// What ended the walk.
    pub ending: Ending,
    /// Where the walk ended.
    pub end: u64,
}

/// What ended a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The Sequence Delimitation Item.
    #[default]
    Delimiter,
    /// The end of the file, or zeros (as of an unfinished download), in place of an Item or the delimiter.
    EndOfFile,
    /// The end of the file, within the last fragment.
    Cut,
    /// Another element, in place of the delimiter.
    NextElement,
    /// Bytes that are no element.
    Astray,
}

impl Fragments {
    /// Number of fragments.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there is no fragment.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// The offset from which fragments are missing, where the file is cut.
    pub fn lost_from(&self) -> Option<u64> {
        matches!(self.ending, Ending::EndOfFile | Ending::Cut).then_some(self.end)
    }

    fn push(&mut self, tag: u64, length: u32, begins: bool) -> Result<()> {
        self.check_room(1, tag)?;
        self.tags.push(tag);
        self.lengths.push(length);
        self.begins.push(begins);
        Ok(())
    }

    /// Whether a fragment's payload begins as an image does.
    pub fn begins_image(&self, index: usize) -> bool {
        self.begins.get(index).copied().unwrap_or(false)
    }

    /// Appends the next stretch, and its ending.
    pub fn append(&mut self, other: Self) -> Result<()> {
        self.check_room(other.len(), other.tags.first().copied().unwrap_or(0))?;
        self.tags.extend(other.tags);
        self.lengths.extend(other.lengths);
        self.begins.extend(other.begins);
        (self.ending, self.end) = (other.ending, other.end);
        Ok(())
    }

    fn check_room(&self, more: usize, position: u64) -> Result<()> {
        if self.len() + more <= MOST_FRAGMENTS {
            return Ok(());
        }
        let detail = format!("more than {MOST_FRAGMENTS} fragments, the limit of this parser");
        Err(Error::at(ErrorKind::LimitExceeded, position, detail))
    }

    /// Offset and length of the payload of a fragment.
    pub fn payload(&self, index: usize) -> Option<(u64, u32)> {
        Some((self.tags.get(index)? + 8, *self.lengths.get(index)?))
    }
}

/// The header found where an Item is expected.
enum Found {
    /// An Item, its length, and the eight bytes behind its header, as far as the file has them.
    Item {
        length: u32,
        first: [u8; 8],
    },
    End(Ending),
}

/// Where a stretch of the walk ended.
pub enum Stop {
    /// At the delimiter, or after the last item.
    End,
    /// The next item begins here, at or after the limit.
    At(u64),
}

/// The limit of a stretch: an item at or after `position`, or `count` items.
#[derive(Clone, Copy)]
pub struct Limit {
    /// Where.
    pub position: u64,
    /// How many.
    pub count: usize,
}

impl Limit {
    /// No limit.
    pub const NONE: Limit = Limit { position: u64::MAX, count: usize::MAX };
}

/// One reader on its way from item to item.
pub struct Walker<'s> {
    headers: Headers<'s>,
    encoding: Encoding,
    size: u64,
    /// How it reads headers.
    pub pace: Pace,
}

impl<'s> Walker<'s> {
    /// A walker that has read nothing yet.
    pub fn new(source: &'s dyn Source, encoding: Encoding, pace: Pace) -> Self {
        Self { headers: Headers::new(source), encoding, size: source.size(), pace }
    }

    /// Walks from `from` up to the limit and appends the fragments.
    pub fn run(
        &mut self,
        from: u64,
        limit: Limit,
        fragments: &mut Fragments,
        notes: &mut Notes,
    ) -> Result<Stop> {
        self.headers.pace = self.pace;
        let mut position = from;
        let mut count = 0;
        while position < limit.position && count < limit.count {
            let (length, first) =
                match look(&mut self.headers, &mut position, self.encoding, fragments, notes)? {
                    Found::End(ending) => {
                        (fragments.ending, fragments.end) = (ending, position);
                        return Ok(Stop::End);
                    }
                    Found::Item { length, first } => (length, first),
                };
            let payload = position + 8;
            let available = self.size - payload;
            let clipped = u32::try_from(available).map_or(length, |available| length.min(available));
            let payload_first = first.get(..first.len().min(clipped as usize)).unwrap_or_default();
            let begins = codec::begins_image(payload_first) || codec::begins_rle(payload_first);
            fragments.push(position, clipped, begins)?;
            if length % 2 == 1 {
                notes.add(Note::odd_fragment_length);
            }
            if clipped < length {
                notes.add(Note::last_fragment_truncated);
                (fragments.ending, fragments.end) = (Ending::Cut, self.size);
                return Ok(Stop::End);
            }
            position = payload + u64::from(length);
            count += 1;
        }
        Ok(Stop::At(position))
    }
}

/// Classifies what stands at `position`, moving it where a writer miscounted by a few bytes.
fn look(
    headers: &mut Headers<'_>,
    position: &mut u64,
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
) -> Result<Found> {
    let Some(bytes) = headers.at(*position)? else {
        return realign(headers, position, encoding, fragments, notes, Ending::EndOfFile);
    };
    let ([a, b, c, d, w, x, y, z], first) = bytes;
    let length = encoding.u32([w, x, y, z]);
    match encoding.tag([a, b, c, d]) {
        Tag::ITEM if length == UNDEFINED => {
            let detail = "a fragment has no explicit length (PS3.5 A.4)";
            Err(Error::at(ErrorKind::UndefinedFragmentLength, *position, detail))
        }
        Tag::ITEM => Ok(Found::Item { length, first }),
        Tag::SEQUENCE_DELIMITATION => {
            if length != 0 {
                notes.add(Note::seq_delim_nonzero_length);
            }
            Ok(Found::End(Ending::Delimiter))
        }
        Tag(0) if first_not_zero(headers.source, *position)?.is_none() => {
            notes.add(Note::no_sequence_delimiter);
            Ok(Found::End(Ending::EndOfFile))
        }
        tag => {
            let otherwise =
                if is_element(tag, [w, x], encoding) { Ending::NextElement } else { Ending::Astray };
            realign(headers, position, encoding, fragments, notes, otherwise)
        }
    }
}

/// Some writers (Leica) count up to three bytes too many in an Item's length, others forget to count the
/// pad byte: the next Item then stands a little before or after its place. A delimiter may also lie within the
/// last fragment, when its header was counted. `otherwise` is what the place means if nothing is found.
fn realign(
    headers: &mut Headers<'_>,
    position: &mut u64,
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
    otherwise: Ending,
) -> Result<Found> {
    let last_length = fragments.lengths.last().copied().unwrap_or(0);
    for shift in [-1_i64, -2, -3, 1, -4, -5, -6, -7, -8, -12, -16] {
        let fits = match shift {
            // Only a pad byte may be skipped (PS3.5 8.2 and A.4: 00).
            1 => last_length % 2 == 1 && is_zero(headers.source, *position)?,
            _ => i64::from(last_length) >= -shift,
        };
        let Some(candidate) = position.checked_add_signed(shift).filter(|_| fits) else { continue };
        let Some(([a, b, c, d, w, x, y, z], first)) = headers.at(candidate)? else { continue };
        let (tag, length) = (encoding.tag([a, b, c, d]), encoding.u32([w, x, y, z]));
        let is_delimiter = tag == Tag::SEQUENCE_DELIMITATION && length == 0;
        let is_item = tag == Tag::ITEM && length != UNDEFINED && shift > -4;
        if !is_item && !is_delimiter {
            continue;
        }
        if let (Some(last), Ok(shorter)) = (fragments.lengths.last_mut(), u32::try_from(-shift)) {
            *last -= shorter;
        }
        notes.add(if shift <= -4 { Note::delimiter_inside_fragment } else { Note::bad_fragment_tag });
        *position = candidate;
        return Ok(if is_item { Found::Item { length, first } } else { Found::End(Ending::Delimiter) });
    }
    let no_delimiter = otherwise == Ending::EndOfFile;
    notes.add(if no_delimiter { Note::no_sequence_delimiter } else { Note::astray_after_fragment });
    Ok(Found::End(otherwise))
}

fn is_zero(source: &dyn Source, position: u64) -> Result<bool> {
    Ok(read_array(source, position)? == Some([0]))
}

/// Whether these are the first bytes of an element that may follow Pixel Data (PS3.10 7.2, PS3.5 7.1).
fn is_element(tag: Tag, vr: [u8; 2], encoding: Encoding) -> bool {
    tag > Tag::PIXEL_DATA
        && tag.group() != 0xFFFE
        && (!encoding.explicit || vr.iter().all(u8::is_ascii_uppercase))
}

/// Reads item headers: from memory, singly while they are resident or far apart, else by streaming.
struct Headers<'s> {
    source: &'s dyn Source,
    memory: Option<&'s [u8]>,
    pace: Pace,
    chunk: Buffer,
    chunk_start: u64,
    chunk_length: usize,
    /// Number of headers to read next without asking whether they are resident.
    trusted: u32,
}

/// How headers are read from a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Eight bytes for each, on any storage.
    Single,
    /// Eight bytes for each that is resident, else megabytes at a time.
    Stream,
}

impl<'s> Headers<'s> {
    fn new(source: &'s dyn Source) -> Self {
        let memory = source.memory();
        let chunk = Buffer::default();
        Self { source, memory, pace: Pace::Single, chunk, chunk_start: 0, chunk_length: 0, trusted: 0 }
    }

    /// The eight bytes of an Item's header, and the eight behind it as far as the file has them.
    fn at(&mut self, position: u64) -> Result<Option<Header>> {
        if let Some(memory) = self.memory {
            let from = usize::try_from(position).unwrap_or(usize::MAX);
            return Ok(header_of(memory.get(from..).unwrap_or_default()));
        }
        if self.pace == Pace::Stream {
            return self.streamed(position);
        }
        self.single(position)
    }

    fn single(&self, position: u64) -> Result<Option<Header>> {
        let mut bytes = [0; HEADER];
        let count = self.source.read_at(position, &mut bytes)?;
        Ok(header_of(bytes.get(..count).unwrap_or_default()))
    }

    fn streamed(&mut self, position: u64) -> Result<Option<Header>> {
        let chunk_end = self.chunk_start + self.chunk_length as u64;
        let needed = position.saturating_add(HEADER as u64).min(self.source.size());
        if position < self.chunk_start || needed > chunk_end {
            if self.trusted > 0 {
                self.trusted -= 1;
                return self.single(position);
            }
            // The last delimiter often has no sixteen bytes from it to the end of the file.
            let mut bytes = [0; HEADER];
            let wanted = usize::try_from(needed.saturating_sub(position)).unwrap_or(0);
            if let Some(bytes) = bytes.get_mut(..wanted).filter(|bytes| !bytes.is_empty())
                && self.source.read_resident(position, bytes)
            {
                self.trusted = TRUSTED;
                return Ok(header_of(bytes));
            }
            let start = position & !4095;
            let target = self.chunk.at_least(STREAM_CHUNK);
            self.chunk_length = 0;
            self.chunk_length = self.source.read_at(start, target)?;
            self.chunk_start = start;
        }
        let within = usize::try_from(position - self.chunk_start).unwrap_or(usize::MAX);
        let chunk = self.chunk.bytes().get(..self.chunk_length).unwrap_or_default();
        Ok(header_of(chunk.get(within..).unwrap_or_default()))
    }
}

/// Bytes that are read at an Item: its header, and enough of the payload to tell whether an image begins.
const HEADER: usize = 16;
type Header = ([u8; 8], [u8; 8]);

fn header_of(bytes: &[u8]) -> Option<Header> {
    let header = bytes.first_chunk::<8>()?;
    let mut first = [0; 8];
    let rest = bytes.get(8..).unwrap_or_default();
    first.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    Some((*header, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::source::FileSource;

    #[test]
    fn a_resident_file_is_walked_to_its_last_byte_without_streaming() {
        let item = [0xFE, 0xFF, 0x00, 0xE0, 2, 0, 0, 0, 7, 7];
        let bytes = [item.repeat(40), vec![0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0]].concat();
        let path = std::env::temp_dir().join(format!("voxtier-walker-{}", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let file = FileSource::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut found = Fragments::default();
        let mut walker = Walker::new(&file, Encoding::EXPLICIT_LE, Pace::Stream);
        walker.run(0, Limit::NONE, &mut found, &mut Notes::default()).unwrap();
        assert_eq!((found.len(), found.ending, found.end), (40, Ending::Delimiter, 400));
        if file.read_resident(0, &mut [0]) {
            assert_eq!(walker.headers.chunk_length, 0);
        }
    }
}

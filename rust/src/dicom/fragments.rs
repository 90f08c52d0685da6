//! The walk over the fragments of encapsulated Pixel Data (PS3.5 A.4), at the pace that the storage allows.

use super::element::{Encoding, Tag, UNDEFINED};
use super::notes::{Note, Notes};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Access, Buffer, Source};

/// 12 bytes each while they are walked: 8 Mi fragments are 100 MB, ten times the largest slide we know.
pub const MOST_FRAGMENTS: usize = 8 << 20;
/// After so many items the distance between them is known well enough to choose how to read.
const SAMPLE: usize = 16;
/// Items closer than this are cheaper to stream over than to visit one by one on cold storage.
const STREAM_BELOW: u64 = 128 * 1024;
const STREAM_CHUNK: usize = 4 << 20;
/// Items left from which several readers are worth their start.
const PARALLEL_FROM: u64 = 20_000;
/// Items in a row that make a guessed beginning credible.
const CHAIN: usize = 8;

/// The fragments in file order, the Basic Offset Table's item not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragments {
    /// Absolute offset of each Item tag, ascending; the payload begins 8 bytes later.
    pub tags: Vec<u64>,
    /// Length of each payload, clipped to the file.
    pub lengths: Vec<u32>,
    /// What ended the walk.
    pub ending: Ending,
    /// Where the walk ended: no Item from here on.
    pub end: u64,
}

/// What ended a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The Sequence Delimitation Item.
    #[default]
    Delimiter,
    /// The file, or zeros (a download that was never finished), where an Item or the delimiter should be.
    EndOfFile,
    /// The file, in the middle of the last fragment.
    Cut,
    /// Another element, in place of the delimiter.
    NextElement,
    /// Bytes that are nothing.
    Astray,
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

    /// Where fragments may be missing: from here to the end of the whole file, of which this one is a part.
    pub fn lost_from(&self) -> Option<u64> {
        matches!(self.ending, Ending::EndOfFile | Ending::Cut).then_some(self.end)
    }

    fn push(&mut self, tag: u64, length: u32) -> Result<()> {
        self.check_room(1, tag)?;
        self.tags.push(tag);
        self.lengths.push(length);
        Ok(())
    }

    fn append(&mut self, other: Self) -> Result<()> {
        self.check_room(other.len(), other.tags.first().copied().unwrap_or(0))?;
        self.tags.extend(other.tags);
        self.lengths.extend(other.lengths);
        (self.ending, self.end) = (other.ending, other.end);
        Ok(())
    }

    fn check_room(&self, more: usize, position: u64) -> Result<()> {
        if self.len() + more <= MOST_FRAGMENTS {
            return Ok(());
        }
        let detail = format!("more than {MOST_FRAGMENTS} fragments");
        Err(Error::at(ErrorKind::LimitExceeded, position, detail))
    }

    /// Payload offset and length of a fragment.
    pub fn payload(&self, index: usize) -> Option<(u64, u32)> {
        Some((self.tags.get(index)? + 8, *self.lengths.get(index)?))
    }
}

/// What stands at a place where an Item is expected.
enum Found {
    Item { length: u32 },
    End(Ending),
}

/// Why a stretch of the walk ended.
enum Stop {
    /// The delimiter, or where the items stop.
    End,
    /// The next item begins here, at or after the limit.
    At(u64),
}

/// Walks from `base` (the first byte after the BOT item) to the delimiter or to where the items stop.
pub fn walk(source: &dyn Source, base: u64, encoding: Encoding, notes: &mut Notes) -> Result<Fragments> {
    let mut fragments = Fragments::default();
    let mut walker = Walker::new(source, encoding, Pace::Single);
    let sample = Limit { position: u64::MAX, count: SAMPLE };
    let Stop::At(mut position) = walker.run(base, sample, &mut fragments, notes)? else {
        return Ok(fragments);
    };
    let mean = (position - base) / SAMPLE as u64;
    if mean < STREAM_BELOW {
        source.advise(Access::Sequential);
        walker.pace = Pace::Stream;
        let rest = (source.size() - position) / mean.max(8);
        if let Some((file, readers)) = source.shared().filter(|_| rest >= PARALLEL_FROM) {
            let starts = split(source, position, mean, readers, encoding)?;
            match together(file, position, &starts, encoding, &mut fragments, notes)? {
                Stop::End => return Ok(fragments),
                Stop::At(next) => position = next,
            }
        }
    }
    walker.run(position, Limit::NONE, &mut fragments, notes)?;
    Ok(fragments)
}

/// Walks stretches of one file at once. Where an item begins in the middle of a file is a guess, and the
/// stretch before it proves or refutes it: only if that one ends exactly there is the next one joined, and
/// then it is what a walk from the beginning would have found. Returns how far the joined stretches reach.
fn together(
    source: &(dyn Source + Sync),
    position: u64,
    starts: &[u64],
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
) -> Result<Stop> {
    let froms = std::iter::once(position).chain(starts.iter().copied());
    let tos = starts.iter().copied().chain([u64::MAX]);
    let run = move |source: &dyn Source, from, to| {
        let (mut found, mut notes) = (Fragments::default(), Notes::default());
        let limit = Limit { position: to, count: usize::MAX };
        let stop = Walker::new(source, encoding, Pace::Stream).run(from, limit, &mut found, &mut notes);
        (stop, found, notes)
    };
    std::thread::scope(|scope| {
        let mut stretches = froms.zip(tos);
        let first = stretches.next();
        let spawn = |(from, to)| {
            let own = move || match source.reopened() {
                Some(own) => run(&own, from, to),
                None => run(source, from, to),
            };
            (from, scope.spawn(own))
        };
        let others: Vec<_> = stretches.map(spawn).collect();
        let mut reached = position;
        let first = first.map(|(from, to)| (from, run(source, from, to)));
        let joined = others.into_iter().map_while(|(from, thread)| Some((from, thread.join().ok()?)));
        for (from, (stop, found, found_notes)) in first.into_iter().chain(joined) {
            if from != reached {
                break;
            }
            fragments.append(found)?;
            notes.join(found_notes);
            match stop? {
                Stop::End => return Ok(Stop::End),
                Stop::At(next) => reached = next,
            }
        }
        Ok(Stop::At(reached))
    })
}

/// Guesses where items begin near the bounds of `readers` equal stretches.
fn split(source: &dyn Source, from: u64, mean: u64, readers: usize, encoding: Encoding) -> Result<Vec<u64>> {
    let mut starts = Vec::new();
    let length = (source.size() - from) / readers as u64;
    let mut bytes = vec![0; usize::try_from(mean * 4).unwrap_or(0).clamp(4096, 1 << 20)];
    for stretch in 1..readers as u64 {
        let near = from + length * stretch;
        // Cold storage is read in one pass: jumping about it would only cost.
        if !source.read_resident(near, &mut [0]) {
            return Ok(Vec::new());
        }
        let count = source.read_at(near, &mut bytes)?;
        let window = bytes.get(..count).unwrap_or_default();
        let tags = window.windows(4).zip(near..).filter(|(tag, _)| *tag == [0xFE, 0xFF, 0x00, 0xE0]);
        for (_, position) in tags {
            if begins_a_chain(source, position, encoding)? {
                starts.push(position);
                break;
            }
        }
    }
    Ok(starts)
}

/// Whether several items follow one another from here: payloads may hold the four bytes of a tag by chance.
fn begins_a_chain(source: &dyn Source, position: u64, encoding: Encoding) -> Result<bool> {
    let mut found = Fragments::default();
    let limit = Limit { position: u64::MAX, count: CHAIN };
    let stop =
        Walker::new(source, encoding, Pace::Single).run(position, limit, &mut found, &mut Notes::default());
    match stop {
        Ok(_) => Ok(found.len() == CHAIN),
        Err(error) if error.kind.is_environment() => Err(error),
        Err(_) => Ok(false),
    }
}

/// Where a stretch ends: before an item at or after `position`, or after `count` items.
#[derive(Clone, Copy)]
struct Limit {
    position: u64,
    count: usize,
}

impl Limit {
    const NONE: Limit = Limit { position: u64::MAX, count: usize::MAX };
}

/// One reader on its way from item to item.
struct Walker<'s> {
    headers: Headers<'s>,
    encoding: Encoding,
    size: u64,
    pace: Pace,
}

impl<'s> Walker<'s> {
    fn new(source: &'s dyn Source, encoding: Encoding, pace: Pace) -> Self {
        Self { headers: Headers::new(source), encoding, size: source.size(), pace }
    }

    fn run(&mut self, from: u64, limit: Limit, fragments: &mut Fragments, notes: &mut Notes) -> Result<Stop> {
        self.headers.pace = self.pace;
        let mut position = from;
        let mut count = 0;
        while position < limit.position && count < limit.count {
            let length = match look(&mut self.headers, &mut position, self.encoding, fragments, notes)? {
                Found::End(ending) => {
                    (fragments.ending, fragments.end) = (ending, position);
                    return Ok(Stop::End);
                }
                Found::Item { length } => length,
            };
            let payload = position + 8;
            let available = self.size - payload;
            let clipped = u32::try_from(available).map_or(length, |available| length.min(available));
            fragments.push(position, clipped)?;
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

/// Classifies what stands at `position`, moving it where a writer miscounted by a byte or three.
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
            Ok(Found::End(Ending::Delimiter))
        }
        Tag(0) => {
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
/// pad byte: the next Item then stands a little before or after its place.
fn realign(
    headers: &mut Headers<'_>,
    position: &mut u64,
    encoding: Encoding,
    fragments: &mut Fragments,
    notes: &mut Notes,
    otherwise: Ending,
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
        let is_item = tag == Tag::ITEM && length != UNDEFINED;
        return Ok(if is_item { Found::Item { length } } else { Found::End(Ending::Delimiter) });
    }
    let no_delimiter = otherwise == Ending::EndOfFile;
    notes.add(if no_delimiter { Note::no_sequence_delimiter } else { Note::bad_fragment_tag });
    Ok(Found::End(otherwise))
}

/// Whether these are the first bytes of an element that may follow Pixel Data (PS3.10 7.2, PS3.5 7.1).
fn is_element(tag: Tag, vr: [u8; 2], encoding: Encoding) -> bool {
    tag > Tag::PIXEL_DATA
        && tag.group() != 0xFFFE
        && (!encoding.explicit || vr.iter().all(u8::is_ascii_uppercase))
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Eight bytes each, whatever the storage.
    Single,
    /// Eight bytes each while resident; megabytes at a time where not.
    Stream,
}

impl<'s> Headers<'s> {
    fn new(source: &'s dyn Source) -> Self {
        let memory = source.memory();
        Self { source, memory, pace: Pace::Single, chunk: Buffer::default(), chunk_start: 0, chunk_length: 0 }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::FileSource;

    fn item(payload: &[u8]) -> Vec<u8> {
        [&[0xFE, 0xFF, 0x00, 0xE0], (payload.len() as u32).to_le_bytes().as_slice(), payload].concat()
    }

    /// A payload that is itself a chain of items: the guess in the middle of a file falls for it.
    fn decoy(links: usize) -> Vec<u8> {
        item(b"ab").repeat(links)
    }

    fn walk_both(bytes: &[u8], readers: usize) -> ((Fragments, Notes), (Fragments, Notes)) {
        let name = format!("voxtier-walk-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        let walked = |readers| {
            let file = FileSource::open(&path).unwrap().with_readers(readers);
            let mut notes = Notes::default();
            (walk(&file, 0, Encoding::EXPLICIT_LE, &mut notes).unwrap(), notes)
        };
        let both = (walked(1), walked(readers));
        std::fs::remove_file(&path).unwrap();
        both
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn several_readers_find_what_one_finds(
            readers in 2_usize..6,
            plain in 1_usize..60,
            links in 0_usize..40,
            every in 1_usize..5,
            damage in prop::option::of((0_usize..25_000, 0_usize..8)),
        ) {
            let mut bytes = Vec::new();
            for index in 0..25_000 {
                let payload = if index % every == 0 { decoy(links) } else { vec![index as u8; plain * 2] };
                let mut item = item(&payload);
                if let Some((_, byte)) = damage.filter(|(at, _)| *at == index) {
                    item[byte] ^= 0x55;
                }
                bytes.extend(item);
            }
            let (one, several) = walk_both(&bytes, readers);
            prop_assert_eq!(one, several);
        }
    }

    #[test]
    fn a_decoy_at_every_guess_is_refuted() {
        let huge = item(&decoy(100_000));
        let small = item(b"abcdef").repeat(30_000);
        let bytes = [small.clone(), huge, small].concat();
        let (one, several) = walk_both(&bytes, 4);
        assert_eq!(one.0.len(), 60_001);
        assert_eq!(one, several);
    }
}

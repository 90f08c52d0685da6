//! Offset tables as inputs that are checked, never trusted: Basic (PS3.5 A.4), Extended (PS3.3
//! C.7.6.3.1.8), and the tile offsets of a TIFF that shares the file (see [`super::tiff`]).

use super::fragments::{Fragments, MOST_FRAGMENTS};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Source, read_array, read_exact};
use crate::dicom::element::{Encoding, Tag};
use crate::dicom::header::{FrameCount, Header, Place};
use crate::dicom::pixel_data::codec;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Items, Method, Verify};

/// Fragments of the last frame that are followed at most; beyond, a full walk decides.
const MOST_HOPS: usize = 64;

/// A candidate table: the place of each frame's first Item, if the table is right.
#[derive(Debug)]
pub struct OffsetTable {
    /// The kind of table.
    pub method: Method,
    /// Absolute offset of the Item tag that begins each frame, in frame order.
    pub tags: Vec<u64>,
    /// Length of each frame, where the table has it and a frame is one fragment.
    pub lengths: Option<Vec<u64>>,
}

/// The Basic Offset Table's item: its value, and the first byte after it.
#[derive(Clone, Copy, Debug)]
pub struct BasicItem {
    /// Offset and length of the value.
    pub value: Place,
    /// The first byte after it, from which the offsets of all tables count.
    pub base: u64,
}

/// Reads the first Item of encapsulated Pixel Data; `None` where the sequence ends at once.
pub fn basic_item(source: &dyn Source, position: u64, encoding: Encoding) -> Result<Option<BasicItem>> {
    let Some([a, b, c, d, w, x, y, z]) = read_array(source, position)? else {
        return Err(Error::at(
            ErrorKind::TruncatedBot,
            position,
            "the file ends before its Basic Offset Table",
        ));
    };
    let length = encoding.u32([w, x, y, z]);
    match encoding.tag([a, b, c, d]) {
        Tag::SEQUENCE_DELIMITATION => return Ok(None),
        Tag::ITEM => {}
        tag => {
            let detail = format!("found {tag}, where the Basic Offset Table's Item must be (PS3.5 A.4)");
            return Err(Error::at(ErrorKind::NoBotItem, position, detail));
        }
    }
    if length == crate::dicom::element::UNDEFINED {
        let detail = "the Basic Offset Table has no explicit length (PS3.5 A.4)";
        return Err(Error::at(ErrorKind::UndefinedFragmentLength, position, detail));
    }
    let value = position + 8;
    let base = value + u64::from(length);
    if base > source.size() {
        let detail = format!("the Basic Offset Table declares {length} bytes, past the end of the file");
        return Err(Error::at(ErrorKind::TruncatedBot, position, detail));
    }
    Ok(Some(BasicItem { value: (value, length), base }))
}

/// The tables of a file.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Those that have the stated count, or any where none is stated; the best first.
    pub right: Vec<OffsetTable>,
    /// A table of several frames where one is stated.
    pub of_several: Option<OffsetTable>,
}

/// Reads the tables of a file.
///
/// # Errors
/// `no_bot_item` where the first Item holds an image instead of a table; `contradictory_tables` where both
/// tables could be right and name other frames.
pub fn candidates(
    source: &dyn Source,
    header: &Header,
    item: BasicItem,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Candidates> {
    let stated = match header.frame_count {
        FrameCount::Stated(frames) => Some(frames),
        _ => None,
    };
    let mut found = Candidates::default();
    if stated.is_some_and(|frames| frames as usize > MOST_FRAGMENTS) {
        return Ok(found); // more than any walk may find: nothing could confirm such a table
    }
    let has_basic = item.value.1 > 0;
    let mut take = |table: Option<OffsetTable>, rejected: Note, notes: &mut Notes| match table {
        Some(table) if stated.is_none_or(|frames| frames as usize == table.tags.len()) => {
            found.right.push(table)
        }
        Some(table) => {
            notes.add(rejected);
            if stated == Some(1) {
                found.of_several = Some(table);
            }
        }
        None => notes.add(rejected),
    };
    if let Some(place) = header.extended_offsets {
        if has_basic {
            notes.add(Note::eot_and_bot);
        }
        take(extended(source, place, header.extended_lengths, item.base)?, Note::eot_rejected, notes);
    }
    if has_basic {
        take(basic(source, item, encoding, notes)?, Note::bot_rejected, notes);
    }
    if let [extended, basic] = found.right.as_slice() {
        check_agree(extended, basic, item.base, source.size())?;
    }
    Ok(found)
}

/// Two tables that could both be right must name the same frames; one that could not is no evidence.
fn check_agree(extended: &OffsetTable, basic: &OffsetTable, base: u64, size: u64) -> Result<()> {
    // A BOT counts in 32 bits (CP-1818).
    let low = |tag: &u64| (tag - base) as u32;
    let agree = extended.tags.len() == basic.tags.len()
        && extended.tags.iter().zip(&basic.tags).all(|(a, b)| low(a) == low(b));
    if agree || !extended.is_plausible(base, size) || !basic.is_plausible(base, size) {
        return Ok(());
    }
    let detail = "the Extended Offset Table and the Basic Offset Table name different frames";
    Err(Error::at(ErrorKind::ContradictoryTables, base, detail))
}

fn extended(
    source: &dyn Source,
    offsets: Place,
    lengths: Option<Place>,
    base: u64,
) -> Result<Option<OffsetTable>> {
    let count = offsets.1 / 8;
    let Some(offsets) = read_u64s(source, offsets, count)? else { return Ok(None) };
    // Collected in place: `into_iter` of a Vec gives its memory on.
    let tags: Option<Vec<u64>> = offsets.into_iter().map(|offset| base.checked_add(offset)).collect();
    let lengths = match lengths {
        Some(place) => read_u64s(source, place, count)?,
        None => None,
    };
    let method = if lengths.is_some() { Method::Eot } else { Method::EotOffsetsOnly };
    Ok(tags.map(|tags| OffsetTable { method, tags, lengths }))
}

/// Reads `frames` little endian u64 values, if the value has exactly that size and lies within the file.
fn read_u64s(source: &dyn Source, (position, length): Place, frames: u32) -> Result<Option<Vec<u64>>> {
    let is_whole = frames > 0 && u64::from(length) == u64::from(frames) * 8;
    if !is_whole || frames as usize > MOST_FRAGMENTS || position + u64::from(length) > source.size() {
        return Ok(None);
    }
    let mut values = vec![0_u64; frames as usize];
    // SAFETY: any bytes are u64s, and the slice covers exactly the memory of `values`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len() * 8) };
    if source.read_at(position, bytes)? < bytes.len() {
        return Err(Error::at(ErrorKind::IoError, position, "the offset table could not be read in full"));
    }
    values.iter_mut().for_each(|value| *value = u64::from_le(*value));
    Ok(Some(values))
}

fn basic(
    source: &dyn Source,
    item: BasicItem,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Option<OffsetTable>> {
    let (position, length) = item.value;
    let first = read_exact(source, position, length.min(64) as usize)?;
    if codec::begins_image(&first) || first.first_chunk().is_some_and(codec::is_rle_header) {
        let detail = "an image stands where the Basic Offset Table's Item must (PS3.5 A.4)";
        return Err(Error::at(ErrorKind::NoBotItem, position, detail));
    }
    if length % 4 != 0 {
        notes.add(Note::bot_length_not_multiple_of_4);
    }
    if length < 4 || length as usize / 4 > MOST_FRAGMENTS {
        return Ok(None);
    }
    let bytes = read_exact(source, position, length as usize)?;
    let offsets = bytes.as_chunks().0.iter().map(|&chunk| item.base + u64::from(encoding.u32(chunk)));
    Ok(Some(OffsetTable { method: Method::Bot, tags: offsets.collect(), lengths: None }))
}

impl OffsetTable {
    /// Whether the entries could be the places of Items, in whatever order: from the first one on, with room
    /// for a header between them, within the file.
    fn is_plausible(&self, base: u64, size: u64) -> bool {
        let mut sorted = self.tags.clone();
        sorted.sort_unstable();
        let apart = sorted.iter().zip(sorted.iter().skip(1)).all(|(a, b)| a.saturating_add(8) <= *b);
        apart
            && sorted.first() == Some(&base)
            && sorted.last().is_some_and(|last| last.saturating_add(8) <= size)
    }

    /// Whether the table names every Item, one frame each.
    pub fn names_every_item(&self, fragments: &Fragments) -> bool {
        self.tags == fragments.tags
    }

    /// The same table with 2^32 added after each step back: a BOT counts in 32 bits (CP-1818).
    pub fn unwrapped(&self) -> Option<Self> {
        let mut high = 0;
        let mut previous = 0;
        let mut tags = Vec::with_capacity(self.tags.len());
        for &tag in &self.tags {
            if tag < previous {
                high += 1_u64 << 32;
            }
            previous = tag;
            tags.push(tag.checked_add(high)?);
        }
        (high > 0).then_some(Self { method: self.method, tags, lengths: None })
    }

    /// Checks both ends only, and returns the first byte after the last frame; [`OffsetTable::into_items`]
    /// then makes the frames, those of a BOT as spans which may hold item headers. `None` means that a full
    /// walk has to decide.
    pub fn check_ends(
        &self,
        source: &dyn Source,
        base: u64,
        encoding: Encoding,
        verify: Verify,
        notes: &mut Notes,
    ) -> Result<Option<u64>> {
        // Entries 8 bytes apart would be a frame without bytes.
        let ascending = self.tags.iter().zip(self.tags.iter().skip(1)).all(|(a, b)| a.saturating_add(8) < *b);
        let (Some(&first), Some(&last)) = (self.tags.first(), self.tags.last()) else { return Ok(None) };
        if !ascending || first != base || last.saturating_add(8) > source.size() {
            return Ok(None);
        }
        if verify == Verify::Ends && item_length(source, first, encoding)?.is_none() {
            return Ok(None);
        }
        let several = self.method == Method::Bot;
        let end = end_of_frame(source, last, several, encoding)?.filter(|&end| end > last + 8);
        let Some(end) = end else { return Ok(None) };
        match self.lengths_agree(end) {
            LengthsAgree::Exactly => {}
            LengthsAgree::WithoutPadding => notes.add(Note::eot_length_excludes_padding),
            LengthsAgree::No { .. } => return Ok(None),
        }
        Ok(Some(end))
    }

    /// Holds declared lengths, where there are any, against the distances between the entries.
    fn lengths_agree(&self, end: u64) -> LengthsAgree {
        let Some(declared) = &self.lengths else { return LengthsAgree::Exactly };
        let ends = self.tags.iter().skip(1).copied().chain([end]);
        LengthsAgree::of(declared.iter().copied(), self.tags.iter().zip(ends).map(|(tag, end)| end - tag - 8))
    }

    /// The frames of a table whose ends were found right; `end` is the first byte after the last frame.
    pub fn into_items(self, end: u64) -> Items {
        // A slide has 10^5 entries: the memory of the table becomes the memory of the items.
        let mut lengths = self.lengths.unwrap_or_else(|| vec![0; self.tags.len()]);
        let mut offsets = self.tags;
        let ends = offsets.iter().skip(1).copied().chain([end]);
        lengths
            .iter_mut()
            .zip(offsets.iter().zip(ends))
            .for_each(|(length, (tag, end))| *length = end - tag - 8);
        offsets.iter_mut().for_each(|offset| *offset += 8);
        Items { offsets, lengths, frame_first: None }
    }

    /// Checks every entry against a walk and returns the fragments of each frame, as ranges in file order.
    /// In a file that was cut, entries beyond the cut are frames that are lost: empty ranges after the last.
    pub fn match_all(&self, fragments: &Fragments, notes: &mut Notes) -> Option<Vec<(u32, u32)>> {
        let count = u32::try_from(fragments.len()).ok()?;
        let lost_from = fragments.lost_from().filter(|_| self.method != Method::Tiff);
        let mut starts = Vec::with_capacity(self.tags.len());
        for tag in &self.tags {
            starts.push(match fragments.tags.binary_search(tag) {
                Ok(index) => u32::try_from(index).ok()?,
                Err(_) if lost_from.is_some_and(|from| *tag >= from) => count,
                Err(_) => return None,
            });
        }
        let mut sorted: Vec<u32> = starts.iter().copied().filter(|&start| start < count).collect();
        sorted.sort_unstable();
        let distinct = sorted.iter().zip(sorted.iter().skip(1)).all(|(a, b)| a < b);
        if !distinct || sorted.first() != Some(&0) {
            return None;
        }
        if !starts.is_sorted() {
            notes.add(Note::table_not_ascending);
        }
        let end = |start: u32| sorted.get(sorted.partition_point(|&other| other <= start)).copied();
        let ranges: Vec<_> = starts.into_iter().map(|start| (start, end(start).unwrap_or(count))).collect();
        (self.method != Method::Tiff || self.tiles_fit(fragments, &ranges)).then_some(ranges)
    }

    /// Whether each tile of a TIFF is exactly one fragment, with or without its pad byte.
    fn tiles_fit(&self, fragments: &Fragments, ranges: &[(u32, u32)]) -> bool {
        let length =
            |start: u32| fragments.lengths.get(start as usize).map_or(0, |&length| u64::from(length));
        let items = ranges.iter().map(|&(start, _)| length(start));
        let one_each = ranges.iter().all(|(start, end)| start + 1 == *end);
        let declared = self.lengths.as_deref().unwrap_or_default();
        one_each && !matches!(LengthsAgree::of(declared.iter().copied(), items), LengthsAgree::No { .. })
    }
}

/// How declared frame lengths compare with those of the items.
pub enum LengthsAgree {
    /// Equal.
    Exactly,
    /// Some do not include the pad byte (writers differ: pydicom #1968).
    WithoutPadding,
    /// At least one differs.
    No {
        /// Some declare more than the item holds.
        too_long: bool,
    },
}

impl LengthsAgree {
    /// Compares frame by frame.
    pub fn of(declared: impl Iterator<Item = u64>, items: impl Iterator<Item = u64>) -> Self {
        let mut verdict = Self::Exactly;
        for (declared, item) in declared.zip(items) {
            if declared == item {
                continue;
            }
            if declared.checked_add(1) != Some(item) {
                return Self::No { too_long: declared > item };
            }
            verdict = Self::WithoutPadding;
        }
        verdict
    }
}

/// The length of the Item at `position`, or `None` where there is none.
fn item_length(source: &dyn Source, position: u64, encoding: Encoding) -> Result<Option<u32>> {
    let Some([a, b, c, d, w, x, y, z]) = read_array(source, position)? else { return Ok(None) };
    let length = encoding.u32([w, x, y, z]);
    let is_item = encoding.tag([a, b, c, d]) == Tag::ITEM && length != crate::dicom::element::UNDEFINED;
    Ok(is_item.then_some(length))
}

/// Whether the last bytes of a frame are a delimiter that was counted to it.
fn ends_with_delimiter(source: &dyn Source, end: u64, encoding: Encoding) -> Result<bool> {
    let Some(position) = end.checked_sub(8) else { return Ok(false) };
    let Some([a, b, c, d, w, x, y, z]) = read_array(source, position)? else { return Ok(false) };
    Ok(encoding.tag([a, b, c, d]) == Tag::SEQUENCE_DELIMITATION && encoding.u32([w, x, y, z]) == 0)
}

/// First byte after the last frame, if the delimiter or the end of the file follows it.
fn end_of_frame(source: &dyn Source, start: u64, several: bool, encoding: Encoding) -> Result<Option<u64>> {
    let mut position = start;
    for _ in 0..MOST_HOPS {
        let Some(length) = item_length(source, position, encoding)? else { return Ok(None) };
        let end = position + 8 + u64::from(length);
        if end > source.size() {
            return Ok(None);
        }
        let Some([a, b, c, d, ..]) = read_array::<8>(source, end)? else {
            // Without a delimiter a frame of several Items may lack some: the walk has to look.
            let is_whole = !several && end == source.size() && !ends_with_delimiter(source, end, encoding)?;
            return Ok(is_whole.then_some(end));
        };
        match encoding.tag([a, b, c, d]) {
            Tag::SEQUENCE_DELIMITATION => return Ok(Some(end)),
            Tag::ITEM if several => position = end,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

//! Encapsulated pixel data (PS3.5 A.4): offset tables, fragments, and which fragments make a frame.

pub mod fragments;
pub mod grouping;
pub mod offset_table;
pub mod tiff;
pub mod walk;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Range, Source};
use crate::dicom::element::Encoding;
use crate::dicom::header::{FrameCount, Header};
use crate::dicom::part10;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{FrameTable, Items, Kind, Layout, Method, Verified, Verify};
use fragments::{Ending, Fragments, MOST_FRAGMENTS};
use grouping::FragmentRange;
use offset_table::{BasicItem, Candidates, LengthsAgree, OffsetTable};

/// Bytes of the Sequence Delimitation Item.
const DELIMITER: u64 = 8;
/// Bytes of tag and length of an Item.
const ITEM_HEADER: u64 = 8;
/// Bytes within which the last frame is looked for, or within twice the mean: most tiles of a slide may be blank.
const LIKELY_LAST: u64 = 64 << 10;

/// The encapsulated pixels of a file.
pub struct Encapsulated<'a> {
    /// The file, or the inflated data set.
    pub source: &'a dyn Source,
    /// Attributes, and the places of pixels and tables.
    pub header: &'a Header,
    /// First byte of the pixel element's value, the Basic Offset Table's Item.
    pub value: u64,
    /// How the data set is written.
    pub encoding: Encoding,
    /// Whether the file has a preamble, which may be the header of a TIFF.
    pub has_preamble: bool,
    /// How far tables are compared with the file.
    pub verify: Verify,
}

impl Encapsulated<'_> {
    /// Finds the frames and writes kind, method, layout and status into the table. Returns the first byte behind
    /// the pixels, where a delimiter tells it.
    ///
    /// # Errors
    /// Every kind of [`crate::ErrorKind`] that concerns tables and fragments.
    pub fn lay_out(&self, table: &mut FrameTable, notes: &mut Notes) -> Result<Option<u64>> {
        let Some(item) = offset_table::basic_item(self.source, self.value, self.encoding)? else {
            return Err(no_fragments(self.value));
        };
        let is_video = part10::is_video(&table.transfer_syntax_uid);
        table.kind = if is_video { Kind::Video } else { Kind::Encapsulated };
        let mut tables = if is_video { Candidates::default() } else { self.tables(item, notes)? };
        if self.verify != Verify::All
            && let Some((index, end)) = self.confirmed_at_ends(&tables.right, item, notes)?
        {
            let confirmed = tables.right.swap_remove(index);
            self.count_by(confirmed.tags.len(), table, notes);
            table.method = confirmed.method;
            table.verified = if self.verify == Verify::Ends { Verified::Ends } else { Verified::None };
            table.layout = Layout::Items(confirmed.into_items(end));
            table.set_status(None);
            return Ok((end < self.source.size()).then_some(end + DELIMITER));
        }
        self.walk_and_group(item.base, &tables, table, notes)
    }

    /// The offset tables of the file, and the tiles of a TIFF.
    fn tables(&self, item: BasicItem, notes: &mut Notes) -> Result<Candidates> {
        self.prefetch_tables(item)?;
        let mut tables = offset_table::candidates(self.source, self.header, item, self.encoding, notes)?;
        // The table of a TIFF is used only where the data set has none.
        if self.has_preamble && item.value.1 == 0 && self.header.extended_offsets.is_none() {
            let frames = self.header.attributes.number_of_frames;
            let (candidate, is_tiff) = tiff::read(self.source, frames)?;
            if candidate.is_none() && is_tiff && frames > 1 {
                notes.add(Note::tiff_rejected);
            }
            tables.right.extend(candidate);
        }
        Ok(tables)
    }

    /// Asks a remote machine for the tables, and at the same time for where the last frame is likely to begin, which
    /// is compared with them.
    fn prefetch_tables(&self, item: BasicItem) -> Result<()> {
        let frames = u64::from(self.header.attributes.number_of_frames);
        let Some(remote) = self.source.remote() else { return Ok(()) };
        if self.verify == Verify::All || frames < 2 || frames > MOST_FRAGMENTS as u64 {
            return Ok(());
        }
        let extended = [self.header.extended_offsets, self.header.extended_lengths].into_iter().flatten();
        let all = extended.map(|(start, length)| (start, length, frames * 8)).chain([(
            item.value.0,
            item.value.1,
            frames * 4,
        )]);
        let right = all.filter(|&(_, length, expected)| u64::from(length) == expected);
        let mut needed: Vec<Range> = right.map(|(start, _, length)| (start, start + length)).collect();
        if needed.is_empty() {
            return Ok(());
        }
        needed.push((item.base, item.base + ITEM_HEADER));
        let size = self.source.size();
        needed.iter_mut().for_each(|(_, end)| *end = size.min(*end));
        let mean = size.saturating_sub(item.base) / frames;
        let likely = (mean * 2).max(LIKELY_LAST) + ITEM_HEADER + DELIMITER;
        remote.prefetch_beside(&needed, (size.saturating_sub(likely).max(item.base), size))
    }

    /// The number of the first table whose ends are right, and the first byte after its last frame.
    fn confirmed_at_ends(
        &self,
        tables: &[OffsetTable],
        item: BasicItem,
        notes: &mut Notes,
    ) -> Result<Option<(usize, u64)>> {
        for (index, table) in tables.iter().enumerate() {
            let end = table.check_ends(self.source, item.base, self.encoding, self.verify, notes)?;
            if let Some(end) = end {
                return Ok(Some((index, end)));
            }
        }
        Ok(None)
    }

    /// Where the data set states no count, a table that proved right is one.
    fn count_by(&self, frames: usize, table: &mut FrameTable, notes: &mut Notes) {
        if !matches!(self.header.frame_count, FrameCount::Stated(_)) && frames > 1 {
            table.image.number_of_frames = u32::try_from(frames).unwrap_or(u32::MAX);
            notes.add(Note::number_of_frames_from_table);
        }
    }

    fn walk_and_group(
        &self,
        base: u64,
        tables: &Candidates,
        table: &mut FrameTable,
        notes: &mut Notes,
    ) -> Result<Option<u64>> {
        if let Some(remote) = self.source.remote().filter(|_| table.kind != Kind::Video) {
            remote.plan_walk(base, table.image.number_of_frames.into());
        }
        let fragments = walk::walk(self.source, base, self.encoding, notes)?;
        table.verified = Verified::All;
        if fragments.is_empty() {
            return Err(no_fragments(base));
        }
        let behind = match fragments.ending {
            Ending::Delimiter => Some(fragments.end + DELIMITER),
            Ending::NextElement => Some(fragments.end),
            _ => None,
        };
        if table.kind == Kind::Video {
            let all = (0, u32::try_from(fragments.len()).unwrap_or(u32::MAX));
            let (items, cut) = grouping::lay_out(&fragments, &[all], false);
            (table.method, table.layout) = (Method::VideoStream, Layout::Items(items));
            table.set_status(cut);
            return Ok(behind);
        }
        let (ranges, method) = match best_table(&tables.right, &fragments, notes) {
            Some(found) => {
                self.count_by(found.0.len(), table, notes);
                found
            }
            None => self.group(&fragments, tables, table, notes)?,
        };
        let (mut items, mut cut) = grouping::lay_out(&fragments, &ranges, false);
        table.method = checked_lengths(&tables.right, method, &items, cut, notes);
        // The lengths of an Extended Offset Table and of a TIFF are evidence that the last frame is whole.
        let knows_lengths = matches!(table.method, Method::Eot | Method::Tiff);
        let one_each = ranges.len() == fragments.len();
        let syntax = &table.transfer_syntax_uid;
        let is_proven = one_each && !part10::has_end_marker(syntax);
        if !knows_lengths && grouping::may_lack_end(self.source, &fragments, is_proven)? {
            (items, cut) = grouping::lay_out(&fragments, &ranges, true);
        }
        grouping::check_frames(&fragments, &ranges, table.method, cut, syntax)?;
        table.layout = Layout::Items(items);
        table.set_status(cut);
        Ok(behind)
    }

    /// Decides without a table of the right count.
    fn group(
        &self,
        fragments: &Fragments,
        tables: &Candidates,
        table: &FrameTable,
        notes: &mut Notes,
    ) -> Result<(Vec<FragmentRange>, Method)> {
        let transfer_syntax_uid = table.transfer_syntax_uid.as_str();
        if self.header.frame_count == FrameCount::Unusable && fragments.len() != 1 {
            let detail =
                format!("Number of Frames is no number, and {} fragments do not tell it", fragments.len());
            return Err(Error::at(ErrorKind::BadNumberOfFrames, self.value, detail));
        }
        // One frame is stated, and a table names each of several Items; or none is stated, and a table that
        // turned out wrong has several entries. Only a codec's marker at the first of several Items and at no
        // other proves that they are one image.
        let unstated = !matches!(self.header.frame_count, FrameCount::Stated(_));
        let of_several = match &tables.of_several {
            Some(several) => Some(several).filter(|several| several.names_every_item(fragments)),
            None => tables.right.iter().find(|wrong| unstated && wrong.tags.len() > 1),
        };
        let has_markers = !part10::has_no_markers(transfer_syntax_uid);
        let is_one = fragments.len() > 1 && fragments.begins_image(0) && has_markers;
        if let Some(several) = of_several.filter(|_| !is_one) {
            let stated = if unstated { "no number of frames" } else { "1 frame" };
            let detail = format!("{stated} is stated, an offset table has {} entries", several.tags.len());
            return Err(Error::at(ErrorKind::ContradictoryTables, self.value, detail));
        }
        let frames = table.image.number_of_frames;
        grouping::group(self.source, fragments, frames, transfer_syntax_uid, notes)
    }
}

fn no_fragments(position: u64) -> Error {
    let detail = "Pixel Data of undefined length holds no fragment";
    Error::at(ErrorKind::MissingPixelData, position, detail)
}

/// The first table that agrees with the walk; those before it are noted as rejected.
fn best_table(
    tables: &[OffsetTable],
    fragments: &Fragments,
    notes: &mut Notes,
) -> Option<(Vec<FragmentRange>, Method)> {
    for candidate in tables {
        if let Some(ranges) = candidate.match_all(fragments, notes) {
            return Some((ranges, candidate.method));
        }
        let unwrapped = if candidate.method == Method::Bot { candidate.unwrapped() } else { None };
        if let Some(ranges) = unwrapped.and_then(|table| table.match_all(fragments, notes)) {
            notes.add(Note::bot_wrapped);
            return Some((ranges, candidate.method));
        }
        reject(std::slice::from_ref(candidate), notes);
    }
    None
}

fn reject(tables: &[OffsetTable], notes: &mut Notes) {
    for table in tables {
        notes.add(match table.method {
            Method::Bot => Note::bot_rejected,
            Method::Tiff => Note::tiff_rejected,
            _ => Note::eot_rejected,
        });
    }
}

/// Compares the lengths that a table declares with those of the items, which are used in any case.
fn checked_lengths(
    tables: &[OffsetTable],
    method: Method,
    items: &Items,
    cut: Option<u32>,
    notes: &mut Notes,
) -> Method {
    let declared =
        tables.iter().find(|table| table.method == method).and_then(|table| table.lengths.as_ref());
    let (Some(declared), Method::Eot) = (declared, method) else { return method };
    if items.frame_first.is_some() {
        return Method::EotOffsetsOnly;
    }
    let whole = cut.map_or(usize::MAX, |cut| cut as usize);
    let lengths = items.lengths.iter().copied().take(whole);
    match LengthsAgree::of(declared.iter().copied().take(whole), lengths) {
        LengthsAgree::Exactly => method,
        LengthsAgree::WithoutPadding => {
            notes.add(Note::eot_length_excludes_padding);
            method
        }
        LengthsAgree::No { too_long } => {
            if too_long {
                notes.add(Note::eot_length_exceeds_fragment);
            }
            Method::EotOffsetsOnly
        }
    }
}

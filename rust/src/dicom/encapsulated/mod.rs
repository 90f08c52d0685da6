//! Encapsulated pixel data (PS3.5 A.4): offset tables, fragments, and which fragments make a frame.

pub mod fragments;
pub mod grouping;
pub mod offset_table;
pub mod tiff;
pub mod walk;

use super::dataset::Header;
use super::element::Encoding;
use super::part10;
use crate::base::error::Result;
use crate::base::source::Source;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{FrameTable, Items, Kind, Layout, Method, Verified, Verify};
use fragments::Fragments;
use grouping::FragmentRange;
use offset_table::{BasicItem, LengthsAgree, OffsetTable};

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
    /// Finds the frames and writes kind, method, layout and status into the table.
    ///
    /// # Errors
    /// Every kind of [`crate::ErrorKind`] that concerns tables and fragments.
    pub fn lay_out(&self, table: &mut FrameTable, notes: &mut Notes) -> Result<()> {
        let Some(item) = offset_table::basic_item(self.source, self.value, self.encoding)? else {
            notes.add(Note::no_fragments);
            return Ok(());
        };
        let is_video = part10::is_video(&table.transfer_syntax_uid);
        table.kind = if is_video { Kind::Video } else { Kind::Encapsulated };
        let mut tables = if is_video { Vec::new() } else { self.tables(item, notes)? };
        if self.verify != Verify::All
            && let Some((index, end)) = self.confirmed_at_ends(&tables, item, notes)?
        {
            let confirmed = tables.swap_remove(index);
            table.method = confirmed.method;
            table.verified = if self.verify == Verify::Ends { Verified::Ends } else { Verified::None };
            table.layout = Layout::Items(confirmed.into_items(end));
            table.set_status(None);
            return Ok(());
        }
        self.walk_and_group(item.base, &tables, table, notes)
    }

    /// The offset tables of the file that have the right count, best first.
    fn tables(&self, item: BasicItem, notes: &mut Notes) -> Result<Vec<OffsetTable>> {
        let mut tables = offset_table::candidates(self.source, self.header, item, self.encoding, notes)?;
        // The table of a TIFF is used only where the data set has none.
        if self.has_preamble && item.value.1 == 0 && self.header.extended_offsets.is_none() {
            let frames = self.header.attributes.number_of_frames;
            let (candidate, is_tiff) = tiff::read(self.source, frames)?;
            if candidate.is_none() && is_tiff && frames > 1 {
                notes.add(Note::tiff_rejected);
            }
            tables.extend(candidate);
        }
        Ok(tables)
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

    fn walk_and_group(
        &self,
        base: u64,
        tables: &[OffsetTable],
        table: &mut FrameTable,
        notes: &mut Notes,
    ) -> Result<()> {
        let source = self.source;
        let fragments = walk::walk(source, base, self.encoding, notes)?;
        table.verified = Verified::All;
        if fragments.is_empty() {
            notes.add(Note::no_fragments);
            table.kind = Kind::None;
            table.verified = Verified::None;
            reject(tables, notes);
            return Ok(());
        }
        let (ranges, method) = if table.kind == Kind::Video {
            (vec![(0, u32::try_from(fragments.len()).unwrap_or(u32::MAX))], Method::VideoStream)
        } else if let Some(found) = best_table(tables, &fragments, notes) {
            found
        } else {
            let frames = table.image.number_of_frames;
            grouping::group(source, &fragments, frames, &table.transfer_syntax_uid, notes)?
        };
        let may_lack = grouping::may_lack_fragments(source, &fragments, method)?;
        let (items, cut) = grouping::lay_out(&fragments, &ranges, may_lack);
        table.method = checked_lengths(tables, method, &items, cut, notes);
        table.layout = Layout::Items(items);
        table.set_status(cut);
        Ok(())
    }
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

//! DICOM files: from bytes to a [`FrameTable`], every rule of the standard that decides where a frame lies.
//!
//! The order of the modules is the order of the work: [`part10`] finds the data set, [`dataset`] walks it
//! to the pixels, then either [`native`] does the arithmetic, or [`offset_table`] is asked and checked,
//! [`fragments`] are walked and [`grouping`] decides which of them make a frame. What cannot be decided is
//! refused; what is odd but clear is accepted with a [`notes::Note`].

pub mod dataset;
pub mod element;
pub mod encapsulated;
pub mod inflate;
pub mod native;
pub mod part10;

use crate::frames::notes::{Note, Notes};
use dataset::Header;
use element::{Element, Encoding, Tag, UNDEFINED};
use encapsulated::offset_table::{self, LengthsAgree, OffsetTable};
use encapsulated::{fragments, grouping, tiff, walk};
use part10::Container;

use crate::base::error::Result;
use crate::base::source::{Access, Source};
use crate::base::window::{Buffer, Window};
use crate::frames::table::{FrameTable, Items, Kind, Layout, Method, OffsetsIn, Verified, Verify};

/// Parser version: stored with every row, so that a better parser re-reads what an older one wrote.
pub const PARSER_VERSION: u16 = 1;

/// Reads the frame table of one SOP Instance. `buffer` is scratch memory, kept from file to file.
///
/// # Errors
/// Every kind of [`crate::ErrorKind`] that the parser has; absence of pixels is no error.
pub fn read_table(source: &dyn Source, verify: Verify, buffer: &mut Buffer) -> Result<FrameTable> {
    let read = read_source(source, verify, buffer);
    if read.as_ref().is_err_and(|error| !error.kind.is_environment()) {
        // A file that is being written is not to be called malformed.
        source.check_unchanged()?;
    }
    read
}

fn read_source(source: &dyn Source, verify: Verify, buffer: &mut Buffer) -> Result<FrameTable> {
    let mut notes = Notes::default();
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut notes)?;
    let mut table =
        if part10::is_deflated(&container.transfer_syntax_uid) && container.dataset < source.size() {
            let inflated = inflate::inflate(source, container.dataset)?;
            let mut buffer = Buffer::default();
            let mut window = Window::new(&inflated, &mut buffer);
            let mut table = read_dataset(&mut window, &container, 0, verify, &mut notes)?;
            table.offsets_in = OffsetsIn::Inflated;
            table
        } else {
            read_dataset(&mut window, &container, container.dataset, verify, &mut notes)?
        };
    // The fingerprint is older than every read, so a change is found out later in any case; what one single
    // read returned cannot be a mixture of two states.
    if window.reads() > 1 || table.kind != Kind::Native {
        source.check_unchanged()?;
    }
    table.notes = notes;
    table.fingerprint = source.fingerprint();
    Ok(table)
}

fn read_dataset(
    window: &mut Window<'_>,
    container: &Container,
    start: u64,
    verify: Verify,
    notes: &mut Notes,
) -> Result<FrameTable> {
    let header = dataset::walk(window, start, container.encoding, notes)?;
    let mut table = FrameTable {
        transfer_syntax_uid: container.transfer_syntax_uid,
        image: header.attributes.clone(),
        pixel_data_pos: header.pixels.map(|pixels| pixels.position),
        ..FrameTable::default()
    };
    let Some(pixels) = header.pixels else { return Ok(table) };
    if is_encapsulated(window, &pixels, container, notes)? {
        window.source().advise(Access::Random);
        encapsulated(window.source(), &header, &pixels, container, verify, notes, &mut table)?;
    } else {
        let (layout, cut) = native::lay_out(&header, &pixels, window.size(), notes)?;
        if layout != Layout::Empty {
            table.kind = Kind::Native;
            table.method = Method::Native;
            table.verified = Verified::All;
            table.layout = layout;
            table.set_status(cut);
        }
    }
    Ok(table)
}

/// Encapsulation shows in the undefined length, whatever the transfer syntax claims (PS3.5 A.4).
fn is_encapsulated(
    window: &mut Window<'_>,
    pixels: &Element,
    container: &Container,
    notes: &mut Notes,
) -> Result<bool> {
    let native_syntax = part10::is_native(&container.transfer_syntax_uid);
    if pixels.length == UNDEFINED {
        if native_syntax {
            notes.add(Note::encapsulated_in_native_ts);
        }
        return Ok(true);
    }
    if native_syntax || pixels.length < 8 {
        return Ok(false);
    }
    let begins_with_item =
        window.array(pixels.value)?.is_some_and(|tag| container.encoding.tag(tag) == Tag::ITEM);
    // A private transfer syntax may well be native: only the standard's own are known not to be.
    if begins_with_item {
        notes.add(Note::encapsulated_with_defined_length);
    } else if container.transfer_syntax_uid.starts_with("1.2.840.10008.1.2.") {
        notes.add(Note::native_in_encapsulated_ts);
    }
    Ok(begins_with_item)
}

fn encapsulated(
    source: &dyn Source,
    header: &Header,
    pixels: &Element,
    container: &Container,
    verify: Verify,
    notes: &mut Notes,
    table: &mut FrameTable,
) -> Result<()> {
    let encoding = container.encoding;
    let frames = header.attributes.number_of_frames;
    let Some(item) = offset_table::basic_item(source, pixels.value, encoding)? else {
        notes.add(Note::no_fragments);
        return Ok(());
    };
    let is_video = part10::is_video(&container.transfer_syntax_uid);
    let mut tables =
        if is_video { Vec::new() } else { offset_table::candidates(source, header, item, encoding, notes)? };
    if !is_video && container.has_preamble && item.value.1 == 0 && header.extended_offsets.is_none() {
        add_tiff(source, frames, &mut tables, notes)?;
    }
    table.kind = if is_video { Kind::Video } else { Kind::Encapsulated };
    if verify != Verify::All {
        let mut believed = None;
        for (index, candidate) in tables.iter().enumerate() {
            if let Some(end) = candidate.check_ends(source, item.base, encoding, verify, notes)? {
                believed = Some((index, end));
                break;
            }
        }
        if let Some((index, end)) = believed {
            let believed = tables.swap_remove(index);
            table.method = believed.method;
            table.verified = if verify == Verify::Ends { Verified::Ends } else { Verified::None };
            table.layout = Layout::Items(believed.into_items(end));
            table.set_status(None);
            return Ok(());
        }
    }
    walk_and_group(source, item.base, &tables, is_video, encoding, notes, table)
}

/// The TIFF table counts only where the file has no table of its own.
fn add_tiff(
    source: &dyn Source,
    frames: u32,
    tables: &mut Vec<OffsetTable>,
    notes: &mut Notes,
) -> Result<()> {
    let (candidate, is_tiff) = tiff::read(source, frames)?;
    match candidate {
        Some(candidate) => tables.push(candidate),
        None if is_tiff && frames > 1 => notes.add(Note::tiff_rejected),
        None => {}
    }
    Ok(())
}

fn walk_and_group(
    source: &dyn Source,
    base: u64,
    tables: &[OffsetTable],
    is_video: bool,
    encoding: Encoding,
    notes: &mut Notes,
    table: &mut FrameTable,
) -> Result<()> {
    let fragments = walk::walk(source, base, encoding, notes)?;
    table.verified = Verified::All;
    if fragments.is_empty() {
        notes.add(Note::no_fragments);
        table.kind = Kind::None;
        table.verified = Verified::None;
        reject(tables, notes);
        return Ok(());
    }
    let (ranges, method) = if is_video {
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

/// The first table that holds against the walk; those before it are noted as rejected.
fn best_table(
    tables: &[OffsetTable],
    fragments: &fragments::Fragments,
    notes: &mut Notes,
) -> Option<(Vec<grouping::FragmentRange>, Method)> {
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

/// Lengths that a table declares are only checked: what is served are the items' own.
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

/// The frame's bytes: fragments joined, item headers stripped.
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

/// The same, but `None` where the table turns out to be wrong: it was not held against every Item.
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
                crate::base::source::read_exact(source, start, length)?
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
    let mut bytes = crate::base::source::read_exact(source, first, length)?;
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

//! DICOM files to [`FrameTable`]s: the rules of the standard that decide where a frame lies.
//!
//! [`part10`] finds the data set, [`dataset`] walks it to the pixels, then either [`native`] computes the
//! frames or [`encapsulated`] checks the offset tables, walks the fragments and groups them. [`read`] reads a
//! frame by its table. What cannot be decided is refused; what is odd but clear is accepted with a [`Note`].

pub mod dataset;
pub mod element;
pub mod encapsulated;
pub mod inflate;
pub mod native;
pub mod part10;
pub mod read;

use crate::base::error::Result;
use crate::base::source::{Access, Source};
use crate::base::window::{Buffer, Window};
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{FrameTable, Kind, Layout, Method, OffsetsIn, Verified, Verify};
use element::{Element, Tag, UNDEFINED};
use encapsulated::Encapsulated;
use part10::Container;

/// Parser version: stored with every row, so that a better parser re-reads what an older one wrote.
pub const PARSER_VERSION: u16 = 1;

/// Reads the frame table of one SOP Instance. `buffer` is scratch memory, reused from file to file.
///
/// # Errors
/// Every kind of [`crate::ErrorKind`] that the parser has; absence of pixels is no error.
pub fn read_table(source: &dyn Source, verify: Verify, buffer: &mut Buffer) -> Result<FrameTable> {
    let read = read_source(source, verify, buffer);
    if read.as_ref().is_err_and(|error| !error.kind.is_environment()) {
        // A file that is being written is not malformed.
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
        let pixels = Encapsulated {
            source: window.source(),
            header: &header,
            value: pixels.value,
            encoding: container.encoding,
            has_preamble: container.has_preamble,
            verify,
        };
        pixels.lay_out(&mut table, notes)?;
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

/// Whether the pixels are encapsulated: their length is undefined then, whatever the transfer syntax (PS3.5
/// A.4).
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

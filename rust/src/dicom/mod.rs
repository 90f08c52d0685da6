//! DICOM files to [`FrameTable`]s: the rules of the standard that decide where a frame lies.
//!
//! [`part10`] finds the data set, [`dataset`] walks it to the pixels, then either [`pixel_data::native`] computes the
//! frames or [`pixel_data::encapsulated`] checks the offset tables, walks the fragments and groups them. [`read`] reads a
//! frame by its table. What cannot be decided is refused; what is odd but clear is accepted with a [`Note`].

pub mod dataset;
pub mod element;
pub mod header;
pub mod inflate;
pub mod json;
pub mod part10;
pub mod pixel_data;
pub mod read;
pub mod slide;
pub mod values;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Access, Source, first_not_zero};
use crate::base::window::{Buffer, Window};
use crate::frames::attributes::{Attributes, Uid};
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{FrameTable, Kind, Layout, Method, OffsetsIn, Verified, Verify};
use element::{Element, Encoding, Tag, UNDEFINED};
use header::Header;
use part10::Container;
use pixel_data::behind;
use pixel_data::encapsulated::Encapsulated;
use pixel_data::native::{self, Doubt};

/// Parser version: stored with every row, so that a better parser re-reads what an older one wrote.
pub const PARSER_VERSION: u16 = 2;

/// Attempts to read a file whose rights, name or links change meanwhile.
const ATTEMPTS: usize = 8;

/// Reads the frame table of one SOP Instance. `buffer` is scratch memory, reused from file to file.
///
/// # Errors
/// Every kind of [`crate::ErrorKind`] that the parser has; absence of pixels is no error.
pub fn read_table(source: &dyn Source, verify: Verify, buffer: &mut Buffer) -> Result<FrameTable> {
    read_table_or_uids(source, verify, buffer, &mut None)
}

/// As [`read_table`]. Where the frames are refused, `uids` becomes what the file says before its pixels of the instance
/// that it holds: a table of UIDs alone.
///
/// # Errors
/// As [`read_table`].
pub fn read_table_or_uids(
    source: &dyn Source,
    verify: Verify,
    buffer: &mut Buffer,
    uids: &mut Option<FrameTable>,
) -> Result<FrameTable> {
    let mut read = read_state(source, verify, buffer, uids);
    for _ in 1..ATTEMPTS {
        // A file that was renamed, linked or given other rights meanwhile is read again, not refused.
        let has_changed = matches!(&read, Err(error) if error.kind == ErrorKind::ChangedDuringRead);
        let Some(renewed) = has_changed.then(|| source.renewed()).flatten() else { break };
        read = read_state(&*renewed, verify, buffer, uids);
    }
    read
}

/// Reads what one SOP Instance says of itself before its pixels, which are not looked at: a table without frames.
///
/// # Errors
/// As [`read_table`], of what stands before the pixels.
pub fn read_identity(source: &dyn Source, buffer: &mut Buffer) -> Result<FrameTable> {
    let mut notes = Notes::default();
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut notes)?;
    let header = if part10::is_deflated(&container.transfer_syntax_uid) && container.dataset < source.size() {
        let inflated = inflate::inflate(source, container.dataset)?;
        dataset::walk(&mut Window::new(&inflated, &mut Buffer::default()), 0, container.encoding, &mut notes)?
    } else {
        dataset::walk(&mut window, container.dataset, container.encoding, &mut notes)?
    };
    source.check_unchanged()?;
    Ok(FrameTable { fingerprint: source.fingerprint(), ..table_of(&header, &container) })
}

/// What a file lacks at its begin: see [`missing_begin`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begin {
    /// Bytes that go before the file's own.
    pub bytes: Vec<u8>,
    /// First byte of the file that follows them.
    pub start: u64,
}

/// What makes a file of PS3.10 7.1 out of one that lacks preamble, prefix or File Meta Information; nothing for most.
///
/// # Errors
/// As [`read_identity`].
pub fn missing_begin(source: &dyn Source, buffer: &mut Buffer, said: &FrameTable) -> Result<Begin> {
    // Nearly every file: six bytes tell, where all of the header would be read once more.
    let mut usual = [0; 6];
    if source.read_at(128, &mut usual)? == usual.len() && usual == *b"DICM\x02\0" {
        return Ok(Begin::default());
    }
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut Notes::default())?;
    let has_meta = container.dataset > container.start;
    if container.has_preamble && has_meta {
        return Ok(Begin::default());
    }
    let mut bytes = part10::preamble();
    if !has_meta {
        let class = sop_class(&mut window, container.dataset, &container)?;
        bytes.extend(part10::meta(&class, &said.image.sop_instance_uid, &said.transfer_syntax_uid));
    }
    Ok(Begin { bytes, start: container.start })
}

fn read_state(
    source: &dyn Source,
    verify: Verify,
    buffer: &mut Buffer,
    uids: &mut Option<FrameTable>,
) -> Result<FrameTable> {
    *uids = None;
    let mut said = None;
    let read = read_source(source, verify, buffer, &mut said);
    if read.as_ref().is_err_and(|error| !error.kind.is_environment()) {
        // A file that is being written is not malformed.
        source.check_unchanged()?;
        *uids = said;
    }
    read
}

fn read_source(
    source: &dyn Source,
    verify: Verify,
    buffer: &mut Buffer,
    uids: &mut Option<FrameTable>,
) -> Result<FrameTable> {
    let mut notes = Notes::default();
    let mut window = Window::new(source, buffer);
    let container = part10::open(&mut window, &mut notes)?;
    let mut table =
        if part10::is_deflated(&container.transfer_syntax_uid) && container.dataset < source.size() {
            let inflated = inflate::inflate(source, container.dataset)?;
            let mut buffer = Buffer::default();
            let mut window = Window::new(&inflated, &mut buffer);
            let mut table = read_dataset(&mut window, &container, 0, verify, &mut notes, uids)?;
            table.offsets_in = OffsetsIn::Inflated;
            table
        } else {
            read_dataset(&mut window, &container, container.dataset, verify, &mut notes, uids)?
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
    uids: &mut Option<FrameTable>,
) -> Result<FrameTable> {
    let mut header = dataset::walk(window, start, container.encoding, notes)?;
    let read = read_pixels(window, container, start, &mut header, verify, notes);
    if read.is_err() {
        *uids = Some(uids_of(&header, container));
    }
    read
}

/// Lays out the frames behind a header that was walked.
fn read_pixels(
    window: &mut Window<'_>,
    container: &Container,
    start: u64,
    header: &mut Header,
    verify: Verify,
    notes: &mut Notes,
) -> Result<FrameTable> {
    if let Some(fault) = header.fault.take() {
        return Err(fault);
    }
    let Some(pixels) = header.pixels else {
        check_without_pixels(window, start, header, container, notes)?;
        return Ok(table_of(header, container));
    };
    let encoding = container.encoding;
    if is_encapsulated(window, &pixels, container, notes)? {
        check_size(header, &pixels)?;
        window.source().advise(Access::Random);
        let mut table = table_of(header, container);
        let value = Encapsulated {
            source: window.source(),
            header,
            value: pixels.value,
            encoding,
            has_preamble: container.has_preamble,
            verify,
        };
        if let Some(end) = value.lay_out(&mut table, notes)? {
            behind::check(window.source(), end, encoding)?;
        }
        return Ok(table);
    }
    let doubt = doubt_of(window, &pixels, container, notes)?;
    let (layout, cut) = native::lay_out(header, &pixels, window.size(), doubt, notes)?;
    let mut table = table_of(header, container);
    let end = pixels.value + u64::from(pixels.length);
    if layout == Layout::Empty {
        check_nothing_follows(window.source(), end, encoding, &pixels)?;
    } else {
        table.kind = Kind::Native;
        table.method = Method::Native;
        table.verified = Verified::All;
        table.layout = layout;
        table.set_status(cut);
    }
    behind::check(window.source(), end, encoding)?;
    Ok(table)
}

fn uids_of(header: &Header, container: &Container) -> FrameTable {
    let said = &header.attributes;
    FrameTable {
        transfer_syntax_uid: container.transfer_syntax_uid,
        image: Attributes {
            sop_instance_uid: said.sop_instance_uid,
            study_instance_uid: said.study_instance_uid,
            series_instance_uid: said.series_instance_uid,
            ..Attributes::ABSENT
        },
        ..FrameTable::default()
    }
}

fn table_of(header: &Header, container: &Container) -> FrameTable {
    FrameTable {
        transfer_syntax_uid: container.transfer_syntax_uid,
        image: header.attributes.clone(),
        pixel_data_pos: header.pixels.map(|pixels| pixels.position),
        ..FrameTable::default()
    }
}

/// A data set may have no pixels; an image that ends before its pixels, or a walk that may have passed them,
/// is no such data set.
fn check_without_pixels(
    window: &mut Window<'_>,
    start: u64,
    header: &Header,
    container: &Container,
    notes: &Notes,
) -> Result<()> {
    let image = &header.attributes;
    if notes.has(Note::pixel_data_url) {
        return Ok(());
    }
    let sop_class = sop_class(window, start, container)?;
    let why = if image.rows > 0 && image.columns > 0 && *sop_class != *values::MR_SPECTROSCOPY {
        "the data set has Rows and Columns and ends without Pixel Data"
    } else if values::is_image_class(&sop_class) {
        "the SOP Class is one of images and the data set ends without Pixel Data"
    } else if notes.has(Note::implicit_element_in_explicit) || notes.has(Note::stray_delimiter) {
        "no Pixel Data was found, and an element before may have a wrong length"
    } else {
        return Ok(());
    };
    Err(Error::at(ErrorKind::MissingPixelData, window.size(), why))
}

/// The SOP Class: that of the data set, or where it ends before it, of the meta information.
fn sop_class(window: &mut Window<'_>, start: u64, container: &Container) -> Result<Uid> {
    let of_data_set = dataset::sop_class(window, start, container.encoding)?;
    Ok(of_data_set.unwrap_or_else(|| values::uid_of(&container.media_storage_class)))
}

/// Pixel Data of length 0 is an image without pixels only where nothing follows that could be them.
fn check_nothing_follows(source: &dyn Source, end: u64, encoding: Encoding, pixels: &Element) -> Result<()> {
    if end < source.size()
        && !behind::is_element(source, end, encoding)?
        && first_not_zero(source, end)?.is_some()
    {
        let detail = "Pixel Data has length 0, and bytes that are no element follow it";
        return Err(Error::at(ErrorKind::MissingPixelData, pixels.position, detail));
    }
    Ok(())
}

/// An image has a size, compressed or not (PS3.3 C.7.6.3).
fn check_size(header: &Header, pixels: &Element) -> Result<()> {
    let image = &header.attributes;
    if image.rows > 0 && image.columns > 0 {
        return Ok(());
    }
    let detail = format!("Rows {}, Columns {}: an image has no size", image.rows, image.columns);
    Err(Error::at(ErrorKind::MissingImageAttributes, pixels.position, detail))
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
    let is_encapsulated = !native_syntax && begins_with_item(window, pixels, container)?;
    if is_encapsulated {
        notes.add(Note::encapsulated_with_defined_length);
    }
    Ok(is_encapsulated)
}

fn begins_with_item(window: &mut Window<'_>, pixels: &Element, container: &Container) -> Result<bool> {
    let tag = if pixels.length < 8 { None } else { window.array(pixels.value)? };
    Ok(tag.is_some_and(|tag| container.encoding.tag(tag) == Tag::ITEM))
}

/// Why a value of defined length may be no native pixels.
fn doubt_of(
    window: &mut Window<'_>,
    pixels: &Element,
    container: &Container,
    notes: &mut Notes,
) -> Result<Doubt> {
    let is_native = part10::is_native(&container.transfer_syntax_uid);
    // A private transfer syntax may well be native: only the standard's own are known not to be.
    let is_compressed = !is_native && container.transfer_syntax_uid.starts_with("1.2.840.10008.1.2.");
    if is_compressed && pixels.length > 0 {
        notes.add(Note::native_in_encapsulated_ts);
    }
    let has_pixel_vr = matches!(&pixels.vr, b"OB" | b"OW" | b"OF" | b"OD" | b"UN");
    let unless_exact = if is_compressed {
        Some("the transfer syntax is compressed but the value has a defined length and no Items")
    } else if begins_with_item(window, pixels, container)? {
        Some("the value begins as an Item does but the transfer syntax is not compressed")
    } else if container.encoding.explicit && !has_pixel_vr {
        Some("Pixel Data has a VR that is none of pixels")
    } else {
        None
    };
    let swaps_words = container.encoding.big_endian && pixels.vr == *b"OW";
    Ok(Doubt { unless_exact, swaps_words })
}

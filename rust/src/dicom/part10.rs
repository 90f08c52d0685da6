//! The container around a data set: preamble, File Meta Information, transfer syntax (PS3.10 7).

use arrayvec::ArrayVec;

use super::element::{Element, Encoding, sniff};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use crate::frames::attributes::Uid;
use crate::frames::notes::{Note, Notes};

/// The place of the data set and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// First byte behind the preamble and its prefix, where there are any.
    pub start: u64,
    /// First byte of the data set.
    pub dataset: u64,
    /// How its elements are written, which is not always as declared.
    pub encoding: Encoding,
    /// Transfer Syntax UID; guessed, with a note, where none is declared.
    pub transfer_syntax_uid: Uid,
    /// Whether the file begins with a preamble of 128 bytes.
    pub has_preamble: bool,
    /// Media Storage SOP Class UID as it is written, padding included; empty where absent or too long.
    pub media_storage_class: ClassBytes,
}

/// What group 0002 says.
#[derive(Default)]
struct Meta {
    /// First byte after it.
    end: u64,
    transfer_syntax_uid: Uid,
    media_storage_class: ClassBytes,
}

/// A UID whose characters were not looked at: most files are read without need of it.
pub type ClassBytes = ArrayVec<u8, 64>;

/// Who wrote the File Meta Information (0002,0012): this package, by a UID made of a random number (PS3.5 B.2).
const IMPLEMENTATION: &str = "2.25.331181360247299709498519442474914381118";

/// A preamble and its prefix (PS3.10 7.1).
pub fn preamble() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM");
    bytes
}

/// File Meta Information of an instance (PS3.10 7.1).
pub fn meta(class: &str, instance: &str, transfer_syntax: &str) -> Vec<u8> {
    let element = |number: u8, vr: &[u8; 2], long: bool, value: &[u8]| {
        let length = value.len().next_multiple_of(2);
        let mut bytes = vec![2, 0, number, 0];
        bytes.extend(vr);
        bytes.extend(if long { vec![0, 0] } else { Vec::new() });
        bytes.extend(length.to_le_bytes().iter().take(if long { 4 } else { 2 }));
        bytes.extend(value);
        bytes.resize(bytes.len() + length - value.len(), 0);
        bytes
    };
    let mut rest = element(0x01, b"OB", true, &[0, 1]);
    for (number, uid) in [(0x02, class), (0x03, instance), (0x10, transfer_syntax), (0x12, IMPLEMENTATION)] {
        rest.extend(element(number, b"UI", false, uid.as_bytes()));
    }
    let mut bytes = element(0x00, b"UL", false, &(rest.len() as u32).to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// The kind of archive that begins so.
fn archive(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some("ZIP archive"),
        [0x1F, 0x8B, ..] => Some("gzip file"),
        [b'7', b'z', 0xBC, 0xAF, ..] => Some("7z archive"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some("Zstandard file"),
        _ => (bytes.get(257..262) == Some(b"ustar")).then_some("tar archive"),
    }
}

/// Finds the data set. Accepts files without preamble, without meta information, or with neither.
pub fn open(window: &mut Window<'_>, notes: &mut Notes) -> Result<Container> {
    let size = window.size();
    if size == 0 {
        return Err(Error::new(ErrorKind::Empty, "0 bytes"));
    }
    let (start, has_preamble) = first_element(window, notes)?;
    let at_start = window.array::<8>(start)?;
    let is_meta = at_start.is_some_and(|[a, b, ..]| [a, b] == [2, 0]);
    let meta =
        if is_meta { read_meta(window, start, notes)? } else { Meta { end: start, ..Meta::default() } };
    let (dataset, declared) = (meta.end, meta.transfer_syntax_uid);
    if dataset >= size {
        notes.add(Note::no_dataset);
    }
    let rest = size.saturating_sub(dataset);
    let found = if is_deflated(&declared) { None } else { sniff(window.peek(dataset, 8)?, rest) };
    if !is_meta && !has_preamble && found.is_none() {
        let detail = match archive(window.peek(0, 512)?) {
            Some(name) => format!("a {name}, which is not read: unpack it, and name the files in it"),
            None => "no DICM prefix and no data element at the start".to_owned(),
        };
        return Err(Error::at(ErrorKind::NotDicom, dataset, detail));
    }
    let transfer_syntax_uid = if declared.is_empty() && rest > 0 { guess(found, notes) } else { declared };
    let expected = encoding_of(&transfer_syntax_uid);
    let encoding = found.unwrap_or(expected);
    if encoding.explicit != expected.explicit {
        notes.add(Note::vr_mode_differs_from_ts);
    }
    if encoding.big_endian != expected.big_endian {
        notes.add(Note::endianness_differs_from_ts);
    }
    let media_storage_class = meta.media_storage_class;
    Ok(Container { start, dataset, encoding, transfer_syntax_uid, has_preamble, media_storage_class })
}

/// Offset of the first element, and whether a preamble precedes it.
fn first_element(window: &mut Window<'_>, notes: &mut Notes) -> Result<(u64, bool)> {
    let size = window.size();
    let at_zero = sniff(window.peek(0, 8)?, size).is_some();
    if window.peek(128, 4)? == b"DICM" {
        let after = window.peek(132, 8)?;
        let meta_follows = after.starts_with(&[2, 0]);
        let something_follows = meta_follows || sniff(after, size.saturating_sub(132)).is_some();
        // Pixels or text may spell DICM at 128 in a file without preamble.
        if meta_follows || (something_follows && !begins_a_dataset(window)?) || !at_zero {
            return Ok((132, true));
        }
        notes.add(Note::dicm_inside_data);
    }
    if window.peek(0, 4)? == b"DICM" {
        notes.add(Note::dicm_without_preamble);
        return Ok((4, false));
    }
    notes.add(Note::no_preamble);
    Ok((0, false))
}

/// Whether the first bytes are an element of a group that files without preamble begin with.
fn begins_a_dataset(window: &mut Window<'_>) -> Result<bool> {
    Ok(matches!(window.peek(0, 2)?, [2 | 8, 0] | [0, 8]))
}

/// Walks group 0002, never trusting its declared length.
fn read_meta(window: &mut Window<'_>, start: u64, notes: &mut Notes) -> Result<Meta> {
    let first = window.peek(start, 6)?;
    let explicit = first.get(4..6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
    if !explicit {
        notes.add(Note::implicit_group2);
    }
    let encoding = Encoding { explicit, big_endian: false };
    let mut position = start;
    let mut declared_end = None;
    let mut transfer_syntax_uid = Uid::new();
    let mut media_storage_class = ClassBytes::new();
    loop {
        let bytes = window.peek(position, 8)?;
        if bytes.is_empty() || !bytes.starts_with(&[2, 0]) {
            break;
        }
        let element = Element::read(window, position, encoding, notes)?;
        let Some((element, end)) =
            element.and_then(|e| Some((e, e.end()?))).filter(|(_, end)| *end <= window.size())
        else {
            let detail = "the file ends inside its File Meta Information";
            return Err(Error::at(ErrorKind::TruncatedMeta, position, detail));
        };
        match element.tag.0 {
            0x0002_0000 if element.length == 4 => {
                let length = window.array(element.value)?.map_or(0, u32::from_le_bytes);
                declared_end = Some(end.saturating_add(u64::from(length)));
            }
            0x0002_0002 if element.length <= 64 => {
                let value = window.peek(element.value, element.length as usize)?;
                media_storage_class = value.iter().copied().collect();
            }
            0x0002_0010 if element.length <= 64 => {
                let value = window.peek(element.value, element.length as usize)?;
                transfer_syntax_uid.clear();
                for &byte in value.iter().filter(|&&byte| byte.is_ascii_digit() || byte == b'.') {
                    let _ = transfer_syntax_uid.try_push(char::from(byte)); // at most 64, as checked above
                }
            }
            _ => {}
        }
        position = end;
    }
    if declared_end.is_some_and(|declared| declared > window.size()) && position >= window.size() {
        let detail = "the file ends inside its File Meta Information";
        return Err(Error::at(ErrorKind::TruncatedMeta, position, detail));
    }
    if declared_end.is_some_and(|declared| declared != position) {
        notes.add(Note::wrong_group_length);
    }
    Ok(Meta { end: position, transfer_syntax_uid, media_storage_class })
}

fn guess(found: Option<Encoding>, notes: &mut Notes) -> Uid {
    let (note, uid) = match found {
        Some(Encoding { explicit: true, big_endian: false }) => {
            (Note::ts_guessed_explicit_le, "1.2.840.10008.1.2.1")
        }
        Some(Encoding { big_endian: true, .. }) => (Note::ts_guessed_explicit_be, "1.2.840.10008.1.2.2"),
        _ => (Note::ts_guessed_implicit_le, "1.2.840.10008.1.2"),
    };
    notes.add(note);
    Uid::from(uid).unwrap_or_default()
}

/// How a transfer syntax writes its elements; unknown ones are explicit little endian (PS3.5 A.4).
fn encoding_of(transfer_syntax_uid: &str) -> Encoding {
    match transfer_syntax_uid {
        // GE's private syntax differs from Implicit VR Little Endian only in its pixels.
        "1.2.840.10008.1.2" | "1.2.840.113619.5.2" => Encoding::IMPLICIT_LE,
        "1.2.840.10008.1.2.2" => Encoding { explicit: true, big_endian: true },
        _ => Encoding::EXPLICIT_LE,
    }
}

/// Whether everything after group 0002 is one deflate stream (PS3.5 A.5; JPIP variants A.7, A.9).
pub fn is_deflated(transfer_syntax_uid: &str) -> bool {
    matches!(
        transfer_syntax_uid,
        "1.2.840.10008.1.2.1.99" | "1.2.840.10008.1.2.4.95" | "1.2.840.10008.1.2.4.205"
    )
}

/// Whether the pixels are one stream for all frames (PS3.5 8.2.5 to 8.2.8).
pub fn is_video(transfer_syntax_uid: &str) -> bool {
    let Some(rest) = transfer_syntax_uid.strip_prefix("1.2.840.10008.1.2.4.") else { return false };
    let number = rest.strip_suffix(".1").unwrap_or(rest);
    matches!(number, "100" | "101" | "102" | "103" | "104" | "105" | "106" | "107" | "108")
}

/// Whether each frame begins with an image marker: the JPEG families (PS3.5 8.2.1 to 8.2.4 and 8.2.14).
pub fn has_markers(transfer_syntax_uid: &str) -> bool {
    transfer_syntax_uid.starts_with("1.2.840.10008.1.2.4.") && !is_video(transfer_syntax_uid)
}

/// Whether each frame ends with FFD9: those families but for JPEG XL (ISO 10918-1 B.1.1, 15444-1 A.4.4).
pub fn has_end_marker(transfer_syntax_uid: &str) -> bool {
    has_markers(transfer_syntax_uid) && !transfer_syntax_uid.starts_with("1.2.840.10008.1.2.4.11")
}

/// Whether fragments carry no image marker: RLE, encapsulated uncompressed, deflated image frame.
pub fn has_no_markers(transfer_syntax_uid: &str) -> bool {
    matches!(transfer_syntax_uid, "1.2.840.10008.1.2.5" | "1.2.840.10008.1.2.1.98" | "1.2.840.10008.1.2.8.1")
}

/// Whether the standard stores pixels of this transfer syntax natively (PS3.5 A.1 to A.3, A.5).
pub fn is_native(transfer_syntax_uid: &str) -> bool {
    matches!(
        transfer_syntax_uid,
        "1.2.840.10008.1.2"
            | "1.2.840.10008.1.2.1"
            | "1.2.840.10008.1.2.1.99"
            | "1.2.840.10008.1.2.2"
            | "1.2.840.113619.5.2"
    )
}

//! Walks over a data set up to its pixels: element by element, without search and without recursion.

use arrayvec::ArrayString;

use super::element::{Element, Encoding, Tag, UNDEFINED, hop};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use crate::frames::attributes::{Attributes, Code, Uid};
use crate::frames::notes::{Note, Notes};

/// Deepest nesting of sequences that is followed; real files stay below 20.
const DEEPEST: usize = 256;
/// Text values that we read are short by their VR (UI 64, CS 16, IS 12); more is not what it claims.
const LONGEST_TEXT: u32 = 128;

/// A value's place: absolute offset and declared length.
pub type Place = (u64, u32);

/// The header of a data set: attributes, and the places of pixels and tables.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Identity and image attributes.
    pub attributes: Attributes,
    /// The pixel element, its value not looked at.
    pub pixels: Option<Element>,
    /// Extended Offset Table (7FE0,0001).
    pub extended_offsets: Option<Place>,
    /// Extended Offset Table Lengths (7FE0,0002).
    pub extended_lengths: Option<Place>,
}

/// An open sequence or item of undefined length; those of defined length are skipped in one step.
#[derive(Clone, Copy)]
enum Level {
    Sequence(Encoding),
    Item(Encoding),
}

/// Walks from `start` to the first top-level pixel element or to the end.
pub fn walk(window: &mut Window<'_>, start: u64, encoding: Encoding, notes: &mut Notes) -> Result<Header> {
    let mut header = Header::default();
    let mut position = start;
    let mut previous = Tag(0);
    loop {
        if encoding == Encoding::EXPLICIT_LE {
            position += hop(window.at_hand(position), &mut previous, next_of_interest) as u64;
        }
        let Some(element) = next_element(window, position, encoding, notes)? else { return Ok(header) };
        let Element { tag, value, length, .. } = element;
        if tag.group() != 0xFFFE {
            if tag <= previous {
                notes.add(Note::tags_not_ascending);
            }
            previous = tag;
        }
        match tag.0 {
            0x7FE0_0008..=0x7FE0_0010 => {
                header.pixels = Some(element);
                return Ok(header);
            }
            0x7FE0_0001 if length != UNDEFINED => header.extended_offsets = Some((value, length)),
            0x7FE0_0002 if length != UNDEFINED => header.extended_lengths = Some((value, length)),
            _ => {}
        }
        position = match element.end() {
            _ if tag.group() == 0xFFFE => {
                notes.add(Note::stray_delimiter);
                value
            }
            None => skip_undefined(window, &element, encoding, notes)?,
            Some(end) if end > window.size() => return Err(past_end(&element, window.size())),
            Some(end) => {
                read_attribute(window, &element, encoding, &mut header.attributes, notes)?;
                end
            }
        };
    }
}

/// The first tag from `tag` on that [`walk`] or [`read_attribute`] looks at.
#[inline]
fn next_of_interest(tag: Tag) -> Tag {
    const OF_INTEREST: [u32; 11] = [
        0x0008_0018,
        0x0020_000D,
        0x0020_000E,
        0x0028_0002,
        0x0028_0004,
        0x0028_0008,
        0x0028_0010,
        0x0028_0011,
        0x0028_0100,
        0x0028_7FE0,
        0x7FE0_0000,
    ];
    Tag(OF_INTEREST.into_iter().find(|&next| next >= tag.0).unwrap_or(tag.0))
}

/// Reads the next top-level element; `None` at the end of the data set.
fn next_element(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Option<Element>> {
    let rest = window.peek(position, 8)?;
    let is_padding = !rest.is_empty() && rest.iter().all(|&byte| byte == 0);
    if is_padding {
        notes.add(Note::trailing_bytes);
    }
    if rest.is_empty() || is_padding {
        return Ok(None);
    }
    match Element::read(window, position, encoding, notes)? {
        Some(element) => Ok(Some(element)),
        None => Err(header_cut(position)),
    }
}

fn header_cut(position: u64) -> Error {
    Error::at(ErrorKind::TruncatedHeader, position, "the file ends inside an element header or sequence")
}

fn past_end(element: &Element, size: u64) -> Error {
    let detail = format!("{} declares {} bytes, but the file has {size} bytes", element.tag, element.length);
    Error::at(ErrorKind::ValuePastEnd, element.position, detail)
}

/// Skips a value of undefined length and returns the first byte after its delimiter.
fn skip_undefined(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<u64> {
    let mut levels = vec![Level::Sequence(inside(window, element, encoding, notes)?)];
    let mut position = element.value;
    while let Some(level) = {
        position += hop_nested(window.at_hand(position), &mut levels) as u64;
        levels.last()
    } {
        position = match *level {
            Level::Sequence(encoding) => step_in_sequence(window, position, encoding, &mut levels, notes)?,
            Level::Item(encoding) => step_in_item(window, position, encoding, &mut levels, notes)?,
        };
        if levels.len() > DEEPEST {
            let detail = format!("sequences nest deeper than {DEEPEST} levels, the limit of this parser");
            return Err(Error::at(ErrorKind::NestingTooDeep, position, detail));
        }
    }
    Ok(position)
}

/// The encoding inside a value of undefined length: a UN of undefined length holds Implicit VR Little
/// Endian in any data set (PS3.5 6.2.2, CP-246), unless its writer ignored that rule.
fn inside(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Encoding> {
    match &element.vr {
        b"UN" => {
            let first = window.peek(element.value, 16)?;
            let explicit = first.len() == 16
                && first.get(4..8) != Some(&[0; 4])
                && first.get(12..14).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
            if explicit {
                notes.add(Note::un_undefined_length_explicit_inside);
            }
            Ok(if explicit { Encoding::EXPLICIT_LE } else { Encoding::IMPLICIT_LE })
        }
        b"SQ" | [0, 0] => Ok(encoding),
        _ => {
            notes.add(Note::undefined_length_on_vr);
            Ok(encoding)
        }
    }
}

/// Skips items and their elements within `bytes`: explicit little endian, known VR, defined length,
/// delimiters in their places. Returns the number of bytes skipped; `levels` is updated.
fn hop_nested(bytes: &[u8], levels: &mut Vec<Level>) -> usize {
    let mut at: usize = 0;
    while let Some(&level) = levels.last()
        && let Some(&[a, b, c, d, length @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>())
    {
        let tag = Encoding::EXPLICIT_LE.tag([a, b, c, d]);
        let size = match (level, tag) {
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::ITEM) if length == [0xFF; 4] => {
                if levels.len() >= DEEPEST {
                    return at;
                }
                levels.push(Level::Item(Encoding::EXPLICIT_LE));
                8
            }
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::ITEM) => {
                8_usize.saturating_add(u32::from_le_bytes(length) as usize)
            }
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::SEQUENCE_DELIMITATION)
            | (Level::Item(Encoding::EXPLICIT_LE), Tag::ITEM_DELIMITATION) => {
                levels.pop();
                8
            }
            (Level::Item(Encoding::EXPLICIT_LE), _) => {
                match hop(bytes.get(at..).unwrap_or_default(), &mut Tag(0), |_| Tag::ITEM) {
                    0 => return at,
                    size => size,
                }
            }
            _ => return at,
        };
        match at.checked_add(size) {
            Some(next) if next <= bytes.len() => at = next,
            _ => return at,
        }
    }
    at
}

#[inline]
fn step_in_sequence(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    levels: &mut Vec<Level>,
    notes: &mut Notes,
) -> Result<u64> {
    let Some(item) = Element::read(window, position, encoding, notes)? else {
        return Err(header_cut(position));
    };
    match item.tag {
        Tag::ITEM => match item.end() {
            None => {
                levels.push(Level::Item(encoding));
                Ok(item.value)
            }
            Some(end) if end > window.size() => Err(past_end(&item, window.size())),
            Some(end) => Ok(end),
        },
        Tag::SEQUENCE_DELIMITATION | Tag::ITEM_DELIMITATION => {
            if item.tag == Tag::ITEM_DELIMITATION {
                notes.add(Note::item_delim_instead_of_seq_delim);
            }
            levels.pop();
            Ok(item.value)
        }
        tag => Err(Error::at(ErrorKind::BadItemTag, position, format!("found {tag}, where an Item must be"))),
    }
}

#[inline]
fn step_in_item(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    levels: &mut Vec<Level>,
    notes: &mut Notes,
) -> Result<u64> {
    let Some(element) = Element::read(window, position, encoding, notes)? else {
        return Err(header_cut(position));
    };
    match element.tag {
        Tag::ITEM_DELIMITATION => {
            levels.pop();
            Ok(element.value)
        }
        Tag::SEQUENCE_DELIMITATION => {
            notes.add(Note::seq_delim_instead_of_item_delim);
            levels.pop();
            levels.pop();
            Ok(element.value)
        }
        Tag::ITEM => Err(Error::at(ErrorKind::BadItemTag, position, "an Item is directly inside an Item")),
        _ => match element.end() {
            None => {
                let encoding = inside(window, &element, encoding, notes)?;
                levels.push(Level::Sequence(encoding));
                Ok(element.value)
            }
            Some(end) if end > window.size() => Err(past_end(&element, window.size())),
            Some(end) => Ok(end),
        },
    }
}

fn read_attribute(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    to: &mut Attributes,
    notes: &mut Notes,
) -> Result<()> {
    match element.tag.0 {
        0x0008_0018 => to.sop_instance_uid = uid(window, element)?,
        0x0020_000D => to.study_instance_uid = uid(window, element)?,
        0x0020_000E => to.series_instance_uid = uid(window, element)?,
        0x0028_0002 => to.samples_per_pixel = short(window, element, encoding)?.max(1),
        0x0028_0004 => to.photometric_interpretation = code(window, element)?,
        0x0028_0008 => to.number_of_frames = number_of_frames(text(window, element)?, element, notes),
        0x0028_0010 => to.rows = number(window, element, encoding)?,
        0x0028_0011 => to.columns = number(window, element, encoding)?,
        0x0028_0100 => to.bits_allocated = short(window, element, encoding)?,
        0x0028_7FE0 => notes.add(Note::pixel_data_url),
        _ => {}
    }
    Ok(())
}

/// A text value without its padding; empty where it is longer than any value of its kind.
fn text<'w>(window: &'w mut Window<'_>, element: &Element) -> Result<&'w [u8]> {
    if element.length > LONGEST_TEXT {
        return Ok(&[]);
    }
    let mut bytes = window.peek(element.value, element.length as usize)?;
    while let [b' ' | 0, rest @ ..] | [rest @ .., b' ' | 0] = bytes {
        bytes = rest;
    }
    Ok(bytes)
}

/// What is not digits and dots up to 64 characters is no UID and is dropped.
fn uid(window: &mut Window<'_>, element: &Element) -> Result<Uid> {
    let bytes = text(window, element)?;
    Ok(only(bytes, |byte| byte.is_ascii_digit() || byte == b'.'))
}

/// What is no Code String is dropped, for it could be anything, a name or a NUL.
fn code(window: &mut Window<'_>, element: &Element) -> Result<Code> {
    let bytes = text(window, element)?;
    Ok(only(bytes, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b" _".contains(&byte)))
}

/// The text, if it is short enough and made of nothing but what is allowed.
fn only<const N: usize>(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> ArrayString<N> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.bytes().all(allowed));
    text.and_then(|text| ArrayString::from(text).ok()).unwrap_or_default()
}

/// US, or UL where a writer used it.
fn number(window: &mut Window<'_>, element: &Element, encoding: Encoding) -> Result<u32> {
    Ok(match element.length {
        2 => window.array(element.value)?.map_or(0, |bytes| u32::from(encoding.u16(bytes))),
        4.. => window.array(element.value)?.map_or(0, |bytes| match element.vr {
            [b'U', b'L'] | [b'S', b'L'] => encoding.u32(bytes),
            [_, _] => {
                let [a, b, _, _] = bytes;
                u32::from(encoding.u16([a, b]))
            }
        }),
        _ => 0,
    })
}

fn short(window: &mut Window<'_>, element: &Element, encoding: Encoding) -> Result<u16> {
    Ok(u16::try_from(number(window, element, encoding)?).unwrap_or(0))
}

/// Number of Frames is text (IS, PS3.5 6.2): padded by spaces or NUL, possibly signed.
fn number_of_frames(text: &[u8], element: &Element, notes: &mut Notes) -> u32 {
    if text.is_empty() {
        notes.add(if element.length > LONGEST_TEXT {
            Note::bad_number_of_frames
        } else {
            Note::number_of_frames_empty
        });
        return 1;
    }
    match std::str::from_utf8(text).map(str::parse::<u32>) {
        Ok(Ok(0)) => {
            notes.add(Note::number_of_frames_zero);
            1
        }
        Ok(Ok(number)) if i32::try_from(number).is_ok() => number,
        _ => {
            notes.add(Note::bad_number_of_frames);
            1
        }
    }
}

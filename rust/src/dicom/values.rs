//! Values that are read on the way to the pixels: texts, numbers, and how many frames there are.

use arrayvec::ArrayString;

use super::element::{Element, Encoding};
use super::header::{FrameCount, Header};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use crate::frames::attributes::{Code, Uid};
use crate::frames::notes::{Note, Notes};

/// Text values that we read are short by their VR (UI 64, CS 16, IS 12); more is not what it claims.
const LONGEST_TEXT: u32 = 128;

/// Reads the value of an element that a table keeps or that tells how the pixels lie.
///
/// # Errors
/// `missing_image_attributes` for a Samples per Pixel that is no number of two bytes.
pub fn read(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    header: &mut Header,
    notes: &mut Notes,
) -> Result<()> {
    let to = &mut header.attributes;
    match element.tag.0 {
        0x0008_0018 => to.sop_instance_uid = uid(window, element)?,
        0x0020_000D => to.study_instance_uid = uid(window, element)?,
        0x0020_000E => to.series_instance_uid = uid(window, element)?,
        0x0028_0002 => {
            to.samples_per_pixel = samples_per_pixel(window, element, encoding)?;
            header.has_samples = true;
        }
        0x0028_0004 => to.photometric_interpretation = code(window, element)?,
        0x0028_0008 => {
            header.frame_count = frame_count(window, element, encoding, notes)?;
            to.number_of_frames = header.frame_count.or_one();
        }
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
    Ok(without_padding(window.peek(element.value, element.length as usize)?))
}

fn without_padding(text: &[u8]) -> &[u8] {
    let mut bytes = text;
    while let [b' ' | 0, rest @ ..] | [rest @ .., b' ' | 0] = bytes {
        bytes = rest;
    }
    bytes
}

/// What is not digits and dots up to 64 characters is no UID and is dropped.
pub fn uid(window: &mut Window<'_>, element: &Element) -> Result<Uid> {
    text(window, element).map(uid_of)
}

/// As [`uid`], of bytes that were read already.
pub fn uid_of(bytes: &[u8]) -> Uid {
    only(without_padding(bytes), |byte| byte.is_ascii_digit() || byte == b'.')
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

/// A value of another length than two bytes, empty too, is no number (PS3.3 C.7.6.3.1.1).
fn samples_per_pixel(window: &mut Window<'_>, element: &Element, encoding: Encoding) -> Result<u16> {
    match (element.length, &element.vr) {
        (2, _) | (4, b"UL" | b"SL") => Ok(short(window, element, encoding)?.max(1)),
        (length, _) => {
            let detail = format!("Samples per Pixel has {length} bytes, must have 2");
            Err(Error::at(ErrorKind::MissingImageAttributes, element.position, detail))
        }
    }
}

/// Number of Frames is text (IS, PS3.5 6.2). Other programs also write a binary number, decimals, tabs or
/// newlines; what begins with an integer means that integer.
fn frame_count(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<FrameCount> {
    if element.length > LONGEST_TEXT {
        notes.add(Note::bad_number_of_frames);
        return Ok(FrameCount::Unusable);
    }
    let bytes = window.peek(element.value, element.length as usize)?;
    if let Some(number) = binary_number(bytes, element, encoding) {
        notes.add(Note::number_of_frames_unusual);
        return Ok(counted(Some(number), notes));
    }
    let is_pad = |byte: &u8| b" \0\t\r\n".contains(byte);
    let Some(first) = bytes.iter().position(|byte| !is_pad(byte)) else {
        notes.add(Note::number_of_frames_empty);
        return Ok(FrameCount::Absent);
    };
    let (before, text) = bytes.split_at(first);
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    // A NUL ends a text: for other readers one that begins with it says nothing.
    let is_other = before.contains(&0) || matches!(rest, [b'e' | b'E', ..]);
    if !before.iter().chain(rest).all(|byte| b" \0".contains(byte)) {
        notes.add(Note::number_of_frames_unusual);
    }
    Ok(counted(number.filter(|_| !is_other), notes))
}

/// A number that was written as bytes although it must be text: by its VR, or where the bytes are no text.
fn binary_number(bytes: &[u8], element: &Element, encoding: Encoding) -> Option<u32> {
    let is_text = bytes.iter().all(|byte| (b' '..=b'~').contains(byte) || b"\0\t\r\n".contains(byte));
    let is_number =
        matches!(&element.vr, b"US" | b"UL" | b"SL" | b"SS") || (element.vr == [0, 0] && !is_text);
    match *bytes {
        [a, b] if is_number => Some(u32::from(encoding.u16([a, b]))),
        [a, b, c, d] if is_number => Some(encoding.u32([a, b, c, d])),
        _ => None,
    }
}

fn counted(number: Option<u32>, notes: &mut Notes) -> FrameCount {
    match number {
        Some(0) => {
            notes.add(Note::number_of_frames_zero);
            FrameCount::Absent
        }
        Some(number) if i32::try_from(number).is_ok() => FrameCount::Stated(number),
        _ => {
            notes.add(Note::bad_number_of_frames);
            FrameCount::Unusable
        }
    }
}

/// SOP Class of spectra: Rows and Columns count voxels, and Spectroscopy Data (5600,0020) holds them (PS3.3 C.8.14.1).
pub const MR_SPECTROSCOPY: &str = "1.2.840.10008.5.1.4.1.1.4.2";

/// Whether objects of a SOP Class always have Pixel Data (PS3.4 B.5, PS3.3 A): RT Dose, for instance, need not.
pub fn is_image_class(uid: &str) -> bool {
    const IMAGES: [&str; 57] = [
        "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "12.1", "12.1.1", "12.2", "12.2.1", "12.3",
        "128", "128.1", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5", "130", "14.1", "14.2", "2", "2.1",
        "2.2", "20", "3", "3.1", "30", "4", "4.1", "4.3", "4.4", "481.1", "5", "6", "6.1", "6.2", "6.3",
        "66.4", "66.7", "7", "7.1", "7.2", "7.3", "7.4", "77.1.1", "77.1.2", "77.1.3", "77.1.4", "77.1.5.1",
        "77.1.5.2", "77.1.5.4", "77.1.5.5", "77.1.5.7", "77.1.5.8", "77.1.6",
    ];
    uid.strip_prefix("1.2.840.10008.5.1.4.1.1.").is_some_and(|kind| IMAGES.contains(&kind))
}

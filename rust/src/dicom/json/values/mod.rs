//! The value of an element as DICOM JSON has it (PS3.18 F.2.2 to F.2.7): everything but sequences.

pub mod strings;
mod texts;

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::charset::Charset;
use super::output::Output;
use super::vr::Vr;
use super::walk::Attribute;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use texts::Texts;

/// Bytes of a value that are read at once: whole numbers of each size, and whole groups of base64.
const STEP: usize = 48 << 10;
/// Largest integer that readers of JSON keep exactly (RFC 8259 6); beyond it PS3.18 F.2.3 allows a string.
const MOST_EXACT: u64 = 1 << 53;

/// How the value of a VR is written (PS3.18 table F.2.3-1).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Base64 of words of so many bytes, little endian.
    Words(usize),
    /// Numbers of so many bytes; a tag is two of two.
    Numbers(usize),
    /// Texts.
    Texts(Texts),
}

fn form_of(vr: Vr) -> Form {
    let texts = |is_multiple, has_charset| Form::Texts(Texts { vr, is_multiple, has_charset });
    match &vr {
        b"LO" | b"PN" | b"SH" | b"UC" => texts(true, true),
        b"LT" | b"ST" | b"UT" => texts(false, true),
        b"AE" | b"AS" | b"CS" | b"DA" | b"DS" | b"DT" | b"IS" | b"TM" | b"UI" => texts(true, false),
        b"UR" => texts(false, false),
        b"US" | b"SS" => Form::Numbers(2),
        b"AT" | b"UL" | b"SL" | b"FL" => Form::Numbers(4),
        b"UV" | b"SV" | b"FD" => Form::Numbers(8),
        b"OW" => Form::Words(2),
        b"OF" | b"OL" => Form::Words(4),
        b"OD" | b"OV" => Form::Words(8),
        _ => Form::Words(1),
    }
}

/// Bytes of each number in a value, whose order is that of the transfer syntax.
pub fn word_size(vr: Vr) -> usize {
    match form_of(vr) {
        Form::Numbers(_) if vr == *b"AT" => 2,
        Form::Numbers(size) | Form::Words(size) => size,
        Form::Texts(_) => 1,
    }
}

/// Whether `length` bytes can be a value of this VR: a whole number of numbers.
pub fn fits(vr: Vr, length: u32) -> bool {
    match form_of(vr) {
        Form::Numbers(size) => (length as usize).is_multiple_of(size),
        Form::Words(_) | Form::Texts(_) => true,
    }
}

/// Whether a value of this VR may be replaced by a URI (PS3.18 F.2.2).
pub fn may_be_bulk(vr: Vr) -> bool {
    !matches!(
        &vr,
        b"AE" | b"AS" | b"AT" | b"CS" | b"DA" | b"DT" | b"LO" | b"PN" | b"SH" | b"SQ" | b"TM" | b"UI" | b"UR"
    )
}

/// Writes `,"Value":[...]` or `,"InlineBinary":"..."`; nothing for an empty value (PS3.18 F.2.5). `scratch` is
/// memory, reused.
///
/// # Errors
/// `limit_exceeded`, `value_past_end`.
pub fn push_value(
    out: &mut Output,
    window: &mut Window<'_>,
    attribute: &Attribute,
    charset: &Charset,
    scratch: &mut String,
) -> Result<()> {
    let Attribute { element, vr, .. } = attribute;
    match form_of(*vr) {
        _ if element.length == 0 => Ok(()),
        Form::Texts(texts) => {
            out.check_room((element.length as usize).saturating_mul(Texts::MOST_GROWTH), element.position)?;
            let bytes = window.exact(element.value, element.length as usize)?;
            texts.push(out, bytes.ok_or_else(|| cut(attribute))?, charset, scratch);
            Ok(())
        }
        Form::Words(size) => {
            out.check_room(element.length as usize / 3 * 4, element.position)?;
            push_words(out, window, attribute, size)
        }
        Form::Numbers(size) => {
            // A number has a digit and a comma at least.
            out.check_room(element.length as usize / size * 2, element.position)?;
            push_numbers(out, window, attribute)
        }
    }
}

fn push_numbers(out: &mut Output, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
    match &attribute.vr {
        b"AT" => push_each(out, window, attribute, |text, [a, b, c, d]: [u8; 4]| {
            // Group before element, each with its most significant byte first.
            push_formatted(text, format_args!("\"{b:02X}{a:02X}{d:02X}{c:02X}\""));
        }),
        b"US" => push_each(out, window, attribute, |text, bytes| {
            push_formatted(text, format_args!("{}", u16::from_le_bytes(bytes)));
        }),
        b"SS" => push_each(out, window, attribute, |text, bytes| {
            push_formatted(text, format_args!("{}", i16::from_le_bytes(bytes)));
        }),
        b"UL" => push_each(out, window, attribute, |text, bytes| {
            push_formatted(text, format_args!("{}", u32::from_le_bytes(bytes)));
        }),
        b"SL" => push_each(out, window, attribute, |text, bytes| {
            push_formatted(text, format_args!("{}", i32::from_le_bytes(bytes)));
        }),
        b"FL" => push_each(out, window, attribute, |text, bytes| {
            push_float(text, f64::from(f32::from_le_bytes(bytes)));
        }),
        b"FD" => push_each(out, window, attribute, |text, bytes| push_float(text, f64::from_le_bytes(bytes))),
        b"SV" => push_each(out, window, attribute, |text, bytes| {
            let number = i64::from_le_bytes(bytes);
            push_long(text, number, number.unsigned_abs());
        }),
        _ => push_each(out, window, attribute, |text, bytes| {
            let number = u64::from_le_bytes(bytes);
            push_long(text, number, number);
        }),
    }
}

/// Writes numbers of `N` bytes, which `push` gets little endian.
fn push_each<const N: usize>(
    out: &mut Output,
    window: &mut Window<'_>,
    attribute: &Attribute,
    push: impl Fn(&mut Vec<u8>, [u8; N]),
) -> Result<()> {
    out.push(b",\"Value\":[");
    let is_big_endian = attribute.encoding.big_endian;
    let unit = word_size(attribute.vr);
    pass_pieces(out, window, attribute, |text, bytes| {
        for bytes in bytes.as_chunks::<N>().0 {
            let mut bytes = *bytes;
            if is_big_endian {
                bytes.chunks_mut(unit).for_each(<[u8]>::reverse);
            }
            push(text, bytes);
            text.push(b',');
        }
    })?;
    out.close(b']');
    Ok(())
}

fn push_words(out: &mut Output, window: &mut Window<'_>, attribute: &Attribute, size: usize) -> Result<()> {
    out.push(b",\"InlineBinary\":\"");
    let is_swapped = attribute.encoding.big_endian && size > 1;
    let mut swapped = Vec::new();
    pass_pieces(out, window, attribute, |text, bytes| {
        let bytes = if is_swapped {
            swapped.clear();
            swapped.extend_from_slice(bytes);
            swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            &swapped
        } else {
            bytes
        };
        let start = text.len();
        text.resize(start + bytes.len().div_ceil(3) * 4, 0);
        // The slice has exactly the length of the result.
        let _ = STANDARD.encode_slice(bytes, text.get_mut(start..).unwrap_or_default());
    })?;
    out.push(b"\"");
    Ok(())
}

/// Passes a value on in pieces of [`STEP`] bytes.
fn pass_pieces(
    out: &mut Output,
    window: &mut Window<'_>,
    attribute: &Attribute,
    mut push: impl FnMut(&mut Vec<u8>, &[u8]),
) -> Result<()> {
    let mut position = attribute.element.value;
    let end = position.saturating_add(u64::from(attribute.element.length));
    while position < end {
        let length = usize::try_from(end - position).unwrap_or(STEP).min(STEP);
        push(&mut out.text, window.exact(position, length)?.ok_or_else(|| cut(attribute))?);
        out.check(position)?;
        position += length as u64;
    }
    Ok(())
}

fn cut(attribute: &Attribute) -> Error {
    let detail = format!("the file ends inside {}", attribute.element.tag);
    Error::at(ErrorKind::ValuePastEnd, attribute.element.position, detail)
}

fn push_formatted(text: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what); // a Vec takes everything
}

fn push_long(text: &mut Vec<u8>, number: impl std::fmt::Display, magnitude: u64) {
    let mark = if magnitude > MOST_EXACT { "\"" } else { "" };
    push_formatted(text, format_args!("{mark}{number}{mark}"));
}

/// JSON has no number for these three; their names are those that other servers and readers use.
fn push_float(text: &mut Vec<u8>, number: f64) {
    match number {
        _ if number.is_finite() => push_formatted(text, format_args!("{number:?}")),
        f64::INFINITY => text.extend_from_slice(b"\"Infinity\""),
        f64::NEG_INFINITY => text.extend_from_slice(b"\"-Infinity\""),
        _ => text.extend_from_slice(b"\"NaN\""),
    }
}

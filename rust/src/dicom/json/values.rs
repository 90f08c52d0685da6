//! The value of an element as DICOM JSON has it (PS3.18 F.2.2 to F.2.7): everything but sequences.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::charset::Charset;
use super::text::{push_decimal, push_text};
use super::vr::Vr;
use super::walk::Attribute;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;

/// Bytes of a value that are read at once: whole numbers of each size, and whole groups of base64.
const STEP: usize = 48 << 10;
/// Largest integer that readers of JSON keep exactly (RFC 8259 6); beyond it PS3.18 F.2.3 allows a string.
const MOST_EXACT: u64 = 1 << 53;

/// How the value of a VR is written (PS3.18 table F.2.3-1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Base64 of words of so many bytes, little endian.
    Words(usize),
    /// Numbers of so many bytes.
    Numbers(usize),
    /// Pairs of numbers of two bytes: a tag.
    Tags,
    /// Texts.
    Texts(Texts),
}

/// How a text value is read (PS3.5 6.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Texts {
    /// Whether `\` separates values.
    pub is_multiple: bool,
    /// Whether Specific Character Set applies (PS3.5 6.1.2.2).
    pub has_charset: bool,
}

/// Returns the form of a VR.
pub fn form_of(vr: Vr) -> Form {
    let texts = |is_multiple, has_charset| Form::Texts(Texts { is_multiple, has_charset });
    match &vr {
        b"LO" | b"PN" | b"SH" | b"UC" => texts(true, true),
        b"LT" | b"ST" | b"UT" => texts(false, true),
        b"AE" | b"AS" | b"CS" | b"DA" | b"DS" | b"DT" | b"IS" | b"TM" | b"UI" => texts(true, false),
        b"UR" => texts(false, false),
        b"AT" => Form::Tags,
        b"US" | b"SS" => Form::Numbers(2),
        b"UL" | b"SL" | b"FL" => Form::Numbers(4),
        b"UV" | b"SV" | b"FD" => Form::Numbers(8),
        b"OW" => Form::Words(2),
        b"OF" | b"OL" => Form::Words(4),
        b"OD" | b"OV" => Form::Words(8),
        _ => Form::Words(1),
    }
}

/// Whether a value of this VR may be replaced by a URI (PS3.18 F.2.2).
pub fn may_be_bulk(vr: Vr) -> bool {
    !matches!(
        &vr,
        b"AE" | b"AS" | b"AT" | b"CS" | b"DA" | b"DT" | b"LO" | b"PN" | b"SH" | b"SQ" | b"TM" | b"UI" | b"UR"
    )
}

/// Writes values into JSON text.
pub struct Values<'a> {
    /// The JSON text.
    pub out: &'a mut Vec<u8>,
    /// Most bytes of it.
    pub most_bytes: usize,
    /// Memory for texts.
    pub scratch: &'a mut String,
}

impl Values<'_> {
    /// Writes `,"Value":[...]` or `,"InlineBinary":"..."`; nothing for an empty value (PS3.18 F.2.5).
    pub fn write(
        &mut self,
        window: &mut Window<'_>,
        attribute: &Attribute,
        vr: Vr,
        charset: &Charset,
    ) -> Result<()> {
        if attribute.element.length == 0 {
            return Ok(());
        }
        match form_of(vr) {
            Form::Texts(texts) => {
                let bytes = self.whole(window, attribute)?;
                self.texts(bytes, vr, texts, charset);
                Ok(())
            }
            Form::Words(size) => self.words(window, attribute, size),
            Form::Tags => self.numbers(window, attribute, |out, bytes: [u8; 4]| {
                let [a, b, c, d] = bytes.map(usize::from);
                // Most significant byte first, group before element.
                push_tag(out, [b, a, d, c]);
            }),
            Form::Numbers(_) => self.numbers_of(window, attribute, vr),
        }
    }

    fn numbers_of(&mut self, window: &mut Window<'_>, attribute: &Attribute, vr: Vr) -> Result<()> {
        match &vr {
            b"US" => {
                self.numbers(window, attribute, |out, bytes| push_number(out, u16::from_le_bytes(bytes)))
            }
            b"SS" => {
                self.numbers(window, attribute, |out, bytes| push_number(out, i16::from_le_bytes(bytes)))
            }
            b"UL" => {
                self.numbers(window, attribute, |out, bytes| push_number(out, u32::from_le_bytes(bytes)))
            }
            b"SL" => {
                self.numbers(window, attribute, |out, bytes| push_number(out, i32::from_le_bytes(bytes)))
            }
            b"FL" => self.numbers(window, attribute, |out, bytes| {
                push_float(out, f64::from(f32::from_le_bytes(bytes)));
            }),
            b"FD" => self.numbers(window, attribute, |out, bytes| push_float(out, f64::from_le_bytes(bytes))),
            b"SV" => self.numbers(window, attribute, |out, bytes| {
                let number = i64::from_le_bytes(bytes);
                push_long(out, number, number.unsigned_abs());
            }),
            _ => self.numbers(window, attribute, |out, bytes| {
                let number = u64::from_le_bytes(bytes);
                push_long(out, number, number);
            }),
        }
    }

    /// Writes numbers of `N` bytes, which `push` gets little endian.
    fn numbers<const N: usize>(
        &mut self,
        window: &mut Window<'_>,
        attribute: &Attribute,
        push: impl Fn(&mut Vec<u8>, [u8; N]),
    ) -> Result<()> {
        self.out.extend_from_slice(b",\"Value\":[");
        let is_big_endian = attribute.encoding.big_endian;
        // A tag is two numbers.
        let unit = if attribute.vr == *b"AT" { 2 } else { N };
        self.pieces(window, attribute, |out, bytes| {
            for bytes in bytes.as_chunks::<N>().0 {
                let mut bytes = *bytes;
                if is_big_endian {
                    bytes.chunks_mut(unit).for_each(<[u8]>::reverse);
                }
                push(out, bytes);
                out.push(b',');
            }
        })?;
        close(self.out, b']');
        Ok(())
    }

    fn words(&mut self, window: &mut Window<'_>, attribute: &Attribute, size: usize) -> Result<()> {
        self.out.extend_from_slice(b",\"InlineBinary\":\"");
        let is_swapped = attribute.encoding.big_endian && size > 1;
        let mut swapped = Vec::new();
        self.pieces(window, attribute, |out, bytes| {
            let bytes = if is_swapped {
                swapped.clear();
                swapped.extend_from_slice(bytes);
                swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                &swapped
            } else {
                bytes
            };
            let start = out.len();
            out.resize(start + bytes.len().div_ceil(3) * 4, 0);
            // The slice has exactly the length of the result.
            let _ = STANDARD.encode_slice(bytes, out.get_mut(start..).unwrap_or_default());
        })?;
        self.out.push(b'"');
        Ok(())
    }

    /// Passes a value on in pieces of [`STEP`] bytes.
    fn pieces(
        &mut self,
        window: &mut Window<'_>,
        attribute: &Attribute,
        mut push: impl FnMut(&mut Vec<u8>, &[u8]),
    ) -> Result<()> {
        let element = &attribute.element;
        let mut position = element.value;
        let end = position.saturating_add(u64::from(element.length));
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(STEP).min(STEP);
            let bytes = window.exact(position, length)?.ok_or_else(|| cut(attribute))?;
            push(self.out, bytes);
            check_size(self.out, self.most_bytes, position)?;
            position += length as u64;
        }
        Ok(())
    }

    fn whole<'w>(&self, window: &'w mut Window<'_>, attribute: &Attribute) -> Result<&'w [u8]> {
        let element = &attribute.element;
        let length = element.length as usize;
        if length > self.most_bytes {
            return Err(too_large(self.most_bytes, element.position));
        }
        window.exact(element.value, length)?.ok_or_else(|| cut(attribute))
    }

    fn texts(&mut self, bytes: &[u8], vr: Vr, texts: Texts, charset: &Charset) {
        let charset = if texts.has_charset { charset } else { &Charset::DEFAULT };
        let start = self.out.len();
        self.out.extend_from_slice(b",\"Value\":[");
        let mut rest = bytes;
        loop {
            let end = if texts.is_multiple { charset.find(b'\\', rest) } else { None };
            let value = trimmed(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default(), vr);
            let is_only = end.is_none() && rest.len() == bytes.len();
            if value.is_empty() && is_only {
                self.out.truncate(start);
                return;
            }
            self.text(value, vr, charset);
            self.out.push(b',');
            match end {
                Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
                None => break,
            }
        }
        close(self.out, b']');
    }

    fn text(&mut self, value: &[u8], vr: Vr, charset: &Charset) {
        match &vr {
            _ if value.is_empty() => self.out.extend_from_slice(b"null"),
            b"PN" => self.name(value, charset),
            b"DS" | b"IS" if push_decimal(self.out, value, vr == *b"IS") => {}
            _ => push_text(self.out, value, charset, false, self.scratch),
        }
    }

    /// Writes the component groups of a name that are not empty (PS3.5 6.2.1, PS3.18 F.2.2).
    fn name(&mut self, value: &[u8], charset: &Charset) {
        self.out.push(b'{');
        let start = self.out.len();
        let mut rest = value;
        for (group, is_last) in [("Alphabetic", false), ("Ideographic", false), ("Phonetic", true)] {
            // A fourth group is none of the standard's; it stays with the third.
            let end = if is_last { None } else { charset.find(b'=', rest) };
            let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            if !text.is_empty() {
                self.out.push(b'"');
                self.out.extend_from_slice(group.as_bytes());
                self.out.extend_from_slice(b"\":");
                push_text(self.out, text, charset, true, self.scratch);
                self.out.push(b',');
            }
            match end {
                Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
                None => break,
            }
        }
        if self.out.len() == start {
            self.out.pop();
            self.out.extend_from_slice(b"null");
        } else {
            close(self.out, b'}');
        }
    }
}

/// Replaces the comma behind the last value.
pub fn close(out: &mut Vec<u8>, bracket: u8) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(bracket);
}

/// Refuses more output than the caller allows.
pub fn check_size(out: &[u8], most_bytes: usize, position: u64) -> Result<()> {
    if out.len() > most_bytes { Err(too_large(most_bytes, position)) } else { Ok(()) }
}

fn too_large(most_bytes: usize, position: u64) -> Error {
    let detail = format!("the metadata would be larger than {most_bytes} bytes, the limit");
    Error::at(ErrorKind::LimitExceeded, position, detail)
}

fn cut(attribute: &Attribute) -> Error {
    let detail = format!("the file ends inside {}", attribute.element.tag);
    Error::at(ErrorKind::ValuePastEnd, attribute.element.position, detail)
}

/// Leaves out the padding (PS3.5 6.2): blanks and NULs behind any text, and before those where blanks mean nothing.
fn trimmed(mut text: &[u8], vr: Vr) -> &[u8] {
    while let [rest @ .., b' ' | 0] = text {
        text = rest;
    }
    if matches!(&vr, b"AE" | b"DS" | b"IS") {
        while let [b' ', rest @ ..] = text {
            text = rest;
        }
    }
    text
}

fn push_number(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    let _ = write!(out, "{number}"); // a Vec takes everything
}

fn push_long(out: &mut Vec<u8>, number: impl std::fmt::Display, magnitude: u64) {
    let _ = if magnitude > MOST_EXACT { write!(out, "\"{number}\"") } else { write!(out, "{number}") };
}

/// JSON has no number for these three; their names are those that other servers and readers use.
fn push_float(out: &mut Vec<u8>, number: f64) {
    let _ = match number {
        _ if number.is_finite() => write!(out, "{number:?}"),
        f64::INFINITY => write!(out, "\"Infinity\""),
        f64::NEG_INFINITY => write!(out, "\"-Infinity\""),
        _ => write!(out, "\"NaN\""),
    };
}

fn push_tag(out: &mut Vec<u8>, bytes: [usize; 4]) {
    let [a, b, c, d] = bytes;
    let _ = write!(out, "\"{a:02X}{b:02X}{c:02X}{d:02X}\"");
}

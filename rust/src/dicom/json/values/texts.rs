//! Text values: one or several, by VR (PS3.5 6.2, PS3.18 F.2.3 to F.2.5).

use super::strings::{push_decimal, push_text};
use crate::dicom::json::charset::Charset;
use crate::dicom::json::output::Output;
use crate::dicom::json::vr::Vr;

/// How a text value is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Texts {
    /// Its VR.
    pub vr: Vr,
    /// Whether `\` separates values.
    pub is_multiple: bool,
    /// Whether Specific Character Set applies (PS3.5 6.1.2.2).
    pub has_charset: bool,
}

impl Texts {
    /// Most bytes that a byte of a value becomes in JSON: `\u001b`, or `null,` for a backslash.
    pub const MOST_GROWTH: usize = 6;

    /// Writes `,"Value":[...]`, or nothing for an empty value. `scratch` is memory, reused.
    pub fn push(self, out: &mut Output, bytes: &[u8], charset: &Charset, scratch: &mut String) {
        let charset = if self.has_charset { charset } else { &Charset::DEFAULT };
        let start = out.text.len();
        out.push(b",\"Value\":[");
        let mut rest = bytes;
        loop {
            let end = if self.is_multiple { charset.find(b'\\', rest) } else { None };
            let value = self.trimmed(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default());
            let is_only = end.is_none() && rest.len() == bytes.len();
            if value.is_empty() && is_only {
                out.text.truncate(start);
                return;
            }
            self.push_one(out, value, charset, scratch);
            out.push(b",");
            match end {
                Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
                None => break,
            }
        }
        out.close(b']');
    }

    /// Leaves out padding: blanks and NULs behind any text, and blanks before those in which they mean nothing.
    fn trimmed(self, mut text: &[u8]) -> &[u8] {
        while let [rest @ .., b' ' | 0] = text {
            text = rest;
        }
        if matches!(&self.vr, b"AE" | b"DS" | b"IS") {
            while let [b' ', rest @ ..] = text {
                text = rest;
            }
        }
        text
    }

    fn push_one(self, out: &mut Output, value: &[u8], charset: &Charset, scratch: &mut String) {
        match &self.vr {
            _ if value.is_empty() => out.push(b"null"),
            b"PN" => push_name(out, value, charset, scratch),
            b"DS" | b"IS" if push_decimal(&mut out.text, value, self.vr == *b"IS") => {}
            _ => push_text(&mut out.text, value, charset, false, scratch),
        }
    }
}

/// Writes the component groups of a name that are not empty (PS3.5 6.2.1, PS3.18 F.2.2).
fn push_name(out: &mut Output, value: &[u8], charset: &Charset, scratch: &mut String) {
    let start = out.text.len();
    out.push(b"{");
    let mut rest = value;
    for (group, is_last) in [("\"Alphabetic\":", false), ("\"Ideographic\":", false), ("\"Phonetic\":", true)]
    {
        // A fourth group is none of the standard's; it stays with the third.
        let end = if is_last { None } else { charset.find(b'=', rest) };
        let text = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        if !text.is_empty() {
            out.push(group.as_bytes());
            push_text(&mut out.text, text, charset, true, scratch);
            out.push(b",");
        }
        match end {
            Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
            None => break,
        }
    }
    if out.text.len() == start + 1 {
        out.text.truncate(start);
        out.push(b"null");
    } else {
        out.close(b'}');
    }
}

//! Specific Character Set (PS3.3 C.12.1.1.2) and what it makes of the bytes of a text (PS3.5 6.1).

mod sets;

use std::str;

use encoding_rs::GB18030;

use crate::base::error::Result;
use crate::base::window::Window;
use crate::dicom::element::{Element, Tag};
use sets::{Designation, G0, G1};

/// The character sets of a data set: those of value 1, and the escape sequences of ISO 2022, which are
/// understood wherever they stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Charset(Kind);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// ISO_IR 192.
    Utf8,
    /// GB18030 and its subset GBK: bytes of ASCII may be the second of a character.
    Gb18030,
    /// Sets of ISO 2022: what is designated at the beginning of a value.
    Iso2022(State),
}

/// What the lower and the upper half of the code table mean.
#[derive(Clone, Copy, Debug, PartialEq)]
struct State {
    g0: G0,
    g1: G1,
    /// Whether value 1 has an upper half, which delimiters go back to.
    is_g1_of_value_1: bool,
}

impl State {
    const DEFAULT: Self = Self { g0: G0::Ascii, g1: G1::None, is_g1_of_value_1: false };
}

const ESCAPE: u8 = 0x1B;
/// Bytes of (0008,0005) that are looked at; there are two dozen terms of 16.
const MOST_TERMS: u32 = 1024;

impl Charset {
    /// The default repertoire (PS3.5 6.1.2.1), which has no upper half. Files fill it all the same, most of them
    /// by Latin-1, so it is read as that.
    pub const DEFAULT: Self = Self(Kind::Iso2022(State::DEFAULT));

    /// Specific Character Set.
    pub const TAG: Tag = Tag(0x0008_0005);

    /// Reads the value of Specific Character Set (0008,0005).
    pub fn read(window: &mut Window<'_>, element: &Element) -> Result<Self> {
        Ok(Self::of(window.peek(element.value, element.length.min(MOST_TERMS) as usize)?))
    }

    /// The character sets of a value of (0008,0005). Value 1 is what a text begins with. An unknown term is read
    /// as the default repertoire. Where value 1 has no upper half and a text fills it without a designation, the
    /// first upper half of the other values is the one that can be meant.
    pub fn of(value: &[u8]) -> Self {
        let mut terms = value.split(|&byte| byte == b'\\').map(Term::of);
        match terms.next() {
            Some(Term::Utf8) => Self(Kind::Utf8),
            Some(Term::Gb18030) => Self(Kind::Gb18030),
            Some(Term::Registered(13)) => {
                // The other half is ISO-IR 14, which is ASCII but for two characters.
                Self(Kind::Iso2022(State { g0: G0::Romaji, g1: G1::Katakana, is_g1_of_value_1: true }))
            }
            first => {
                let upper_half = |term| match term {
                    Term::Registered(number) => G1::registered(number),
                    Term::Utf8 | Term::Gb18030 | Term::Unknown => None,
                };
                let own = first.and_then(upper_half);
                let g1 = own.or_else(|| terms.find_map(upper_half)).unwrap_or(G1::None);
                Self(Kind::Iso2022(State { g1, is_g1_of_value_1: own.is_some(), ..State::DEFAULT }))
            }
        }
    }

    /// Whether printable ASCII stands for itself.
    pub fn keeps_ascii(&self) -> bool {
        !matches!(self.0, Kind::Iso2022(State { g0: G0::Romaji, .. }))
    }

    /// Position of the first `delimiter` that is a character of its own and not a part of another one: `\` of
    /// multiple values (PS3.5 6.4), `=` of names (PS3.5 6.2.1).
    pub fn find(&self, delimiter: u8, bytes: &[u8]) -> Option<usize> {
        match self.0 {
            Kind::Utf8 => bytes.iter().position(|&byte| byte == delimiter),
            Kind::Gb18030 => {
                let mut at = 0;
                while let Some(&byte) = bytes.get(at) {
                    if byte == delimiter {
                        return Some(at);
                    }
                    // The second byte of a pair; the pairs of four bytes have digits there.
                    at += if byte > 0x80 { 2 } else { 1 };
                }
                None
            }
            Kind::Iso2022(initial) => {
                let mut at = bytes.iter().position(|&byte| byte == delimiter || byte == ESCAPE)?;
                let mut g0 = initial.g0;
                while let Some(&byte) = bytes.get(at) {
                    if byte == delimiter && !g0.is_of_pairs() {
                        return Some(at);
                    }
                    if resets(byte, false) {
                        g0 = initial.g0;
                    }
                    let escape = bytes.get(at..).and_then(Designation::read);
                    if let Some((designation, length)) = escape {
                        if let Designation::G0(set) = designation {
                            g0 = set;
                        }
                        at += length;
                    } else {
                        at += 1;
                    }
                }
                None
            }
        }
    }

    /// Appends the text of a value. What is no character becomes U+FFFD. In a name `^` and `=` end what an escape
    /// sequence began (PS3.5 6.1.2.5.3).
    pub fn decode(&self, bytes: &[u8], is_name: bool, text: &mut String) {
        match self.0 {
            Kind::Utf8 => text.push_str(&String::from_utf8_lossy(bytes)),
            Kind::Gb18030 => text.push_str(&GB18030.decode_without_bom_handling(bytes).0),
            Kind::Iso2022(initial) => decode_iso_2022(bytes, initial, is_name, text),
        }
    }
}

/// A defined term of (0008,0005).
enum Term {
    Utf8,
    Gb18030,
    /// The registration number of a set of ISO 2022.
    Registered(u16),
    Unknown,
}

impl Term {
    fn of(value: &[u8]) -> Self {
        // Writers confuse `_`, `-` and blanks; letters and digits tell the terms apart.
        let mut term = value.to_ascii_uppercase();
        term.retain(u8::is_ascii_alphanumeric);
        if matches!(&*term, b"GB18030" | b"GBK" | b"ISO2022GBK") {
            return Self::Gb18030;
        }
        let prefixes = [&b"ISO2022IR"[..], b"ISOIR", b"ISO2022"];
        let number = prefixes.iter().find_map(|prefix| term.strip_prefix(*prefix));
        match number.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok()) {
            Some(192) => Self::Utf8,
            Some(number) => Self::Registered(number),
            None => Self::Unknown,
        }
    }
}

/// Whether the sets of value 1 are in force again behind a character.
fn resets(byte: u8, is_name: bool) -> bool {
    matches!(byte, b'\t' | b'\n' | 0x0C | b'\r') || (is_name && matches!(byte, b'^' | b'='))
}

fn decode_iso_2022(bytes: &[u8], initial: State, is_name: bool, text: &mut String) {
    let mut state = initial;
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let length = match first {
            ESCAPE => match Designation::read(rest) {
                Some((designation, length)) => {
                    match designation {
                        Designation::G0(set) => state.g0 = set,
                        Designation::G1(set) => state.g1 = set,
                    }
                    length
                }
                None => {
                    text.push(char::from(ESCAPE));
                    1
                }
            },
            0x21..=0x7E if state.g0.is_of_pairs() => {
                let run = run_of(rest, |byte| (0x21..=0x7E).contains(&byte));
                state.g0.decode_pairs(run, text);
                run.len()
            }
            0x00..=0x7F => {
                text.push(state.g0.character(first));
                if resets(first, is_name) {
                    state.g0 = initial.g0;
                    // Where value 1 has no upper half, what was designated last is the best reading of one.
                    if initial.is_g1_of_value_1 {
                        state.g1 = initial.g1;
                    }
                }
                1
            }
            0x80.. => {
                let run = run_of(rest, |byte| byte >= 0x80);
                state.g1.decode(run, text);
                run.len()
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// The bytes up to the first that does not belong.
fn run_of(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> &[u8] {
    let length = bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len());
    bytes.get(..length).unwrap_or_default()
}

//! The sets of characters that ISO 2022 designates (PS3.3 tables C.12-2 to C.12-4).

use encoding_rs::{
    EUC_JP, EUC_KR, Encoding, GBK, ISO_8859_2, ISO_8859_3, ISO_8859_4, ISO_8859_5, ISO_8859_6, ISO_8859_7,
    ISO_8859_8, ISO_8859_15, WINDOWS_874,
};

/// A set for the bytes 21 to 7E.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum G0 {
    /// ISO-IR 6.
    Ascii,
    /// ISO-IR 14: ASCII with a yen sign and an overline.
    Romaji,
    /// ISO-IR 87: JIS X 0208, two bytes a character.
    Kanji,
    /// ISO-IR 159: JIS X 0212, two bytes a character.
    Supplement,
}

/// A set for the bytes A0 to FF.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum G1 {
    /// None is designated.
    None,
    /// ISO-IR 100.
    Latin1,
    /// ISO-IR 148.
    Latin5,
    /// ISO-IR 13: the half-width katakana of JIS X 0201.
    Katakana,
    /// A part of ISO 8859, or ISO-IR 166, Thai.
    Of(&'static Encoding),
    /// ISO-IR 149: KS X 1001, two bytes a character.
    Korean,
    /// ISO-IR 58: GB 2312, two bytes a character.
    Chinese,
}

/// An escape sequence that says which set is meant from here on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Designation {
    /// For the lower half.
    G0(G0),
    /// For the upper half.
    G1(G1),
}

impl Designation {
    /// Reads the escape sequence at the beginning of `bytes`, and its length.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let upper = |registration, length| Some((Self::G1(G1::registered(registration)?), length));
        match bytes {
            [0x1B, b'(', b'B', ..] => Some((Self::G0(G0::Ascii), 3)),
            [0x1B, b'(', b'J', ..] => Some((Self::G0(G0::Romaji), 3)),
            [0x1B, b')', b'I', ..] => upper(13, 3),
            // `@` is JIS C 6226-1978, which the standard does not name and its followers contain.
            [0x1B, b'$', b'B' | b'@', ..] => Some((Self::G0(G0::Kanji), 3)),
            [0x1B, b'$', b'(', b'D', ..] => Some((Self::G0(G0::Supplement), 4)),
            [0x1B, b'$', b')', b'C', ..] => upper(149, 4),
            [0x1B, b'$', b')', b'A', ..] => upper(58, 4),
            [0x1B, b'-', last, ..] => {
                let registration = match last {
                    b'A' => 100,
                    b'B' => 101,
                    b'C' => 109,
                    b'D' => 110,
                    b'F' => 126,
                    b'G' => 127,
                    b'H' => 138,
                    b'L' => 144,
                    b'M' => 148,
                    b'T' => 166,
                    b'b' => 203,
                    _ => return None,
                };
                upper(registration, 3)
            }
            _ => None,
        }
    }
}

impl G0 {
    /// Whether a character has two bytes.
    pub fn is_of_pairs(self) -> bool {
        matches!(self, Self::Kanji | Self::Supplement)
    }

    /// The character of one byte.
    pub fn character(self, byte: u8) -> char {
        match byte {
            b'\\' if self == Self::Romaji => '\u{A5}',
            b'~' if self == Self::Romaji => '\u{203E}',
            _ => char::from(byte),
        }
    }

    /// Appends the characters of pairs of bytes, all of them 21 to 7E.
    pub fn decode_pairs(self, run: &[u8], text: &mut String) {
        let mut shifted = Vec::with_capacity(run.len() / 2 * 3 + 1);
        for pair in run.chunks(2) {
            if self == Self::Supplement {
                shifted.push(0x8F);
            }
            shifted.extend(pair.iter().map(|byte| byte | 0x80));
        }
        let (decoded, _) = EUC_JP.decode_without_bom_handling(&shifted);
        // EUC-JP of the web has the wide forms that Windows uses; JIS X 0208 and JIS X 0212 have these.
        text.extend(decoded.chars().map(|character| match character {
            '\u{FF5E}' if self == Self::Kanji => '\u{301C}',
            '\u{FF5E}' => '~',
            '\u{2225}' => '\u{2016}',
            '\u{FF0D}' => '\u{2212}',
            '\u{FFE0}' => '\u{A2}',
            '\u{FFE1}' => '\u{A3}',
            '\u{FFE2}' => '\u{AC}',
            other => other,
        }));
    }
}

impl G1 {
    /// The set of an ISO registration number.
    pub fn registered(registration: u16) -> Option<Self> {
        Some(match registration {
            13 => Self::Katakana,
            58 => Self::Chinese,
            100 => Self::Latin1,
            101 => Self::Of(ISO_8859_2),
            109 => Self::Of(ISO_8859_3),
            110 => Self::Of(ISO_8859_4),
            126 => Self::Of(ISO_8859_7),
            127 => Self::Of(ISO_8859_6),
            138 => Self::Of(ISO_8859_8),
            144 => Self::Of(ISO_8859_5),
            148 => Self::Latin5,
            149 => Self::Korean,
            166 => Self::Of(WINDOWS_874),
            203 => Self::Of(ISO_8859_15),
            _ => return None,
        })
    }

    /// Appends the characters of bytes 80 to FF. Those below A0 are control characters in any set.
    pub fn decode(self, run: &[u8], text: &mut String) {
        match self {
            Self::None | Self::Latin1 => text.extend(run.iter().map(|&byte| char::from(byte))),
            Self::Latin5 => text.extend(run.iter().map(|&byte| match byte {
                0xD0 => '\u{11E}',
                0xDD => '\u{130}',
                0xDE => '\u{15E}',
                0xF0 => '\u{11F}',
                0xFD => '\u{131}',
                0xFE => '\u{15F}',
                _ => char::from(byte),
            })),
            Self::Katakana => text.extend(run.iter().map(|&byte| match byte {
                0x80..=0x9F => char::from(byte),
                0xA1..=0xDF => {
                    char::from_u32(0xFF61 + u32::from(byte - 0xA1)).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                _ => char::REPLACEMENT_CHARACTER,
            })),
            Self::Of(encoding) => {
                for part in run.chunk_by(|a, b| (*a < 0xA0) == (*b < 0xA0)) {
                    match part.first() {
                        Some(0..0xA0) => text.extend(part.iter().map(|&byte| char::from(byte))),
                        _ => text.push_str(&encoding.decode_without_bom_handling(part).0),
                    }
                }
            }
            Self::Korean => decode_pairs(EUC_KR, run, text),
            Self::Chinese => decode_pairs(GBK, run, text),
        }
    }
}

/// Decodes pairs of bytes A1 to FE. The encodings of the web also have pairs with lower bytes, which neither
/// KS X 1001 nor GB 2312 has.
fn decode_pairs(encoding: &'static Encoding, run: &[u8], text: &mut String) {
    for part in run.chunk_by(|a, b| (*a < 0xA1) == (*b < 0xA1)) {
        match part.first() {
            Some(0..0xA1) => text.extend(part.iter().map(|&byte| char::from(byte))),
            _ => text.push_str(&encoding.decode_without_bom_handling(part).0),
        }
    }
}

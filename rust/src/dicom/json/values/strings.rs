//! JSON strings and numbers (RFC 8259) from the bytes of DICOM values.

use crate::dicom::json::charset::Charset;

/// Appends a JSON string of the text that `bytes` are in a character set. `scratch` is memory, reused.
pub fn push_text(out: &mut Vec<u8>, bytes: &[u8], charset: &Charset, is_name: bool, scratch: &mut String) {
    if charset.keeps_ascii() && bytes.iter().all(|&byte| is_plain(byte) && byte < 0x80) {
        out.push(b'"');
        out.extend_from_slice(bytes);
        out.push(b'"');
        return;
    }
    scratch.clear();
    charset.decode(bytes, is_name, scratch);
    push_string(out, scratch);
}

/// Appends a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| !is_plain(byte)) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, after)) = special.split_first() else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Whether a byte of UTF-8 stands for itself in a JSON string.
fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Digits of a decimal string that every reader of JSON numbers keeps; longer ones may stand for more than a
/// number of 64 bits.
const MOST_DIGITS: usize = 300;
/// Digits of an integer that readers keep exactly (RFC 8259 6).
const MOST_INTEGER_DIGITS: usize = 15;

/// Appends a decimal string (PS3.5 6.2, DS and IS) as a JSON number with the digits that it has. JSON has no plus
/// sign, no leading zero and no bare point. Returns false and appends nothing where it is no finite number, or an
/// integer that readers of JSON would round.
pub fn push_decimal(out: &mut Vec<u8>, text: &[u8], is_integer: bool) -> bool {
    let Some(decimal) = Decimal::read(text) else { return false };
    let Decimal { is_negative, integer, fraction, exponent } = decimal;
    let is_long = integer.len() + fraction.len() > MOST_DIGITS || exponent.len() > 2;
    if is_integer && integer.len() > MOST_INTEGER_DIGITS {
        return false;
    }
    if is_long && !is_finite(text) {
        return false;
    }
    if is_negative {
        out.push(b'-');
    }
    out.extend_from_slice(if integer.is_empty() { b"0" } else { integer });
    if !fraction.is_empty() {
        out.push(b'.');
        out.extend_from_slice(fraction);
    }
    if !exponent.is_empty() {
        out.push(b'e');
        out.extend_from_slice(exponent);
    }
    true
}

fn is_finite(text: &[u8]) -> bool {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    number.is_some_and(f64::is_finite)
}

/// The parts of a decimal string.
struct Decimal<'t> {
    is_negative: bool,
    /// Without leading zeros.
    integer: &'t [u8],
    fraction: &'t [u8],
    /// With its sign.
    exponent: &'t [u8],
}

impl<'t> Decimal<'t> {
    fn read(text: &'t [u8]) -> Option<Self> {
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let (digits, rest) = split_digits(text);
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => split_digits(rest),
            _ => (&[][..], rest),
        };
        if digits.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => rest,
            [b'e' | b'E', exponent @ ..] => {
                let unsigned =
                    exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
                let (digits, after) = split_digits(unsigned);
                Some(exponent).filter(|_| !digits.is_empty() && after.is_empty())?
            }
            _ => return None,
        };
        let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
        Some(Self { is_negative, integer: digits.get(zeros..)?, fraction, exponent })
    }
}

fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|byte| byte.is_ascii_digit()).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_their_digits() {
        for (text, json) in [
            ("1.50", "1.50"),
            ("+1.5", "1.5"),
            (".5", "0.5"),
            ("-.5", "-0.5"),
            ("5.", "5"),
            ("007", "7"),
            ("-0", "-0"),
            ("00.10", "0.10"),
            ("1E+5", "1e+5"),
            ("1.e-05", "1e-05"),
            ("0.12345678901234567890", "0.12345678901234567890"),
        ] {
            let mut out = Vec::new();
            assert!(push_decimal(&mut out, text.as_bytes(), false), "{text}");
            assert_eq!(out, json.as_bytes());
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "", "+", "-", ".", "e5", "1e", "1e+", "1,5", "1 2", "0x10", "nan", "inf", "1e999", "--1", "1.2.3",
        ] {
            let mut out = Vec::new();
            assert!(!push_decimal(&mut out, text.as_bytes(), false), "{text}");
            assert!(out.is_empty());
        }
        assert!(!push_decimal(&mut Vec::new(), b"9007199254740993", true));
        assert!(!push_decimal(&mut Vec::new(), &[b'9'; 400], false));
    }

    #[test]
    fn strings_are_escaped() {
        let mut out = Vec::new();
        push_string(&mut out, "a\"b\\c\n\r\t\u{1b}\u{0}é\u{7f}");
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"b\\\\c\\n\\r\\t\\u001b\\u0000é\u{7f}\"");
    }
}

//! The VR of an element: as it is written, or as the dictionary of PS3.6 has it.

use crate::dicom::element::{Element, Tag, has_known_vr};

/// Two letters of PS3.5 6.2; small ones where other attributes decide between several VRs.
pub type Vr = [u8; 2];

/// US or SS, by Pixel Representation (0028,0103).
pub const US_OR_SS: Vr = *b"xs";
/// OB or OW: OW in Implicit VR Little Endian (PS3.5 A.1).
pub const OB_OR_OW: Vr = *b"ox";
/// US or OW, by the number of entries in LUT Descriptor (0028,3002).
pub const US_OR_OW: Vr = *b"lt";

/// A line of the dictionary: the tag as 8 upper case hexadecimal digits, a blank, the VR, a newline.
type Line = [u8; 12];
/// Written by `rust/dictionary.py`, sorted; `x` stands for any digit.
static DICTIONARY: &[u8] = include_bytes!("dictionary.txt");
/// The digits that vary in the repeating groups of the dictionary (PS3.5 7.6).
const REPEATED: [std::ops::Range<usize>; 5] = [2..4, 6..8, 6..7, 4..7, 4..8];

/// Returns the VR of an element: the written one if it is a VR of the standard that says something, else the
/// dictionary's. UN says nothing, and what its writer did not know the dictionary may (PS3.5 6.2.2).
pub fn of(element: &Element) -> Vr {
    match element.vr {
        written if written != *b"UN" && has_known_vr(written).is_some() => written,
        _ => of_tag(element.tag),
    }
}

/// Returns the VR of a tag; UN for what no dictionary knows, private elements but their creators included
/// (PS3.5 7.8.1).
pub fn of_tag(tag: Tag) -> Vr {
    if tag.group() % 2 == 1 {
        return if (0x10..=0xFF).contains(&(tag.0 & 0xFFFF)) { *b"LO" } else { *b"UN" };
    }
    let key = digits(tag);
    let repeated = || {
        REPEATED.into_iter().find_map(|varying| {
            let mut mask = key;
            mask.get_mut(varying)?.fill(b'x');
            find(&mask)
        })
    };
    find(&key).or_else(repeated).unwrap_or(*b"UN")
}

/// Returns a tag as the names of DICOM JSON have it: 8 upper case hexadecimal digits (PS3.18 F.2.2).
pub fn digits(tag: Tag) -> [u8; 8] {
    let mut shift = 32;
    [0; 8].map(|_: u8| {
        shift -= 4;
        let digit = (tag.0 >> shift & 0xF) as u8;
        if digit < 10 { b'0' + digit } else { b'A' - 10 + digit }
    })
}

fn find(key: &[u8; 8]) -> Option<Vr> {
    let (lines, _): (&[Line], _) = DICTIONARY.as_chunks();
    let found = lines.binary_search_by(|line| line.first_chunk::<8>().cmp(&Some(key))).ok()?;
    let [.., v, w, _] = *lines.get(found)?;
    Some([v, w])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_is_sorted_and_every_line_is_found() {
        let (lines, rest) = DICTIONARY.as_chunks::<12>();
        assert!(rest.is_empty() && lines.is_sorted());
        for line in lines {
            assert_eq!(find(line.first_chunk().unwrap()), Some([line[9], line[10]]));
        }
    }

    #[test]
    fn repeating_groups_private_creators_and_unknown_tags() {
        for (tag, vr) in [
            (0x0010_0010, b"PN"),
            (0x6002_3000, b"ox"),
            (0x60FE_0010, b"US"),
            (0x0020_3112, b"CS"),
            (0x1000_0123, b"US"),
            (0x0009_0010, b"LO"),
            (0x0009_1010, b"UN"),
            (0x0009_0001, b"UN"),
            (0x0008_0FFF, b"UN"),
        ] {
            assert_eq!(&of_tag(Tag(tag)), vr, "{}", Tag(tag));
        }
    }
}

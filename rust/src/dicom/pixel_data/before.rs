//! What stands before the bytes of a frame: the header of its Item, or of Pixel Data. It is read together with
//! them and compared with the table, so that other bytes are not taken for a frame whatever the clocks say.

use crate::dicom::element::Encoding;
use crate::frames::notes::Note;
use crate::frames::table::{FrameTable, Kind};

/// Most bytes that an Item counts too many in files that are read all the same: see `realign` of the walk.
const MOST_MISCOUNTED: u64 = 16;

/// The header that must stand before a payload.
#[derive(Clone, Copy)]
pub enum Before {
    /// None that is known: a native frame but the first.
    Nothing,
    /// That of an Item (PS3.5 A.4).
    Item {
        /// Whether an Item may count a few bytes too many.
        miscounts: bool,
    },
    /// That of a pixel element, of so many bytes (PS3.5 7.1).
    Pixels(usize),
}

impl Before {
    /// The header before the payload that begins at `start`.
    pub fn of(table: &FrameTable, start: u64) -> Self {
        match table.kind {
            Kind::Encapsulated | Kind::Video => {
                let notes = [Note::bad_fragment_tag, Note::delimiter_inside_fragment];
                Self::Item { miscounts: notes.into_iter().any(|note| table.notes.has(note)) }
            }
            Kind::Native => match table.pixel_data_pos.and_then(|tag| start.checked_sub(tag)) {
                Some(length @ (8 | 12)) => Self::Pixels(length as usize),
                _ => Self::Nothing,
            },
            Kind::None => Self::Nothing,
        }
    }

    /// Bytes of the header.
    pub fn length(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Item { .. } => 8,
            Self::Pixels(length) => length,
        }
    }

    /// Whether these bytes are the header of a payload of so many bytes.
    pub fn fits(self, header: &[u8], payload: u64) -> bool {
        const BIG_ENDIAN: Encoding = Encoding { explicit: true, big_endian: true };
        match (self, header) {
            (Self::Nothing, _) => true,
            (Self::Item { miscounts }, [tag @ .., w, x, y, z]) => {
                let declared = match tag {
                    [0xFE, 0xFF, 0x00, 0xE0] => Encoding::EXPLICIT_LE.u32([*w, *x, *y, *z]),
                    [0xFF, 0xFE, 0xE0, 0x00] => BIG_ENDIAN.u32([*w, *x, *y, *z]),
                    _ => return false,
                };
                match u64::from(declared).checked_sub(payload) {
                    Some(0) => true,
                    Some(more) => miscounts && more <= MOST_MISCOUNTED,
                    None => false,
                }
            }
            (Self::Pixels(_), [0xE0, 0x7F, 0x08 | 0x09 | 0x10, 0x00, ..]) => true,
            (Self::Pixels(_), [0x7F, 0xE0, 0x00, 0x08 | 0x09 | 0x10, ..]) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_header_fits_its_length_alone() {
        let item = Before::Item { miscounts: false };
        assert!(item.fits(&[0xFE, 0xFF, 0, 0xE0, 4, 1, 0, 0], 260));
        assert!(item.fits(&[0xFF, 0xFE, 0xE0, 0, 0, 0, 1, 4], 260));
        for other in [
            [0xFE, 0xFF, 0, 0xE0, 5, 1, 0, 0],
            [0xFE, 0xFF, 0, 0xE0, 3, 1, 0, 0],
            [0xFE, 0xFF, 0xDD, 0xE0, 4, 1, 0, 0],
            [0xFF, 0xFE, 0xE0, 0, 4, 1, 0, 0],
            [0; 8],
        ] {
            assert!(!item.fits(&other, 260));
        }
        assert!(!item.fits(&[], 0) && !item.fits(&[0xFE, 0xFF, 0, 0xE0, 0, 0, 0], 0));
    }

    #[test]
    fn an_item_that_miscounts_may_count_too_many_and_never_too_few() {
        let item = Before::Item { miscounts: true };
        for (declared, fits) in [(259, false), (260, true), (268, true), (276, true), (277, false)] {
            let header = [[0xFE, 0xFF, 0, 0xE0], u32::to_le_bytes(declared)].concat();
            assert_eq!(item.fits(&header, 260), fits, "{declared}");
        }
    }

    #[test]
    fn pixels_have_one_of_three_tags_before_them() {
        for tag in [[0xE0, 0x7F, 0x10, 0], [0xE0, 0x7F, 8, 0], [0x7F, 0xE0, 0, 9]] {
            assert!(Before::Pixels(12).fits(&[&tag[..], &[0; 8]].concat(), 1));
        }
        for tag in [[0xE0, 0x7F, 0x11, 0], [0xE0, 0x7F, 0, 0x10], [0; 4]] {
            assert!(!Before::Pixels(8).fits(&[&tag[..], &[0; 4]].concat(), 1));
        }
    }
}

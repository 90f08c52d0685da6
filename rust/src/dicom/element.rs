//! Data element headers (PS3.5 7.1): tag, value representation, length.

use crate::base::error::Result;
use crate::base::window::Window;
use crate::frames::notes::{Note, Notes};

/// The length `FFFFFFFF`: the value ends with its delimiter (PS3.5 7.5).
pub const UNDEFINED: u32 = u32::MAX;

/// The tag of a data element, its group in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(pub u32);

impl Tag {
    /// SOP Class UID (0008,0016).
    pub const SOP_CLASS_UID: Tag = Tag(0x0008_0016);
    /// Pixel Data (7FE0,0010).
    pub const PIXEL_DATA: Tag = Tag(0x7FE0_0010);
    /// Item (FFFE,E000).
    pub const ITEM: Tag = Tag(0xFFFE_E000);
    /// Item Delimitation Item (FFFE,E00D).
    pub const ITEM_DELIMITATION: Tag = Tag(0xFFFE_E00D);
    /// Sequence Delimitation Item (FFFE,E0DD).
    pub const SEQUENCE_DELIMITATION: Tag = Tag(0xFFFE_E0DD);

    /// The group number.
    pub fn group(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({:04X},{:04X})", self.group(), self.0 & 0xFFFF)
    }
}

/// How data elements are written: the part of a transfer syntax that applies to headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Whether VRs are written.
    pub explicit: bool,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
}

impl Encoding {
    /// Explicit VR Little Endian.
    pub const EXPLICIT_LE: Encoding = Encoding { explicit: true, big_endian: false };
    /// Implicit VR Little Endian.
    pub const IMPLICIT_LE: Encoding = Encoding { explicit: false, big_endian: false };

    /// Two bytes in this byte order.
    #[inline]
    pub fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    /// Four bytes in this byte order.
    #[inline]
    pub fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// A tag in this byte order.
    #[inline]
    pub fn tag(self, [a, b, c, d]: [u8; 4]) -> Tag {
        Tag(u32::from(self.u16([a, b])) << 16 | u32::from(self.u16([c, d])))
    }
}

/// The header of one data element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its tag.
    pub tag: Tag,
    /// Its VR, zeros where none is written.
    pub vr: [u8; 2],
    /// Offset of the tag.
    pub position: u64,
    /// Offset of the value.
    pub value: u64,
    /// Declared length of the value, [`UNDEFINED`] included.
    pub length: u32,
}

impl Element {
    /// First byte after the value; `None` for undefined length.
    pub fn end(&self) -> Option<u64> {
        (self.length != UNDEFINED).then(|| self.value.saturating_add(u64::from(self.length)))
    }

    /// Reads the header at `position`; `None` where the source ends inside it.
    #[inline]
    pub fn read(
        window: &mut Window<'_>,
        position: u64,
        encoding: Encoding,
        notes: &mut Notes,
    ) -> Result<Option<Self>> {
        let bytes = window.peek(position, 12)?;
        let Some(&[a, b, c, d, v, w, x, y]) = bytes.first_chunk::<8>() else { return Ok(None) };
        let last = bytes.get(8..12).and_then(|rest| <[u8; 4]>::try_from(rest).ok());
        let tag = encoding.tag([a, b, c, d]);
        let short = |vr, length| Some(Self { tag, vr, position, value: position + 8, length });
        let four = encoding.u32([v, w, x, y]);
        if !encoding.explicit || tag.group() == 0xFFFE {
            return Ok(short([0, 0], four));
        }
        let vr = [v, w];
        let long = |length| Self { tag, vr, position, value: position + 12, length: encoding.u32(length) };
        match VrForm::of(vr) {
            VrForm::Short => Ok(short(vr, u32::from(encoding.u16([x, y])))),
            VrForm::Long => Ok(last.map(long)),
            // A VR of a later standard has the long form, with reserved bytes of zero (PS3.5 7.1.2).
            VrForm::Unknown => {
                notes.add(Note::unknown_vr);
                if [x, y] == [0, 0] {
                    Ok(last.map(long))
                } else {
                    Ok(short(vr, u32::from(encoding.u16([x, y]))))
                }
            }
            VrForm::NotAVr => {
                notes.add(Note::implicit_element_in_explicit);
                Ok(short([0, 0], four))
            }
        }
    }
}

/// How the length follows a VR (PS3.5 tables 7.1-1 and 7.1-2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum VrForm {
    Short,
    Long,
    Unknown,
    NotAVr,
}

const SHORT_VRS: [&[u8; 2]; 21] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
];
const LONG_VRS: [&[u8; 2]; 13] =
    [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"];

/// The form of every pair of upper case letters, by the low five bits of each: a table, as most of the time
/// of a parse goes to headers.
#[allow(clippy::indexing_slicing)] // evaluated at compile time
const FORMS: [VrForm; 1024] = {
    let mut forms = [VrForm::NotAVr; 1024];
    let mut index = 0;
    while index < 26 * 26 {
        forms[form_of([b'A' + (index / 26) as u8, b'A' + (index % 26) as u8])] = VrForm::Unknown;
        index += 1;
    }
    index = 0;
    while index < SHORT_VRS.len() {
        forms[form_of(*SHORT_VRS[index])] = VrForm::Short;
        index += 1;
    }
    index = 0;
    while index < LONG_VRS.len() {
        forms[form_of(*LONG_VRS[index])] = VrForm::Long;
        index += 1;
    }
    forms
};

const fn form_of([a, b]: [u8; 2]) -> usize {
    ((a & 31) as usize) << 5 | (b & 31) as usize
}

impl VrForm {
    #[inline]
    fn of([a, b]: [u8; 2]) -> Self {
        // The upper three bits of an upper case letter are 010.
        let capitals = ((a ^ 0x40) | (b ^ 0x40)) & 0xE0 == 0;
        match FORMS.get(form_of([a, b])) {
            Some(form) if capitals => *form,
            _ if matches!(&[a, b], b"??" | b"  " | b"--") => Self::Unknown,
            _ => Self::NotAVr,
        }
    }
}

/// Whether a VR that the standard knows has the long form; `None` for another one.
pub fn has_known_vr(vr: [u8; 2]) -> Option<bool> {
    match VrForm::of(vr) {
        VrForm::Short => Some(false),
        VrForm::Long => Some(true),
        VrForm::Unknown | VrForm::NotAVr => None,
    }
}

/// Hops over elements that concern nobody, as far as `bytes` reach: explicit little endian, known VR,
/// defined length, in ascending order, and before the `next_of_interest`. Returns the bytes hopped over.
#[inline]
pub fn hop(bytes: &[u8], previous: &mut Tag, next_of_interest: impl Fn(Tag) -> Tag) -> usize {
    let interest = next_of_interest(Tag(previous.0.saturating_add(1)));
    let mut rest = bytes;
    while let Some(&[a, b, c, d, v, w, x, y, long @ ..]) = rest.first_chunk::<12>() {
        let tag = Encoding::EXPLICIT_LE.tag([a, b, c, d]);
        let size = match VrForm::of([v, w]) {
            VrForm::Short => 8 + usize::from(u16::from_le_bytes([x, y])),
            VrForm::Long => 12_usize.saturating_add(u32::from_le_bytes(long) as usize),
            VrForm::Unknown | VrForm::NotAVr => break,
        };
        // An undefined length reaches past any buffer, so it ends the loop too.
        let Some(next) = rest.get(size..).filter(|_| tag > *previous && tag < interest) else { break };
        *previous = tag;
        rest = next;
    }
    bytes.len() - rest.len()
}

/// Guesses the encoding of a data set from its first element; `None` where that is no plausible element.
pub fn sniff(bytes: &[u8], remaining: u64) -> Option<Encoding> {
    let &[a, b, c, d, v, w, x, y] = bytes.first_chunk::<8>()?;
    let little = u16::from_le_bytes([a, b]);
    let big = u16::from_be_bytes([a, b]);
    let big_endian = big < little;
    let group = little.min(big);
    let encoding = Encoding { explicit: true, big_endian };
    // Data sets begin with a standard group (PS3.6), some files with a command or meta group.
    if !(0x0002..=0x7FE0).contains(&group) || group % 2 == 1 || (group > 0x0088 && group < 0x2000) {
        return None;
    }
    match VrForm::of([v, w]) {
        VrForm::Short => {
            let length = u64::from(encoding.u16([x, y]));
            (length + 8 <= remaining).then_some(encoding)
        }
        VrForm::Long => ([x, y] == [0, 0]).then_some(encoding),
        VrForm::Unknown | VrForm::NotAVr => {
            let length = encoding.u32([v, w, x, y]);
            let fits = length == UNDEFINED || u64::from(length) + 8 <= remaining;
            (fits && group <= 0x0088 && encoding.tag([a, b, c, d]).0 & 0xFFFF < 0xF000)
                .then_some(Encoding { explicit: false, big_endian })
        }
    }
}

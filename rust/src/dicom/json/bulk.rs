//! The value that a `BulkDataURI` names (PS3.18 F.2.6 and 10.4.1.1.5).

use super::charset::Charset;
use super::values::{fits, may_be_bulk, word_size};
use super::walk::{Attribute, Visitor, holds_pixels, walk};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use crate::dicom::element::{Element, Encoding, Tag};
use crate::dicom::pixel_data::encapsulated::walk::walk as fragments;
use crate::frames::notes::Notes;

/// Where the value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// In the file, as it is sent.
    Range {
        /// First byte.
        start: u64,
        /// Number of bytes.
        length: u64,
    },
    /// In another form than that of the file: inflated, little endian, a text in UTF-8 (PS3.18 F.2.2 note 4), the
    /// fragments of another element than the pixels of the data set joined.
    Bytes(Vec<u8>),
    /// The pixels of the data set in Items of fragments (PS3.5 A.4): what is sent are frames.
    Frames,
}

/// The place of an element: what stands in a `BulkDataURI` behind the part that the caller chose.
struct Place {
    /// The sequences on the way and the Item of each, counted from 1.
    path: Vec<(Tag, u32)>,
    tag: Tag,
}

impl Place {
    fn read(place: &str) -> Option<Self> {
        let tag = |digits: &str| {
            let is_tag = digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| is_tag).map(Tag)
        };
        let mut path = Vec::new();
        let mut segments = place.split('/');
        let mut last = tag(segments.next()?)?;
        while let Some(item) = segments.next() {
            path.push((last, item.parse().ok()?));
            last = tag(segments.next()?)?;
        }
        Some(Self { path, tag: last })
    }
}

/// Finds the value at a place such as `00420011` or `52009230/3/00420011` in the data set at `start`; `None` where
/// there is none, or one of a VR that has no URI. What needs another form is refused beyond `most_bytes`.
///
/// # Errors
/// As [`walk`], up to the place; `limit_exceeded`, `value_past_end`.
pub fn find(
    window: &mut Window<'_>,
    start: u64,
    encoding: Encoding,
    is_inflated: bool,
    place: &str,
    most_bytes: usize,
) -> Result<Option<Bulk>> {
    let Some(place) = Place::read(place) else { return Ok(None) };
    let mut finder = Finder {
        place,
        is_inflated,
        most_bytes,
        path: Vec::new(),
        charsets: vec![Charset::DEFAULT],
        found: None,
        is_passed: false,
    };
    walk(window, start, encoding, &mut finder)?;
    Ok(finder.found)
}

struct Finder {
    place: Place,
    is_inflated: bool,
    most_bytes: usize,
    /// The open sequences and their Item.
    path: Vec<(Tag, u32)>,
    /// Of the data set and of each open Item.
    charsets: Vec<Charset>,
    found: Option<Bulk>,
    is_passed: bool,
}

impl Finder {
    fn bulk(&self, window: &mut Window<'_>, attribute: &Attribute) -> Result<Option<Bulk>> {
        let Attribute { element, vr, encoding } = attribute;
        let Some(end) = element.end() else {
            let is_image = self.path.is_empty() && element.tag == Tag::PIXEL_DATA;
            return Ok(Some(if is_image {
                Bulk::Frames
            } else {
                Bulk::Bytes(self.joined(window, attribute)?)
            }));
        };
        // A value that does not fit its VR is written as UN, which may have a URI.
        let may_be_bulk = may_be_bulk(*vr) || !fits(*vr, element.length) || holds_pixels(element.tag);
        if !may_be_bulk {
            return Ok(None);
        }
        if end > window.size() {
            let detail = format!("the file ends inside {}", element.tag);
            return Err(Error::at(ErrorKind::ValuePastEnd, element.position, detail));
        }
        let is_text = matches!(vr, b"LT" | b"ST" | b"UC" | b"UT");
        let size = word_size(*vr);
        let is_swapped = encoding.big_endian && size > 1;
        if !self.is_inflated && !is_text && !is_swapped {
            return Ok(Some(Bulk::Range { start: element.value, length: u64::from(element.length) }));
        }
        let mut bytes = self.whole(window, element)?;
        if is_swapped {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        if is_text {
            let mut text = String::new();
            self.charsets.last().unwrap_or(&Charset::DEFAULT).decode(&bytes, false, &mut text);
            bytes = text.into_bytes();
        }
        Ok(Some(Bulk::Bytes(bytes)))
    }

    fn whole(&self, window: &mut Window<'_>, element: &Element) -> Result<Vec<u8>> {
        let length = element.length as usize;
        self.check_length(element, length)?;
        Ok(window.peek(element.value, length)?.to_vec())
    }

    /// The payloads of an icon's fragments, or of a private element's, without the offset table before them.
    fn joined(&self, window: &mut Window<'_>, attribute: &Attribute) -> Result<Vec<u8>> {
        let element = &attribute.element;
        let items = fragments(window.source(), element.value, attribute.encoding, &mut Notes::default())?;
        if let Some(lost) = items.lost_from() {
            let detail = format!("the file ends inside {}", element.tag);
            return Err(Error::at(ErrorKind::ValuePastEnd, lost, detail));
        }
        let mut joined = Vec::new();
        for (start, length) in (1..items.len()).filter_map(|index| items.payload(index)) {
            self.check_length(element, joined.len() + length as usize)?;
            joined.extend_from_slice(window.peek(start, length as usize)?);
        }
        Ok(joined)
    }

    fn check_length(&self, element: &Element, length: usize) -> Result<()> {
        if length > self.most_bytes {
            let detail = format!("{} has {length} bytes, more than the limit", element.tag);
            return Err(Error::at(ErrorKind::LimitExceeded, element.position, detail));
        }
        Ok(())
    }
}

impl Visitor for Finder {
    fn value(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let element = &attribute.element;
        if element.tag == Charset::TAG
            && let Some(charset) = self.charsets.last_mut()
        {
            *charset = Charset::read(window, element)?;
        }
        if self.path == self.place.path && element.tag == self.place.tag {
            self.found = self.bulk(window, attribute)?;
            self.is_passed = true;
        }
        Ok(())
    }

    fn begin_sequence(&mut self, _window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        self.path.push((attribute.element.tag, 0));
        Ok(())
    }

    fn begin_item(&mut self) -> Result<()> {
        if let Some((_, item)) = self.path.last_mut() {
            *item = item.saturating_add(1);
        }
        self.charsets.push(self.charsets.last().copied().unwrap_or(Charset::DEFAULT));
        Ok(())
    }

    fn end_item(&mut self) -> Result<()> {
        self.charsets.pop();
        Ok(())
    }

    fn end_sequence(&mut self) -> Result<()> {
        self.path.pop();
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_passed
    }
}

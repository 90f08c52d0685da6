//! Walks over a data set up to its pixels: element by element, without search and without recursion.

use super::element::{Element, Encoding, Tag, UNDEFINED, hop};
use super::header::{Header, Place};
use super::values;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::first_not_zero;
use crate::base::window::Window;
use crate::frames::attributes::Uid;
use crate::frames::notes::{Note, Notes};

/// Deepest nesting of sequences that is followed; real files stay below 20.
const DEEPEST: usize = 256;
/// An open sequence or item of undefined length; those of defined length are skipped in one step.
#[derive(Clone, Copy)]
enum Level {
    Sequence(Encoding),
    Item(Encoding),
}

/// Walks from `start` to the first top-level pixel element or to the end.
pub fn walk(window: &mut Window<'_>, start: u64, encoding: Encoding, notes: &mut Notes) -> Result<Header> {
    let mut header = Header::default();
    let mut position = start;
    let mut previous = Tag(0);
    let mut met = Met::default();
    loop {
        if encoding == Encoding::EXPLICIT_LE {
            position += hop(window.at_hand(position), &mut previous, next_of_interest) as u64;
        }
        let Some(element) = next_element(window, position, encoding, notes)? else {
            return Ok(header);
        };
        let Element { tag, value, length, .. } = element;
        if tag.group() != 0xFFFE {
            if tag <= previous {
                notes.add(Note::tags_not_ascending);
                check_nesting(tag, position, notes)?;
            }
            previous = tag;
        }
        match tag.0 {
            0x7FE0_0008 | 0x7FE0_0009 | 0x7FE0_0010 => {
                header.pixels = Some(element);
                return Ok(header);
            }
            0x7FE0_0001 if length != UNDEFINED => once(&mut header.extended_offsets, &element)?,
            0x7FE0_0002 if length != UNDEFINED => once(&mut header.extended_lengths, &element)?,
            _ => {}
        }
        position = match element.end() {
            _ if tag == Tag::ITEM => {
                let detail =
                    "an Item stands outside of any sequence: the sequence before it has a wrong length";
                return Err(Error::at(ErrorKind::BadItemTag, position, detail));
            }
            _ if tag.group() == 0xFFFE => {
                notes.add(Note::stray_delimiter);
                check_nesting(tag, position, notes)?;
                value
            }
            None => skip_undefined(window, &element, encoding, notes)?,
            Some(end) if end > window.size() => return Err(past_end(&element, window.size())),
            Some(end) => {
                let before = met.is_again(tag).then(|| header.clone());
                values::read(window, &element, encoding, &mut header, notes)
                    .or_else(|error| header.keep_fault(error))?;
                if before.is_some_and(|before| !before.says_the_same(&header)) {
                    let detail = format!("{tag} stands twice, with different values (PS3.5 7.1)");
                    return Err(Error::at(ErrorKind::MisplacedElement, position, detail));
                }
                end
            }
        };
    }
}

/// The SOP Class (0008,0016) of a data set, empty where it has none; `None` where the data set ends before it.
/// For data sets in which [`walk`] found no pixels: others are read without need of it.
#[cold]
pub fn sop_class(window: &mut Window<'_>, start: u64, encoding: Encoding) -> Result<Option<Uid>> {
    let mut notes = Notes::default();
    let mut position = start;
    let mut is_behind = false;
    while let Some(element) = next_element(window, position, encoding, &mut notes)? {
        if element.tag == Tag::SOP_CLASS_UID {
            return values::uid(window, &element).map(Some);
        }
        is_behind |= element.tag > Tag::SOP_CLASS_UID;
        position = match element.end() {
            None if element.tag.group() == 0xFFFE => element.value,
            None => skip_undefined(window, &element, encoding, &mut notes)?,
            Some(end) => end,
        };
    }
    Ok(is_behind.then(Uid::default))
}

/// Keeps the place of a table; a data set has each once (PS3.5 7.1).
fn once(place: &mut Option<Place>, element: &Element) -> Result<()> {
    if place.replace((element.value, element.length)).is_some() {
        let detail = format!("{} stands twice (PS3.5 7.1)", element.tag);
        return Err(Error::at(ErrorKind::MisplacedElement, element.position, detail));
    }
    Ok(())
}

/// After delimiters that had to be reinterpreted the top level must go on ascending: an element out of order
/// or a delimiter too many says that it is nested ones which are being read.
fn check_nesting(tag: Tag, position: u64, notes: &Notes) -> Result<()> {
    if notes.has(Note::item_delim_instead_of_seq_delim) || notes.has(Note::seq_delim_instead_of_item_delim) {
        let detail = format!("{tag} stands at top level behind a sequence whose delimiters do not fit");
        return Err(Error::at(ErrorKind::BadNesting, position, detail));
    }
    Ok(())
}

/// Which of the elements of interest were read.
#[derive(Default)]
struct Met(u16);

impl Met {
    /// Notes the tag, and tells whether it was met before.
    fn is_again(&mut self, tag: Tag) -> bool {
        let Some(index) = OF_INTEREST.iter().position(|&each| each == tag.0) else { return false };
        let bit = 1 << index;
        let again = self.0 & bit != 0;
        self.0 |= bit;
        again
    }
}

/// The tags that [`walk`] or [`values::read`] looks at, ascending.
const OF_INTEREST: [u32; 11] = [
    0x0008_0018,
    0x0020_000D,
    0x0020_000E,
    0x0028_0002,
    0x0028_0004,
    0x0028_0008,
    0x0028_0010,
    0x0028_0011,
    0x0028_0100,
    0x0028_7FE0,
    0x7FE0_0000,
];

/// The first tag from `tag` on that is of interest.
#[inline]
fn next_of_interest(tag: Tag) -> Tag {
    Tag(OF_INTEREST.into_iter().find(|&next| next >= tag.0).unwrap_or(tag.0))
}

/// Reads the next top-level element; `None` at the end of the data set.
#[inline(always)]
fn next_element(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Option<Element>> {
    let rest = window.peek(position, 8)?;
    let is_empty = rest.is_empty();
    let is_zero = !is_empty && rest.iter().all(|&byte| byte == 0);
    if is_zero {
        if let Some(data) = first_not_zero(window.source(), position)? {
            let detail = format!("zeros stand where an element must, and bytes follow them at {data}");
            return Err(Error::at(ErrorKind::MisplacedElement, position, detail));
        }
        notes.add(Note::trailing_bytes);
    }
    if is_empty || is_zero {
        return Ok(None);
    }
    match Element::read(window, position, encoding, notes)? {
        Some(element) => Ok(Some(element)),
        None => Err(header_cut(position)),
    }
}

fn header_cut(position: u64) -> Error {
    Error::at(ErrorKind::TruncatedHeader, position, "the file ends inside an element header or sequence")
}

fn past_end(element: &Element, size: u64) -> Error {
    let detail = format!("{} declares {} bytes, but the file has {size} bytes", element.tag, element.length);
    Error::at(ErrorKind::ValuePastEnd, element.position, detail)
}

/// Skips a value of undefined length and returns the first byte after its delimiter.
fn skip_undefined(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<u64> {
    let mut levels = vec![Level::Sequence(inside(window, element, encoding, notes)?)];
    let mut position = element.value;
    while let Some(level) = {
        position += hop_nested(window.at_hand(position), &mut levels) as u64;
        levels.last()
    } {
        position = match *level {
            Level::Sequence(encoding) => step_in_sequence(window, position, encoding, &mut levels, notes)?,
            Level::Item(encoding) => step_in_item(window, position, encoding, &mut levels, notes)?,
        };
        if levels.len() > DEEPEST {
            let detail = format!("sequences nest deeper than {DEEPEST} levels, the limit of this parser");
            return Err(Error::at(ErrorKind::NestingTooDeep, position, detail));
        }
    }
    Ok(position)
}

/// The encoding inside a value of undefined length: a UN of undefined length holds Implicit VR Little
/// Endian in any data set (PS3.5 6.2.2, CP-246), unless its writer ignored that rule.
pub fn inside(
    window: &mut Window<'_>,
    element: &Element,
    encoding: Encoding,
    notes: &mut Notes,
) -> Result<Encoding> {
    match &element.vr {
        b"UN" => {
            let first = window.peek(element.value, 16)?;
            let explicit = first.len() == 16
                && first.get(4..8) != Some(&[0; 4])
                && first.get(12..14).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
            if explicit {
                notes.add(Note::un_undefined_length_explicit_inside);
            }
            Ok(if explicit { Encoding::EXPLICIT_LE } else { Encoding::IMPLICIT_LE })
        }
        b"SQ" | [0, 0] => Ok(encoding),
        _ => {
            notes.add(Note::undefined_length_on_vr);
            Ok(encoding)
        }
    }
}

/// Skips items and their elements within `bytes`: explicit little endian, known VR, defined length,
/// delimiters in their places. Returns the number of bytes skipped; `levels` is updated.
fn hop_nested(bytes: &[u8], levels: &mut Vec<Level>) -> usize {
    let mut at: usize = 0;
    while let Some(&level) = levels.last()
        && let Some(&[a, b, c, d, length @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>())
    {
        let tag = Encoding::EXPLICIT_LE.tag([a, b, c, d]);
        let size = match (level, tag) {
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::ITEM) if length == [0xFF; 4] => {
                if levels.len() >= DEEPEST {
                    return at;
                }
                levels.push(Level::Item(Encoding::EXPLICIT_LE));
                8
            }
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::ITEM) => {
                8_usize.saturating_add(u32::from_le_bytes(length) as usize)
            }
            (Level::Sequence(Encoding::EXPLICIT_LE), Tag::SEQUENCE_DELIMITATION)
            | (Level::Item(Encoding::EXPLICIT_LE), Tag::ITEM_DELIMITATION) => {
                levels.pop();
                8
            }
            (Level::Item(Encoding::EXPLICIT_LE), _) => {
                match hop(bytes.get(at..).unwrap_or_default(), &mut Tag(0), |_| Tag::ITEM) {
                    0 => return at,
                    size => size,
                }
            }
            _ => return at,
        };
        match at.checked_add(size) {
            Some(next) if next <= bytes.len() => at = next,
            _ => return at,
        }
    }
    at
}

/// Whether another Item or the end of a sequence stands at `position`.
fn goes_on_in_sequence(window: &mut Window<'_>, position: u64, encoding: Encoding) -> Result<bool> {
    let next = window.array(position)?.map(|tag| encoding.tag(tag));
    Ok(matches!(next, Some(Tag::ITEM | Tag::SEQUENCE_DELIMITATION)))
}

#[inline]
fn step_in_sequence(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    levels: &mut Vec<Level>,
    notes: &mut Notes,
) -> Result<u64> {
    let Some(item) = Element::read(window, position, encoding, notes)? else {
        return Err(header_cut(position));
    };
    match item.tag {
        Tag::ITEM => match item.end() {
            None => {
                levels.push(Level::Item(encoding));
                Ok(item.value)
            }
            Some(end) if end > window.size() => Err(past_end(&item, window.size())),
            Some(end) => Ok(end),
        },
        Tag::SEQUENCE_DELIMITATION => {
            levels.pop();
            Ok(item.value)
        }
        // A writer that gives an Item both a length and a delimiter: the sequence goes on behind it.
        Tag::ITEM_DELIMITATION if goes_on_in_sequence(window, item.value, encoding)? => {
            notes.add(Note::item_with_length_and_delim);
            Ok(item.value)
        }
        Tag::ITEM_DELIMITATION => {
            notes.add(Note::item_delim_instead_of_seq_delim);
            levels.pop();
            Ok(item.value)
        }
        tag => Err(Error::at(ErrorKind::BadItemTag, position, format!("found {tag}, where an Item must be"))),
    }
}

#[inline]
fn step_in_item(
    window: &mut Window<'_>,
    position: u64,
    encoding: Encoding,
    levels: &mut Vec<Level>,
    notes: &mut Notes,
) -> Result<u64> {
    let Some(element) = Element::read(window, position, encoding, notes)? else {
        return Err(header_cut(position));
    };
    match element.tag {
        Tag::ITEM_DELIMITATION => {
            levels.pop();
            Ok(element.value)
        }
        Tag::SEQUENCE_DELIMITATION => {
            notes.add(Note::seq_delim_instead_of_item_delim);
            levels.pop();
            // It stands for the Item's delimiter where the sequence goes on, else for both.
            if !goes_on_in_sequence(window, element.value, encoding)? {
                levels.pop();
            }
            Ok(element.value)
        }
        Tag::ITEM => Err(Error::at(ErrorKind::BadItemTag, position, "an Item is directly inside an Item")),
        _ => match element.end() {
            None => {
                let encoding = inside(window, &element, encoding, notes)?;
                levels.push(Level::Sequence(encoding));
                Ok(element.value)
            }
            Some(end) if end > window.size() => Err(past_end(&element, window.size())),
            Some(end) => Ok(end),
        },
    }
}

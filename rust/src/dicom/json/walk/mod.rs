//! Walks over every element of a data set, those inside of sequences too, and tells a visitor.
//!
//! The rules for lengths and delimiters are those of [`crate::dicom::dataset`], which jumps over what it need not
//! see: what that walk accepts is read here in the same way.

pub mod survey;

use super::vr::{self, Vr};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::first_not_zero;
use crate::base::window::Window;
use crate::dicom::dataset;
use crate::dicom::element::{Element, Encoding, Tag, has_known_vr};
use crate::dicom::pixel_data::behind;
use crate::frames::notes::Notes;

/// Deepest nesting of sequences that is followed; real files stay below 20, and readers of JSON count three
/// levels for each.
pub const DEEPEST: usize = 64;
/// MAC Parameters Sequence, without which no signature stands behind Pixel Data (PS3.3 C.12.1.1.3).
const MAC_PARAMETERS: Tag = Tag(0x4FFE_0001);

/// An element of a data set, and how its value is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    /// Its header. An undefined length in [`Visitor::value`] says that the value is Items of fragments.
    pub element: Element,
    /// Its VR, as [`vr::of`] has it; SQ in [`Visitor::begin_sequence`].
    pub vr: Vr,
    /// How numbers in the value are written.
    pub encoding: Encoding,
}

/// What is told of each element. The order is that of the file.
pub trait Visitor {
    /// An element that is no sequence.
    fn value(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()>;
    /// A sequence begins.
    fn begin_sequence(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()>;
    /// An Item of the sequence begins.
    fn begin_item(&mut self) -> Result<()>;
    /// The Item ends.
    fn end_item(&mut self) -> Result<()>;
    /// The sequence ends.
    fn end_sequence(&mut self) -> Result<()>;
    /// Whether nothing more needs to be told.
    fn is_done(&self) -> bool {
        false
    }
}

/// Whether an element holds the pixels of the data set, which may be cut: Float, Double Float or Pixel Data.
pub fn holds_pixels(tag: Tag) -> bool {
    matches!(tag.0, 0x7FE0_0008..=0x7FE0_0010)
}

/// Walks from `start` to the end of the data set. Behind encapsulated Pixel Data only signatures may stand:
/// without their parameters before the pixels, the walk ends there and need not find the end of the fragments.
///
/// # Errors
/// As [`dataset::walk`], and what the visitor returns.
pub fn walk(
    window: &mut Window<'_>,
    start: u64,
    encoding: Encoding,
    visitor: &mut impl Visitor,
) -> Result<()> {
    let top = Level { holds: Holds::Elements, end: None, limit: window.size(), encoding };
    let mut walk = Walk {
        window,
        visitor,
        levels: vec![top],
        notes: Notes::default(),
        previous: Tag(0),
        is_signed: false,
        is_behind_pixels: false,
        is_reinterpreted: false,
    };
    let mut position = start;
    while let Some(level) = walk.levels.last().copied()
        && !walk.visitor.is_done()
    {
        position = match level.holds {
            Holds::Items => walk.step_in_sequence(position, level)?,
            Holds::Elements if walk.levels.len() > 1 => walk.step_in_item(position, level)?,
            Holds::Elements => match walk.step_at_top(position, level)? {
                Some(next) => next,
                None => return Ok(()),
            },
        };
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Holds {
    Items,
    Elements,
}

/// An open sequence or Item, or the data set itself.
#[derive(Clone, Copy)]
struct Level {
    holds: Holds,
    /// First byte behind it, where its length is defined.
    end: Option<u64>,
    /// First byte that cannot be its own: its end or that of the level around it.
    limit: u64,
    encoding: Encoding,
}

struct Walk<'a, 'w, V> {
    window: &'a mut Window<'w>,
    visitor: &'a mut V,
    levels: Vec<Level>,
    notes: Notes,
    /// The last element at top level.
    previous: Tag,
    is_signed: bool,
    is_behind_pixels: bool,
    /// Whether a delimiter stood for another one.
    is_reinterpreted: bool,
}

impl<V: Visitor> Walk<'_, '_, V> {
    /// Returns the position behind an element of the data set, `None` at its end.
    fn step_at_top(&mut self, position: u64, level: Level) -> Result<Option<u64>> {
        let rest = self.window.peek(position, 8)?;
        if rest.is_empty() {
            return Ok(None);
        }
        if rest.iter().all(|&byte| byte == 0) {
            return match first_not_zero(self.window.source(), position)? {
                Some(data) if !self.is_behind_pixels => {
                    let detail =
                        format!("zeros stand where an element must, and bytes follow them at {data}");
                    Err(Error::at(ErrorKind::MisplacedElement, position, detail))
                }
                _ => Ok(None),
            };
        }
        let read = Element::read(self.window, position, level.encoding, &mut self.notes)?;
        let Some(element) = read.filter(|element| !self.is_behind_pixels || self.may_follow_pixels(element))
        else {
            return if self.is_behind_pixels { Ok(None) } else { Err(header_cut(position)) };
        };
        let tag = element.tag;
        if tag == Tag::ITEM {
            let detail = "an Item stands outside of any sequence: the sequence before it has a wrong length";
            return Err(Error::at(ErrorKind::BadItemTag, position, detail));
        }
        // After reinterpreted delimiters, what does not go on ascending may be nested elements.
        if self.is_reinterpreted && (tag.group() == 0xFFFE || tag <= self.previous) {
            let detail = format!("{tag} stands at top level behind a sequence whose delimiters do not fit");
            return Err(Error::at(ErrorKind::BadNesting, position, detail));
        }
        if tag.group() == 0xFFFE {
            return Ok(Some(element.value));
        }
        self.previous = tag;
        self.is_signed |= tag == MAC_PARAMETERS;
        if holds_pixels(tag) {
            self.step_over_pixels(&element, level)
        } else {
            self.step_over(&element, level).map(Some)
        }
    }

    fn step_over_pixels(&mut self, element: &Element, level: Level) -> Result<Option<u64>> {
        let vr = vr::of(element);
        self.visitor.value(self.window, &Attribute { element: *element, vr, encoding: level.encoding })?;
        self.is_behind_pixels = true;
        let end = match element.end() {
            Some(end) => Some(end).filter(|&end| end <= level.limit),
            None if self.is_signed => self.end_of_fragments(element.value, level)?,
            None => None,
        };
        if let Some(end) = end {
            behind::check(self.window.source(), end, level.encoding)?;
        }
        Ok(end)
    }

    /// Whether what was read behind the pixels is an element and not padding of the file.
    fn may_follow_pixels(&self, element: &Element) -> bool {
        let Element { tag, vr, .. } = *element;
        let fits = match element.end() {
            Some(end) => end <= self.window.size(),
            None => tag == Tag(0xFFFA_FFFA),
        };
        let has_vr = if vr == [0, 0] { vr::of_tag(tag) != *b"UN" } else { has_known_vr(vr).is_some() };
        tag > Tag::PIXEL_DATA && tag.group() != 0xFFFE && fits && has_vr
    }

    /// Returns the position behind a value, or of the first Item of a sequence.
    fn step_over(&mut self, element: &Element, level: Level) -> Result<u64> {
        let end = element.end();
        if element.value > level.limit || end.is_some_and(|end| end > level.limit) {
            let Element { tag, length, .. } = element;
            let what = if level.end.is_some() { "its Item ends" } else { "the file ends" };
            let detail = format!("{tag} declares {length} bytes, but {what} at {}", level.limit);
            return Err(Error::at(ErrorKind::ValuePastEnd, element.position, detail));
        }
        let vr = vr::of(element);
        let is_sequence = vr == *b"SQ" || (end.is_none() && vr == *b"UN");
        if is_sequence {
            return self.enter(element, level);
        }
        // What stands in a UN is little endian in any data set (PS3.5 6.2.2).
        let encoding = if element.vr == *b"UN" { Encoding::IMPLICIT_LE } else { level.encoding };
        self.visitor.value(self.window, &Attribute { element: *element, vr, encoding })?;
        match end {
            Some(end) => Ok(end),
            None => self.end_of_fragments(element.value, level)?.ok_or_else(|| header_cut(element.position)),
        }
    }

    fn enter(&mut self, element: &Element, level: Level) -> Result<u64> {
        if self.levels.len() > 2 * DEEPEST {
            let detail = format!("sequences nest deeper than {DEEPEST} levels, the limit of this writer");
            return Err(Error::at(ErrorKind::NestingTooDeep, element.position, detail));
        }
        let encoding = dataset::inside(self.window, element, level.encoding, &mut self.notes)?;
        self.visitor.begin_sequence(self.window, &Attribute { element: *element, vr: *b"SQ", encoding })?;
        let end = element.end();
        self.levels.push(Level { holds: Holds::Items, end, limit: end.unwrap_or(level.limit), encoding });
        Ok(element.value)
    }

    fn leave(&mut self) -> Result<()> {
        match self.levels.pop() {
            Some(Level { holds: Holds::Items, .. }) => self.visitor.end_sequence(),
            _ => self.visitor.end_item(),
        }
    }

    fn step_in_sequence(&mut self, position: u64, level: Level) -> Result<u64> {
        if level.end == Some(position) {
            self.leave()?;
            return Ok(position);
        }
        let item = self.read_within(position, level)?;
        match item.tag {
            Tag::ITEM => {
                let end = item.end();
                if end.is_some_and(|end| end > level.limit) {
                    let detail = format!("an Item of {} bytes reaches past {}", item.length, level.limit);
                    return Err(Error::at(ErrorKind::ValuePastEnd, position, detail));
                }
                let limit = end.unwrap_or(level.limit);
                self.levels.push(Level { holds: Holds::Elements, end, limit, encoding: level.encoding });
                self.visitor.begin_item()?;
            }
            Tag::SEQUENCE_DELIMITATION if level.end.is_none() => self.leave()?,
            // A writer that gives an Item both a length and a delimiter: the sequence goes on behind it.
            Tag::ITEM_DELIMITATION
                if level.end == Some(item.value) || self.goes_on(item.value, level.encoding)? => {}
            Tag::ITEM_DELIMITATION if level.end.is_none() => {
                self.is_reinterpreted = true;
                self.leave()?;
            }
            tag => {
                let detail = format!("found {tag}, where an Item must be");
                return Err(Error::at(ErrorKind::BadItemTag, position, detail));
            }
        }
        Ok(item.value)
    }

    fn step_in_item(&mut self, position: u64, level: Level) -> Result<u64> {
        if level.end == Some(position) {
            self.leave()?;
            return Ok(position);
        }
        let element = self.read_within(position, level)?;
        match element.tag {
            Tag::ITEM_DELIMITATION if level.end.is_none() => self.leave()?,
            Tag::SEQUENCE_DELIMITATION if level.end.is_none() => {
                self.is_reinterpreted = true;
                self.leave()?;
                // It stands for the Item's delimiter where the sequence goes on, else for both.
                let is_open = self.levels.last().is_some_and(|sequence| sequence.end.is_none());
                if is_open && !self.goes_on(element.value, level.encoding)? {
                    self.leave()?;
                }
            }
            tag if tag.group() == 0xFFFE => {
                let detail = format!("{tag} stands among the elements of an Item");
                return Err(Error::at(ErrorKind::BadItemTag, position, detail));
            }
            _ => return self.step_over(&element, level),
        }
        Ok(element.value)
    }

    /// Reads a header that must end within its level.
    fn read_within(&mut self, position: u64, level: Level) -> Result<Element> {
        let element = Element::read(self.window, position, level.encoding, &mut self.notes)?;
        element.filter(|element| element.value <= level.limit).ok_or_else(|| header_cut(position))
    }

    /// Whether another Item or the end of a sequence stands at `position`.
    fn goes_on(&mut self, position: u64, encoding: Encoding) -> Result<bool> {
        let next = self.window.array(position)?.map(|tag| encoding.tag(tag));
        Ok(matches!(next, Some(Tag::ITEM | Tag::SEQUENCE_DELIMITATION)))
    }

    /// Returns the position behind Items of fragments and their delimiter; `None` where they are cut or are none.
    fn end_of_fragments(&mut self, start: u64, level: Level) -> Result<Option<u64>> {
        let mut position = start;
        loop {
            let Some(item) = Element::read(self.window, position, level.encoding, &mut self.notes)? else {
                return Ok(None);
            };
            position = match (item.tag, item.end()) {
                (Tag::ITEM, Some(end)) if end <= level.limit => end,
                (Tag::SEQUENCE_DELIMITATION, _) if item.value <= level.limit => return Ok(Some(item.value)),
                _ => return Ok(None),
            };
        }
    }
}

fn header_cut(position: u64) -> Error {
    let detail = "the file or the Item ends inside an element header or sequence";
    Error::at(ErrorKind::TruncatedHeader, position, detail)
}

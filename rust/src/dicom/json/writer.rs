//! The writer: what the walk tells of a data set, as JSON text in the order that PS3.18 F.2.2 demands.

use super::charset::Charset;
use super::options::{Options, Sink};
use super::output::Output;
use super::values::strings::push_string;
use super::values::{fits, may_be_bulk, push_value};
use super::vr::{self, Vr};
use super::walk::survey::Survey;
use super::walk::{Attribute, Visitor, holds_pixels};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Window;
use crate::dicom::element::{Element, Encoding, Tag};
use crate::frames::attributes::Uid;

/// Bytes of JSON that are gathered before the sink gets them.
const FLUSHED: usize = 256 << 10;
const AVAILABLE_TRANSFER_SYNTAX: Tag = Tag(0x0008_3002);
const TRAILING_PADDING: Tag = Tag(0xFFFC_FFFC);
const PIXEL_REPRESENTATION: Tag = Tag(0x0028_0103);
const LUT_DESCRIPTOR: Tag = Tag(0x0028_3002);

/// Writes one data set.
pub struct Writer<'o, 's> {
    options: &'o Options<'o>,
    /// The place of the data set, for a look ahead.
    start: u64,
    encoding: Encoding,
    /// Transfer Syntax UID, until its attribute is written.
    transfer_syntax: Option<Uid>,
    out: Output,
    sink: Option<Sink<'s>>,
    /// Whether attributes that are written will not have to move.
    may_flush: Option<bool>,
    /// The data set and the open Items.
    levels: Vec<Level>,
    /// Attributes of all levels: where their text begins in `out`, and the tag.
    attributes: Vec<(Tag, usize)>,
    /// The open sequences and their Item, counted from 1.
    path: Vec<(Tag, u32)>,
    /// Whether an attribute behind the last one that is wanted was met.
    is_passed: bool,
    scratch: String,
}

#[derive(Clone, Copy)]
struct Level {
    previous: Tag,
    /// Its first in `attributes`.
    first: usize,
    is_ascending: bool,
    charset: Charset,
    /// Whether Pixel Representation (0028,0103) says that pixels have a sign; of the Item or what is around it.
    is_signed: Option<bool>,
    /// Whether the lookup table that LUT Descriptor (0028,3002) describes has one entry.
    has_one_entry: bool,
}

impl<'o, 's> Writer<'o, 's> {
    /// A writer of the data set at `start`.
    pub fn new(
        options: &'o Options<'o>,
        start: u64,
        encoding: Encoding,
        transfer_syntax: Uid,
        sink: Option<Sink<'s>>,
    ) -> Self {
        let level = Level {
            previous: Tag(0),
            first: 0,
            is_ascending: true,
            charset: Charset::DEFAULT,
            is_signed: None,
            has_one_entry: false,
        };
        Self {
            options,
            start,
            encoding,
            transfer_syntax: Some(transfer_syntax).filter(|_| options.with_transfer_syntax),
            out: Output { text: vec![b'{'], most_bytes: options.most_bytes },
            sink,
            may_flush: None,
            levels: vec![level],
            attributes: Vec::new(),
            path: Vec::new(),
            is_passed: false,
            scratch: String::new(),
        }
    }

    /// Ends the data set: returns what the sink has not got, all where there is none.
    ///
    /// # Errors
    /// `misplaced_element`, and what the sink returns.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.write_transfer_syntax(Tag(u32::MAX));
        self.close_level()?;
        self.out.check(self.start)?;
        match self.sink {
            Some(sink) => {
                sink(&self.out.text)?;
                Ok(Vec::new())
            }
            None => Ok(self.out.text),
        }
    }

    /// Prepares for an attribute; false where it is not written.
    fn begin(&mut self, window: &mut Window<'_>, element: &Element) -> Result<bool> {
        let Element { tag, position, .. } = *element;
        // Group lengths are no attributes of the model (PS3.18 F.2.2), and the padding behind a data set says
        // nothing (PS3.10 7.2).
        if tag.0 & 0xFFFF == 0 || tag == TRAILING_PADDING || self.is_replaced(tag) {
            return Ok(false);
        }
        self.out.check(position)?;
        if self.out.text.len() > FLUSHED {
            self.flush(window)?;
        }
        if self.levels.len() == 1 {
            self.write_transfer_syntax(tag);
        }
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        if tag <= level.previous {
            level.is_ascending = false;
            // What stood before it was read without what it says.
            if matches!(tag, Charset::TAG | PIXEL_REPRESENTATION | LUT_DESCRIPTOR) {
                let detail = format!("{tag} stands behind {} (PS3.5 7.1: tags ascend)", level.previous);
                return Err(Error::at(ErrorKind::MisplacedElement, position, detail));
            }
        }
        level.previous = tag;
        self.attributes.push((tag, self.out.text.len()));
        Ok(true)
    }

    /// Whether an attribute stands behind the last one that is wanted.
    fn passes(&mut self, tag: Tag) -> bool {
        self.is_passed |= self.levels.len() == 1 && self.options.last_tag.is_some_and(|last| tag.0 > last);
        self.is_passed
    }

    /// Whether the attribute of the file gives way to the one that is added.
    fn is_replaced(&self, tag: Tag) -> bool {
        tag == AVAILABLE_TRANSFER_SYNTAX && self.levels.len() == 1 && self.options.with_transfer_syntax
    }

    /// Writes (0008,3002) where `next` stands behind it.
    fn write_transfer_syntax(&mut self, next: Tag) {
        if next < AVAILABLE_TRANSFER_SYNTAX {
            return;
        }
        if let Some(uid) = self.transfer_syntax.take() {
            self.attributes.push((AVAILABLE_TRANSFER_SYNTAX, self.out.text.len()));
            self.open(AVAILABLE_TRANSFER_SYNTAX, *b"UI");
            if !uid.is_empty() {
                self.out.push(b",\"Value\":[\"");
                self.out.push(uid.as_bytes()); // digits and dots
                self.out.push(b"\"]");
            }
            self.out.push(b"},");
        }
    }

    /// Writes the name of an attribute and its VR.
    fn open(&mut self, tag: Tag, [v, w]: Vr) {
        let [a, b, c, d, e, f, g, h] = vr::digits(tag);
        self.out.push(&[b'"', a, b, c, d, e, f, g, h, b'"']);
        self.out.push(&[b':', b'{', b'"', b'v', b'r', b'"', b':', b'"', v, w, b'"']);
    }

    /// Hands the text to the sink, but for the comma that may become a bracket.
    fn flush(&mut self, window: &Window<'_>) -> Result<()> {
        if self.sink.is_none() {
            return Ok(());
        }
        let may_flush = match self.may_flush {
            Some(known) => known,
            None => Survey::of(window.source(), self.start, self.encoding)?.is_ascending,
        };
        self.may_flush = Some(may_flush);
        let last = self.out.text.len().saturating_sub(1);
        if let Some(sink) = self.sink.as_mut().filter(|_| may_flush) {
            sink(self.out.text.get(..last).unwrap_or_default())?;
            self.out.text.drain(..last);
            self.out.most_bytes = self.out.most_bytes.saturating_sub(last);
        }
        Ok(())
    }

    /// Ends the innermost data set, its attributes in ascending order and each once.
    fn close_level(&mut self) -> Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if !level.is_ascending {
            self.out.sort(self.attributes.get(level.first..).unwrap_or_default())?;
        }
        self.attributes.truncate(level.first);
        self.out.close(b'}');
        Ok(())
    }

    /// Decides between the VRs of a tag, and for UN where the length is none of the VR.
    fn decide(&mut self, window: &Window<'_>, attribute: &Attribute) -> Result<Vr> {
        let Attribute { element, vr, .. } = *attribute;
        let decided = match vr {
            vr::US_OR_SS => {
                if self.is_signed(window)? {
                    *b"SS"
                } else {
                    *b"US"
                }
            }
            // Encapsulated pixels are OB (PS3.5 A.4).
            vr::OB_OR_OW => {
                if element.end().is_some() {
                    *b"OW"
                } else {
                    *b"OB"
                }
            }
            vr::US_OR_OW => {
                let has_one_entry = self.levels.last().is_some_and(|level| level.has_one_entry);
                if has_one_entry { *b"US" } else { *b"OW" }
            }
            vr => vr,
        };
        let is_whole = element.end().is_none() || fits(decided, element.length);
        Ok(if is_whole { decided } else { *b"UN" })
    }

    /// Whether pixels have a sign: by the nearest Pixel Representation around, else by that of the data set,
    /// which may stand behind.
    fn is_signed(&mut self, window: &Window<'_>) -> Result<bool> {
        if let Some(known) = self.levels.iter().rev().find_map(|level| level.is_signed) {
            return Ok(known);
        }
        let found = Survey::of(window.source(), self.start, self.encoding)?.is_signed.unwrap_or(false);
        if let Some(data_set) = self.levels.first_mut() {
            data_set.is_signed = Some(found);
        }
        Ok(found)
    }

    /// Keeps what later elements are read by.
    fn note(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let Attribute { element, encoding, .. } = *attribute;
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        match element.tag {
            Charset::TAG => {
                level.charset = Charset::read(window, &element)?;
            }
            PIXEL_REPRESENTATION if element.length >= 2 => {
                level.is_signed = window.array(element.value)?.map(|bytes| encoding.u16(bytes) == 1);
            }
            LUT_DESCRIPTOR if element.length >= 2 => {
                level.has_one_entry =
                    window.array(element.value)?.is_some_and(|bytes| encoding.u16(bytes) == 1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes the URI of a value where it is to have one; false where it has none.
    fn write_uri(&mut self, element: &Element, vr: Vr) -> bool {
        let Some(bulk) = &self.options.bulk_data else { return false };
        let has_items = element.end().is_none();
        let is_long = element.length > bulk.inline_limit && may_be_bulk(vr);
        if !has_items && !is_long && !holds_pixels(element.tag) {
            return false;
        }
        self.out.push(b",\"BulkDataURI\":");
        let mut uri = String::from(bulk.uri);
        for (tag, item) in &self.path {
            uri += &format!("/{:08X}/{item}", tag.0);
        }
        uri += &format!("/{:08X}", element.tag.0);
        push_string(&mut self.out.text, &uri);
        true
    }
}

impl Visitor for Writer<'_, '_> {
    fn value(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let element = &attribute.element;
        if self.passes(element.tag) {
            return Ok(());
        }
        let has_items = element.end().is_none();
        // Pixels, and Items of fragments of anything, are named or left out, never written.
        let is_left_out = has_items || holds_pixels(element.tag);
        if is_left_out && self.options.bulk_data.is_none() {
            return Ok(());
        }
        if !self.begin(window, element)? {
            return Ok(());
        }
        self.note(window, attribute)?;
        let vr = self.decide(window, attribute)?;
        self.open(element.tag, vr);
        if element.length > 0 && !self.write_uri(element, vr) {
            let charset = self.levels.last().map_or(Charset::DEFAULT, |level| level.charset);
            let attribute = Attribute { vr, ..*attribute };
            push_value(&mut self.out, window, &attribute, &charset, &mut self.scratch)?;
        }
        self.out.push(b"},");
        Ok(())
    }

    fn begin_sequence(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let Element { tag, position, .. } = attribute.element;
        if self.passes(tag) {
            return Ok(());
        }
        if !self.begin(window, &attribute.element)? {
            let detail = format!("{tag} is a sequence, which it cannot be");
            return Err(Error::at(ErrorKind::MisplacedElement, position, detail));
        }
        self.open(tag, *b"SQ");
        self.path.push((tag, 0));
        Ok(())
    }

    fn begin_item(&mut self) -> Result<()> {
        if let Some((_, item)) = self.path.last_mut() {
            self.out.push(if *item == 0 { b",\"Value\":[{" } else { b"{" });
            *item = item.saturating_add(1);
        }
        let Some(&around) = self.levels.last() else { return Ok(()) };
        let first = self.attributes.len();
        self.levels.push(Level {
            previous: Tag(0),
            first,
            is_ascending: true,
            has_one_entry: false,
            ..around
        });
        Ok(())
    }

    fn end_item(&mut self) -> Result<()> {
        self.close_level()?;
        self.out.push(b",");
        Ok(())
    }

    fn end_sequence(&mut self) -> Result<()> {
        if let Some((_, 1..)) = self.path.pop() {
            self.out.close(b']');
        }
        self.out.push(b"},");
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.is_passed
    }
}

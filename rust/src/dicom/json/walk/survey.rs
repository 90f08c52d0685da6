//! A look ahead over a whole data set: what the writer must know before it writes.

use crate::base::error::Result;
use crate::base::source::Source;
use crate::base::window::{Buffer, Window};
use crate::dicom::element::{Encoding, Tag};
use crate::dicom::json::walk::{Attribute, Visitor, walk};

/// What a walk over all elements found.
pub struct Survey {
    /// Whether tags ascend in the data set and in every Item, each tag once (PS3.5 7.1).
    pub is_ascending: bool,
    /// Whether Pixel Representation (0028,0103) of the data set says that pixels have a sign.
    pub is_signed: Option<bool>,
    /// The last tag of the data set and of each open Item.
    previous: Vec<Tag>,
}

impl Survey {
    /// Walks over the data set at `start`.
    ///
    /// # Errors
    /// As [`walk`].
    pub fn of(source: &dyn Source, start: u64, encoding: Encoding) -> Result<Self> {
        let mut survey = Self { is_ascending: true, is_signed: None, previous: vec![Tag(0)] };
        let mut buffer = Buffer::default();
        walk(&mut Window::new(source, &mut buffer), start, encoding, &mut survey)?;
        Ok(survey)
    }

    fn pass(&mut self, tag: Tag) {
        if let Some(previous) = self.previous.last_mut() {
            self.is_ascending &= tag > *previous;
            *previous = tag;
        }
    }
}

impl Visitor for Survey {
    fn value(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let element = &attribute.element;
        self.pass(element.tag);
        if element.tag == Tag(0x0028_0103) && self.previous.len() == 1 && element.length >= 2 {
            self.is_signed = window.array(element.value)?.map(|bytes| attribute.encoding.u16(bytes) == 1);
        }
        Ok(())
    }

    fn begin_sequence(&mut self, _window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        self.pass(attribute.element.tag);
        Ok(())
    }

    fn begin_item(&mut self) -> Result<()> {
        self.previous.push(Tag(0));
        Ok(())
    }

    fn end_item(&mut self) -> Result<()> {
        self.previous.pop();
        Ok(())
    }

    fn end_sequence(&mut self) -> Result<()> {
        Ok(())
    }
}

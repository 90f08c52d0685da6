//! What the walk over a data set finds: attributes, and the places of pixels and tables.

use super::element::Element;
use crate::base::error::{Error, ErrorKind, Result};
use crate::frames::attributes::Attributes;

/// A value's place: absolute offset and declared length.
pub type Place = (u64, u32);

/// The header of a data set: attributes, and the places of pixels and tables.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Identity and image attributes.
    pub attributes: Attributes,
    /// Number of Frames as it is written; `attributes` holds 1 where that is no number.
    pub frame_count: FrameCount,
    /// Whether Samples per Pixel was there; `attributes` holds 1 where it was not.
    pub has_samples: bool,
    /// The pixel element, its value not looked at.
    pub pixels: Option<Element>,
    /// Extended Offset Table (7FE0,0001).
    pub extended_offsets: Option<Place>,
    /// Extended Offset Table Lengths (7FE0,0002).
    pub extended_lengths: Option<Place>,
    /// Why the frames cannot be laid out, whatever the pixels are.
    pub fault: Option<Error>,
}

impl Header {
    /// Keeps what is wrong with an attribute of the image: the walk goes on, as other attributes may be good.
    ///
    /// # Errors
    /// What is wrong with the data set itself.
    #[cold]
    pub fn keep_fault(&mut self, error: Error) -> Result<()> {
        if error.kind != ErrorKind::MissingImageAttributes {
            return Err(error);
        }
        self.fault.get_or_insert(error);
        Ok(())
    }

    /// Whether both read the same of the attributes.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.attributes == other.attributes && self.frame_count == other.frame_count
    }
}

/// Number of Frames (0028,0008) as the data set has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameCount {
    /// Absent, empty or 0: one frame, unless a table proves more.
    #[default]
    Absent,
    /// A number from 1 on.
    Stated(u32),
    /// Something that is no number: the file has to prove its count.
    Unusable,
}

impl FrameCount {
    /// The number, 1 where there is none.
    pub fn or_one(self) -> u32 {
        match self {
            Self::Stated(number) => number,
            Self::Absent | Self::Unusable => 1,
        }
    }
}

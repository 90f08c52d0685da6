//! The attributes of one instance that say where its tiles lie, out of one walk over its header.

use std::collections::HashMap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Fingerprint, Source};
use crate::base::window::{Buffer, Window};
use crate::dicom::element::Tag;
use crate::dicom::json::walk::{Attribute, Visitor, walk};
use crate::dicom::json::with_data_set;
use crate::dicom::values;
use crate::frames::attributes::Uid;

/// Most frames with a position of their own.
pub(super) const MOST_FRAMES: usize = 8 << 20;
/// Longest text that is read: Optical Path Identifier has 16 characters, Image Type a few words.
const LONGEST_TEXT: u32 = 256;

const SHARED: Tag = Tag(0x5200_9229);
const PER_FRAME: Tag = Tag(0x5200_9230);
const PIXEL_MEASURES: Tag = Tag(0x0028_9110);
const OPTICAL_PATHS: Tag = Tag(0x0048_0105);
const PATH_IDENTIFICATION: Tag = Tag(0x0048_0207);
const PLANE_POSITION: Tag = Tag(0x0048_021A);
const MATRIX_ORIGIN: Tag = Tag(0x0048_0008);
const SEGMENT_IDENTIFICATION: Tag = Tag(0x0062_000A);
const SEGMENT_NUMBER: u32 = 0x0062_000B;

/// Where a frame lies in the total pixel matrix, counted from 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// Its leftmost column.
    pub column: Option<i64>,
    /// Its topmost row.
    pub row: Option<i64>,
    /// Its focal plane: Z Offset in Slide Coordinate System, in micrometres (PS3.3 C.8.12.2); finite.
    pub z: Option<f64>,
    /// Its optical path: a place in [`SlideHeader::frame_paths`].
    pub path: Option<u32>,
}

/// What the header of one instance says of tiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlideHeader {
    /// The state of the file that says so.
    pub state: Fingerprint,
    /// SOP Class UID, empty where absent.
    pub sop_class: Uid,
    /// SOP Instance UID.
    pub instance: Uid,
    /// Study Instance UID; like the three below it tells the images of other slides apart, and is empty where absent.
    pub study: Uid,
    /// Series Instance UID.
    pub series: Uid,
    /// Frame of Reference UID.
    pub frame_of_reference: Uid,
    /// Pyramid UID.
    pub pyramid: Uid,
    /// Image Type, its values between backslashes.
    pub image_type: String,
    /// `TILED_FULL`, `TILED_SPARSE` or empty.
    pub organization: String,
    /// Columns and rows of the total pixel matrix.
    pub total: [u64; 2],
    /// Columns and rows of a frame.
    pub tile: [u64; 2],
    /// Number of Frames.
    pub frames: u64,
    /// Row and column spacing in millimetres.
    pub spacing: Option<[f64; 2]>,
    /// Total Pixel Matrix Focal Planes.
    pub focal_planes: u64,
    /// The focal plane of all frames, or the first of them, where they share it; as [`Position::z`].
    pub shared_z: Option<f64>,
    /// Optical Path Identifiers in the order of the sequence.
    pub paths: Vec<String>,
    /// The optical path of all frames, where they share it.
    pub shared_path: Option<String>,
    /// Concatenation UID, empty where the instance is none's part.
    pub concatenation: Uid,
    /// Frames of the concatenation before this part.
    pub frame_offset: u64,
    /// The Optical Path Identifiers that positions name, each once.
    pub frame_paths: Vec<String>,
    /// Referenced Segment Numbers of the frames of a segmentation (PS3.3 C.8.20.2): the first, and another one where there
    /// are several; 0 for none.
    pub segments: [u64; 2],
    /// Positions of the frames, where the header has them.
    pub positions: Vec<Position>,
}

/// Reads what the header of one instance says of tiles.
///
/// # Errors
/// As [`crate::dicom::json::write`]; `limit_exceeded` for more than 8 Mi frames with positions.
pub fn read(source: &dyn Source, buffer: &mut Buffer) -> Result<SlideHeader> {
    with_data_set(source, buffer, |window, data_set| {
        let mut visitor = Headers::default();
        walk(window, data_set.start, data_set.encoding, &mut visitor)?;
        let mut header = visitor.header;
        header.frames = header.frames.max(1);
        header.focal_planes = header.focal_planes.max(1);
        header.state = source.fingerprint();
        Ok(header)
    })
}

#[derive(Default)]
struct Headers {
    header: SlideHeader,
    /// The open sequences.
    path: Vec<Tag>,
    /// The places of [`SlideHeader::frame_paths`].
    places: HashMap<String, u32>,
}

impl Headers {
    fn top(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let to = &mut self.header;
        match attribute.element.tag.0 {
            0x0008_0008 => to.image_type = text(window, attribute)?,
            0x0008_0016 => to.sop_class = values::uid(window, &attribute.element)?,
            0x0008_0018 => to.instance = values::uid(window, &attribute.element)?,
            0x0008_0019 => to.pyramid = values::uid(window, &attribute.element)?,
            0x0020_000D => to.study = values::uid(window, &attribute.element)?,
            0x0020_000E => to.series = values::uid(window, &attribute.element)?,
            0x0020_0052 => to.frame_of_reference = values::uid(window, &attribute.element)?,
            0x0020_9161 => to.concatenation = values::uid(window, &attribute.element)?,
            0x0020_9228 => to.frame_offset = number(window, attribute)?,
            0x0020_9311 => to.organization = text(window, attribute)?,
            0x0028_0008 => to.frames = number(window, attribute)?,
            0x0028_0010 => to.tile[1] = number(window, attribute)?,
            0x0028_0011 => to.tile[0] = number(window, attribute)?,
            0x0048_0006 => to.total[0] = number(window, attribute)?,
            0x0048_0007 => to.total[1] = number(window, attribute)?,
            0x0048_0303 => to.focal_planes = number(window, attribute)?,
            _ => {}
        }
        Ok(())
    }

    fn inside(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let tag = attribute.element.tag.0;
        match (self.path.as_slice(), tag) {
            ([OPTICAL_PATHS], 0x0048_0106) => self.header.paths.push(text(window, attribute)?),
            ([SHARED, PIXEL_MEASURES], 0x0028_0030) => {
                let text = text(window, attribute)?;
                let mut steps = text.split('\\').map(|step| step.trim().parse::<f64>());
                if let (Some(Ok(rows)), Some(Ok(columns))) = (steps.next(), steps.next()) {
                    self.header.spacing = Some([rows, columns]);
                }
            }
            ([SHARED, PATH_IDENTIFICATION], 0x0048_0106) => {
                self.header.shared_path = Some(text(window, attribute)?);
            }
            ([MATRIX_ORIGIN] | [SHARED, PLANE_POSITION], 0x0040_074A) => {
                self.header.shared_z = offset(window, attribute)?;
            }
            ([SHARED | PER_FRAME, SEGMENT_IDENTIFICATION], SEGMENT_NUMBER) => {
                let number = number(window, attribute)?;
                match &mut self.header.segments {
                    [first @ 0, _] => *first = number,
                    [first, other] if *first != number => *other = number,
                    _ => {}
                }
            }
            ([PER_FRAME, inner @ ..], _) => {
                let Some(position) = self.header.positions.last_mut() else { return Ok(()) };
                match (inner, tag) {
                    ([PATH_IDENTIFICATION], 0x0048_0106) => {
                        let names = &mut self.header.frame_paths;
                        let place = self.places.entry(text(window, attribute)?).or_insert_with_key(|name| {
                            names.push(name.clone());
                            names.len() as u32 - 1 // MOST_FRAMES at most
                        });
                        position.path = Some(*place);
                    }
                    ([PLANE_POSITION], 0x0040_074A) => position.z = offset(window, attribute)?,
                    ([PLANE_POSITION], 0x0048_021E) => position.column = place(window, attribute)?,
                    ([PLANE_POSITION], 0x0048_021F) => position.row = place(window, attribute)?,
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Visitor for Headers {
    fn value(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        if self.path.is_empty() { self.top(window, attribute) } else { self.inside(window, attribute) }
    }

    fn begin_sequence(&mut self, _window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        self.path.push(attribute.element.tag);
        Ok(())
    }

    fn begin_item(&mut self) -> Result<()> {
        if self.path == [PER_FRAME] {
            if self.header.positions.len() == MOST_FRAMES {
                let detail = format!("more than {MOST_FRAMES} frames with positions");
                return Err(Error::new(ErrorKind::LimitExceeded, detail));
            }
            self.header.positions.push(Position::default());
        }
        Ok(())
    }

    fn end_item(&mut self) -> Result<()> {
        Ok(())
    }

    fn end_sequence(&mut self) -> Result<()> {
        self.path.pop();
        Ok(())
    }
}

/// A text without its padding, empty where it is longer than it may be.
fn text(window: &mut Window<'_>, attribute: &Attribute) -> Result<String> {
    let element = &attribute.element;
    if element.length > LONGEST_TEXT {
        return Ok(String::new());
    }
    let bytes = window.peek(element.value, element.length as usize)?;
    Ok(String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).to_owned())
}

/// A number of a binary VR or of an Integer String, 0 where it is none or negative.
fn number(window: &mut Window<'_>, attribute: &Attribute) -> Result<u64> {
    Ok(integer(window, attribute)?.and_then(|number| u64::try_from(number).ok()).unwrap_or(0))
}

/// A finite Decimal String.
fn offset(window: &mut Window<'_>, attribute: &Attribute) -> Result<Option<f64>> {
    let number = text(window, attribute)?.trim().parse().ok();
    Ok(number.filter(|number: &f64| number.is_finite()).map(|number| number + 0.0)) // no -0
}

/// A position in the total pixel matrix, which counts from 1, counted from 0.
fn place(window: &mut Window<'_>, attribute: &Attribute) -> Result<Option<i64>> {
    Ok(integer(window, attribute)?.and_then(|number| number.checked_sub(1)))
}

fn integer(window: &mut Window<'_>, attribute: &Attribute) -> Result<Option<i64>> {
    let Attribute { element, vr, encoding } = attribute;
    match vr {
        b"US" if element.length == 2 => {
            Ok(window.array(element.value)?.map(|bytes| i64::from(encoding.u16(bytes))))
        }
        b"UL" if element.length == 4 => {
            Ok(window.array(element.value)?.map(|bytes| i64::from(encoding.u32(bytes))))
        }
        b"SL" if element.length == 4 => {
            Ok(window.array(element.value)?.map(|bytes| i64::from(encoding.u32(bytes) as i32)))
        }
        b"IS" => Ok(text(window, attribute)?.trim().parse().ok()),
        _ => Ok(None),
    }
}

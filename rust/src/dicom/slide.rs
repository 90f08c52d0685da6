//! Where the tiles of a slide lie (PS3.3 C.8.12): the attributes of one instance that say so, out of one walk over its
//! header, and the map from a tile's column and row to a frame.

use std::collections::HashMap;

use super::element::Tag;
use super::json::walk::{Attribute, Visitor, walk};
use super::json::with_data_set;
use super::values;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Source;
use crate::base::window::{Buffer, Window};
use crate::frames::attributes::Uid;

/// Most frames with a position of their own.
const MOST_FRAMES: usize = 8 << 20;
/// Longest text that is read: Optical Path Identifier has 16 characters, Image Type a few words.
const LONGEST_TEXT: u32 = 256;

const SHARED: Tag = Tag(0x5200_9229);
const PER_FRAME: Tag = Tag(0x5200_9230);
const PIXEL_MEASURES: Tag = Tag(0x0028_9110);
const OPTICAL_PATHS: Tag = Tag(0x0048_0105);
const PATH_IDENTIFICATION: Tag = Tag(0x0048_0207);
const PLANE_POSITION: Tag = Tag(0x0048_021A);

/// Where a frame lies in the total pixel matrix, counted from 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// Its leftmost column.
    pub column: Option<i64>,
    /// Its topmost row.
    pub row: Option<i64>,
    /// Its focal plane: Z Offset in Slide Coordinate System, in millimetres.
    pub z: Option<f64>,
    /// Its optical path.
    pub path: Option<String>,
}

/// What the header of one instance says of tiles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlideHeader {
    /// SOP Instance UID.
    pub instance: Uid,
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
    /// Optical Path Identifiers in the order of the sequence.
    pub paths: Vec<String>,
    /// The optical path of all frames, where they share it.
    pub shared_path: Option<String>,
    /// Concatenation UID, empty where the instance is none's part.
    pub concatenation: Uid,
    /// Frames of the concatenation before this part.
    pub frame_offset: u64,
    /// Positions of the frames, where the header has them.
    pub positions: Vec<Position>,
}

/// Reads what the header of one instance says of tiles.
///
/// # Errors
/// As [`super::json::write`]; `limit_exceeded` for more than 8 Mi frames with positions.
pub fn read(source: &dyn Source, buffer: &mut Buffer) -> Result<SlideHeader> {
    with_data_set(source, buffer, |window, data_set| {
        let mut visitor = Headers { header: SlideHeader::default(), path: Vec::new() };
        walk(window, data_set.start, data_set.encoding, &mut visitor)?;
        let mut header = visitor.header;
        header.frames = header.frames.max(1);
        header.focal_planes = header.focal_planes.max(1);
        Ok(header)
    })
}

struct Headers {
    header: SlideHeader,
    /// The open sequences.
    path: Vec<Tag>,
}

impl Headers {
    fn top(&mut self, window: &mut Window<'_>, attribute: &Attribute) -> Result<()> {
        let to = &mut self.header;
        match attribute.element.tag.0 {
            0x0008_0008 => to.image_type = text(window, attribute)?,
            0x0008_0018 => to.instance = values::uid(window, &attribute.element)?,
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
            ([PER_FRAME, inner @ ..], _) => {
                let Some(position) = self.header.positions.last_mut() else { return Ok(()) };
                match (inner, tag) {
                    ([PATH_IDENTIFICATION], 0x0048_0106) => position.path = Some(text(window, attribute)?),
                    ([PLANE_POSITION], 0x0040_074A) => {
                        position.z = text(window, attribute)?.trim().parse().ok();
                    }
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

/// Which frame is a tile, over the instances of one level: compact where the header says `TILED_FULL`.
#[derive(Debug)]
pub struct TileMap {
    /// Columns and rows of tiles.
    pub grid: [u64; 2],
    /// Optical Path Identifiers.
    pub paths: Vec<String>,
    /// Focal planes: offsets in millimetres, or numbers where the header has none.
    pub planes: Vec<f64>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// Frames in the order of the standard; for each instance the first one and how many it has.
    Full(Vec<(u64, u64)>),
    /// Instance and frame of each tile that there is.
    Sparse(HashMap<u64, (u32, u32)>),
}

impl TileMap {
    /// Makes the map of the instances of one level, which agree in their sizes.
    ///
    /// # Errors
    /// `misplaced_element` for a frame without a place or off the grid, for two frames at one place, for parts that
    /// overlap, and for a frame of an optical path that the sequence lacks.
    pub fn new(parts: &[SlideHeader]) -> Result<Self> {
        let refuse = |detail: String| Err(Error::new(ErrorKind::MisplacedElement, detail));
        let Some(first) = parts.first() else { return refuse("a level has an instance at least".into()) };
        let ([width, height], [across, down]) = (first.total, first.tile);
        if [width, height, across, down].contains(&0) {
            return refuse("Rows, Columns or the total pixel matrix is absent or 0".into());
        }
        if parts.iter().any(|part| part.total != first.total || part.tile != first.tile) {
            return refuse(
                "instances of one level differ in the size of the matrix or of their tiles".into(),
            );
        }
        let grid = [width.div_ceil(across), height.div_ceil(down)];
        let mut paths = first.paths.clone();
        for part in parts {
            for path in &part.paths {
                if !paths.contains(path) {
                    paths.push(path.clone());
                }
            }
        }
        if paths.is_empty() {
            paths.push(String::new());
        }
        let is_full = |part: &SlideHeader| part.organization == "TILED_FULL";
        if parts.iter().all(is_full) {
            return Self::full(parts, grid, paths);
        }
        if parts.iter().any(is_full) {
            return refuse("one level holds TILED_FULL and other instances".into());
        }
        Self::sparse(parts, grid, paths)
    }

    /// PS3.3 C.7.6.17.3: columns first, then rows, focal planes, optical paths.
    fn full(parts: &[SlideHeader], grid: [u64; 2], paths: Vec<String>) -> Result<Self> {
        let refuse = |detail: String| Err(Error::new(ErrorKind::MisplacedElement, detail));
        let planes = parts.iter().map(|part| part.focal_planes).max().unwrap_or(1);
        let is_whole = parts.iter().all(|part| part.concatenation.is_empty());
        let own = |part: &SlideHeader| part.paths.len().max(1) as u64;
        let mut spans = Vec::new();
        let mut next = 0;
        for part in parts {
            // An instance that is no part of a concatenation holds its own optical paths, behind those before it.
            let first = if is_whole { next } else { part.frame_offset };
            let expected = own(part) * planes;
            let expected = grid[0].checked_mul(grid[1]).and_then(|tiles| tiles.checked_mul(expected));
            if is_whole && expected != Some(part.frames) {
                return refuse(format!(
                    "TILED_FULL of {} by {} tiles, {planes} focal planes and {} optical paths has {} frames",
                    grid[0],
                    grid[1],
                    own(part),
                    part.frames
                ));
            }
            if spans
                .iter()
                .any(|&(from, count): &(u64, u64)| first < from + count && from < first + part.frames)
            {
                return refuse("two parts of a concatenation hold the same frames".into());
            }
            spans.push((first, part.frames));
            next = first.saturating_add(part.frames);
        }
        let tiles = grid[0].saturating_mul(grid[1]).saturating_mul(planes).saturating_mul(paths.len() as u64);
        if next > tiles && is_whole {
            return refuse("two instances of TILED_FULL hold the same optical path".into());
        }
        let planes = (0..planes.min(4096)).map(|plane| plane as f64).collect();
        Ok(Self { grid, paths, planes, places: Places::Full(spans) })
    }

    fn sparse(parts: &[SlideHeader], grid: [u64; 2], paths: Vec<String>) -> Result<Self> {
        let refuse = |detail: String| Err(Error::new(ErrorKind::MisplacedElement, detail));
        let mut planes: Vec<f64> = Vec::new();
        for z in parts.iter().flat_map(|part| &part.positions).map(|position| position.z.unwrap_or(0.0)) {
            if !planes.contains(&z) {
                planes.push(z);
                if planes.len() > 4096 {
                    return refuse("more than 4,096 focal planes".into());
                }
            }
        }
        planes.sort_by(f64::total_cmp);
        if planes.is_empty() {
            planes.push(0.0);
        }
        let mut map = Self { grid, paths, planes, places: Places::Sparse(HashMap::new()) };
        let mut tiles = HashMap::new();
        for (instance, part) in parts.iter().enumerate() {
            // A single frame that is the whole matrix needs no position.
            let whole = [Position { column: Some(0), row: Some(0), ..Position::default() }];
            let positions =
                if part.positions.is_empty() && part.frames == 1 { &whole[..] } else { &part.positions };
            if positions.len() as u64 != part.frames {
                return refuse(format!("{} positions for {} frames", positions.len(), part.frames));
            }
            for (frame, position) in positions.iter().enumerate() {
                let key = map.key_of(part, position).map_err(|detail| {
                    Error::new(ErrorKind::MisplacedElement, format!("frame {frame} (from 0) {detail}"))
                })?;
                if tiles.insert(key, (instance as u32, frame as u32)).is_some() {
                    return refuse(format!("frame {frame} (from 0) lies where another frame does"));
                }
            }
        }
        map.places = Places::Sparse(tiles);
        Ok(map)
    }

    fn key_of(&self, part: &SlideHeader, position: &Position) -> std::result::Result<u64, String> {
        let (Some(left), Some(top)) = (position.column, position.row) else {
            return Err("has no position in the total pixel matrix".into());
        };
        let [across, down] = part.tile;
        let on_grid = |place: i64, step: u64| u64::try_from(place).ok().filter(|place| place % step == 0);
        let (Some(left), Some(top)) = (on_grid(left, across), on_grid(top, down)) else {
            return Err(format!("lies at column {left}, row {top}, off the grid of tiles"));
        };
        let only = if self.paths.len() == 1 { self.paths.first() } else { None };
        let own = if part.paths.len() == 1 { part.paths.first() } else { None };
        let path = position.path.as_ref().or(part.shared_path.as_ref()).or(own).or(only);
        let path = path.and_then(|path| self.paths.iter().position(|each| each == path));
        let Some(path) = path else { return Err("is of an optical path that the sequence lacks".into()) };
        let z = position.z.unwrap_or(0.0);
        let plane = self.planes.iter().position(|each| *each == z).unwrap_or(0);
        self.key(left / across, top / down, plane as u64, path as u64)
            .ok_or_else(|| format!("lies at column {left}, row {top}, outside of the total pixel matrix"))
    }

    /// The number of a tile in the order of TILED_FULL; `None` outside of the level.
    fn key(&self, column: u64, row: u64, plane: u64, path: u64) -> Option<u64> {
        let [columns, rows] = self.grid;
        let planes = self.planes.len() as u64;
        if column >= columns || row >= rows || plane >= planes || path >= self.paths.len() as u64 {
            return None;
        }
        let number = path.checked_mul(planes)?.checked_add(plane)?;
        number.checked_mul(rows)?.checked_add(row)?.checked_mul(columns)?.checked_add(column)
    }

    /// Instance (in the order given) and frame of a tile; `None` where there is none. Outside of the level an error.
    ///
    /// # Errors
    /// `invalid_argument`: no such column, row, focal plane or optical path.
    pub fn find(&self, column: u64, row: u64, plane: u64, path: u64) -> Result<Option<(usize, u64)>> {
        let Some(key) = self.key(column, row, plane, path) else {
            let [columns, rows] = self.grid;
            let (planes, paths) = (self.planes.len(), self.paths.len());
            let detail = format!(
                "tile column {column}, row {row}, plane {plane}, path {path}: the level has {columns} by {rows} \
                 tiles, {planes} planes and {paths} paths"
            );
            return Err(Error::new(ErrorKind::InvalidArgument, detail));
        };
        Ok(match &self.places {
            Places::Full(spans) => spans.iter().enumerate().find_map(|(instance, &(first, count))| {
                let frame = key.checked_sub(first).filter(|&frame| frame < count)?;
                Some((instance, frame))
            }),
            Places::Sparse(tiles) => {
                tiles.get(&key).map(|&(instance, frame)| (instance as usize, u64::from(frame)))
            }
        })
    }
}

//! The map of a level: which frame of which instance is the tile at a column and row.

use std::collections::{HashMap, HashSet};

use super::header::{Position, SlideHeader};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Fingerprint;

/// Most focal planes that are told apart.
const MOST_PLANES: usize = 4096;

/// Which frame is a tile, over the instances of one level: compact where the header says `TILED_FULL`.
#[derive(Debug)]
pub struct TileMap {
    /// Columns and rows of tiles.
    pub grid: [u64; 2],
    /// Optical Path Identifiers.
    pub paths: Vec<String>,
    /// Focal planes: offsets in micrometres, or numbers where the header has none.
    pub planes: Vec<f64>,
    /// The states of the instances, in the order given.
    pub states: Vec<Fingerprint>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// Frames in the order of the standard, none twice.
    Full(Vec<Span>),
    /// Number of each tile that there is, its instance and its frame, in the order of numbers.
    Sparse(Vec<(u64, u32, u32)>),
}

/// Frames of an instance that follow each other in the order of the level too.
#[derive(Debug)]
struct Span {
    /// Number of the first tile in the level.
    first: u64,
    count: u64,
    instance: usize,
    /// Frame of the instance that is the first tile.
    frame: u64,
}

/// One image of a level: an instance, or the parts of a concatenation, with their places among the instances.
struct Image<'a> {
    parts: Vec<(usize, &'a SlideHeader)>,
}

impl<'a> Image<'a> {
    fn paths(&self) -> &'a [String] {
        self.parts.first().map_or(&[], |(_, part)| &part.paths)
    }

    fn planes(&self) -> u64 {
        self.parts.first().map_or(1, |(_, part)| part.focal_planes)
    }

    fn z(&self) -> f64 {
        self.parts.first().and_then(|(_, part)| part.shared_z).unwrap_or(0.0)
    }
}

impl TileMap {
    /// Makes the map of the instances of one level, which agree in their sizes.
    ///
    /// # Errors
    /// `misplaced_element` for a frame without a place or off the grid, for two frames at one place, for parts that
    /// overlap, and for a frame of an optical path that the sequence lacks.
    pub fn new(parts: &[&SlideHeader]) -> Result<Self> {
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
        let segments = parts.iter().flat_map(|part| part.segments).filter(|&segment| segment != 0);
        if segments.clone().min() != segments.max() {
            return refuse(
                "its frames are of several segments, which may lie on each other: a tile is of one image"
                    .into(),
            );
        }
        let is_full = |part: &&SlideHeader| part.organization == "TILED_FULL";
        if parts.iter().all(is_full) {
            return Self::full(parts, grid, paths);
        }
        if parts.iter().any(is_full) {
            return refuse("one level holds TILED_FULL and other instances".into());
        }
        Self::sparse(parts, grid, paths)
    }

    /// PS3.3 C.7.6.17.3: columns first, then rows, focal planes, optical paths.
    fn full(parts: &[&SlideHeader], grid: [u64; 2], paths: Vec<String>) -> Result<Self> {
        let refuse = |detail: String| Err(Error::new(ErrorKind::MisplacedElement, detail));
        let planes = parts.first().map_or(1, |part| part.focal_planes);
        if parts.iter().any(|part| part.focal_planes != planes) {
            return refuse("instances of one level differ in Total Pixel Matrix Focal Planes".into());
        }
        let tiles = grid[0].checked_mul(grid[1]);
        let frames_of = |planes: u64, paths: usize| tiles?.checked_mul(planes)?.checked_mul(paths as u64);
        for part in parts.iter().filter(|part| part.concatenation.is_empty()) {
            let own = part.paths.len().max(1);
            if frames_of(planes, own) != Some(part.frames) {
                return refuse(format!(
                    "TILED_FULL of {} by {} tiles, {planes} focal planes and {own} optical paths has {} frames",
                    grid[0], grid[1], part.frames
                ));
            }
        }
        let images = images_of(parts);
        let planes = match offsets_of(&images) {
            Some(offsets) => offsets,
            None => (0..planes.min(MOST_PLANES as u64 + 1)).map(|plane| plane as f64).collect(),
        };
        if planes.len() > MOST_PLANES {
            return refuse(format!("more than {MOST_PLANES} focal planes"));
        }
        if frames_of(planes.len() as u64, paths.len()).is_none() {
            return refuse("a level has more tiles than can be counted".into());
        }
        let mut map =
            Self { grid, paths, planes, states: states_of(parts), places: Places::Full(Vec::new()) };
        let mut spans = Vec::new();
        for image in &images {
            if images.len() == 1 {
                spans.extend(image.parts.iter().map(|&(instance, part)| Span {
                    first: part.frame_offset,
                    count: part.frames,
                    instance,
                    frame: 0,
                }));
            } else {
                map.push_spans(image, &mut spans)?;
            }
        }
        spans.sort_unstable_by_key(|span| (span.first, span.instance));
        for pair in spans.windows(2) {
            if let [one, other] = pair
                && one.first.saturating_add(one.count) > other.first
            {
                let of = |span: &Span| parts.get(span.instance).map_or("", |part| &part.concatenation);
                let is_concatenation = !of(one).is_empty() && of(one) == of(other);
                return refuse(if is_concatenation {
                    "two parts of a concatenation hold the same frames".into()
                } else {
                    "two instances of TILED_FULL hold the same optical path on the same focal plane".into()
                });
            }
        }
        map.places = Places::Full(spans);
        Ok(map)
    }

    /// Adds the frames of one of several images of a level: it holds optical paths of its own, or a plane of its own.
    fn push_spans(&self, image: &Image<'_>, spans: &mut Vec<Span>) -> Result<()> {
        let tiles = self.grid[0] * self.grid[1]; // `full` has checked it, times planes and paths
        let plane = self.planes.binary_search_by(|each| each.total_cmp(&image.z()));
        let is_apart = image.planes() != self.planes.len() as u64;
        let plane = if is_apart { plane.unwrap_or(0) as u64 } else { 0 };
        let stack = tiles * image.planes();
        let unnamed = [String::new()];
        let names = if image.paths().is_empty() { &unnamed[..] } else { image.paths() };
        for (own, name) in names.iter().enumerate() {
            let Some(path) = self.paths.iter().position(|each| each == name) else {
                let detail = "an instance of a level of several optical paths has none";
                return Err(Error::new(ErrorKind::MisplacedElement, detail));
            };
            let first = (path as u64 * self.planes.len() as u64 + plane) * tiles;
            let local = (own as u64).saturating_mul(stack); // a header may name a path again and again
            for &(instance, part) in &image.parts {
                let start = part.frame_offset.max(local);
                let end = part.frame_offset.saturating_add(part.frames).min(local.saturating_add(stack));
                if start < end {
                    let frame = start - part.frame_offset;
                    spans.push(Span { first: first + (start - local), count: end - start, instance, frame });
                }
            }
        }
        Ok(())
    }

    fn sparse(parts: &[&SlideHeader], grid: [u64; 2], paths: Vec<String>) -> Result<Self> {
        let refuse = |detail: String| Err(Error::new(ErrorKind::MisplacedElement, detail));
        let mut planes: Vec<f64> = Vec::new();
        for z in parts.iter().flat_map(|part| &part.positions).map(|position| position.z.unwrap_or(0.0)) {
            if planes.last() != Some(&z) {
                planes.push(z);
            }
        }
        planes.sort_by(f64::total_cmp);
        planes.dedup();
        if planes.len() > MOST_PLANES {
            return refuse("more than 4,096 focal planes".into());
        }
        if planes.is_empty() {
            planes.push(0.0);
        }
        let mut map =
            Self { grid, paths, planes, states: states_of(parts), places: Places::Sparse(Vec::new()) };
        let mut tiles = Vec::with_capacity(parts.iter().map(|part| part.positions.len()).sum());
        for (instance, part) in parts.iter().enumerate() {
            // A single frame that is the whole matrix needs no position.
            let whole = [Position { column: Some(0), row: Some(0), ..Position::default() }];
            let positions =
                if part.positions.is_empty() && part.frames == 1 { &whole[..] } else { &part.positions };
            if positions.len() as u64 != part.frames {
                return refuse(format!("{} positions for {} frames", positions.len(), part.frames));
            }
            let find = |name: &String| map.paths.iter().position(|each| each == name);
            let named: Vec<_> = part.frame_paths.iter().map(find).collect();
            let only = if map.paths.len() == 1 { map.paths.first() } else { None };
            let own = if part.paths.len() == 1 { part.paths.first() } else { None };
            let shared = part.shared_path.as_ref().or(own).or(only).and_then(find);
            for (frame, position) in positions.iter().enumerate() {
                let path = match position.path {
                    Some(place) => named.get(place as usize).copied().flatten(),
                    None => shared,
                };
                let key = map.key_of(part.tile, position, path).map_err(|detail| {
                    Error::new(ErrorKind::MisplacedElement, format!("frame {frame} (from 0) {detail}"))
                })?;
                tiles.push((key, instance as u32, frame as u32));
            }
        }
        tiles.sort_unstable();
        for pair in tiles.windows(2) {
            if let [one, other] = pair
                && one.0 == other.0
            {
                return refuse(format!("frame {} (from 0) lies where another frame does", other.2));
            }
        }
        map.places = Places::Sparse(tiles);
        Ok(map)
    }

    fn key_of(
        &self,
        [across, down]: [u64; 2],
        position: &Position,
        path: Option<usize>,
    ) -> std::result::Result<u64, String> {
        let (Some(left), Some(top)) = (position.column, position.row) else {
            return Err("has no position in the total pixel matrix".into());
        };
        let on_grid = |place: i64, step: u64| u64::try_from(place).ok().filter(|place| place % step == 0);
        let (Some(left), Some(top)) = (on_grid(left, across), on_grid(top, down)) else {
            return Err(format!("lies at column {left}, row {top}, off the grid of tiles"));
        };
        let Some(path) = path else { return Err("is of an optical path that the sequence lacks".into()) };
        let z = position.z.unwrap_or(0.0);
        let plane = self.planes.binary_search_by(|each| each.total_cmp(&z)).unwrap_or(0);
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
            Places::Full(spans) => {
                let before = spans.partition_point(|span| span.first <= key);
                let span = before.checked_sub(1).and_then(|place| spans.get(place));
                span.filter(|span| key - span.first < span.count)
                    .map(|span| (span.instance, span.frame + key - span.first))
            }
            Places::Sparse(tiles) => {
                let place = tiles.binary_search_by_key(&key, |tile| tile.0).ok();
                place.and_then(|place| tiles.get(place)).map(|tile| (tile.1 as usize, tile.2.into()))
            }
        })
    }
}

fn images_of<'a>(parts: &[&'a SlideHeader]) -> Vec<Image<'a>> {
    let mut images: Vec<Image<'a>> = Vec::new();
    let mut places = HashMap::new();
    for (instance, &part) in parts.iter().enumerate() {
        let next = images.len();
        let is_alone = part.concatenation.is_empty();
        let place = if is_alone { next } else { *places.entry(&*part.concatenation).or_insert(next) };
        match images.get_mut(place) {
            Some(image) => image.parts.push((instance, part)),
            None => images.push(Image { parts: vec![(instance, part)] }),
        }
    }
    images
}

/// The focal planes of images of one plane each that share optical paths; of other levels planes have numbers.
fn offsets_of(images: &[Image<'_>]) -> Option<Vec<f64>> {
    let mut names = HashSet::new();
    let mut is_shared = false;
    for image in images {
        is_shared |= image.paths().is_empty() && !names.insert("");
        for path in image.paths() {
            is_shared |= !names.insert(path);
        }
    }
    if images.len() < 2 || !is_shared || images.iter().any(|image| image.planes() != 1) {
        return None;
    }
    let mut offsets: Vec<f64> = images.iter().map(Image::z).collect();
    offsets.sort_by(f64::total_cmp);
    offsets.dedup();
    Some(offsets)
}

fn states_of(parts: &[&SlideHeader]) -> Vec<Fingerprint> {
    parts.iter().map(|part| part.state).collect()
}

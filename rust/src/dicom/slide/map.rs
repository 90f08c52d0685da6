//! The map of a level: which frame of which instance is the tile at a column and row.

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
    /// Focal planes: offsets in millimetres, or numbers where the header has none.
    pub planes: Vec<f64>,
    /// The states of the instances, in the order given.
    pub states: Vec<Fingerprint>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// Frames in the order of the standard; for each instance the first one and how many it has.
    Full(Vec<(u64, u64)>),
    /// Number of each tile that there is, its instance and its frame, in the order of numbers.
    Sparse(Vec<(u64, u32, u32)>),
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
        let planes = parts.iter().map(|part| part.focal_planes).max().unwrap_or(1);
        let is_whole = parts.iter().all(|part| part.concatenation.is_empty());
        let own = |part: &SlideHeader| part.paths.len().max(1) as u64;
        let mut spans = Vec::new();
        let mut next = 0;
        for part in parts {
            // An instance that is no part of a concatenation holds its own optical paths, behind those before it.
            let first = if is_whole { next } else { part.frame_offset };
            let tiles = grid[0].checked_mul(grid[1]).and_then(|tiles| tiles.checked_mul(planes));
            let expected = tiles.and_then(|tiles| tiles.checked_mul(own(part)));
            if is_whole && expected != Some(part.frames) {
                return refuse(format!(
                    "TILED_FULL of {} by {} tiles, {planes} focal planes and {} optical paths has {} frames",
                    grid[0],
                    grid[1],
                    own(part),
                    part.frames
                ));
            }
            let end = first.saturating_add(part.frames);
            if spans
                .iter()
                .any(|&(from, count): &(u64, u64)| first < from.saturating_add(count) && from < end)
            {
                return refuse("two parts of a concatenation hold the same frames".into());
            }
            spans.push((first, part.frames));
            next = end;
        }
        let tiles = grid[0].saturating_mul(grid[1]).saturating_mul(planes).saturating_mul(paths.len() as u64);
        if next > tiles && is_whole {
            return refuse("two instances of TILED_FULL hold the same optical path".into());
        }
        let planes = (0..planes.min(MOST_PLANES as u64)).map(|plane| plane as f64).collect();
        Ok(Self { grid, paths, planes, states: states_of(parts), places: Places::Full(spans) })
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
            Places::Full(spans) => spans.iter().enumerate().find_map(|(instance, &(first, count))| {
                let frame = key.checked_sub(first).filter(|&frame| frame < count)?;
                Some((instance, frame))
            }),
            Places::Sparse(tiles) => {
                let place = tiles.binary_search_by_key(&key, |tile| tile.0).ok();
                place.and_then(|place| tiles.get(place)).map(|tile| (tile.1 as usize, tile.2.into()))
            }
        })
    }
}

fn states_of(parts: &[&SlideHeader]) -> Vec<Fingerprint> {
    parts.iter().map(|part| part.state).collect()
}

//! What an item is read from, and the form of a batch.

use std::sync::Arc;

use super::oblique::Oblique;
use crate::base::error::{Error, ErrorKind, Result};
use crate::tiledb::output::convert::Recipe;
use crate::tiledb::output::sink::Sink;
use crate::tiledb::plan::{Boxes, Plan};
use crate::tiledb::reader::TileFile;

/// One volume of an item: a channel of the image, or the mask.
pub struct Part {
    tiles: Arc<TileFile>,
    recipe: Recipe,
    /// Stored number outside the volume.
    fill: [u8; 8],
    /// Axis (x, y, z) of each stored dimension.
    order: [usize; 3],
}

impl Part {
    /// A volume of three dimensions.
    ///
    /// # Errors
    /// `invalid_argument` for another number of dimensions, an order that is none, or a recipe for cells of
    /// another size.
    pub fn new(tiles: Arc<TileFile>, recipe: Recipe, fill: [u8; 8], order: [usize; 3]) -> Result<Self> {
        let mut sorted = order;
        sorted.sort_unstable();
        if tiles.grid().dims() != 3 || sorted != [0, 1, 2] || recipe.from().bytes() != tiles.cell() {
            let detail = format!("axes {order:?} and cells of {} bytes do not fit the volume", tiles.cell());
            return Err(Error::new(ErrorKind::InvalidArgument, detail));
        }
        Ok(Self { tiles, recipe, fill, order })
    }

    /// Its tiles.
    pub fn tiles(&self) -> &TileFile {
        &self.tiles
    }

    /// The steps from its stored numbers to those of the batch.
    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Stored number outside the volume.
    pub fn fill(&self) -> [u8; 8] {
        self.fill
    }

    /// Numbers along x, y, z in the order of the stored dimensions.
    pub fn stored<T: Copy>(&self, of: [T; 3]) -> [T; 3] {
        let [x, y, z] = of;
        self.order.map(|axis| match axis {
            0 => x,
            1 => y,
            _ => z,
        })
    }

    /// Numbers along the stored dimensions in the order x, y, z.
    fn axes(&self, of: [u64; 3]) -> [u64; 3] {
        let mut found = [0; 3];
        for (axis, value) in self.order.into_iter().zip(of) {
            if let Some(slot) = found.get_mut(axis) {
                *slot = value;
            }
        }
        found
    }

    /// Voxels along x, y, z.
    pub fn shape(&self) -> [u64; 3] {
        let grid = self.tiles.grid();
        self.axes([grid.size(0), grid.size(1), grid.size(2)])
    }
}

/// The volumes of one item, and where its foreground lies.
pub struct Subject {
    /// Channels of the image, then the mask where there is one.
    pub parts: Vec<Part>,
    /// Where the foreground of the mask lies.
    pub foreground: Option<Foreground>,
}

/// The foreground of a mask, counted in blocks.
pub struct Foreground {
    /// Voxels of the foreground in all blocks up to and with each one; z varies fastest.
    pub cumulative: Vec<u64>,
    /// Blocks along x, y, z.
    pub blocks: [u64; 3],
    /// Voxels of a block along each axis.
    pub side: u64,
    /// The class; `None` is every number but 0.
    pub label: Option<f64>,
}

/// Where the patches of a batch lie in its memory.
#[derive(Clone, Debug)]
pub struct Form {
    /// Voxels of a patch along x, y, z.
    pub size: [u64; 3],
    /// Numbers from voxel to voxel along x, y, z; the axes leave no gap.
    pub steps: [u64; 3],
    /// Channels of the image.
    pub channels: usize,
    /// Offset of the image in bytes.
    pub image: usize,
    /// Offset of the mask in bytes.
    pub mask: usize,
}

impl Form {
    /// Numbers of one patch and channel.
    pub fn voxels(&self) -> u64 {
        self.size.iter().fold(1, |all: u64, &one| all.saturating_mul(one))
    }

    /// Offset in bytes and length in bytes of the place of a part in row `row`.
    pub fn place(&self, part: usize, row: usize, number: usize) -> Option<(usize, usize)> {
        let bytes = usize::try_from(self.voxels()).ok()?.checked_mul(number)?;
        let is_mask = part >= self.channels;
        let before = if is_mask { row } else { row.checked_mul(self.channels)?.checked_add(part)? };
        let start = if is_mask { self.mask } else { self.image };
        Some((before.checked_mul(bytes)?.checked_add(start)?, bytes))
    }

    /// Calls `work` with a box, as a part stores it.
    pub fn with_box<T>(
        &self,
        part: &Part,
        start: [i64; 3],
        size: [u64; 3],
        steps: [u64; 3],
        work: impl FnOnce(&Boxes<'_>) -> T,
    ) -> T {
        let (starts, size, steps) = (part.stored(start), part.stored(size), part.stored(steps));
        let mut boxes = Boxes { starts: &starts, size: &size, steps: &steps, first: 0, each: 0 };
        boxes.each = boxes.numbers();
        work(&boxes)
    }

    /// The axes x, y, z in the order of memory, the slowest first.
    fn axes(&self) -> [usize; 3] {
        let [x, y, z] = self.steps;
        let mut axes = [(x, 0), (y, 1), (z, 2)];
        axes.sort_by_key(|(step, axis)| (std::cmp::Reverse(*step), *axis));
        axes.map(|(_, axis)| axis)
    }

    /// Values along x, y, z in the order of memory.
    pub fn in_memory<T: Copy>(&self, of: [T; 3]) -> [T; 3] {
        let [x, y, z] = of;
        self.axes().map(|axis| match axis {
            0 => x,
            1 => y,
            _ => z,
        })
    }

    /// Values in the order of memory along x, y, z.
    pub fn along<T: Copy + Default>(&self, of: [T; 3]) -> [T; 3] {
        let mut found = [T::default(); 3];
        for (axis, value) in self.axes().into_iter().zip(of) {
            if let Some(slot) = found.get_mut(axis) {
                *slot = value;
            }
        }
        found
    }

    /// The map of a patch at `start` that a matrix (x, y, z) turns, in the order of memory.
    ///
    /// # Errors
    /// As [`Oblique::new`].
    pub fn turn(&self, matrix: [[f64; 3]; 3], start: [i64; 3]) -> Result<Oblique> {
        let matrix = self.in_memory(matrix).map(|row| self.in_memory(row));
        Oblique::new(matrix, self.in_memory(start), self.in_memory(self.size))
    }

    /// Finds the chunks that a turned patch touches, and fills what lies outside the volume.
    ///
    /// # Errors
    /// As [`TileFile::prepare`].
    pub fn plan_oblique(&self, part: &Part, oblique: &Oblique, sink: &Sink) -> Result<Plan> {
        let (low, count) = (self.along(oblique.low()), self.along(oblique.count()));
        let [_, middle, fast] = oblique.count();
        let steps = self.along([middle * fast, fast, 1]);
        self.with_box(part, low, count, steps, |boxes| {
            part.tiles().prepare(boxes, part.fill(), sink, |low, high| {
                oblique.touches(self.in_memory(part.axes(low)), self.in_memory(part.axes(high)))
            })
        })
    }
}

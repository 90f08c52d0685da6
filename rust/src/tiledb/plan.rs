//! Which chunks a read needs, and where their cells go.

use super::framing::{Chunk, ChunkIndex};
use super::layout::{Grid, Range};
use super::memory::cache::Block;
use super::runs::{MAX_DIMS, Placement};
use crate::base::error::{Error, ErrorKind, Result};

/// Boxes of one size, and their places in an output.
#[derive(Clone, Copy, Debug)]
pub struct Boxes<'a> {
    /// First index of each box, dimension by dimension; it may be negative.
    pub starts: &'a [i64],
    /// Cells of a box along each dimension.
    pub size: &'a [u64],
    /// Numbers of the output from cell to cell along each dimension.
    pub steps: &'a [u64],
    /// Place of the first box, which fills the places up to the next one without gaps.
    pub first: u64,
    /// Numbers of the output from box to box.
    pub each: u64,
}

impl Boxes<'_> {
    /// Numbers of one box.
    pub fn numbers(&self) -> u64 {
        self.size.iter().fold(1, |all: u64, &one| all.saturating_mul(one))
    }

    /// Calls `fill` with the places (first and count) of cells outside a grid.
    pub fn outside(&self, grid: &Grid, fill: &mut impl FnMut(u64, u64)) {
        let mut dims: Vec<usize> = (0..self.size.len()).collect();
        // A dimension of one cell has the step of the next slower one, which spans more.
        dims.sort_by_key(|dim| std::cmp::Reverse((self.steps.get(*dim), self.size.get(*dim))));
        for (number, corner) in self.starts.chunks_exact(self.size.len().max(1)).enumerate() {
            if grid.reaches_out(corner, self.size) {
                self.outside_along(grid, corner, &dims, self.first + number as u64 * self.each, fill);
            }
        }
    }

    /// The same from one dimension on, whose steps leave no gap; `dims` has the slowest first.
    fn outside_along(
        &self,
        grid: &Grid,
        corner: &[i64],
        dims: &[usize],
        place: u64,
        fill: &mut impl FnMut(u64, u64),
    ) {
        let Some((&dim, inner)) = dims.split_first() else { return };
        let (Some(&start), Some(&count), Some(&step)) =
            (corner.get(dim), self.size.get(dim), self.steps.get(dim))
        else {
            return;
        };
        let inside = clip(start, count, grid.size(dim));
        let low = if inside.count == 0 {
            count
        } else {
            inside.start.saturating_add_signed(start.saturating_neg())
        };
        fill(place, low * step);
        fill(place + (low + inside.count) * step, (count - low - inside.count) * step);
        let reaches_out = |dim: &usize| {
            let parts = (corner.get(*dim), self.size.get(*dim));
            matches!(parts, (Some(&start), Some(&count)) if clip(start, count, grid.size(*dim)).count < count)
        };
        if inner.iter().any(reaches_out) {
            for index in low..low + inside.count {
                self.outside_along(grid, corner, inner, place + index * step, fill);
            }
        }
    }

    /// The placements of the boxes in a grid.
    ///
    /// # Errors
    /// `invalid_argument` for starts or sizes of another form.
    pub fn place(&self, grid: &Grid) -> Result<Vec<Placement>> {
        let Self { starts, size, steps, first, each } = *self;
        let dims = grid.dims();
        if size.len() != dims || steps.len() != dims || !starts.len().is_multiple_of(dims) {
            let detail = format!("{} starts of patches of size {size:?} in {dims} dimensions", starts.len());
            return Err(invalid(detail));
        }
        let mut placements = Vec::new();
        let mut selection = [Range::default(); MAX_DIMS];
        for (number, corner) in starts.chunks_exact(dims).enumerate() {
            let mut base = first + number as u64 * each;
            for (dim, ((&start, &count), &step)) in corner.iter().zip(size).zip(steps).enumerate() {
                let range = clip(start, count, grid.size(dim));
                base += range.start.saturating_add_signed(start.saturating_neg())
                    * step
                    * u64::from(range.count > 0);
                if let Some(slot) = selection.get_mut(dim) {
                    *slot = range;
                }
            }
            if let Some(selection) = selection.get(..dims) {
                grid.place(selection, steps, base, &mut placements);
            }
        }
        Ok(placements)
    }
}

/// The chunks of a read and where their cells go.
pub struct Plan {
    /// Sorted by tile.
    pub(super) placements: Vec<Placement>,
    /// In the order of the file.
    pub(super) needs: Vec<Need>,
}

/// A chunk that a read needs, and the range of the read's placements that select cells of its tile.
#[derive(Clone, Copy)]
pub(super) struct Need {
    pub number: u32,
    pub chunk: Chunk,
    pub first: u32,
    pub count: u32,
}

impl Need {
    /// Whether a block has the length of this chunk: shared memory may have been damaged.
    pub(super) fn has(&self, block: &Block) -> bool {
        block.cells().len() == self.chunk.original as usize
    }
}

impl Plan {
    /// The chunks that hold cells of these placements, whose cells take `cell` bytes.
    ///
    /// # Errors
    /// `bad_tile`, and `limit_exceeded` for 2^32 parts.
    pub fn new(index: &ChunkIndex, cell: usize, mut placements: Vec<Placement>) -> Result<Self> {
        placements.sort_by_key(|placement| placement.tile);
        let mut needs = Vec::new();
        let cell = cell as u64;
        let mut first = 0_usize;
        for same_tile in placements.chunk_by(|a, b| a.tile == b.tile) {
            let tile = same_tile.first().map_or(0, |placement| placement.tile);
            let (begin, chunks) = index.tile(tile)?;
            for (number, chunk) in (begin..).zip(chunks) {
                let (low, high) = (chunk.start / cell, (chunk.start + u64::from(chunk.original)) / cell);
                if same_tile.iter().any(|placement| placement.runs(low, high).next().is_some()) {
                    let count = same_tile.len() as u32;
                    needs.push(Need { number, chunk: *chunk, first: first as u32, count });
                }
            }
            first += same_tile.len();
        }
        if u32::try_from(first).is_err() {
            let detail = format!("{first} parts in one read: at most 2^32 - 1, read in smaller steps");
            return Err(Error::new(ErrorKind::LimitExceeded, detail));
        }
        Ok(Self { placements, needs })
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.needs.len()
    }
}

/// Row-major strides, in cells, of an output with these sizes.
pub(super) fn strides(sizes: impl DoubleEndedIterator<Item = u64>) -> Vec<u64> {
    let mut steps: Vec<u64> = sizes
        .rev()
        .scan(1_u64, |weight, size| {
            let step = *weight;
            *weight = weight.saturating_mul(size);
            Some(step)
        })
        .collect();
    steps.reverse();
    steps
}

/// The part of `start..start + count` that lies in `0..size`.
fn clip(start: i64, count: u64, size: u64) -> Range {
    let end = start.saturating_add_unsigned(count).max(0).unsigned_abs().min(size);
    let begin = start.max(0).unsigned_abs().min(size);
    Range { start: begin, count: end.saturating_sub(begin), step: 1 }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, detail)
}

//! Which cells of which tile a read wants, and where they go.

use crate::error::{Error, ErrorKind, Result};

/// Most dimensions of an array that is read here.
pub const MAX_DIMS: usize = 4;

/// What is wanted along one dimension: `start, start + step, ...`, `count` of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First index (inclusive).
    pub start: u64,
    /// How many; 0 reads nothing.
    pub count: u64,
    /// Distance; >= 1.
    pub step: u64,
}

/// A dense array cut into tiles, row-major both.
#[derive(Clone, Debug)]
pub struct Grid {
    shape: Vec<u64>,
    extents: Vec<u64>,
    counts: Vec<u64>,
    tile_cells: u64,
    cells: u64,
}

impl Grid {
    /// A grid of 1 to [`MAX_DIMS`] dimensions, each >= 1, whose padded size fits memory arithmetic.
    pub fn new(shape: &[u64], extents: &[u64]) -> Result<Self> {
        let sane = (1..=MAX_DIMS).contains(&shape.len())
            && shape.len() == extents.len()
            && shape.iter().zip(extents).all(|(&size, &extent)| size >= 1 && extent >= 1);
        if !sane {
            return Err(refused(format!("shape {shape:?} with tile extents {extents:?}")));
        }
        let counts: Vec<u64> =
            shape.iter().zip(extents).map(|(size, extent)| size.div_ceil(*extent)).collect();
        let product = |numbers: &[u64]| numbers.iter().try_fold(1_u64, |all, &one| all.checked_mul(one));
        let sizes = (product(extents), product(&counts), product(shape));
        let (Some(tile_cells), Some(tiles), Some(cells)) = sizes else {
            return Err(refused(format!("shape {shape:?} is too large")));
        };
        if tile_cells.checked_mul(tiles).is_none_or(|all| all > 1 << 60) {
            return Err(refused(format!("shape {shape:?} is too large")));
        }
        Ok(Self { shape: shape.to_vec(), extents: extents.to_vec(), counts, tile_cells, cells })
    }

    /// Cells of the whole array.
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// Dimensions.
    pub fn dims(&self) -> usize {
        self.shape.len()
    }

    /// Cells of one tile, padding included.
    pub fn tile_cells(&self) -> u64 {
        self.tile_cells
    }

    /// Number of tiles.
    pub fn tiles(&self) -> u64 {
        self.counts.iter().product()
    }

    /// Length along a dimension.
    pub fn size(&self, dim: usize) -> u64 {
        self.shape.get(dim).copied().unwrap_or(0)
    }

    /// Checks a selection and returns how many cells it has.
    pub fn check(&self, wanted: &[Range]) -> Result<u64> {
        if wanted.len() != self.dims() {
            return Err(refused(format!("{} ranges for {} dimensions", wanted.len(), self.dims())));
        }
        let mut cells = 1_u64;
        for (range, &size) in wanted.iter().zip(&self.shape) {
            let last = range
                .count
                .saturating_sub(1)
                .checked_mul(range.step)
                .and_then(|reach| reach.checked_add(range.start));
            if range.step == 0
                || range.count > size
                || last.is_none_or(|last| last >= size && range.count > 0)
            {
                return Err(refused(format!("{range:?} in a dimension of {size}")));
            }
            cells = cells.saturating_mul(range.count);
        }
        Ok(cells)
    }

    /// Appends a placement for every tile that holds a wanted cell.
    ///
    /// `wanted` has passed [`Grid::check`]; `strides` are those of the output in cells, `base` its first cell.
    pub fn place(&self, wanted: &[Range], strides: &[u64], base: u64, placements: &mut Vec<Placement>) {
        let partial = Placement { tile: 0, base, axes: [Axis::default(); MAX_DIMS], dims: self.dims() };
        if wanted.iter().all(|range| range.count > 0) {
            self.place_dim(0, wanted, strides, partial, placements);
        }
    }

    fn place_dim(
        &self,
        dim: usize,
        wanted: &[Range],
        strides: &[u64],
        partial: Placement,
        all: &mut Vec<Placement>,
    ) {
        let parts = (self.extents.get(dim), self.counts.get(dim), wanted.get(dim), strides.get(dim));
        let (Some(&extent), Some(&count), Some(range), Some(&stride)) = parts else {
            all.push(partial.collapsed());
            return;
        };
        let last = range.start + (range.count - 1) * range.step;
        for tile in range.start / extent..=last / extent {
            let low = tile * extent;
            let skipped = low.saturating_sub(range.start).div_ceil(range.step);
            let first = range.start + skipped * range.step;
            let end = (low + extent).min(last + 1);
            if first >= end {
                continue; // the step jumps over this tile
            }
            let mut next = partial;
            next.tile = partial.tile * count + tile;
            next.base = partial.base + skipped * stride;
            if let Some(axis) = next.axes.get_mut(dim) {
                *axis = Axis {
                    extent,
                    low: first - low,
                    count: (end - first).div_ceil(range.step),
                    step: range.step,
                    stride,
                };
            }
            self.place_dim(dim + 1, wanted, strides, next, all);
        }
    }
}

fn refused(detail: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, detail)
}

/// One dimension of a placement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Axis {
    extent: u64,
    low: u64,
    count: u64,
    step: u64,
    stride: u64,
}

/// The wanted cells of one tile and their places in the output.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Row-major number of the tile.
    pub tile: u64,
    base: u64,
    axes: [Axis; MAX_DIMS],
    dims: usize,
}

/// Planes of rows of cells of a tile: in each row, `count` from `cell`, `step` apart, go to `out` onwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First cell within the tile.
    pub cell: u64,
    /// Number of cells.
    pub count: u64,
    /// Distance between them in the tile.
    pub step: u64,
    /// First cell of the output.
    pub out: u64,
    /// Number of rows of this form; >= 1.
    pub rows: u64,
    /// Cells from row to row in the tile.
    pub row_cells: u64,
    /// Cells from row to row in the output.
    pub row_out: u64,
    /// Number of planes of such rows; >= 1.
    pub planes: u64,
    /// Cells from plane to plane in the tile.
    pub plane_cells: u64,
    /// Cells from plane to plane in the output.
    pub plane_out: u64,
}

impl Run {
    /// One cell to the first place.
    pub const ONE: Self = Self {
        cell: 0,
        count: 1,
        step: 1,
        out: 0,
        rows: 1,
        row_cells: 0,
        row_out: 0,
        planes: 1,
        plane_cells: 0,
        plane_out: 0,
    };
}

impl Placement {
    /// Joins dimensions that are contiguous in tile and output alike, so that runs get long.
    fn collapsed(mut self) -> Self {
        while self.dims > 1 {
            let (outer, inner) = (self.axis(self.dims - 2), self.axis(self.dims - 1));
            let whole = inner.count == inner.extent && inner.step == 1 && inner.stride == 1;
            if !(whole && outer.step == 1 && outer.stride == inner.extent) {
                break;
            }
            let joined = Axis {
                extent: outer.extent * inner.extent,
                low: outer.low * inner.extent,
                count: outer.count * inner.extent,
                step: 1,
                stride: 1,
            };
            self.dims -= 1;
            if let Some(slot) = self.axes.get_mut(self.dims - 1) {
                *slot = joined;
            }
        }
        self
    }

    fn axis(&self, dim: usize) -> Axis {
        self.axes.get(dim).copied().unwrap_or_default()
    }

    /// The runs that lie in the cells `begin..end` of the tile, in ascending order.
    pub fn runs(&self, begin: u64, end: u64) -> Runs {
        let mut weights = [1; MAX_DIMS];
        let mut weight = self.axis(self.dims - 1).extent;
        for dim in (0..self.dims - 1).rev() {
            if let Some(slot) = weights.get_mut(dim) {
                *slot = weight;
            }
            weight *= self.axis(dim).extent;
        }
        let mut runs =
            Runs { placement: *self, weights, index: [0; MAX_DIMS], left: 0, cell: 0, out: 0, begin, end };
        runs.skip_to(begin);
        runs
    }
}

/// Iterator of [`Placement::runs`]: an odometer over the rows (all dimensions but the last).
pub struct Runs {
    placement: Placement,
    weights: [u64; MAX_DIMS],
    index: [u64; MAX_DIMS],
    left: u64,
    cell: u64,
    out: u64,
    begin: u64,
    end: u64,
}

impl Runs {
    /// Starts at the first row that reaches to `begin` or beyond.
    ///
    /// Cells ascend from row to row; so, from the outermost dimension inwards, the smallest index is taken with
    /// which the rest can still reach it.
    fn skip_to(&mut self, begin: u64) {
        let Placement { base, dims, .. } = self.placement;
        let row = self.placement.axis(dims - 1);
        (self.cell, self.out) = (row.low, base);
        let (mut rows, mut inner) = (1, (row.count - 1) * row.step);
        for dim in 0..dims - 1 {
            let axis = self.placement.axis(dim);
            let weight = self.weight(dim);
            rows *= axis.count;
            self.cell += axis.low * weight;
            inner += (axis.count - 1) * axis.step * weight;
        }
        let (mut missing, mut number) = (begin.saturating_sub(self.cell), 0);
        for dim in 0..dims - 1 {
            let axis = self.placement.axis(dim);
            let unit = axis.step * self.weight(dim);
            inner -= (axis.count - 1) * unit;
            number *= axis.count;
            if missing > inner {
                let index = (missing - inner).div_ceil(unit);
                if index >= axis.count {
                    self.left = 0;
                    return;
                }
                missing = missing.saturating_sub(index * unit);
                number += index;
                self.cell += index * unit;
                self.out += index * axis.stride;
                if let Some(slot) = self.index.get_mut(dim) {
                    *slot = index;
                }
            }
        }
        self.left = if missing > inner { 0 } else { rows - number };
    }

    fn weight(&self, dim: usize) -> u64 {
        self.weights.get(dim).copied().unwrap_or(0)
    }

    fn advance(&mut self) {
        self.left -= 1;
        for dim in (0..self.placement.dims - 1).rev() {
            let axis = self.placement.axis(dim);
            let (Some(slot), Some(weight)) = (self.index.get_mut(dim), self.weights.get(dim)) else { return };
            *slot += 1;
            self.cell += axis.step * weight;
            self.out += axis.stride;
            if *slot < axis.count {
                return;
            }
            self.cell -= axis.count * axis.step * weight;
            self.out -= axis.count * axis.stride;
            *slot = 0;
        }
    }
}

impl Runs {
    /// Rows, and planes of all their rows, that lie wholly in `begin..end` from the current row onwards, as a run
    /// whose cells are still to be counted.
    fn block(&self, reach: u64) -> Run {
        let mut run = Run { cell: self.cell, out: self.out, ..Run::ONE };
        let end_of_row = self.cell + reach + 1;
        let Some(dim) = self.placement.dims.checked_sub(2) else { return run };
        if self.cell < self.begin || end_of_row > self.end {
            return run;
        }
        let rows = self.alike(dim, end_of_row);
        (run.rows, run.row_cells, run.row_out) = rows;
        let Some(outer) = dim.checked_sub(1) else { return run };
        let end_of_plane = end_of_row + (rows.0 - 1) * rows.1;
        if rows.0 == self.placement.axis(dim).count && end_of_plane <= self.end {
            (run.planes, run.plane_cells, run.plane_out) = self.alike(outer, end_of_plane);
        }
        run
    }

    /// How many steps along a dimension, this one included, end before `end` when this one does at `end_of_one`;
    /// and what a step is in the tile and in the output.
    fn alike(&self, dim: usize, end_of_one: u64) -> (u64, u64, u64) {
        let axis = self.placement.axis(dim);
        let stride = axis.step * self.weight(dim);
        let left = axis.count - self.index.get(dim).copied().unwrap_or(0);
        (left.min((self.end - end_of_one) / stride.max(1) + 1), stride, axis.stride)
    }

    /// Advances over the rows of a block.
    fn advance_over(&mut self, run: &Run) {
        let dims = self.placement.dims;
        for (back, steps, cells, out) in
            [(2, run.rows, run.row_cells, run.row_out), (3, run.planes, run.plane_cells, run.plane_out)]
        {
            if let Some(slot) = dims.checked_sub(back).and_then(|dim| self.index.get_mut(dim)) {
                *slot += steps - 1;
            }
            self.cell += (steps - 1) * cells;
            self.out += (steps - 1) * out;
        }
        self.left -= run.rows * run.planes - 1;
        self.advance();
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let last = self.placement.axis(self.placement.dims - 1);
        let reach = (last.count - 1) * last.step;
        while self.left > 0 {
            if self.cell >= self.end {
                return None;
            }
            let mut run = self.block(reach);
            self.advance_over(&run);
            let (mut skip, mut stop) = (0, last.count);
            if run.cell < self.begin {
                skip = (self.begin - run.cell).div_ceil(last.step);
            }
            if run.cell + last.count * last.step > self.end {
                stop = (self.end - run.cell).div_ceil(last.step).min(last.count);
            }
            if skip < stop {
                run.cell += skip * last.step;
                run.out += skip;
                (run.count, run.step) = (stop - skip, last.step);
                return Some(run);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every wanted cell, by brute force: (tile, cell in tile) -> place in the output.
    fn naive(shape: &[u64], extents: &[u64], wanted: &[Range]) -> Vec<(u64, u64, u64)> {
        let total: u64 = wanted.iter().map(|range| range.count).product();
        let mut found: Vec<_> = (0..total)
            .map(|out| {
                let (mut rest, mut tile, mut cell, mut tiles, mut cells) = (out, 0, 0, 1, 1);
                for dim in (0..shape.len()).rev() {
                    let index = wanted[dim].start + rest % wanted[dim].count * wanted[dim].step;
                    rest /= wanted[dim].count;
                    tile += index / extents[dim] * tiles;
                    cell += index % extents[dim] * cells;
                    tiles *= shape[dim].div_ceil(extents[dim]);
                    cells *= extents[dim];
                }
                (tile, cell, out)
            })
            .collect();
        found.sort_unstable();
        found
    }

    fn dims() -> impl Strategy<Value = Vec<(u64, u64, Range)>> {
        let one = (1_u64..9, 1_u64..10, any::<(u64, u64, u64)>()).prop_map(|(size, extent, (a, b, c))| {
            let start = a % size;
            let step = 1 + c % 4;
            (size, extent, Range { start, count: 1 + b % ((size - start - 1) / step + 1), step })
        });
        prop::collection::vec(one, 1..=4)
    }

    proptest! {
        #[test]
        fn every_wanted_cell_is_placed_once_whatever_the_chunks(dims in dims(), chunk in 1_u64..40) {
            let shape: Vec<u64> = dims.iter().map(|d| d.0).collect();
            let extents: Vec<u64> = dims.iter().map(|d| d.1).collect();
            let wanted: Vec<Range> = dims.iter().map(|d| d.2).collect();
            let grid = Grid::new(&shape, &extents).unwrap();
            grid.check(&wanted).unwrap();
            let mut strides = vec![1; dims.len()];
            for dim in (1..dims.len()).rev() {
                strides[dim - 1] = strides[dim] * wanted[dim].count;
            }
            let mut placements = Vec::new();
            grid.place(&wanted, &strides, 0, &mut placements);
            let mut found = Vec::new();
            for placement in &placements {
                let mut begin = 0;
                while begin < grid.tile_cells() {
                    for run in placement.runs(begin, begin + chunk) {
                        for (plane, row) in (0..run.planes).flat_map(|p| (0..run.rows).map(move |r| (p, r))) {
                            let cell = run.cell + plane * run.plane_cells + row * run.row_cells;
                            let out = run.out + plane * run.plane_out + row * run.row_out;
                            for (cell, out) in (0..run.count).map(|k| (cell + k * run.step, out + k)) {
                                prop_assert!(cell >= begin && cell < begin + chunk);
                                found.push((placement.tile, cell, out));
                            }
                        }
                    }
                    begin += chunk;
                }
            }
            found.sort_unstable();
            prop_assert_eq!(found, naive(&shape, &extents, &wanted));
        }
    }
}

//! Which tiles hold the cells of a selection, and where in the output the cells of each tile go.

use super::runs::{Axis, MAX_DIMS, Placement};
use crate::base::error::{Error, ErrorKind, Result};

/// Selected indices of one dimension: `count` of `start, start + step, ...`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First index (inclusive).
    pub start: u64,
    /// Number of indices; 0 selects nothing.
    pub count: u64,
    /// Distance between them; >= 1.
    pub step: u64,
}

/// A dense array cut into tiles; cells and tiles are row-major.
#[derive(Clone, Debug)]
pub struct Grid {
    shape: Vec<u64>,
    extents: Vec<u64>,
    counts: Vec<u64>,
    tile_cells: u64,
    cells: u64,
}

impl Grid {
    /// A grid of 1 to [`MAX_DIMS`] dimensions.
    ///
    /// # Errors
    /// `invalid_argument` for a length or extent of 0, or an array whose padded size exceeds 2^60 cells.
    pub fn new(shape: &[u64], extents: &[u64]) -> Result<Self> {
        let sane = (1..=MAX_DIMS).contains(&shape.len())
            && shape.len() == extents.len()
            && shape.iter().zip(extents).all(|(&size, &extent)| size >= 1 && extent >= 1);
        if !sane {
            return Err(invalid(format!(
                "shape {shape:?} with tile extents {extents:?}: 1 to {MAX_DIMS} dimensions, each >= 1"
            )));
        }
        let counts: Vec<u64> =
            shape.iter().zip(extents).map(|(size, extent)| size.div_ceil(*extent)).collect();
        let product = |numbers: &[u64]| numbers.iter().try_fold(1_u64, |all, &one| all.checked_mul(one));
        let sizes = (product(extents), product(&counts), product(shape));
        let (Some(tile_cells), Some(tiles), Some(cells)) = sizes else {
            return Err(invalid(format!("shape {shape:?} is too large")));
        };
        if tile_cells.checked_mul(tiles).is_none_or(|all| all > 1 << 60) {
            return Err(invalid(format!("shape {shape:?} is too large")));
        }
        Ok(Self { shape: shape.to_vec(), extents: extents.to_vec(), counts, tile_cells, cells })
    }

    /// Number of cells of the array.
    pub fn cells(&self) -> u64 {
        self.cells
    }

    /// Number of dimensions.
    pub fn dims(&self) -> usize {
        self.shape.len()
    }

    /// Number of cells of one tile, padding included.
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

    /// First and one past the last cell of a tile along the first three dimensions, padding included.
    pub fn tile_box(&self, tile: u64) -> ([u64; 3], [u64; 3]) {
        let (mut low, mut high, mut rest) = ([0; 3], [0; 3], tile);
        for (dim, (&extent, &count)) in self.extents.iter().zip(&self.counts).enumerate().rev() {
            if let (Some(low), Some(high)) = (low.get_mut(dim), high.get_mut(dim)) {
                *low = rest % count * extent;
                *high = *low + extent;
            }
            rest /= count;
        }
        (low, high)
    }

    /// Whether a box reaches out of the array.
    pub fn reaches_out(&self, corner: &[i64], size: &[u64]) -> bool {
        let ends = corner.iter().zip(size).zip(&self.shape);
        ends.into_iter().any(|((&start, &count), &size)| {
            start < 0 || start.saturating_add_unsigned(count).unsigned_abs() > size
        })
    }

    /// Checks a selection and returns its number of cells.
    ///
    /// # Errors
    /// `invalid_argument` for another number of dimensions, a step of 0, or an index outside the array.
    pub fn check(&self, selection: &[Range]) -> Result<u64> {
        if selection.len() != self.dims() {
            return Err(invalid(format!(
                "{} ranges for an array of {} dimensions",
                selection.len(),
                self.dims()
            )));
        }
        let mut cells = 1_u64;
        for (range, &size) in selection.iter().zip(&self.shape) {
            let last = range
                .count
                .saturating_sub(1)
                .checked_mul(range.step)
                .and_then(|reach| reach.checked_add(range.start));
            if range.step == 0
                || range.count > size
                || last.is_none_or(|last| last >= size && range.count > 0)
            {
                return Err(invalid(format!("{range:?} reaches out of a dimension of {size} cells")));
            }
            cells = cells.saturating_mul(range.count);
        }
        Ok(cells)
    }

    /// Appends a placement for every tile that holds a selected cell.
    ///
    /// The selection has passed [`Grid::check`]; `strides` are those of the output in cells, `base` is its
    /// first cell.
    pub fn place(&self, selection: &[Range], strides: &[u64], base: u64, placements: &mut Vec<Placement>) {
        let partial = Placement { tile: 0, base, axes: [Axis::default(); MAX_DIMS], dims: self.dims() };
        if selection.iter().all(|range| range.count > 0) {
            self.place_dim(0, selection, strides, partial, placements);
        }
    }

    fn place_dim(
        &self,
        dim: usize,
        selection: &[Range],
        strides: &[u64],
        partial: Placement,
        all: &mut Vec<Placement>,
    ) {
        let parts = (self.extents.get(dim), self.counts.get(dim), selection.get(dim), strides.get(dim));
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
                continue; // the step skips this tile
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
            self.place_dim(dim + 1, selection, strides, next, all);
        }
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every selected cell, one by one: tile, cell in the tile, place in the output.
    fn naive(shape: &[u64], extents: &[u64], selection: &[Range]) -> Vec<(u64, u64, u64)> {
        let total: u64 = selection.iter().map(|range| range.count).product();
        let mut found: Vec<_> = (0..total)
            .map(|out| {
                let (mut rest, mut tile, mut cell, mut tiles, mut cells) = (out, 0, 0, 1, 1);
                for dim in (0..shape.len()).rev() {
                    let index = selection[dim].start + rest % selection[dim].count * selection[dim].step;
                    rest /= selection[dim].count;
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
        fn every_selected_cell_is_placed_once_for_any_length_of_chunks(dims in dims(), chunk in 1_u64..40) {
            let shape: Vec<u64> = dims.iter().map(|d| d.0).collect();
            let extents: Vec<u64> = dims.iter().map(|d| d.1).collect();
            let selection: Vec<Range> = dims.iter().map(|d| d.2).collect();
            let grid = Grid::new(&shape, &extents).unwrap();
            grid.check(&selection).unwrap();
            let mut strides = vec![1; dims.len()];
            for dim in (1..dims.len()).rev() {
                strides[dim - 1] = strides[dim] * selection[dim].count;
            }
            let mut placements = Vec::new();
            grid.place(&selection, &strides, 0, &mut placements);
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
            prop_assert_eq!(found, naive(&shape, &extents, &selection));
        }
    }
}

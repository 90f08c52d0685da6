//! The selected cells of one tile, as rows at even distances in the tile and in the output.

/// Most dimensions of an array that is read here.
pub const MAX_DIMS: usize = 4;

/// One dimension of a placement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Axis {
    /// Cells of the tile along it, padding included.
    pub extent: u64,
    /// First selected cell.
    pub low: u64,
    /// Number of selected cells; >= 1.
    pub count: u64,
    /// Distance between them in the tile.
    pub step: u64,
    /// Distance between them in the output, in cells.
    pub stride: u64,
}

/// The selected cells of one tile and their places in the output.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Row-major number of the tile.
    pub tile: u64,
    /// Place of the first selected cell in the output.
    pub base: u64,
    /// One for each dimension; only the first `dims` are used.
    pub axes: [Axis; MAX_DIMS],
    /// Number of dimensions; >= 1.
    pub dims: usize,
}

/// Rows of cells, and planes of such rows: in each row, `count` cells `step` apart go to places `cell_out` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First cell of the first row, within the tile.
    pub cell: u64,
    /// Number of cells of a row.
    pub count: u64,
    /// Distance between them in the tile.
    pub step: u64,
    /// Place of the first cell in the output.
    pub out: u64,
    /// Distance between the cells of a row in the output, in cells.
    pub cell_out: u64,
    /// Number of rows; >= 1.
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
    /// A run of the first cell, to the first place.
    pub const ONE: Self = Self {
        cell: 0,
        count: 1,
        step: 1,
        out: 0,
        cell_out: 1,
        rows: 1,
        row_cells: 0,
        row_out: 0,
        planes: 1,
        plane_cells: 0,
        plane_out: 0,
    };
}

impl Placement {
    /// Joins dimensions that are contiguous in tile and output, to get longer runs.
    pub fn collapsed(mut self) -> Self {
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

    /// The runs within the cells `begin..end` of the tile, in ascending order.
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

/// The iterator of [`Placement::runs`]: counts through the rows, i.e. all dimensions but the last.
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
    /// Moves to the first row that ends at `begin` or beyond.
    ///
    /// Cells ascend from row to row. So, from the outermost dimension inwards, it takes the smallest index
    /// from which the remaining dimensions can still reach `begin`.
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
    /// The rows from the current one on (and planes, where all their rows are) that lie wholly in
    /// `begin..end`.
    ///
    /// The caller fills in `count` and `step`.
    fn block(&self, reach: u64) -> Run {
        let mut run = Run { cell: self.cell, out: self.out, ..Run::ONE };
        let end_of_row = self.cell + reach + 1;
        let Some(dim) = self.placement.dims.checked_sub(2) else { return run };
        if self.cell < self.begin || end_of_row > self.end {
            return run;
        }
        let rows = self.steps_within(dim, end_of_row);
        (run.rows, run.row_cells, run.row_out) = rows;
        let Some(outer) = dim.checked_sub(1) else { return run };
        let end_of_plane = end_of_row + (rows.0 - 1) * rows.1;
        if rows.0 == self.placement.axis(dim).count && end_of_plane <= self.end {
            (run.planes, run.plane_cells, run.plane_out) = self.steps_within(outer, end_of_plane);
        }
        run
    }

    /// How many steps along a dimension end before `end`, when the current one ends at `end_of_one`; and the
    /// length of a step in the tile and in the output, in cells.
    fn steps_within(&self, dim: usize, end_of_one: u64) -> (u64, u64, u64) {
        let axis = self.placement.axis(dim);
        let stride = axis.step * self.weight(dim);
        let left = axis.count - self.index.get(dim).copied().unwrap_or(0);
        (left.min((self.end - end_of_one) / stride.max(1) + 1), stride, axis.stride)
    }

    /// Advances over the rows of a run.
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
                run.out += skip * last.stride;
                (run.count, run.step, run.cell_out) = (stop - skip, last.step, last.stride);
                return Some(run);
            }
        }
        None
    }
}

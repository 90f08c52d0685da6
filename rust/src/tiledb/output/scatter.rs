//! Copies cells from decoded chunks straight to the output.

use arrayvec::ArrayVec;

use super::super::codec::Cells;
use super::super::runs::Run;
use super::rows::{Column, copy_rows, fill, interleave, pick};

/// Runs whose rows are copied side by side at most.
const MOST_BESIDE: usize = 8;

/// A run and the chunk that holds its cells.
pub struct Part<'a> {
    /// Which cells of the tile go where.
    pub run: Run,
    /// The chunk.
    pub cells: Cells<'a>,
    /// The first cell of the chunk within its tile.
    pub low: u64,
}

impl Part<'_> {
    /// Whether each row of `next` begins in the output where a row of this part ends.
    fn is_beside(&self, next: &Part<'_>) -> bool {
        let rows = |run: &Run| (run.rows, run.row_out, run.planes, run.plane_out);
        let plain = |part: &Part<'_>| matches!(part.cells, Cells::Plain(_)) && part.run.step == 1;
        self.run.out + self.run.count == next.run.out
            && rows(&self.run) == rows(&next.run)
            && plain(self)
            && plain(next)
    }
}

/// The output, written by several threads at once.
///
/// Invariant: the placements of one call cover disjoint cells of the output (tiles partition a selection,
/// patches have their own slots), and each chunk is handled by one thread; so no cell is written twice.
pub struct Target {
    start: *mut u8,
    cells: u64,
    cell: usize,
}

// SAFETY: the pointer comes from a `&mut [u8]` that outlives the call, and the invariant above keeps writes
// apart.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// An output of cells of `cell` (1, 2, 4 or 8) bytes; `out` must outlive the target.
    pub fn new(out: &mut [u8], cell: usize) -> Self {
        Self { start: out.as_mut_ptr(), cells: (out.len() / cell.max(1)) as u64, cell }
    }

    /// Length of the output in bytes.
    pub fn bytes(&self) -> u64 {
        self.cells * self.cell as u64
    }

    /// Copies a run from a chunk that begins with cell `low` of its tile.
    ///
    /// Copies nothing where the run reaches past the chunk or the output; a checked selection has no such
    /// run.
    ///
    /// # Safety
    ///
    /// The output lives, and no slice of the run's cells in it exists at the same time.
    pub unsafe fn copy(&self, run: &Run, cells: Cells<'_>, low: u64) {
        if !self.contains(run, cells, low) {
            return;
        }
        // SAFETY: the run's cells lie inside chunk and output; the output is not aliased (by contract) and
        // distinct from the chunk.
        unsafe {
            match self.cell {
                1 => self.planes::<1>(run, cells, low),
                2 => self.planes::<2>(run, cells, low),
                4 => self.planes::<4>(run, cells, low),
                8 => self.planes::<8>(run, cells, low),
                _ => {}
            }
        }
    }

    /// Copies many parts, as [`Target::copy`] does, in the order of the output.
    ///
    /// Rows of neighbouring tiles are short: writing them side by side takes a sixth less time than tile by
    /// tile.
    ///
    /// # Safety
    ///
    /// As for [`Target::copy`].
    pub unsafe fn copy_all(&self, parts: &mut [Part<'_>]) {
        parts.sort_unstable_by_key(|part| part.run.out);
        for group in parts.chunk_by(Part::is_beside).flat_map(|group| group.chunks(MOST_BESIDE)) {
            if group.len() > 1 && group.iter().all(|part| self.contains(&part.run, part.cells, part.low)) {
                // SAFETY: the parts lie inside chunks and output, and beside one another.
                unsafe { self.copy_beside(group) };
            } else {
                // SAFETY: by contract.
                group.iter().for_each(|part| unsafe { self.copy(&part.run, part.cells, part.low) });
            }
        }
    }

    /// # Safety
    ///
    /// The parts are plain, lie inside their chunks and the output, and each is beside the next.
    unsafe fn copy_beside(&self, parts: &[Part<'_>]) {
        let Some(Part { run: first, .. }) = parts.first() else { return };
        let bytes = |cells: u64| cells as usize * self.cell;
        for plane in 0..first.planes {
            let columns = parts.iter().filter_map(|Part { run, cells, low }| {
                let Cells::Plain(chunk) = cells else { return None };
                let from = chunk.as_ptr().wrapping_add(bytes(run.cell - low + plane * run.plane_cells));
                Some(Column { from, count: bytes(run.count), row_from: bytes(run.row_cells) })
            });
            let mut columns: ArrayVec<Column, MOST_BESIDE> = columns.take(MOST_BESIDE).collect();
            let place = self.start.wrapping_add(bytes(first.out + plane * first.plane_out));
            // SAFETY: by contract; each offset is that of a cell of its chunk or of the output.
            unsafe { copy_rows(&mut columns, place, bytes(first.row_out), first.rows as usize) };
        }
    }

    /// Whether all cells of a run lie inside chunk and output.
    fn contains(&self, run: &Run, cells: Cells<'_>, low: u64) -> bool {
        let end_out = run.out + (run.planes - 1) * run.plane_out + (run.rows - 1) * run.row_out + run.count;
        let end_cell = run.cell - low
            + (run.planes - 1) * run.plane_cells
            + (run.rows - 1) * run.row_cells
            + (run.count - 1) * run.step
            + 1;
        end_out <= self.cells && end_cell <= (cells.len() / self.cell) as u64
    }

    /// # Safety
    ///
    /// The cells of the run lie inside chunk and output, and N is the size of a cell.
    unsafe fn planes<const N: usize>(&self, run: &Run, cells: Cells<'_>, low: u64) {
        for plane in 0..run.planes {
            let first = run.cell - low + plane * run.plane_cells;
            // SAFETY: by contract.
            unsafe { self.rows::<N>(run, cells, first as usize, run.out + plane * run.plane_out) };
        }
    }

    /// # Safety
    ///
    /// The rows of one plane, from cell `first` of the chunk to cell `out`, lie inside both.
    unsafe fn rows<const N: usize>(&self, run: &Run, cells: Cells<'_>, first: usize, out: u64) {
        let (count, step) = (run.count as usize, run.step as usize);
        let (row_from, row_place) = (run.row_cells as usize, run.row_out as usize * N);
        // SAFETY: by contract: each offset is that of a cell of the chunk or of the output.
        unsafe {
            let place = self.start.add(out as usize * N);
            let each = |row: &mut dyn FnMut(usize, *mut u8)| {
                (0..run.rows as usize).for_each(|k| row(first + k * row_from, place.add(k * row_place)));
            };
            match cells {
                Cells::Plain(bytes) if step == 1 => {
                    let from = bytes.as_ptr().add(first * N);
                    let mut column = [Column { from, count: count * N, row_from: row_from * N }];
                    copy_rows(&mut column, place, row_place, run.rows as usize);
                }
                Cells::Plain(bytes) => {
                    each(&mut |from, place| pick::<N>(bytes.as_ptr().add(from * N), step, place, count));
                }
                Cells::Planes(bytes) => {
                    let length = bytes.len() / N;
                    each(&mut |from, place| {
                        interleave::<N>(bytes.as_ptr().add(from), length, step, place, count);
                    });
                }
                Cells::Constant(value, _) => each(&mut |_, place| fill::<N>(value, place, count)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::memory::cache::Cache;
    use super::super::super::memory::key::Key;
    use super::*;

    /// The cells of a chunk as plain bytes and as planes; all of one value where `value` is given.
    fn forms(cell: usize, cells: usize, value: Option<u8>) -> (Vec<u8>, Vec<u8>) {
        let plain: Vec<u8> = (0..cell * cells)
            .map(|n| value.map_or((n * 37 % 251) as u8, |value| value ^ (n % cell) as u8))
            .collect();
        let planes =
            (0..cell).flat_map(|s| (0..cells).map(move |c| c * cell + s)).map(|at| plain[at]).collect();
        (plain, planes)
    }

    proptest! {
        #[test]
        fn every_form_copies_the_cells_that_the_run_defines(
            shift in 0_u32..4, count in 1_u64..700, step in 1_u64..4, rows in 1_u64..4, skip in 0_u64..20,
            value in any::<Option<u8>>(),
        ) {
            let cell = 1_usize << shift;
            let (row_cells, row_out) = (count * step, count + 3);
            let cells = skip + rows * row_cells + 2;
            let (plain, apart) = forms(cell, cells as usize, value);
            let (planes, plane_cells, plane_out) = (1 + rows % 2, 2, rows * row_out);
            let run =
                Run { cell: 5 + skip, count, step, out: 2, cell_out: 1, rows, row_cells, row_out, planes, plane_cells, plane_out };
            let mut wanted = vec![9; (2 + planes * plane_out) as usize * cell];
            for (plane, row) in (0..planes).flat_map(|p| (0..rows).map(move |r| (p, r))) {
                for k in 0..count {
                    let (to, from) = (2 + plane * plane_out + row * row_out + k, skip + plane * plane_cells + row * row_cells + k * step);
                    let (to, from) = (to as usize, from as usize);
                    wanted[to * cell..(to + 1) * cell].copy_from_slice(&plain[from * cell..(from + 1) * cell]);
                }
            }
            let constant = Cells::Planes(&apart).constant(cell);
            prop_assert_eq!(constant, Cells::Plain(&plain).constant(cell));
            prop_assert!(constant.is_some() || value.is_none());
            let block = Cache::new(0).copy_of(Key { file: 0, chunk: 0 }, Cells::Planes(&apart), cell, false).unwrap();
            let mut all = vec![Cells::Plain(&plain), Cells::Planes(&apart), block.cells()];
            all.extend(constant.map(|value| Cells::Constant(value, plain.len())));
            for form in all {
                let mut out = vec![9; wanted.len()];
                // SAFETY: `out` is not touched meanwhile.
                unsafe { Target::new(&mut out, cell).copy(&run, form, 5) };
                prop_assert_eq!(&out, &wanted);
                let mut short = vec![9; wanted.len() - 4 * cell];
                // SAFETY: as above.
                unsafe { Target::new(&mut short, cell).copy(&run, form, 5) };
                prop_assert!(short.iter().all(|byte| *byte == 9), "a run past the output was copied");
            }
        }
    }

    proptest! {
        /// Columns of an output from different chunks: some cut short, some in other forms.
        #[test]
        fn parts_copied_together_equal_parts_copied_one_by_one(
            shift in 0_u32..4, counts in prop::collection::vec((1_u64..70, 0_u8..8), 1..12),
            rows in 1_u64..5, planes in 1_u64..4, missing in 0_u64..12,
        ) {
            let cell = 1_usize << shift;
            let width: u64 = counts.iter().map(|(count, _)| count).sum::<u64>() + 2;
            let chunks: Vec<(Vec<u8>, Vec<u8>)> =
                counts.iter().map(|(count, _)| forms(cell, (planes * rows * (count + 1) + 3) as usize, None)).collect();
            let mut at = 1;
            let mut parts: Vec<Part<'_>> = Vec::new();
            for ((count, form), (plain, apart)) in counts.iter().zip(&chunks) {
                let (cell_low, row_cells) = (7, count + 1);
                let run = Run {
                    cell: cell_low + 3, count: *count, step: 1, out: at, cell_out: 1, rows, row_cells, row_out: width,
                    planes, plane_cells: rows * row_cells, plane_out: rows * width,
                };
                let cells = match form {
                    0 => Cells::Planes(apart),
                    1 => Cells::Constant([5; 8], plain.len()),
                    2 => Cells::Plain(&plain[..plain.len() - (missing as usize * cell).min(plain.len())]),
                    _ => Cells::Plain(plain),
                };
                at += count;
                parts.push(Part { run, cells, low: cell_low });
            }
            let mut wanted = vec![9; (planes * rows * width) as usize * cell];
            for part in &parts {
                // SAFETY: `wanted` is not touched meanwhile.
                unsafe { Target::new(&mut wanted, cell).copy(&part.run, part.cells, part.low) };
            }
            parts.reverse();
            let mut out = vec![9; wanted.len()];
            // SAFETY: `out` is not touched meanwhile.
            unsafe { Target::new(&mut out, cell).copy_all(&mut parts) };
            prop_assert_eq!(&out, &wanted);
        }
    }
}

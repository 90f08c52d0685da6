//! The output of a read: cells as they are, or converted and turned on their way.

use super::super::codec::Cells;
use super::super::runs::Run;
use super::convert::Recipe;
use super::rows::{interleave, pick};
use super::scatter::{Part, Target};

/// Cells of a row that are converted at once, and rows that are turned at once: both stay in the first cache.
const BLOCK: usize = 32;
/// Cells of a row that are converted at once where nothing is turned.
const LONG: usize = 256;

/// Memory that the caller owns, and how cells get there.
pub struct Sink {
    start: *mut u8,
    /// Numbers of the output's type that it holds.
    numbers: u64,
    recipe: Recipe,
    copy: Target,
}

// SAFETY: as for `Target`: the memory outlives the reads, whose writes are apart.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

impl Sink {
    /// An output of numbers of the recipe's type; `out` must outlive the sink.
    pub fn new(out: &mut [u8], recipe: Recipe) -> Self {
        let bytes = recipe.to().bytes();
        Self {
            start: out.as_mut_ptr(),
            numbers: (out.len() / bytes) as u64,
            recipe,
            copy: Target::new(out, recipe.from().bytes()),
        }
    }

    /// Length of the output in bytes.
    pub fn bytes(&self) -> u64 {
        self.numbers * self.recipe.to().bytes() as u64
    }

    /// Numbers that the output holds.
    pub fn numbers(&self) -> u64 {
        self.numbers
    }

    /// Bytes of a stored cell.
    pub fn cell(&self) -> usize {
        self.recipe.from().bytes()
    }

    /// Copies a part, or converts it; nothing where it reaches past the chunk or the output.
    ///
    /// # Safety
    ///
    /// The output lives, and no slice of the part's places in it exists at the same time.
    pub unsafe fn put(&self, part: &Part<'_>) {
        let Part { run, cells, low } = part;
        if self.recipe.is_copy() && run.cell_out == 1 {
            // SAFETY: by contract.
            return unsafe { self.copy.copy(run, *cells, *low) };
        }
        if !self.contains(run, *cells, *low) {
            return;
        }
        // SAFETY: the part lies inside chunk and output.
        unsafe {
            match (self.cell(), run.cell_out) {
                (1, 1) => self.straight::<1>(run, *cells, *low),
                (2, 1) => self.straight::<2>(run, *cells, *low),
                (4, 1) => self.straight::<4>(run, *cells, *low),
                (8, 1) => self.straight::<8>(run, *cells, *low),
                (1, _) => self.turn::<1>(run, *cells, *low),
                (2, _) => self.turn::<2>(run, *cells, *low),
                (4, _) => self.turn::<4>(run, *cells, *low),
                (8, _) => self.turn::<8>(run, *cells, *low),
                _ => {}
            }
        }
    }

    /// Puts many parts, neighbours side by side where they are copied.
    ///
    /// # Safety
    ///
    /// As for [`Sink::put`].
    pub unsafe fn put_all(&self, parts: &mut [Part<'_>]) {
        if self.recipe.is_copy() && parts.iter().all(|part| part.run.cell_out == 1) {
            // SAFETY: by contract.
            return unsafe { self.copy.copy_all(parts) };
        }
        // SAFETY: by contract.
        parts.iter().for_each(|part| unsafe { self.put(part) });
    }

    /// Writes one stored number, converted, into a part of the output.
    ///
    /// # Safety
    ///
    /// As for [`Sink::put`]; nothing is written where the part reaches past the output.
    pub unsafe fn fill(&self, stored: [u8; 8], first: u64, count: u64) {
        let bytes = self.recipe.to().bytes();
        if first.checked_add(count).is_none_or(|end| end > self.numbers) {
            return;
        }
        let value = self.recipe.apply(stored);
        // SAFETY: the places lie inside the output.
        unsafe {
            let place = self.start.add(first as usize * bytes);
            spread(value, bytes, place, 1, count as usize);
        }
    }

    fn contains(&self, run: &Run, cells: Cells<'_>, low: u64) -> bool {
        let reach = |count: u64, step: u64| (count - 1).saturating_mul(step);
        let out = [(run.planes, run.plane_out), (run.rows, run.row_out), (run.count, run.cell_out)];
        let cell = [(run.planes, run.plane_cells), (run.rows, run.row_cells), (run.count, run.step)];
        let end = |first: u64, steps: [(u64, u64); 3]| {
            steps.iter().fold(first, |sum, (count, step)| sum.saturating_add(reach(*count, *step)))
        };
        end(run.out, out) < self.numbers
            && run.cell >= low
            && end(run.cell - low, cell) < (cells.len() / self.cell()) as u64
    }

    /// Rows whose cells stay neighbours.
    ///
    /// # Safety
    ///
    /// The run lies inside chunk and output, N is the size of a cell.
    unsafe fn straight<const N: usize>(&self, run: &Run, cells: Cells<'_>, low: u64) {
        let bytes = self.recipe.to().bytes();
        let mut buffer = [0_u64; LONG];
        for (plane, row) in (0..run.planes).flat_map(|plane| (0..run.rows).map(move |row| (plane, row))) {
            let first = (run.cell - low + plane * run.plane_cells + row * run.row_cells) as usize;
            let out = (run.out + plane * run.plane_out + row * run.row_out) as usize;
            let count = run.count as usize;
            for at in (0..count).step_by(LONG) {
                let some = LONG.min(count - at);
                // SAFETY: by contract; the buffer has room for LONG cells.
                unsafe {
                    let place = self.start.add((out + at) * bytes);
                    self.convert::<N>(cells, first + at * run.step as usize, run, &mut buffer, place, some);
                }
            }
        }
    }

    /// Rows whose cells lie apart in the output: blocks of them are turned in the first cache.
    ///
    /// # Safety
    ///
    /// As for [`Sink::straight`].
    unsafe fn turn<const N: usize>(&self, run: &Run, cells: Cells<'_>, low: u64) {
        let bytes = self.recipe.to().bytes();
        let mut buffer = [0_u64; BLOCK];
        let mut block = [0_u64; BLOCK * BLOCK];
        let planes = (run.planes, run.plane_cells, run.plane_out);
        let rows = (run.rows, run.row_cells, run.row_out);
        // The axis whose neighbours are neighbours in the output is written along.
        let is_rows = run.planes == 1 || (run.rows > 1 && run.row_out < run.plane_out);
        let (along, other) = if is_rows { (rows, planes) } else { (planes, rows) };
        for (outer, at) in
            (0..other.0).flat_map(|outer| (0..run.count as usize).step_by(BLOCK).map(move |at| (outer, at)))
        {
            let some = BLOCK.min(run.count as usize - at);
            for begin in (0..along.0).step_by(BLOCK) {
                let lines = (BLOCK as u64).min(along.0 - begin);
                // SAFETY: by contract; `block` has BLOCK lines of BLOCK numbers of at most 8 bytes.
                unsafe {
                    let lines_at = block.as_mut_ptr().cast::<u8>();
                    for line in 0..lines {
                        let cell = run.cell - low + outer * other.1 + (begin + line) * along.1;
                        let first = cell as usize + at * run.step as usize;
                        let place = lines_at.add(line as usize * BLOCK * bytes);
                        self.convert::<N>(cells, first, run, &mut buffer, place, some);
                    }
                    let out = run.out + outer * other.2 + begin * along.2 + at as u64 * run.cell_out;
                    let place = self.start.add(out as usize * bytes);
                    let (far, near) = (run.cell_out as usize, along.2 as usize);
                    match bytes {
                        1 => turn_block::<1>(lines_at, place, some, lines as usize, far, near),
                        2 => turn_block::<2>(lines_at, place, some, lines as usize, far, near),
                        4 => turn_block::<4>(lines_at, place, some, lines as usize, far, near),
                        _ => turn_block::<8>(lines_at, place, some, lines as usize, far, near),
                    }
                }
            }
        }
    }

    /// Converts `count` cells of a row, from cell `first` of the chunk on, to neighbouring places.
    ///
    /// # Safety
    ///
    /// The cells lie inside the chunk, N is their size, `buffer` and `place` have room for `count`.
    #[inline(always)]
    unsafe fn convert<const N: usize>(
        &self,
        cells: Cells<'_>,
        first: usize,
        run: &Run,
        buffer: &mut [u64],
        place: *mut u8,
        count: usize,
    ) {
        let step = run.step as usize;
        let whole = buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: by contract.
        unsafe {
            let from: *const u8 = match cells {
                Cells::Plain(bytes) if step == 1 => bytes.as_ptr().add(first * N),
                Cells::Plain(bytes) => {
                    pick::<N>(bytes.as_ptr().add(first * N), step, whole, count);
                    whole
                }
                Cells::Planes(bytes) => {
                    interleave::<N>(bytes.as_ptr().add(first), bytes.len() / N, step, whole, count);
                    whole
                }
                Cells::Constant(value, _) => {
                    return spread(self.recipe.apply(value), self.recipe.to().bytes(), place, 1, count);
                }
            };
            self.recipe.row(from, place, count);
        }
    }
}

/// Writes the first `bytes` (1, 2, 4 or 8) bytes of a value to `count` places, `step` numbers apart.
///
/// # Safety
///
/// The places lie inside the output.
unsafe fn spread(value: [u8; 8], bytes: usize, place: *mut u8, step: usize, count: usize) {
    // SAFETY: by contract.
    unsafe {
        match bytes {
            1 => spread_of::<1>(value, place, step, count),
            2 => spread_of::<2>(value, place, step, count),
            4 => spread_of::<4>(value, place, step, count),
            _ => spread_of::<8>(value, place, step, count),
        }
    }
}

/// # Safety
///
/// As for `spread`.
unsafe fn spread_of<const N: usize>(value: [u8; 8], place: *mut u8, step: usize, count: usize) {
    let one: [u8; N] = std::array::from_fn(|at| value.get(at).copied().unwrap_or(0));
    for k in 0..count {
        // SAFETY: by contract.
        unsafe { place.cast::<[u8; N]>().add(k * step).write(one) };
    }
}

/// Writes the columns of a block of BLOCK wide lines: `far` numbers from column to column, `near` within one.
///
/// # Safety
///
/// All places lie inside the output.
unsafe fn turn_block<const N: usize>(
    block: *const u8,
    place: *mut u8,
    columns: usize,
    lines: usize,
    far: usize,
    near: usize,
) {
    let (block, place) = (block.cast::<[u8; N]>(), place.cast::<[u8; N]>());
    for column in 0..columns {
        for line in 0..lines {
            // SAFETY: by contract.
            unsafe {
                place.add(column * far + line * near).write(block.add(line * BLOCK + column).read());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::convert::{Normalize, Number, Scale};
    use super::*;

    proptest! {
        /// Against a loop over cells: any axis of the output may be the fastest one.
        #[test]
        fn cells_arrive_converted_at_their_places(
            count in 1_u64..70, rows in 1_u64..5, planes in 1_u64..40, order in 0_usize..6, planar in any::<bool>(),
            slope in -3_f32..3.0, constant in any::<bool>(),
        ) {
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            let sizes = [count, rows, planes];
            let mut steps = [0; 3];
            let mut weight = 1;
            for axis in orders[order] {
                steps[axis] = weight;
                weight *= sizes[axis];
            }
            let cells: Vec<i16> = (0..count * rows * planes)
                .map(|n| if constant { -5 } else { (n as i16).wrapping_mul(31) })
                .collect();
            let plain: Vec<u8> = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();
            let apart: Vec<u8> = (0..2).flat_map(|p| cells.iter().map(move |cell| cell.to_le_bytes()[p])).collect();
            let form = match (planar, constant) {
                (_, true) => Cells::Planes(&apart).constant(2).map_or(Cells::Plain(&plain), |v| Cells::Constant(v, plain.len())),
                (true, _) => Cells::Planes(&apart),
                _ => Cells::Plain(&plain),
            };
            let run = Run {
                cell: 0, count, step: 1, out: 0, cell_out: steps[0], rows, row_cells: count, row_out: steps[1],
                planes, plane_cells: count * rows, plane_out: steps[2],
            };
            let normalize = Normalize { low: -900.0, high: 900.0, mean: 3.5, deviation: 7.0 };
            let recipe = Recipe::new(Number::I16, Number::F32, Scale::Single(slope, 2.0), Some(normalize)).unwrap();
            let mut out = vec![9_u8; weight as usize * 4];
            // SAFETY: `out` is not touched meanwhile.
            unsafe { Sink::new(&mut out, recipe).put(&Part { run, cells: form, low: 0 }) };
            for (n, cell) in cells.iter().enumerate() {
                let n = n as u64;
                let at = (n % count * steps[0] + n / count % rows * steps[1] + n / count / rows * steps[2]) as usize;
                let wanted = ((f32::from(*cell) * slope + 2.0).clamp(-900.0, 900.0) - 3.5) / 7.0;
                prop_assert_eq!(f32::from_le_bytes(out[4 * at..4 * at + 4].try_into().unwrap()), wanted);
            }
            let short = (weight as usize - 1) * 4;
            let mut short = vec![9_u8; short];
            // SAFETY: as above.
            unsafe { Sink::new(&mut short, recipe).put(&Part { run, cells: form, low: 0 }) };
            prop_assert!(short.iter().all(|byte| *byte == 9), "a run past the output was written");
        }
    }
}

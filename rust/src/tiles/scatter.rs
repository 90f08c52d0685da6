//! From a decoded chunk to the output, without a copy in between.

use std::sync::Arc;

use super::layout::Run;

/// The cells of a chunk in one of the forms in which decoding leaves them.
#[derive(Clone, Copy, Debug)]
pub enum Cells<'a> {
    /// Cell after cell.
    Plain(&'a [u8]),
    /// The first bytes of all cells, then all second bytes, and so on: what a byte shuffle makes.
    Planes(&'a [u8]),
    /// So many bytes of cells that all begin like this.
    Constant([u8; 8], usize),
}

/// A decoded chunk that is kept; background takes no memory.
#[derive(Clone, Debug)]
pub enum Block {
    /// Cell after cell.
    Plain(Arc<Lines>),
    /// So many bytes of cells that all begin like this.
    Constant([u8; 8], usize),
}

impl Block {
    /// Bytes of memory that the cells take.
    pub fn held(&self) -> u64 {
        match self {
            Self::Plain(cells) => cells.bytes.capacity() as u64,
            Self::Constant(..) => 0,
        }
    }

    /// The cells, to copy from.
    pub fn cells(&self) -> Cells<'_> {
        match self {
            Self::Plain(cells) => Cells::Plain(cells.bytes()),
            Self::Constant(value, bytes) => Cells::Constant(*value, *bytes),
        }
    }
}

/// Bytes that begin on a cache line: rows of a block then cross no line that they need not cross. Aligned
/// by hand: among blocks that come and go, glibc's aligned allocation holds twice the memory.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    start: usize,
    count: usize,
}

const LINE: usize = 64;

impl Lines {
    /// So many bytes, all 0.
    pub fn zeroed(count: usize) -> Self {
        let bytes = vec![0; count + LINE - 1];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        Self { bytes, start, count }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.count).unwrap_or_default()
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.count).unwrap_or_default()
    }
}

impl Cells<'_> {
    /// Bytes of cells.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) | Self::Planes(bytes) => bytes.len(),
            Self::Constant(_, bytes) => *bytes,
        }
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of all cells of `cell` (1, 2, 4 or 8) bytes, where they have but one.
    pub fn constant(&self, cell: usize) -> Option<[u8; 8]> {
        let mut value = [0; 8];
        match self {
            Self::Plain(bytes) => {
                value.get_mut(..cell)?.copy_from_slice(bytes.get(..cell)?);
                (bytes.get(cell..) == bytes.get(..bytes.len() - cell)).then_some(value)
            }
            Self::Planes(bytes) => {
                for (slot, plane) in value.iter_mut().zip(bytes.chunks_exact((bytes.len() / cell).max(1))) {
                    *slot = *plane.first()?;
                    if plane.get(1..) != plane.get(..plane.len() - 1) {
                        return None;
                    }
                }
                Some(value)
            }
            Self::Constant(value, _) => Some(*value),
        }
    }

    /// A copy to keep.
    pub fn to_block(self, cell: usize) -> Block {
        if let Self::Constant(value, bytes) = self {
            return Block::Constant(value, bytes);
        }
        let mut plain = Lines::zeroed(self.len());
        let count = (self.len() / cell) as u64;
        let all = Run { count, ..Run::ONE };
        // SAFETY: the only view of a buffer that this function owns.
        unsafe { Target::new(plain.bytes_mut(), cell).copy(&all, self, 0) };
        Block::Plain(Arc::new(plain))
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

// SAFETY: the pointer comes from a `&mut [u8]` that outlives the call, and the invariant above keeps writes apart.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// An output of cells of `cell` (1, 2, 4 or 8) bytes; it must outlive what is made here.
    pub fn new(out: &mut [u8], cell: usize) -> Self {
        Self { start: out.as_mut_ptr(), cells: (out.len() / cell.max(1)) as u64, cell }
    }

    /// Bytes of the output.
    pub fn bytes(&self) -> u64 {
        self.cells * self.cell as u64
    }

    /// Copies the rows of a run from a chunk that begins with cell `low` of its tile.
    ///
    /// A run that reaches past the chunk or past the output copies nothing; neither exists for a checked
    /// selection.
    ///
    /// # Safety
    ///
    /// The output lives, and no slice of the run's cells in it exists at the same time.
    pub unsafe fn copy(&self, run: &Run, cells: Cells<'_>, low: u64) {
        let end_out = run.out + (run.planes - 1) * run.plane_out + (run.rows - 1) * run.row_out + run.count;
        let end_cell = run.cell - low
            + (run.planes - 1) * run.plane_cells
            + (run.rows - 1) * run.row_cells
            + (run.count - 1) * run.step
            + 1;
        if end_out > self.cells || end_cell > (cells.len() / self.cell) as u64 {
            return;
        }
        // SAFETY: the run's cells lie before `end_cell` and `end_out`, which were checked against chunk and
        // output; the output is not aliased (by contract) and distinct from the chunk.
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
                    copy_rows(from, row_from * N, place, row_place, count * N, run.rows as usize);
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

/// Copies rows of `count` bytes.
///
/// # Safety
///
/// Both have `rows` such rows, as far apart as said, and do not overlap.
unsafe fn copy_rows(
    mut from: *const u8,
    row_from: usize,
    mut place: *mut u8,
    row_place: usize,
    count: usize,
    rows: usize,
) {
    for _ in 0..rows {
        // SAFETY: by contract; the addresses after the last row are never used.
        unsafe { copy(from, place, count) };
        (from, place) = (from.wrapping_add(row_from), place.wrapping_add(row_place));
    }
}

/// Copies some bytes; most rows are short, and for them a call of memcpy costs more than its work.
///
/// # Safety
///
/// Both have `count` bytes and do not overlap.
#[inline(always)]
unsafe fn copy(from: *const u8, place: *mut u8, count: usize) {
    // SAFETY: each block lies inside the `count` bytes; the last one may repeat bytes of the one before.
    unsafe {
        let block = |at: usize, size: usize| match size {
            32 => place
                .add(at)
                .cast::<[u8; 32]>()
                .write_unaligned(from.add(at).cast::<[u8; 32]>().read_unaligned()),
            16 => place
                .add(at)
                .cast::<[u8; 16]>()
                .write_unaligned(from.add(at).cast::<[u8; 16]>().read_unaligned()),
            8 => place
                .add(at)
                .cast::<[u8; 8]>()
                .write_unaligned(from.add(at).cast::<[u8; 8]>().read_unaligned()),
            _ => std::ptr::copy_nonoverlapping(from.add(at), place.add(at), size),
        };
        match count {
            0..8 => (0..count).for_each(|at| *place.add(at) = *from.add(at)),
            8..16 => {
                block(0, 8);
                block(count - 8, 8);
            }
            16..32 => {
                block(0, 16);
                block(count - 16, 16);
            }
            32..=512 => {
                for at in (0..count - 32).step_by(32) {
                    block(at, 32);
                }
                block(count - 32, 32);
            }
            _ => block(0, count),
        }
    }
}

/// Copies cells that lie `step` apart.
///
/// # Safety
///
/// `from` has `(count - 1) * step + 1` cells of N bytes, `place` `count`; they do not overlap.
unsafe fn pick<const N: usize>(from: *const u8, step: usize, place: *mut u8, count: usize) {
    for k in 0..count {
        // SAFETY: by contract.
        unsafe { place.cast::<[u8; N]>().add(k).write(from.cast::<[u8; N]>().add(k * step).read()) };
    }
}

/// Writes one value into `count` cells.
///
/// # Safety
///
/// `place` has `count` cells of N bytes.
unsafe fn fill<const N: usize>(value: [u8; 8], place: *mut u8, count: usize) {
    let one: [u8; N] = std::array::from_fn(|at| value.get(at).copied().unwrap_or(0));
    // SAFETY: by contract; `[u8; N]` needs no alignment.
    unsafe {
        if one.iter().all(|byte| *byte == value[0]) {
            std::ptr::write_bytes(place, value[0], count * N);
        } else {
            (0..count).for_each(|k| place.cast::<[u8; N]>().add(k).write(one));
        }
    }
}

/// Puts `count` cells, `step` apart, together from planes of `length` cells each.
///
/// # Safety
///
/// `planes` begins in the first plane, `(count - 1) * step + 1` cells or more before its end; the N - 1 other
/// planes follow it; `place` has `count` cells.
unsafe fn interleave<const N: usize>(
    planes: *const u8,
    length: usize,
    step: usize,
    place: *mut u8,
    count: usize,
) {
    // SAFETY: by contract; a block of sixteen cells is taken only where there are sixteen, and the last one may
    // repeat cells of the one before.
    unsafe {
        if N == 1 && step == 1 {
            return copy(planes, place, count);
        }
        if cfg!(target_arch = "x86_64") && matches!(N, 2 | 4) && step == 1 && count >= 16 {
            for at in (0..count - 15).step_by(16) {
                sixteen::<N>(planes.add(at), length, place.add(at * N));
            }
            return sixteen::<N>(planes.add(count - 16), length, place.add((count - 16) * N));
        }
        for k in 0..count {
            for part in 0..N {
                *place.add(k * N + part) = *planes.add(part * length + k * step);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn sixteen<const N: usize>(_: *const u8, _: usize, _: *mut u8) {}

/// Sixteen cells of 2 or 4 bytes.
///
/// # Safety
///
/// Each plane has sixteen bytes here, `place` sixteen cells.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn sixteen<const N: usize>(planes: *const u8, length: usize, place: *mut u8) {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpacklo_epi8,
        _mm_unpacklo_epi16,
    };
    // SAFETY: SSE2 is part of x86_64; loads and stores lie inside by contract.
    unsafe {
        let plane = |part: usize| _mm_loadu_si128(planes.add(part * length).cast());
        let place = place.cast::<__m128i>();
        let (a, b) = (plane(0), plane(1));
        let (ab_low, ab_high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
        if N == 2 {
            _mm_storeu_si128(place, ab_low);
            _mm_storeu_si128(place.add(1), ab_high);
            return;
        }
        let (c, d) = (plane(2), plane(3));
        let (cd_low, cd_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
        _mm_storeu_si128(place, _mm_unpacklo_epi16(ab_low, cd_low));
        _mm_storeu_si128(place.add(1), _mm_unpackhi_epi16(ab_low, cd_low));
        _mm_storeu_si128(place.add(2), _mm_unpacklo_epi16(ab_high, cd_high));
        _mm_storeu_si128(place.add(3), _mm_unpackhi_epi16(ab_high, cd_high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The cells of a chunk in its three forms; constant where `value` is given.
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
        fn every_form_gives_the_cells_of_the_definition(
            shift in 0_u32..4, count in 1_u64..700, step in 1_u64..4, rows in 1_u64..4, skip in 0_u64..20,
            value in any::<Option<u8>>(),
        ) {
            let cell = 1_usize << shift;
            let (row_cells, row_out) = (count * step, count + 3);
            let cells = skip + rows * row_cells + 2;
            let (plain, apart) = forms(cell, cells as usize, value);
            let (planes, plane_cells, plane_out) = (1 + rows % 2, 2, rows * row_out);
            let run =
                Run { cell: 5 + skip, count, step, out: 2, rows, row_cells, row_out, planes, plane_cells, plane_out };
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
            let block = Cells::Planes(&apart).to_block(cell);
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
                prop_assert!(short.iter().all(|byte| *byte == 9), "a run past the output wrote");
            }
        }
    }
}

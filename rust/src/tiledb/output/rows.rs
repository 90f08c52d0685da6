//! The innermost loops of copying cells, on raw addresses.

/// A column of rows to copy.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// Address of the current row.
    pub from: *const u8,
    /// Bytes of a row.
    pub count: usize,
    /// Bytes from row to row.
    pub row_from: usize,
}

/// Copies `rows` rows to `place`, `row_place` bytes apart; each is the columns' rows side by side.
///
/// # Safety
///
/// Each column has `rows` rows. The output has room for as many, each as long as all columns' rows together.
/// Columns and output do not overlap.
pub(super) unsafe fn copy_rows(columns: &mut [Column], place: *mut u8, row_place: usize, rows: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: by contract; the processor has AVX2.
        return unsafe { copy_rows_avx2(columns, place, row_place, rows) };
    }
    // SAFETY: by contract.
    unsafe { copy_rows_inline(columns, place, row_place, rows) };
}

/// # Safety
///
/// As `copy_rows`, and the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_rows_avx2(columns: &mut [Column], place: *mut u8, row_place: usize, rows: usize) {
    // SAFETY: by contract.
    unsafe { copy_rows_inline(columns, place, row_place, rows) };
}

/// # Safety
///
/// As `copy_rows`.
#[inline(always)]
unsafe fn copy_rows_inline(columns: &mut [Column], mut place: *mut u8, row_place: usize, rows: usize) {
    for _ in 0..rows {
        let mut here = place;
        for column in &mut *columns {
            // SAFETY: by contract; the addresses after the last row are never used.
            unsafe { copy(column.from, here, column.count) };
            here = here.wrapping_add(column.count);
            column.from = column.from.wrapping_add(column.row_from);
        }
        place = place.wrapping_add(row_place);
    }
}

/// Copies bytes. Most rows are short: calling memcpy for them costs more than the copy.
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
pub(super) unsafe fn pick<const N: usize>(from: *const u8, step: usize, place: *mut u8, count: usize) {
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
pub(super) unsafe fn fill<const N: usize>(value: [u8; 8], place: *mut u8, count: usize) {
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

/// Assembles `count` cells, `step` apart, from N planes of `length` bytes each.
///
/// # Safety
///
/// `planes` begins in the first plane, `(count - 1) * step + 1` cells or more before its end; the N - 1 other
/// planes follow it; `place` has `count` cells.
pub(super) unsafe fn interleave<const N: usize>(
    planes: *const u8,
    length: usize,
    step: usize,
    place: *mut u8,
    count: usize,
) {
    // SAFETY: by contract; a block of sixteen cells is taken only where there are sixteen, and the last one
    // may repeat cells of the one before.
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

/// Assembles sixteen cells of 2 or 4 bytes.
///
/// # Safety
///
/// Each plane has sixteen bytes from `planes` on, `place` sixteen cells.
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

//! Rounded float32 arithmetic on rows. `FUSED` rounds product and sum once, as a fused multiply-add does.
//!
//! Rows are padded to a multiple of [`LANES`], so that no loop has a remainder.

use crate::base::closed_list::closed_list;

/// Voxels that are worked on at once.
pub(super) const LANES: usize = 16;

/// `length` rounded up to whole lanes.
pub(super) const fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// `a * b + c`.
#[inline(always)]
pub(super) fn product_sum<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

closed_list! {
/// How the kernels of torch and of the libraries below it sum products, from zero.
pub enum Sum {
    /// In order; product and sum are both rounded.
    Twice = "mul+add",
    /// In order; product and sum are rounded once.
    Once = "fma",
    /// Eight taps at a time in four partial sums, the rest in order; product and sum are rounded once. The last
    /// outputs of the whole volume, `total % 16` of them, are summed as by `Once` (sgemm of MKL for AVX-512).
    Blocks = "blocks",
}
}

/// Taps that [`Sum::Blocks`] takes at a time.
pub(super) const BLOCK: usize = 8;

/// Writes the sum of rows times weights.
///
/// `row(tap)` is at least as long as `out`.
#[inline(always)]
pub(super) fn weigh<'a>(sum: Sum, out: &mut [f32], weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    match sum {
        Sum::Twice => weigh_in_order::<false>(out, weights, row),
        Sum::Blocks if weights.len() >= BLOCK => weigh_in_blocks(out, weights, row),
        Sum::Once | Sum::Blocks => weigh_in_order::<true>(out, weights, row),
    }
}

type Lanes = [f32; LANES];

/// The lanes of a row from `at` on; zeros behind its end.
#[inline(always)]
fn lanes(row: &[f32], at: usize) -> &Lanes {
    row.get(at..).and_then(|rest| rest.first_chunk()).unwrap_or(&[0.0; LANES])
}

/// Adds voxels times a weight.
#[inline(always)]
fn add<const FUSED: bool>(sums: &mut Lanes, voxels: &Lanes, weight: f32) {
    for (sum, voxel) in sums.iter_mut().zip(voxels) {
        *sum = product_sum::<FUSED>(*voxel, weight, *sum);
    }
}

#[inline(always)]
fn weigh_in_order<'a, const FUSED: bool>(out: &mut [f32], weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    let (chunks, _) = out.as_chunks_mut::<LANES>();
    for (number, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [0.0; LANES];
        for (tap, weight) in weights.iter().enumerate() {
            add::<FUSED>(&mut sums, lanes(row(tap), number * LANES), *weight);
        }
        *chunk = sums;
    }
}

#[inline(always)]
fn weigh_in_blocks<'a>(out: &mut [f32], weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    let (blocks, rest) = weights.as_chunks::<BLOCK>();
    let (chunks, _) = out.as_chunks_mut::<LANES>();
    for (number, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [0.0; LANES];
        for (block, weights) in blocks.iter().enumerate() {
            let [w0, w1, w2, w3, w4, w5, w6, w7] = *weights;
            let voxels = |tap: usize| lanes(row(block * BLOCK + tap), number * LANES);
            let (mut odd_high, mut even_low, mut odd_low) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            add::<true>(&mut sums, voxels(6), w6);
            add::<true>(&mut sums, voxels(4), w4);
            add::<true>(&mut odd_high, voxels(7), w7);
            add::<true>(&mut odd_high, voxels(5), w5);
            add::<true>(&mut even_low, voxels(2), w2);
            add::<true>(&mut even_low, voxels(0), w0);
            add::<true>(&mut odd_low, voxels(3), w3);
            add::<true>(&mut odd_low, voxels(1), w1);
            let low = even_low.iter().zip(&odd_low);
            for ((sum, odd_high), (even_low, odd_low)) in sums.iter_mut().zip(&odd_high).zip(low) {
                *sum = (*sum + odd_high) + (even_low + odd_low);
            }
        }
        for (tap, weight) in rest.iter().enumerate() {
            add::<true>(&mut sums, lanes(row(blocks.len() * BLOCK + tap), number * LANES), *weight);
        }
        *chunk = sums;
    }
}

/// Writes `a * weight_a + b * weight_b`; the product of `b` is always rounded.
#[inline(always)]
pub(super) fn mix<const FUSED: bool>(out: &mut [f32], a: &[f32], weight_a: f32, b: &[f32], weight_b: f32) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = product_sum::<FUSED>(*a, weight_a, *b * weight_b);
    }
}

/// As [`mix`], with weights of their own for each voxel.
#[inline(always)]
pub(super) fn mix_each<const FUSED: bool>(
    out: &mut [f32],
    (a, weights_a): (&[f32], &[f32]),
    (b, weights_b): (&[f32], &[f32]),
) {
    let pairs = a.iter().zip(weights_a).zip(b.iter().zip(weights_b));
    for (out, ((a, weight_a), (b, weight_b))) in out.iter_mut().zip(pairs) {
        *out = product_sum::<FUSED>(*a, *weight_a, *b * *weight_b);
    }
}

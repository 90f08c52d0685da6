//! Changes of the intensities of a finished patch, channel by channel, in place.
//!
//! Each is the transform of the same name in batchgeneratorsv2, which nnU-Net trains with.

use super::random::Philox;

/// One change of one channel.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds normal noise.
    Noise {
        /// Decides the noise.
        random: Philox,
        /// Standard deviation.
        deviation: f32,
    },
    /// Blurs with a normal kernel of a width in voxels along x, y, z, mirrored at the border.
    Blur([f64; 3]),
    /// Multiplies.
    Multiply(f32),
    /// Moves values away from the mean by a factor, within the range that they had.
    Contrast(f32),
    /// Takes fewer voxels along x, y, z (nearest), and makes as many as before of them (linear).
    LowResolution([f64; 3]),
    /// Raises values, scaled to 0..1, to a power; then restores mean and standard deviation.
    Gamma {
        /// The power.
        power: f32,
        /// Whether values are negated before, and back after.
        inverts: bool,
    },
}

/// Applies a change to a channel whose axes have `size` voxels and the widths of `Change` are in this order.
pub fn apply(change: &Change, size: [usize; 3], order: impl Fn([f64; 3]) -> [f64; 3], cells: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { apply_avx2(change, size, order, cells) };
    }
    apply_inline(change, size, order, cells);
}

/// # Safety
///
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn apply_avx2(
    change: &Change,
    size: [usize; 3],
    order: impl Fn([f64; 3]) -> [f64; 3],
    cells: &mut [f32],
) {
    apply_inline(change, size, order, cells);
}

/// The same bits whatever the processor has: nothing is fused or put into another order.
#[inline(always)]
fn apply_inline(change: &Change, size: [usize; 3], order: impl Fn([f64; 3]) -> [f64; 3], cells: &mut [f32]) {
    if cells.len() != size.iter().product::<usize>() || cells.is_empty() {
        return;
    }
    match change {
        Change::Noise { random, deviation } => add_noise(random.clone(), *deviation, cells),
        Change::Multiply(factor) => cells.iter_mut().for_each(|cell| *cell *= factor),
        Change::Contrast(factor) => {
            let Stats { mean, low, high, .. } = Stats::of(cells);
            cells.iter_mut().for_each(|cell| *cell = ((*cell - mean) * factor + mean).max(low).min(high));
        }
        Change::Gamma { power, inverts } => {
            let sign = if *inverts { -1.0 } else { 1.0 };
            cells.iter_mut().for_each(|cell| *cell *= sign);
            let before = Stats::of(cells);
            raise(cells, before.low, (before.high - before.low).max(1e-7), *power);
            let after = Stats::of(cells);
            let factor = before.deviation / after.deviation.max(1e-7);
            cells.iter_mut().for_each(|cell| *cell = ((*cell - after.mean) * factor + before.mean) * sign);
        }
        Change::Blur(widths) => {
            for (axis, (width, count)) in order(*widths).into_iter().zip(size).enumerate() {
                if width > 0.0 {
                    combine(cells, size, axis, &blur_taps(width, count));
                }
            }
        }
        Change::LowResolution(scales) => {
            for (axis, (scale, count)) in order(*scales).into_iter().zip(size).enumerate() {
                let fewer = (count as f64 * scale).round().clamp(1.0, count as f64) as usize;
                if fewer < count {
                    combine(cells, size, axis, &coarse_taps(fewer, count));
                }
            }
        }
    }
}

struct Stats {
    mean: f32,
    /// With one less than the number of cells as the divisor.
    deviation: f32,
    low: f32,
    high: f32,
}

impl Stats {
    #[inline(always)]
    fn of(cells: &[f32]) -> Self {
        let (mut sums, mut squares) = ([0.0_f64; 8], [0.0_f64; 8]);
        let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
        // Differences to the first cell: squares of large numbers would lose the deviation.
        let first = cells.first().copied().unwrap_or(0.0);
        let (blocks, rest) = cells.as_chunks::<8>();
        let mut last = [first; 8]; // the first cell adds nothing
        last.iter_mut().zip(rest).for_each(|(slot, cell)| *slot = *cell);
        for block in blocks.iter().chain([&last]) {
            let lanes = sums.iter_mut().zip(&mut squares).zip(low.iter_mut().zip(&mut high));
            for (((sum, square), (low, high)), cell) in lanes.zip(block) {
                let difference = f64::from(cell - first);
                *sum += difference;
                *square += difference * difference;
                *low = if cell < low { *cell } else { *low };
                *high = if cell > high { *cell } else { *high };
            }
        }
        let count = cells.len() as f64;
        let (sum, square) = (sums.iter().sum::<f64>(), squares.iter().sum::<f64>());
        let variance = (square - sum * sum / count) / (count - 1.0).max(1.0);
        Self {
            mean: (f64::from(first) + sum / count) as f32,
            deviation: variance.max(0.0).sqrt() as f32,
            low: low.iter().copied().fold(f32::INFINITY, f32::min),
            high: high.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        }
    }
}

/// Box and Muller (1958).
fn add_noise(mut random: Philox, deviation: f32, cells: &mut [f32]) {
    for pair in cells.chunks_mut(2) {
        let bits = random.bits();
        let unit = |bits: u32| (bits as f32 + 0.5) / 4_294_967_296.0;
        let radius = deviation * (-2.0 * unit(bits as u32).min(1.0).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * unit((bits >> 32) as u32)).sin_cos();
        pair.iter_mut().zip([cos, sin]).for_each(|(cell, part)| *cell += radius * part);
    }
}

/// cell = ((cell - low) / range) ^ power * range + low.
#[inline(always)]
fn raise(cells: &mut [f32], low: f32, range: f32, power: f32) {
    for cell in cells {
        *cell = power_of((*cell - low) / range, power) * range + low;
    }
}

/// A number of 0 to 1, raised; within 2e-6 of the power, without branches.
#[inline(always)]
fn power_of(base: f32, power: f32) -> f32 {
    let bits = base.to_bits() as i32;
    // The mantissa from 0.75 to 1.5 and its exponent.
    let exponent = (bits - 0x3f40_0000) >> 23;
    let mantissa = f32::from_bits((bits - (exponent << 23)) as u32);
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let series = 1.0 + square * (1.0 / 3.0 + square * (0.2 + square * (1.0 / 7.0 + square / 9.0)));
    let log = (2.0 * std::f32::consts::LOG2_E) * t * series + exponent as f32;
    let wanted = (log * power).clamp(-126.0, 126.0);
    let whole = (wanted + 12_582_912.0) - 12_582_912.0; // rounds to a whole number
    let x = (wanted - whole) * std::f32::consts::LN_2;
    let exp = 1.0
        + x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0))))));
    let scale = f32::from_bits(((whole as i32 + 127) << 23) as u32);
    if base > 1e-30 { exp * scale } else { 0.0 }
}

/// Which cells of a line make a cell, and with what weight.
type Taps = Vec<Vec<(usize, f32)>>;

fn blur_taps(width: f64, count: usize) -> Taps {
    let length = (width * 6.0 + 0.5).ceil() as i64;
    let reach = (length + i64::from(length % 2 == 0) - 1) / 2;
    let weights: Vec<f64> = (-reach..=reach).map(|at| (-0.5 * (at as f64 / width).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let line = |at: usize| {
        let cells = (-reach..=reach).map(|by| reflect(at as i64 + by, count as i64));
        cells.zip(&weights).map(|(cell, weight)| (cell, (weight / sum) as f32)).collect()
    };
    (0..count).map(line).collect()
}

/// The index of a cell beyond the border, mirrored at the outermost cell.
fn reflect(at: i64, count: i64) -> usize {
    let period = (2 * (count - 1)).max(1);
    let at = at.rem_euclid(period);
    at.min(period - at).clamp(0, count - 1) as usize
}

/// `fewer` cells, each the nearest of `count`; then `count` linear ones of them, both aligned at the borders.
fn coarse_taps(fewer: usize, count: usize) -> Taps {
    let ratio = count as f64 / fewer as f64;
    let source = |coarse: usize| (((coarse as f64 + 0.5) * ratio) as usize).min(count - 1);
    let line = |at: usize| {
        let place = ((at as f64 + 0.5) / ratio - 0.5).clamp(0.0, fewer as f64 - 1.0);
        let low = place as usize;
        let part = (place - low as f64) as f32;
        vec![(source(low), 1.0 - part), (source((low + 1).min(fewer - 1)), part)]
    };
    (0..count).map(line).collect()
}

/// Cells that are combined at once.
const WIDE: usize = 256;

/// Replaces each line along an axis by what the taps make of it.
#[inline(always)]
fn combine(cells: &mut [f32], size: [usize; 3], axis: usize, taps: &Taps) {
    let count = taps.len();
    let inner: usize = size.iter().skip(axis + 1).product();
    if inner == 1 {
        return combine_rows(cells, taps);
    }
    let mut before = vec![0.0_f32; count * inner.min(WIDE)];
    for block in cells.chunks_exact_mut(count * inner) {
        for first in (0..inner).step_by(WIDE) {
            let wide = WIDE.min(inner - first);
            for (line, row) in before.chunks_exact_mut(wide).zip(block.chunks_exact(inner)) {
                line.copy_from_slice(row.get(first..first + wide).unwrap_or_default());
            }
            for (row, taps) in block.chunks_exact_mut(inner).zip(taps) {
                let Some(row) = row.get_mut(first..first + wide) else { return };
                row.fill(0.0);
                for (from, weight) in taps {
                    let line = before.get(from * wide..(from + 1) * wide).unwrap_or_default();
                    row.iter_mut().zip(line).for_each(|(cell, other)| *cell += weight * other);
                }
            }
        }
    }
}

/// Rows that are combined at once.
const ROWS: usize = 16;

/// The same along the fastest axis: rows side by side, so that one tap serves all of them.
#[inline(always)]
fn combine_rows(cells: &mut [f32], taps: &Taps) {
    let count = taps.len().max(1);
    let mut before = vec![[0.0_f32; ROWS]; count];
    for block in cells.chunks_mut(count * ROWS) {
        for (row, line) in block.chunks_exact(count).enumerate() {
            for (cell, slots) in line.iter().zip(&mut before) {
                if let Some(slot) = slots.get_mut(row) {
                    *slot = *cell;
                }
            }
        }
        for (at, taps) in taps.iter().enumerate() {
            let mut sums = [0.0_f32; ROWS];
            for (from, weight) in taps {
                let others = before.get(*from).copied().unwrap_or([0.0; ROWS]);
                sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += weight * other);
            }
            for (line, sum) in block.chunks_exact_mut(count).zip(sums) {
                if let Some(cell) = line.get_mut(at) {
                    *cell = sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_within_two_millionths() {
        for step in 0..=100_000_u32 {
            let base = step as f32 / 100_000.0;
            for power in [0.7_f32, 1.0, 1.3, 1.5] {
                let wanted = f64::from(base).powf(f64::from(power));
                assert!((f64::from(power_of(base, power)) - wanted).abs() < 2e-6, "{base} ^ {power}");
            }
        }
    }

    #[test]
    fn a_constant_stays_and_an_impulse_becomes_the_kernel() {
        let size = [9, 8, 7];
        let mut cells = vec![3.0; 504];
        apply(&Change::Blur([0.8, 0.0, 1.0]), size, |widths| widths, &mut cells);
        apply(&Change::LowResolution([0.5, 0.7, 1.0]), size, |scales| scales, &mut cells);
        assert!(cells.iter().all(|cell| (cell - 3.0).abs() < 1e-5));
        let mut line = vec![0.0; 21];
        line[10] = 1.0;
        apply(&Change::Blur([0.0, 0.0, 0.9]), [1, 1, 21], |widths| widths, &mut line);
        let kernel: Vec<f64> = (-10..=10).map(|at| (-0.5 * (f64::from(at) / 0.9).powi(2)).exp()).collect();
        let sum: f64 = kernel.iter().sum();
        for (cell, weight) in line.iter().zip(kernel) {
            assert!((f64::from(*cell) - weight / sum).abs() < 3e-3);
        }
    }

    #[test]
    fn gamma_keeps_mean_and_deviation_and_contrast_the_range() {
        let mut cells: Vec<f32> = (0..4096).map(|at| ((at * 37 % 4096) as f32 / 409.6) - 5.0).collect();
        let before = Stats::of(&cells);
        for inverts in [false, true] {
            let gamma = Change::Gamma { power: 1.4, inverts };
            apply(&gamma, [16, 16, 16], |all| all, &mut cells);
            let after = Stats::of(&cells);
            assert!(
                (after.mean - before.mean).abs() < 1e-3 && (after.deviation - before.deviation).abs() < 1e-3
            );
        }
        let before = Stats::of(&cells);
        apply(&Change::Contrast(1.25), [16, 16, 16], |all| all, &mut cells);
        let after = Stats::of(&cells);
        assert_eq!((after.low, after.high), (before.low, before.high));
    }

    #[test]
    fn noise_is_normal_and_the_same_for_the_same_key() {
        let noise = Change::Noise { random: Philox::new([1, 2], [0, 0, 0, 3]), deviation: 0.5 };
        let (mut first, mut second) = (vec![1.0; 40_000], vec![1.0; 40_000]);
        apply(&noise, [1, 1, 40_000], |all| all, &mut first);
        apply(&noise, [1, 1, 40_000], |all| all, &mut second);
        assert_eq!(first, second);
        let stats = Stats::of(&first);
        assert!((stats.mean - 1.0).abs() < 0.01 && (stats.deviation - 0.5).abs() < 0.01);
        let beyond = first.iter().filter(|value| (**value - 1.0).abs() > 0.98).count(); // 1.96 deviations
        assert!((1_800..2_200).contains(&beyond), "{beyond} of 40,000 instead of 5 %");
    }
}

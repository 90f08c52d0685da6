//! The exact best N of many rows without scoring all of them.
//!
//! A sample gives a threshold that about N rows reach. A cheap upper bound of the score discards almost every
//! row; the rest are scored exactly. As the bound is never below the score, the result equals that of a full
//! stable sort; a bad sample only costs time.

use std::cmp::Ordering;

use crate::base::cpu::{Cpu, cpu};
use crate::base::error::Result;
use crate::frames::priority::{Columns, Formula, NULL_TIME, check_now, invalid, rank};

/// Up to this many rows, all are scored.
const FEW: usize = 65_536;
/// The sample that gives the threshold: one row of this many, within limits.
const SAMPLE_OF: usize = 128;
const SAMPLE_LIMITS: (usize, usize) = (4096, 65_536);
/// Rows whose bounds are computed together: 8 KiB of bounds stay in the first-level cache.
const BLOCK: usize = 1024;
/// Rows that are tested together for any bound above the threshold.
const GROUP: usize = 16;
/// Beyond this age (µs, 35 years) the bound treats all ages alike, which only raises it.
const AGE_CAP: i64 = 1 << 50;
/// Counts from here on have no bound: `small_to_f64` is exact below 2^51 only.
const COUNT_CAP: i64 = 1 << 51;
/// 2^52 as bits: `from_bits(TWO_52 | x) - 2^52 == x` for integers below 2^52, without AVX-512.
const TWO_52: u64 = 0x4330_0000_0000_0000;
/// Adding 1.5 · 2^52 rounds to an integer, negative ones too, and leaves it in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// Sums of weights up to here cannot overflow a bound.
const WEIGHT_CAP: f64 = 1e300;

/// A row and its score.
pub type Ranked = (f64, u32);

/// Returns the `n` best rows, best first; equal scores by `tie` (usually ids ascending), then by row.
///
/// # Errors
/// `InvalidArgument` for a negative count, a NULL `now` or more than 2^32 - 1 rows.
pub fn top_n(
    formula: &Formula,
    columns: &Columns,
    now: i64,
    n: usize,
    tie: &(impl Fn(u32, u32) -> Ordering + Sync),
) -> Result<Vec<Ranked>> {
    top_n_on(cpu(), formula, columns, now, n, tie)
}

fn top_n_on(
    cpu: Cpu,
    formula: &Formula,
    columns: &Columns,
    now: i64,
    n: usize,
    tie: &(impl Fn(u32, u32) -> Ordering + Sync),
) -> Result<Vec<Ranked>> {
    check_now(now)?;
    let Ok(rows) = u32::try_from(columns.len()) else {
        return Err(invalid(format!("{} rows: at most 2^32 - 1 can be ranked", columns.len())));
    };
    let n = n.min(columns.len());
    let weights = formula.w_used + formula.w_inserted + formula.w_count;
    let mut kept = if columns.len() <= FEW || n > columns.len() / 4 || weights > WEIGHT_CAP {
        columns.check_counts()?;
        (0..rows).map(|row| (columns.score(formula, row as usize, now), row)).collect()
    } else {
        candidates(cpu, formula, columns, now, n)?
    };
    if n == 0 {
        return Ok(Vec::new());
    }
    if kept.len() > n {
        kept.select_nth_unstable_by(n - 1, |&a, &b| rank(a, b, tie));
        kept.truncate(n);
    }
    kept.sort_unstable_by(|&a, &b| rank(a, b, tie));
    Ok(kept)
}

/// Scores at least `n` rows, among them every row that could be one of the `n` best.
fn candidates(cpu: Cpu, formula: &Formula, columns: &Columns, now: i64, n: usize) -> Result<Vec<Ranked>> {
    let mut sample: Vec<f64> =
        sample_rows(columns.len()).map(|row| columns.score(formula, row, now)).collect();
    sample.sort_unstable_by(|a, b| b.total_cmp(a));
    let expected = sample.len() as f64 * n as f64 / columns.len() as f64;
    let mut slack = 1.1;
    loop {
        let position = (expected * slack + 3.0 * expected.sqrt() + 8.0) as usize;
        let threshold = sample.get(position).copied().unwrap_or(f64::NEG_INFINITY);
        let bound = Bound::new(formula, now, threshold);
        let kept = bound.filter(cpu, formula, columns, n)?;
        if kept.len() >= n {
            return Ok(kept);
        }
        slack *= 2.0;
    }
}

/// A pseudo-random row of each of many equal stretches, so that no regular pattern distorts the sample.
fn sample_rows(rows: usize) -> impl Iterator<Item = usize> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let sample = (rows / SAMPLE_OF).clamp(SAMPLE_LIMITS.0, SAMPLE_LIMITS.1);
    (0..sample).map(move |stretch| {
        let begin = stretch * rows / sample;
        let end = (stretch + 1) * rows / sample;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        begin + (state >> 33) as usize % (end - begin).max(1)
    })
}

/// The constants of the upper bound.
struct Bound {
    now: i64,
    oldest: i64,
    threshold: f64,
    w_used: f64,
    w_inserted: f64,
    w_count: f64,
    rate_used: f64,
    rate_inserted: f64,
    constant: f64,
}

impl Bound {
    fn new(formula: &Formula, now: i64, threshold: f64) -> Self {
        let weights = formula.w_used + formula.w_inserted + formula.w_count;
        // Far above the rounding of the few operations below, which is about 1e-15.
        let grow = 1.0 + 1e-12;
        let w_count = formula.w_count * std::f64::consts::LOG10_2 * grow;
        Self {
            now,
            oldest: now.saturating_sub(AGE_CAP),
            threshold,
            w_used: formula.w_used * grow,
            w_inserted: formula.w_inserted * grow,
            // The fixed point of `log2_bound` carries 2^40; its offset goes into `constant`.
            w_count: w_count / (1u64 << 40) as f64,
            rate_used: formula.half_used.recip().min(1e300),
            rate_inserted: formula.half_inserted.recip().min(1e300),
            // log2(m) <= (m - 1) + 0.0861 on [1, 2]; 1e-9 covers the bits that the fixed point drops.
            constant: w_count * 0.0861 + 1e-9 * weights * grow,
        }
    }

    /// Scores every row whose bound reaches the threshold and returns those whose score does.
    fn filter(&self, cpu: Cpu, formula: &Formula, columns: &Columns, n: usize) -> Result<Vec<Ranked>> {
        let mut kept = Vec::with_capacity(n + n / 4 + 64);
        let mut bounds = [0.0; BLOCK];
        let mut first: usize = 0;
        let blocks = columns.last_used.chunks(BLOCK).zip(columns.inserted.chunks(BLOCK));
        for ((used, inserted), count) in blocks.zip(columns.count.chunks(BLOCK)) {
            if self.block(cpu, used, inserted, count, &mut bounds) {
                columns.check_counts()?;
            }
            for (group, high) in bounds.chunks_exact(GROUP).enumerate() {
                if high.iter().fold(false, |any, &bound| any | (bound >= self.threshold)) {
                    for (lane, _) in high.iter().enumerate().filter(|(_, bound)| **bound >= self.threshold) {
                        let row = first + group * GROUP + lane;
                        let score = columns.score(formula, row, self.now);
                        if row < columns.len() && score >= self.threshold {
                            kept.push((score, row as u32));
                        }
                    }
                }
            }
            first += BLOCK;
        }
        Ok(kept)
    }

    /// Writes the bounds of one block; returns whether a count is negative.
    fn block(&self, cpu: Cpu, used: &[i64], inserted: &[i64], count: &[i64], out: &mut [f64; BLOCK]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if cpu.avx2 {
            // SAFETY: `cpu.avx2` is set only where the machine was found to have AVX2.
            return unsafe { self.block_avx2(used, inserted, count, out) };
        }
        let _ = cpu;
        self.block_portable(used, inserted, count, out)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn block_avx2(&self, used: &[i64], inserted: &[i64], count: &[i64], out: &mut [f64; BLOCK]) -> bool {
        self.block_portable(used, inserted, count, out)
    }

    /// Without branches, so that the compiler vectorises it; compiled once for each instruction set.
    #[inline(always)]
    fn block_portable(&self, used: &[i64], inserted: &[i64], count: &[i64], out: &mut [f64; BLOCK]) -> bool {
        let mut signs = 0;
        for (((&used, &inserted), &count), bound) in used.iter().zip(inserted).zip(count).zip(out.iter_mut())
        {
            signs |= count;
            let value = self.w_used * self.recency(used, self.rate_used)
                + self.w_inserted * self.recency(inserted, self.rate_inserted)
                + self.w_count * log2_bound(count)
                + self.constant;
            *bound = if count >= COUNT_CAP { f64::INFINITY } else { value };
        }
        if let Some(rest) = out.get_mut(count.len()..) {
            rest.fill(f64::NEG_INFINITY);
        }
        signs < 0
    }

    /// `2^-x <= 2^-⌊x⌋ · (1 - frac/2)`: the chord of a convex curve.
    #[inline(always)]
    fn recency(&self, time: i64, rate: f64) -> f64 {
        let age = self.now - time.max(self.oldest).min(self.now);
        let x = small_to_f64(age) * rate;
        let x = if x < 1000.0 { x } else { 1000.0 };
        // x - 0.5 rounds to ⌊x⌋, or for integers perhaps to x - 1 with frac 1: the chord's other end.
        let floor = (x - 0.5) + ROUNDER;
        let power = f64::from_bits(1023u64.wrapping_sub(floor.to_bits()) << 52);
        let frac = x - (floor - ROUNDER);
        let value = power * (1.0 - 0.5 * frac);
        if time == NULL_TIME { 0.0 } else { value }
    }
}

/// `(e + (m - 1)) · 2^40` of `1 + count = m · 2^e`: log2 from below, off by at most 0.0861 + 2^-40.
#[inline(always)]
fn log2_bound(count: i64) -> f64 {
    let bits = (small_to_f64(count) + 1.0).to_bits();
    let fixed = bits.wrapping_sub(1023 << 52) >> 12;
    small_to_f64(fixed as i64)
}

/// Converts an integer in [0, 2^52) to double without the conversion instruction, which AVX2 lacks.
#[inline(always)]
fn small_to_f64(value: i64) -> f64 {
    f64::from_bits(TWO_52 | value as u64) - f64::from_bits(TWO_52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_790_000_000_000_000;

    fn by_row(a: u32, b: u32) -> Ordering {
        a.cmp(&b)
    }

    fn sorted(formula: &Formula, columns: &Columns, now: i64, n: usize) -> Vec<Ranked> {
        let mut all: Vec<Ranked> =
            (0..columns.len()).map(|row| (columns.score(formula, row, now), row as u32)).collect();
        all.sort_by(|&a, &b| rank(a, b, &by_row));
        all.truncate(n);
        all
    }

    fn both_paths(formula: &Formula, columns: &Columns, now: i64, n: usize) {
        let want = sorted(formula, columns, now, n);
        for cpu in [Cpu::default(), Cpu::detected()] {
            assert_eq!(top_n_on(cpu, formula, columns, now, n, &by_row).unwrap(), want);
        }
    }

    /// xorshift: `below(n)` is in 0..n.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    #[test]
    fn equals_a_full_stable_sort_over_many_rows() {
        let mut dice = Dice(7);
        let rows = 150_001;
        let age = |dice: &mut Dice, days: u64| NOW - dice.below(days * 86_400_000_000) as i64;
        let used: Vec<i64> =
            (0..rows).map(|_| if dice.below(3) == 0 { NULL_TIME } else { age(&mut dice, 90) }).collect();
        let inserted: Vec<i64> = (0..rows).map(|_| age(&mut dice, 900)).collect();
        let count: Vec<i64> = (0..rows).map(|_| 1 << dice.below(8)).collect();
        let columns = Columns::new(&used, &inserted, &count).unwrap();
        for n in [0, 1, 500, 10_000, 37_500, 60_000, 150_001, 999_999] {
            both_paths(&Formula::default(), &columns, NOW, n);
        }
    }

    #[test]
    fn equals_a_full_sort_of_sorted_tied_and_skewed_columns() {
        let rows: i64 = 70_000;
        let zeros = vec![0; rows as usize];
        let tied = Columns::new(&zeros, &zeros, &zeros).unwrap();
        both_paths(&Formula::default(), &tied, NOW, 100);
        let rising: Vec<i64> = (0..rows).map(|row| NOW - row * 1_000_000).collect();
        both_paths(&Formula::default(), &Columns::new(&rising, &rising, &zeros).unwrap(), NOW, 1000);
        let mut hot = zeros.clone();
        hot[69_999] = i64::MAX;
        hot[3] = COUNT_CAP;
        both_paths(&Formula::default(), &Columns::new(&zeros, &zeros, &hot).unwrap(), NOW, 2);
        let no_count = Formula::new([0.5, 0.2, 0.0], [86_400.0, 604_800.0]).unwrap();
        both_paths(&no_count, &Columns::new(&rising, &zeros, &hot).unwrap(), NOW, 50);
        let sudden = Formula::new([0.5, 0.2, 0.0], [1e-320, 1e-300]).unwrap();
        both_paths(&sudden, &Columns::new(&rising, &rising, &zeros).unwrap(), NOW, 50);
        let huge = Formula::new([f64::MAX, f64::MAX, 0.0], [1.0, 1.0]).unwrap();
        both_paths(&huge, &Columns::new(&rising, &zeros, &zeros).unwrap(), NOW, 50);
    }

    #[test]
    fn negative_count_is_refused_on_the_pruned_path_too() {
        let zeros = vec![0; 70_000];
        let mut bad = zeros.clone();
        bad[69_998] = -3;
        let columns = Columns::new(&zeros, &zeros, &bad).unwrap();
        let error = top_n(&Formula::default(), &columns, NOW, 5, &by_row).unwrap_err();
        assert!(error.detail.contains("access_count[69998]"), "{error}");
    }

    fn any_time() -> impl Strategy<Value = i64> {
        prop_oneof![
            Just(NULL_TIME),
            any::<i64>(),
            (0..200_000_000_000_000i64).prop_map(|age| NOW - age),
            (-5_000_000i64..5_000_000).prop_map(|age| NOW - age),
        ]
    }

    fn any_count() -> impl Strategy<Value = i64> {
        prop_oneof![0..=i64::MAX, 0..40i64, (0u32..63).prop_map(|bit| 1 << bit), Just(COUNT_CAP - 1)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn bound_is_never_below_the_score(
            used in any_time(), inserted in any_time(), count in any_count(),
            now in prop_oneof![Just(NOW), (i64::MIN + 1)..=i64::MAX],
            weights in [0.0..10.0f64, 0.0..10.0, 0.0..10.0],
            halves in [1e-9..1e9f64, 1e-9..1e9],
        ) {
            for formula in [Formula::default(), Formula::new(weights, halves).unwrap()] {
                let bound = Bound::new(&formula, now, 0.0);
                for cpu in [Cpu::default(), Cpu::detected()] {
                    let mut out = [0.0; BLOCK];
                    prop_assert!(!bound.block(cpu, &[used], &[inserted], &[count], &mut out));
                    let score = formula.score(used, inserted, count, now);
                    prop_assert!(out[0] >= score, "{} < {score}", out[0]);
                }
            }
        }
    }
}

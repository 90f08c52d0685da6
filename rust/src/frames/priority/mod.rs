//! The score that ranks files for tier 1: of one file, of many, and the exact best N of very many.
//!
//! `score = w_u·R(last_used, h_u) + w_i·R(inserted, h_i) + w_c·log10(1 + n)`, summed left to right, with
//! `R(t) = 2^(-max(now - t, 0) / h)`, and 0 for a NULL time. The formula is written here only; [`top_n`]
//! computes an upper bound of it to skip most rows.

pub mod top_n;

use std::cmp::Ordering;

use crate::base::error::{Error, ErrorKind, Result};

/// The time that stands for SQL's NULL and numpy's NaT.
pub const NULL_TIME: i64 = i64::MIN;

/// Checked weights and half-lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    /// Weight of the last use; finite, >= 0.
    pub w_used: f64,
    /// Weight of the insertion; finite, >= 0.
    pub w_inserted: f64,
    /// Weight of the access count; finite, >= 0.
    pub w_count: f64,
    /// Half-life of the last use in microseconds; finite, > 0.
    pub half_used: f64,
    /// Half-life of the insertion in microseconds; finite, > 0.
    pub half_inserted: f64,
}

impl Default for Formula {
    fn default() -> Self {
        Self { w_used: 0.5, w_inserted: 0.2, w_count: 0.3, half_used: 86_400e6, half_inserted: 604_800e6 }
    }
}

impl Formula {
    /// Checks weights (used, inserted, count) and half-lives in seconds (used, inserted).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a weight that is negative or not finite and for a half-life that
    /// is not positive or not finite.
    pub fn new(weights: [f64; 3], half_lives_s: [f64; 2]) -> Result<Self> {
        let names = ["last_used", "inserted", "access_count"];
        for (name, weight) in names.iter().zip(weights) {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(invalid(format!("weight {name} = {weight}: must be finite and >= 0")));
            }
        }
        for (name, half) in names.iter().zip(half_lives_s) {
            if !(half > 0.0 && (half * 1e6).is_finite()) {
                return Err(invalid(format!("half-life {name} = {half} s: must be finite and > 0")));
            }
        }
        let [w_used, w_inserted, w_count] = weights;
        let [used, inserted] = half_lives_s;
        Ok(Self { w_used, w_inserted, w_count, half_used: used * 1e6, half_inserted: inserted * 1e6 })
    }

    /// The score of one file; times in microseconds since 1970 UTC, `count` >= 0.
    pub fn score(&self, last_used: i64, inserted: i64, count: i64, now: i64) -> f64 {
        let score = self.w_used * recency(last_used, self.half_used, now)
            + self.w_inserted * recency(inserted, self.half_inserted, now)
            // In floating point, as the integer `count + 1` would wrap at 2^63 - 1.
            + self.w_count * (count as f64 + 1.0).log10();
        // A weight of -0.0 may give -0.0, which `total_cmp` ranks below +0.0.
        score + 0.0
    }
}

/// `2^(-age/half)`. Divides, as multiplying by `1/half` differs from the golden values by an ulp.
fn recency(time: i64, half: f64, now: i64) -> f64 {
    if time == NULL_TIME {
        return 0.0;
    }
    let age = now.saturating_sub(time).max(0);
    (-(age as f64 / half)).exp2()
}

/// Columns of equal length, one row for each file.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Last use, microseconds since 1970 UTC, or [`NULL_TIME`].
    pub last_used: &'a [i64],
    /// Insertion, likewise.
    pub inserted: &'a [i64],
    /// Access count, >= 0.
    pub count: &'a [i64],
}

impl<'a> Columns<'a> {
    /// Checks that the columns have equal lengths.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the first row that is not in all columns.
    pub fn new(last_used: &'a [i64], inserted: &'a [i64], count: &'a [i64]) -> Result<Self> {
        let lengths = [last_used.len(), inserted.len(), count.len()];
        let shortest = lengths.iter().copied().min().unwrap_or(0);
        if lengths.iter().any(|&length| length != shortest) {
            return Err(invalid(format!(
                "columns differ in length ({lengths:?}): row {shortest} is not in all of them"
            )));
        }
        Ok(Self { last_used, inserted, count })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.count.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.count.is_empty()
    }

    /// The score of a row; negative infinity past the end.
    pub fn score(&self, formula: &Formula, row: usize, now: i64) -> f64 {
        match (self.last_used.get(row), self.inserted.get(row), self.count.get(row)) {
            (Some(&used), Some(&inserted), Some(&count)) => formula.score(used, inserted, count, now),
            _ => f64::NEG_INFINITY,
        }
    }

    /// Checks that no access count is negative.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the first row with a negative count.
    pub fn check_counts(&self) -> Result<()> {
        match self.count.iter().position(|&count| count < 0) {
            None => Ok(()),
            Some(row) => {
                let count = self.count.get(row).copied().unwrap_or_default();
                Err(invalid(format!("access_count[{row}] = {count}: must be >= 0")))
            }
        }
    }
}

/// Times that lie in the future, whose age counts as 0: a sign of wrong clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// Number of times after `now`.
    pub clamped: u64,
    /// Largest distance in microseconds.
    pub worst_us: i64,
}

impl Skew {
    /// Counts `time` if it lies after `now`.
    pub fn count(&mut self, time: i64, now: i64) {
        if time > now {
            self.clamped += 1;
            self.worst_us = self.worst_us.max(time.saturating_sub(now));
        }
    }
}

/// Writes the scores of all rows to `out`.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a negative count, a NULL `now` or an `out` of another length; nothing
/// is written then.
pub fn score_many(formula: &Formula, columns: &Columns, now: i64, out: &mut [f64]) -> Result<Skew> {
    check_now(now)?;
    columns.check_counts()?;
    if out.len() != columns.len() {
        return Err(invalid(format!("out holds {} values for {} rows", out.len(), columns.len())));
    }
    let mut skew = Skew::default();
    let rows = columns.last_used.iter().zip(columns.inserted).zip(columns.count);
    for (((&used, &inserted), &count), score) in rows.zip(out) {
        skew.count(used, now);
        skew.count(inserted, now);
        *score = formula.score(used, inserted, count, now);
    }
    Ok(skew)
}

/// Orders rows by descending score; equal scores by `tie`, then by row.
pub fn rank(a: (f64, u32), b: (f64, u32), tie: &impl Fn(u32, u32) -> Ordering) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| tie(a.1, b.1)).then_with(|| a.1.cmp(&b.1))
}

pub(crate) fn check_now(now: i64) -> Result<()> {
    if now == NULL_TIME {
        return Err(invalid("now is NULL: pass a time".into()));
    }
    Ok(())
}

pub(crate) fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const NULL: i64 = i64::MAX;

    /// (age used h, age inserted h, n) -> score.
    const GOLDENS: &[(i64, i64, i64, f64)] = &[
        (0, 0, 0, 0.7),
        (0, 0, 1, 0.7903089986991944),
        (0, 0, 9, 1.0),
        (0, 0, 10, 1.0124178055474675),
        (24, 168, 0, 0.35),
        (24, 168, 1, 0.4403089986991943),
        (12, 72, 5, 0.7355981946220618),
        (NULL, 0, 0, 0.2),
        (NULL, 168, 0, 0.1),
        (NULL, 8760, 2, 0.14313637641589874),
        (NULL, 43800, 9, 0.3),
        (NULL, 87600, 2153, 0.9999737096885888),
        (NULL, 87600, 2154, 1.000034182349025),
        (-5, -5, 0, 0.7),
        (26400, 26400, 0, 9.915540467466113e-49),
        (1, 1, i64::MAX, 6.374409413357706),
    ];

    #[test]
    fn golden_values() {
        let now = 1_790_000_000_000_000;
        let formula = Formula::default();
        for &(used, inserted, count, want) in GOLDENS {
            let at = |age: i64| if age == NULL { NULL_TIME } else { now - age * HOUR };
            let got = formula.score(at(used), at(inserted), count, now);
            let ulps = (got.to_bits() as i64 - f64::to_bits(want) as i64).abs();
            assert!(ulps <= 2, "({used},{inserted},{count}): {got:e} is {ulps} ulp from {want:e}");
        }
    }

    #[test]
    fn extreme_times_do_not_wrap() {
        let formula = Formula::default();
        assert_eq!(formula.score(i64::MIN + 1, i64::MIN + 1, 0, i64::MAX), 0.0);
        assert_eq!(formula.score(i64::MAX, i64::MAX, 0, i64::MIN + 1), 0.7);
    }

    #[test]
    fn negative_zero_weight_scores_positive_zero() {
        let formula = Formula::new([-0.0, -0.0, -0.0], [1.0, 1.0]).unwrap();
        assert!(formula.score(0, 0, 0, 0).is_sign_positive());
    }

    #[test]
    fn errors_name_the_first_bad_row() {
        let columns = Columns::new(&[0; 3], &[0; 3], &[1, -7, -1]).unwrap();
        let error = score_many(&Formula::default(), &columns, 0, &mut [0.0; 3]).unwrap_err();
        assert!(error.detail.contains("access_count[1] = -7"), "{error}");
        let error = Columns::new(&[0; 3], &[0; 2], &[0; 3]).unwrap_err();
        assert!(error.detail.contains("row 2"), "{error}");
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(Formula::new([bad, 0.0, 0.0], [1.0, 1.0]).is_err());
            assert!(Formula::new([0.0; 3], [1.0, bad]).is_err());
        }
        assert!(Formula::new([0.0; 3], [0.0, 1.0]).is_err());
    }

    #[test]
    fn future_times_are_counted() {
        let columns = Columns::new(&[5, NULL_TIME], &[1, 0], &[0, 0]).unwrap();
        let mut out = [0.0; 2];
        let skew = score_many(&Formula::default(), &columns, 2, &mut out).unwrap();
        assert_eq!(skew, Skew { clamped: 1, worst_us: 3 });
    }
}

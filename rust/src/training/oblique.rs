//! Patches that are turned, scaled or mirrored: which voxels they touch, and one pass that samples them.
//!
//! Axes are in the order of memory here: slowest, middle, fastest.

use crate::base::error::{Error, ErrorKind, Result};

/// Voxels that one turned patch may touch at most: 1 GiB of numbers.
const MOST_VOXELS: u64 = 1 << 28;
/// Numbers that are sampled at once.
pub(super) const LANES: usize = 8;

/// A map from voxels of a patch to places in the volume, and the box of voxels that it touches.
#[derive(Clone, Debug)]
pub struct Oblique {
    /// Place = centre + matrix * (voxel - middle of the patch).
    matrix: [[f64; 3]; 3],
    centre: [f64; 3],
    /// Voxels of the patch.
    size: [u64; 3],
    /// First voxel of the box.
    low: [i64; 3],
    /// Voxels of the box.
    count: [u64; 3],
}

impl Oblique {
    /// The map of a patch that would begin at `start` if it were not turned: both have one centre.
    ///
    /// # Errors
    /// `invalid_argument` for a matrix that is not finite, and `limit_exceeded` for one that touches too much.
    pub fn new(matrix: [[f64; 3]; 3], start: [i64; 3], size: [u64; 3]) -> Result<Self> {
        let half = size.map(|count| (count as f64 - 1.0) / 2.0);
        let ([sa, sb, sc], [ha, hb, hc]) = (start, half);
        let centre = [sa as f64 + ha, sb as f64 + hb, sc as f64 + hc];
        let (mut low, mut count, mut voxels) = ([0; 3], [0; 3], 1_u64);
        for (((row, middle), low), count) in matrix.iter().zip(centre).zip(&mut low).zip(&mut count) {
            let reach: f64 = row.iter().zip(half).map(|(factor, half)| (factor * half).abs()).sum();
            if !reach.is_finite() || reach > 1e6 {
                let detail = format!("the matrix {matrix:?} cannot turn a patch of {size:?} voxels");
                return Err(Error::new(ErrorKind::InvalidArgument, detail));
            }
            // One voxel more on each side: places are rounded, and the upper neighbour is read too.
            *low = (middle - reach).floor() as i64 - 1;
            *count = ((middle + reach).floor() as i64 + 3 - *low).unsigned_abs();
            voxels = voxels.saturating_mul(*count);
        }
        if voxels > MOST_VOXELS {
            let detail = format!("a turned patch of {size:?} voxels touches a box of {count:?}");
            return Err(Error::new(ErrorKind::LimitExceeded, detail));
        }
        Ok(Self { matrix, centre, size, low, count })
    }

    /// First voxel of the box that is touched.
    pub fn low(&self) -> [i64; 3] {
        self.low
    }

    /// Voxels of the box.
    pub fn count(&self) -> [u64; 3] {
        self.count
    }

    /// Numbers of the box.
    pub fn voxels(&self) -> usize {
        self.count.iter().product::<u64>() as usize
    }

    /// Whether the patch may touch a voxel of a box `low..high`; never false for one that it touches.
    pub fn touches(&self, low: [u64; 3], high: [u64; 3]) -> bool {
        let Some(inverse) = inverse(&self.matrix) else { return true };
        let middle = |axis: usize| -> (f64, f64) {
            let (low, high) = (low.get(axis).copied().unwrap_or(0), high.get(axis).copied().unwrap_or(0));
            let (low, high) = (low as f64 - 1.5, high as f64 + 0.5); // neighbours and rounding
            let centre = self.centre.get(axis).copied().unwrap_or(0.0);
            ((low + high) / 2.0 - centre, (high - low) / 2.0)
        };
        let boxes = [middle(0), middle(1), middle(2)];
        inverse.iter().zip(self.size).all(|(row, size)| {
            let (mut offset, mut reach) = (0.0, (size as f64 - 1.0) / 2.0);
            for (factor, (middle, half)) in row.iter().zip(boxes) {
                offset += factor * middle;
                reach += (factor * half).abs();
            }
            offset.abs() <= reach + 1e-6
        })
    }

    /// Samples an image linearly: `from` is the box, `out` the patch.
    ///
    /// # Errors
    /// `invalid_argument` for slices of another length.
    pub fn sample(&self, from: &[f32], out: &mut [f32]) -> Result<()> {
        self.check(from.len(), out.len())?;
        let fast = self.fast() as usize;
        for (row, place) in self.rows().zip(out.chunks_exact_mut(fast.max(1))) {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                // SAFETY: the processor has AVX2 and FMA; `from` is the whole box (checked above).
                unsafe { self.sample_row_avx2(row, from, place) };
                continue;
            }
            self.sample_row(row, from, place);
        }
        Ok(())
    }

    pub(super) fn check(&self, from: usize, out: usize) -> Result<()> {
        if from == self.voxels() && out as u64 == self.size.iter().product::<u64>() {
            return Ok(());
        }
        let detail = format!("{from} and {out} numbers for boxes of {:?} and {:?}", self.count, self.size);
        Err(Error::new(ErrorKind::InvalidArgument, detail))
    }

    pub(super) fn fast(&self) -> u64 {
        let [_, _, fast] = self.size;
        fast
    }

    /// The place of the first voxel of each row, in the box.
    pub(super) fn rows(&self) -> impl Iterator<Item = [f64; 3]> + '_ {
        let [slow, middle, _] = self.size;
        let [h0, h1, h2] = self.size.map(|count| (count as f64 - 1.0) / 2.0);
        (0..slow).flat_map(move |i| (0..middle).map(move |j| (i, j))).map(move |(i, j)| {
            let (u, v, w) = (i as f64 - h0, j as f64 - h1, -h2);
            let mut place = [0.0; 3];
            let parts = self.matrix.iter().zip(self.centre).zip(self.low);
            for (slot, (([m0, m1, m2], centre), low)) in place.iter_mut().zip(parts) {
                *slot = centre - low as f64 + m0 * u + m1 * v + m2 * w;
            }
            place
        })
    }

    /// The voxels below [`LANES`] places of a row, and how far the places lie beyond them.
    pub(super) fn lanes(&self, row: [f64; 3], first: usize) -> ([[i32; LANES]; 3], [[f32; LANES]; 3]) {
        let (mut whole, mut rest) = ([[0; LANES]; 3], [[0.0; LANES]; 3]);
        let axes = self.matrix.iter().zip(row).zip(self.count).zip(whole.iter_mut().zip(&mut rest));
        for ((([_, _, step], start), count), (whole, rest)) in axes {
            let (start, step) = ((start + step * first as f64) as f32, *step as f32);
            let most = count as f32 - 2.0;
            for (lane, (whole, rest)) in whole.iter_mut().zip(rest).enumerate() {
                let place = (start + step * lane as f32).clamp(0.0, most);
                *whole = place as i32;
                *rest = place - *whole as f32;
            }
        }
        (whole, rest)
    }

    fn sample_row(&self, row: [f64; 3], from: &[f32], place: &mut [f32]) {
        let [_, middle, fast] = self.count.map(|count| count as i32);
        for (number, block) in place.chunks_mut(LANES).enumerate() {
            let ([a, b, c], [p, q, r]) = self.lanes(row, number * LANES);
            let (cells, parts) = (a.iter().zip(b).zip(c), p.iter().zip(q).zip(r));
            for (slot, (((a, b), c), ((p, q), r))) in block.iter_mut().zip(cells.zip(parts)) {
                let get = |da: i32, db: i32, dc: i32| {
                    let at = ((a + da) * middle + b + db) * fast + c + dc;
                    from.get(at as usize).copied().unwrap_or(0.0)
                };
                let line = |da, db| {
                    let (low, high) = (get(da, db, 0), get(da, db, 1));
                    low + (high - low) * r
                };
                let plane = |da| {
                    let (low, high) = (line(da, 0), line(da, 1));
                    low + (high - low) * q
                };
                let (low, high) = (plane(0), plane(1));
                *slot = low + (high - low) * p;
            }
        }
    }

    /// As `lanes`: for each axis the voxels below, and how far the places lie beyond them.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn axes_avx2(
        &self,
        row: [f64; 3],
        first: usize,
    ) -> [(std::arch::x86_64::__m256i, std::arch::x86_64::__m256); 3] {
        use std::arch::x86_64::*;
        let lane = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
        let ([m0, m1, m2], [r0, r1, r2], [c0, c1, c2]) = (self.matrix, row, self.count);
        [(m0, r0, c0), (m1, r1, c1), (m2, r2, c2)].map(|([_, _, step], start, count)| {
            let begin = _mm256_set1_ps((start + step * first as f64) as f32);
            let place = _mm256_add_ps(begin, _mm256_mul_ps(_mm256_set1_ps(step as f32), lane));
            let most = _mm256_set1_ps(count as f32 - 2.0);
            let place = _mm256_min_ps(_mm256_max_ps(place, _mm256_setzero_ps()), most);
            let whole = _mm256_cvttps_epi32(place);
            (whole, _mm256_sub_ps(place, _mm256_cvtepi32_ps(whole)))
        })
    }

    /// # Safety
    ///
    /// The processor has AVX2 and FMA, and `from` is the whole box.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn sample_row_avx2(&self, row: [f64; 3], from: &[f32], place: &mut [f32]) {
        use std::arch::x86_64::*;
        let [_, middle, fast] = self.count.map(|count| count as i32);
        let (rows, cells) = (_mm256_set1_epi32(middle), _mm256_set1_epi32(fast));
        let start = from.as_ptr();
        for (number, block) in place.chunks_mut(LANES).enumerate() {
            let [(a, p), (b, q), (c, r)] = self.axes_avx2(row, number * LANES);
            let first = _mm256_mullo_epi32(_mm256_add_epi32(_mm256_mullo_epi32(a, rows), b), cells);
            let first = _mm256_add_epi32(first, c);
            let below = _mm256_add_epi32(first, _mm256_mullo_epi32(rows, cells));
            let line = |at: __m256i| {
                // SAFETY: each place is clamped to 0..=count - 2 along each axis: both neighbours lie in the box.
                let (low, high) = unsafe {
                    let next = _mm256_add_epi32(at, _mm256_set1_epi32(1));
                    (_mm256_i32gather_ps::<4>(start, at), _mm256_i32gather_ps::<4>(start, next))
                };
                _mm256_fmadd_ps(_mm256_sub_ps(high, low), r, low)
            };
            let plane = |at: __m256i| {
                let (low, high) = (line(at), line(_mm256_add_epi32(at, cells)));
                _mm256_fmadd_ps(_mm256_sub_ps(high, low), q, low)
            };
            let (low, high) = (plane(first), plane(below));
            let mut found = [0.0_f32; LANES];
            let sampled = _mm256_fmadd_ps(_mm256_sub_ps(high, low), p, low);
            // SAFETY: `found` has eight numbers.
            unsafe { _mm256_storeu_ps(found.as_mut_ptr(), sampled) };
            block.iter_mut().zip(found).for_each(|(slot, value)| *slot = value);
        }
    }
}

fn inverse(matrix: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let [[a, b, c], [d, e, f], [g, h, i]] = *matrix;
    let cofactors = [
        [e * i - f * h, c * h - b * i, b * f - c * e],
        [f * g - d * i, a * i - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ];
    let determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    (determinant.abs() > 1e-12).then(|| cofactors.map(|row| row.map(|value| value / determinant)))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::labels::Labels;
    use super::*;

    pub fn turned(angles: [f64; 3], scale: f64) -> [[f64; 3]; 3] {
        let mut matrix = [[scale, 0.0, 0.0], [0.0, scale, 0.0], [0.0, 0.0, scale]];
        for (axis, angle) in angles.iter().enumerate() {
            let (s, c) = angle.sin_cos();
            let (i, j) = ((axis + 1) % 3, (axis + 2) % 3);
            for row in &mut matrix {
                (row[i], row[j]) = (row[i] * c - row[j] * s, row[i] * s + row[j] * c);
            }
        }
        matrix
    }

    /// A number of each voxel, without any order.
    fn voxel(at: [i64; 3]) -> f32 {
        let mixed =
            at.iter().fold(17_i64, |sum, one| sum.wrapping_mul(31).wrapping_add(*one).wrapping_mul(7919));
        (mixed.rem_euclid(2000)) as f32 - 1000.0
    }

    proptest! {
        #[test]
        fn every_voxel_is_the_one_of_the_definition_in_64_bits(
            angles in prop::array::uniform3(-3.2_f64..3.2), scale in 0.3_f64..2.0,
            size in prop::array::uniform3(1_u64..20), start in prop::array::uniform3(-9_i64..40), flip in any::<bool>(),
        ) {
            let mut matrix = turned(angles, scale);
            if flip {
                matrix[1] = matrix[1].map(|value| -value);
            }
            let oblique = Oblique::new(matrix, start, size).unwrap();
            let (low, count) = (oblique.low(), oblique.count());
            let all = |k: u64| [k / count[2] / count[1], k / count[2] % count[1], k % count[2]];
            let at = |k: u64| {
                let index = all(k);
                [0, 1, 2].map(|axis| low[axis] + index[axis] as i64)
            };
            let cells: Vec<f32> = (0..oblique.voxels() as u64).map(|k| voxel(at(k))).collect();
            let labels: Vec<u8> = cells.iter().map(|value| (*value as i64).rem_euclid(3) as u8).collect();
            let wide: Vec<u8> = labels.iter().flat_map(|label| i16::from(*label).to_le_bytes()).collect();
            let voxels = size.iter().product::<u64>() as usize;
            let (mut fast, mut plain) = (vec![0.0; voxels], vec![0.0; voxels]);
            oblique.sample(&cells, &mut fast).unwrap();
            for (row, place) in oblique.rows().zip(plain.chunks_exact_mut(size[2] as usize)) {
                oblique.sample_row(row, &cells, place);
            }
            let (mut near, mut heavy) = (vec![9; voxels], vec![9; voxels]);
            let mut near_wide = vec![9; 2 * voxels];
            oblique.sample_labels::<1>(Labels::Nearest, &labels, &mut near).unwrap();
            oblique.sample_labels::<1>(Labels::Heaviest, &labels, &mut heavy).unwrap();
            oblique.sample_labels::<2>(Labels::Nearest, &wide, &mut near_wide).unwrap();
            for k in 0..voxels as u64 {
                let index = [k / size[2] / size[1], k / size[2] % size[1], k % size[2]];
                let mut place = [0.0; 3];
                for (axis, slot) in place.iter_mut().enumerate() {
                    *slot = start[axis] as f64 + (size[axis] as f64 - 1.0) / 2.0;
                    for other in 0..3 {
                        *slot += matrix[axis][other] * (index[other] as f64 - (size[other] as f64 - 1.0) / 2.0);
                    }
                }
                let (mut sum, mut shares) = (0.0, [0.0_f64; 3]);
                for corner in 0..8_usize {
                    let mut weight = 1.0;
                    let mut at = [0; 3];
                    for axis in 0..3 {
                        let part = place[axis] - place[axis].floor();
                        let upper = corner >> (2 - axis) & 1 == 1;
                        weight *= if upper { part } else { 1.0 - part };
                        at[axis] = place[axis].floor() as i64 + i64::from(upper);
                    }
                    sum += weight * f64::from(voxel(at));
                    shares[(voxel(at) as i64).rem_euclid(3) as usize] += weight;
                }
                let k = k as usize;
                prop_assert!((sum - f64::from(fast[k])).abs() < 0.2, "{} for {sum}", fast[k]);
                prop_assert!((sum - f64::from(plain[k])).abs() < 0.2, "{} for {sum}", plain[k]);
                let best = shares.iter().copied().fold(0.0, f64::max);
                prop_assert!(shares[heavy[k] as usize] > best - 1e-3);
                let edge = place.iter().any(|one| ((one + 0.5) - (one + 0.5).round()).abs() < 1e-3);
                let nearest = place.map(|one| (one + 0.5).floor() as i64);
                prop_assert!(edge || i64::from(near[k]) == (voxel(nearest) as i64).rem_euclid(3));
                prop_assert_eq!(near_wide[2 * k], near[k]);
                // What is sampled lies in a tile that counts as touched.
                let tile = place.map(|one| (one.floor().max(0.0) as u64) / 4 * 4);
                if place.iter().all(|one| *one >= 0.0) {
                    prop_assert!(oblique.touches(tile, tile.map(|low| low + 4)));
                }
            }
        }
    }

    #[test]
    fn a_matrix_without_end_is_refused() {
        let identity = turned([0.0; 3], 1.0);
        assert!(Oblique::new(identity.map(|row| row.map(|v| v * 1e9)), [0; 3], [8; 3]).is_err());
        assert!(Oblique::new(identity.map(|row| row.map(|v| v * f64::NAN)), [0; 3], [8; 3]).is_err());
        assert!(Oblique::new(identity.map(|row| row.map(|v| v * 100.0)), [0; 3], [96; 3]).is_err());
    }
}

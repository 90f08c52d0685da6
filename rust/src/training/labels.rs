//! Labels of a patch that is turned: the class of the nearest voxel, or the one of most weight around a place.

use super::oblique::{LANES, Oblique};
use crate::base::error::Result;

/// How labels are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// The class of the nearest voxel.
    Nearest,
    /// The class that has the most weight among the eight neighbours, the least one of equals.
    Heaviest,
}

impl Oblique {
    /// Samples labels: cells of N bytes, `from` the box and `out` the patch.
    ///
    /// # Errors
    /// `invalid_argument` for slices of another length.
    pub fn sample_labels<const N: usize>(&self, labels: Labels, from: &[u8], out: &mut [u8]) -> Result<()> {
        self.check(from.len() / N, out.len() / N)?;
        let (from, _) = from.as_chunks::<N>();
        let (out, _) = out.as_chunks_mut::<N>();
        let row_length = self.fast() as usize;
        #[cfg(target_arch = "x86_64")]
        let is_fast = N <= 2 && labels == Labels::Heaviest && std::arch::is_x86_feature_detected!("avx2");
        for (row, place) in self.rows().zip(out.chunks_exact_mut(row_length.max(1))) {
            for (number, slots) in place.chunks_mut(LANES).enumerate() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has AVX2; `from` is the whole box (checked above).
                if is_fast && unsafe { self.one_class_avx2(row, number * LANES, from, slots) } {
                    continue;
                }
                self.label_lanes(labels, self.lanes(row, number * LANES), from, slots);
            }
        }
        Ok(())
    }

    /// Samples the labels of at most [`LANES`] places.
    fn label_lanes<const N: usize>(
        &self,
        labels: Labels,
        (at, part): ([[i32; LANES]; 3], [[f32; LANES]; 3]),
        from: &[[u8; N]],
        slots: &mut [[u8; N]],
    ) {
        let [_, middle, fast] = self.count().map(|count| count as i32);
        let ([a, b, c], [p, q, r]) = (at, part);
        let (cells, parts) = (a.iter().zip(b).zip(c), p.iter().zip(q).zip(r));
        for (slot, (((a, b), c), ((p, q), r))) in slots.iter_mut().zip(cells.zip(parts)) {
            let at = |a: i32, b: i32| ((a * middle + b) * fast + c) as usize;
            *slot = if labels == Labels::Nearest {
                let near = at(a + i32::from(*p >= 0.5), b + i32::from(q >= 0.5));
                from.get(near + usize::from(r >= 0.5)).copied().unwrap_or([0; N])
            } else {
                let pair = |a, b| {
                    let at = at(a, b);
                    let both = from.get(at..at + 2).and_then(|both| <[[u8; N]; 2]>::try_from(both).ok());
                    both.unwrap_or([[0; N]; 2])
                };
                let pairs = [pair(*a, b), pair(*a, b + 1), pair(a + 1, b), pair(a + 1, b + 1)];
                let [first @ [one, other], second, third, fourth] = pairs;
                // Most voxels lie inside one class.
                if one == other && first == second && first == third && first == fourth {
                    one
                } else {
                    heaviest(pairs, [*p, q, r])
                }
            };
        }
    }

    /// Writes [`LANES`] labels whose eight neighbours are of one class each; returns false, with nothing written,
    /// where that is not so, or where the last of them lie too close to the end of the box to be read by fours.
    ///
    /// # Safety
    ///
    /// The processor has AVX2, N is 1 or 2, and `from` is the whole box.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn one_class_avx2<const N: usize>(
        &self,
        row: [f64; 3],
        first: usize,
        from: &[[u8; N]],
        slots: &mut [[u8; N]],
    ) -> bool {
        use std::arch::x86_64::*;
        let [_, middle, fast] = self.count().map(|count| count as i32);
        let (rows, cells) = (_mm256_set1_epi32(middle), _mm256_set1_epi32(fast));
        let [(a, _), (b, _), (c, _)] = self.axes_avx2(row, first);
        let at =
            _mm256_add_epi32(_mm256_mullo_epi32(_mm256_add_epi32(_mm256_mullo_epi32(a, rows), b), cells), c);
        let below = _mm256_add_epi32(at, _mm256_mullo_epi32(rows, cells));
        let last = _mm256_add_epi32(below, cells);
        // Four bytes are read at each place.
        let most = _mm256_set1_epi32(i32::try_from(from.len()).unwrap_or(i32::MAX) - 4);
        if slots.len() != LANES || _mm256_movemask_epi8(_mm256_cmpgt_epi32(last, most)) != 0 {
            return false;
        }
        let pair = |at: __m256i| {
            let start = from.as_ptr().cast::<i32>();
            // SAFETY: each place is clamped to 0..=count - 2 along each axis, and four cells before the end.
            unsafe {
                if N == 1 {
                    let four = _mm256_i32gather_epi32::<1>(start, at);
                    _mm256_and_si256(four, _mm256_set1_epi32(0xffff))
                } else {
                    _mm256_i32gather_epi32::<2>(start, at)
                }
            }
        };
        let one = pair(at);
        let others = [_mm256_add_epi32(at, cells), below, last].map(pair);
        let low = _mm256_and_si256(one, _mm256_set1_epi32(if N == 1 { 0xff } else { 0xffff }));
        let high = if N == 1 { _mm256_srli_epi32::<8>(one) } else { _mm256_srli_epi32::<16>(one) };
        let same = others.iter().fold(_mm256_cmpeq_epi32(low, high), |same, other| {
            _mm256_and_si256(same, _mm256_cmpeq_epi32(one, *other))
        });
        if _mm256_movemask_epi8(same) != -1 {
            return false;
        }
        let mut found = [0_u32; LANES];
        // SAFETY: `found` has eight numbers of 32 bits.
        unsafe { _mm256_storeu_si256(found.as_mut_ptr().cast(), low) };
        for (slot, class) in slots.iter_mut().zip(found) {
            if let Some(bytes) = class.to_le_bytes().first_chunk::<N>() {
                *slot = *bytes;
            }
        }
        true
    }
}

/// The class of most weight among eight neighbours; the last axis of `share` varies fastest.
fn heaviest<const N: usize>(pairs: [[[u8; N]; 2]; 4], share: [f32; 3]) -> [u8; N] {
    let classes = pairs.as_flattened();
    let first = classes.first().copied().unwrap_or([0; N]);
    let [p, q, r] = share;
    let weight = |corner: usize| {
        let one = |bit: usize, share: f32| if corner >> bit & 1 == 1 { share } else { 1.0 - share };
        one(2, p) * one(1, q) * one(0, r)
    };
    let mut best = (f32::NEG_INFINITY, first);
    for class in classes.iter().copied() {
        let alike = classes.iter().enumerate().filter(|(_, other)| **other == class);
        let sum: f32 = alike.map(|(corner, _)| weight(corner)).sum();
        let is_less = class.iter().rev().lt(best.1.iter().rev());
        if sum > best.0 || (sum == best.0 && is_less) {
            best = (sum, class);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::oblique::tests::turned;
    use super::*;

    proptest! {
        /// Regions of one class, as masks have: eight at once are what one by one are.
        #[test]
        fn labels_by_eights_are_labels_one_by_one(
            angles in prop::array::uniform3(-3.2_f64..3.2), scale in 0.3_f64..2.0,
            size in prop::array::uniform3(1_u64..20), side in 3_u64..18,
        ) {
            let oblique = Oblique::new(turned(angles, scale), [5, 6, 7], size).unwrap();
            let [_, b, c] = oblique.count();
            let class = |k: u64| (k / c / b / side + k / c % b / side + k % c / side) as u8 % 5;
            let narrow: Vec<u8> = (0..oblique.voxels() as u64).map(class).collect();
            let wide: Vec<u8> = narrow.iter().flat_map(|class| (i16::from(*class) * 999).to_le_bytes()).collect();
            let voxels = size.iter().product::<u64>() as usize;
            for labels in [Labels::Heaviest, Labels::Nearest] {
                let (mut one, mut two) = (vec![9; voxels], vec![9; 2 * voxels]);
                oblique.sample_labels::<1>(labels, &narrow, &mut one).unwrap();
                oblique.sample_labels::<2>(labels, &wide, &mut two).unwrap();
                let mut wanted = vec![[9; 1]; voxels];
                let (cells, _) = narrow.as_chunks::<1>();
                for (row, place) in oblique.rows().zip(wanted.chunks_exact_mut(size[2] as usize)) {
                    for (number, slots) in place.chunks_mut(LANES).enumerate() {
                        oblique.label_lanes(labels, oblique.lanes(row, number * LANES), cells, slots);
                    }
                }
                prop_assert_eq!(&one, wanted.as_flattened());
                let twice: Vec<u8> = one.iter().flat_map(|class| (i16::from(*class) * 999).to_le_bytes()).collect();
                prop_assert!(two == twice);
            }
        }
    }
}

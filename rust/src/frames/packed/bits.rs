//! Bits in little-endian words: packed integers, and the position of the k-th set bit.

#[cfg(target_arch = "x86_64")]
use crate::base::cpu::cpu;

/// Appends integers of a fixed width, lowest bit first.
#[derive(Default)]
pub struct BitWriter {
    words: Vec<u64>,
    bits: usize,
}

impl BitWriter {
    /// Number of bits written so far.
    pub fn len(&self) -> usize {
        self.bits
    }

    /// Appends `value` in `width` <= 64 bits; it has no higher bit.
    pub fn push(&mut self, value: u64, width: u32) {
        if width == 0 {
            return;
        }
        let shift = self.bits % 64;
        if shift == 0 {
            self.words.push(value);
        } else {
            if let Some(last) = self.words.last_mut() {
                *last |= value << shift;
            }
            if shift + width as usize > 64 {
                self.words.push(value >> (64 - shift));
            }
        }
        self.bits += width as usize;
    }

    /// Appends the words to a table.
    pub fn finish(self, table: &mut Vec<u8>) {
        self.words.iter().for_each(|word| table.extend(word.to_le_bytes()));
    }
}

/// Returns a word of a section; 0 past its end.
#[inline(always)]
pub fn word(section: &[u8], index: usize) -> u64 {
    let bytes = section.get(index * 8..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Returns `width` <= 57 bits from bit `at` on; widths above 57 never pass validation and give 0.
///
/// Sections end on whole words, so reading one word and the next is enough.
#[inline(always)]
pub fn bits(section: &[u8], at: usize, width: u32) -> u64 {
    if width == 0 || width > 57 {
        return 0;
    }
    let (index, shift) = (at / 64, at % 64);
    let low = word(section, index) >> shift;
    let high = if shift + width as usize > 64 { word(section, index + 1) << (64 - shift) } else { 0 };
    (low | high) & (u64::MAX >> (64 - width))
}

/// Returns the positions of the set bits number `rank` and `rank + 1`, counted from 0 at bit `from`.
pub fn select_pair(section: &[u8], from: usize, rank: usize) -> Option<(usize, usize)> {
    #[cfg(target_arch = "x86_64")]
    if cpu().bmi2 {
        // SAFETY: `bmi2` is set only on machines with BMI2, which have BMI1 and POPCNT too.
        return unsafe { select_pair_bmi2(section, from, rank) };
    }
    select_pair_with(section, from, rank, select_portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2,popcnt")]
fn select_pair_bmi2(section: &[u8], from: usize, rank: usize) -> Option<(usize, usize)> {
    select_pair_with(section, from, rank, |word, rank| {
        let bit = std::arch::x86_64::_pdep_u64(1 << rank, word);
        bit.trailing_zeros()
    })
}

#[inline(always)]
fn select_pair_with(
    section: &[u8],
    from: usize,
    rank: usize,
    select: impl Fn(u64, u32) -> u32,
) -> Option<(usize, usize)> {
    let words = section.len() / 8;
    let mut index = from / 64;
    let mut current = word(section, index) & (u64::MAX << (from % 64));
    let mut left = rank;
    loop {
        let ones = current.count_ones() as usize;
        if left < ones {
            break;
        }
        left -= ones;
        index += 1;
        if index >= words {
            return None;
        }
        current = word(section, index);
    }
    let place = select(current, left as u32);
    let first = index * 64 + place as usize;
    current &= (u64::MAX << place) << 1;
    while current == 0 {
        index += 1;
        if index >= words {
            return None;
        }
        current = word(section, index);
    }
    Some((first, index * 64 + current.trailing_zeros() as usize))
}

/// Returns the position of set bit number `rank` of a word that has more than `rank` set bits.
#[inline(always)]
fn select_portable(mut word: u64, mut rank: u32) -> u32 {
    let mut place = 0;
    for half in [32, 16, 8] {
        let low = word & ((1 << half) - 1);
        let ones = low.count_ones();
        if rank >= ones {
            rank -= ones;
            word >>= half;
            place += half;
        } else {
            word = low;
        }
    }
    for _ in 0..rank {
        word &= word.wrapping_sub(1);
    }
    place + word.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_come_back(values in prop::collection::vec((any::<u64>(), 0..=57_u32), 0..200)) {
            let mut writer = BitWriter::default();
            let cut = |value: u64, width: u32| if width == 0 { 0 } else { value >> (64 - width) };
            values.iter().for_each(|&(value, width)| writer.push(cut(value, width), width));
            let mut section = Vec::new();
            writer.finish(&mut section);
            let mut at = 0;
            for (value, width) in values {
                prop_assert_eq!(bits(&section, at, width), cut(value, width));
                at += width as usize;
            }
        }

        #[test]
        fn select_agrees_with_a_scan(words in prop::collection::vec(prop_oneof![any::<u64>(), Just(0), Just(1 << 63)], 1..6), from in 0..64_usize) {
            let section: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let ones: Vec<usize> = (from..words.len() * 64).filter(|&at| words[at / 64] >> (at % 64) & 1 == 1).collect();
            for rank in 0..=ones.len() {
                let want = ones.get(rank).copied().zip(ones.get(rank + 1).copied());
                prop_assert_eq!(select_pair(&section, from, rank), want);
                prop_assert_eq!(select_pair_with(&section, from, rank, select_portable), want);
            }
        }
    }
}

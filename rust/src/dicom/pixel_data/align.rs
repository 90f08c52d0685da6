//! Moves a frame whose pixels are no whole bytes to the first bit of its first byte.

/// Moves `bits` bits, which begin at bit `from` (0 to 7, counted from the least significant) of the first byte,
/// to bit 0. The bits behind them in the last byte, which belong to the next frame, become 0 (PS3.5 8.1.1).
pub fn to_first_bit(bytes: &mut Vec<u8>, from: u8, bits: u64) {
    if from > 0 {
        let mut carried = 0;
        let (words, tail) = bytes.as_chunks_mut::<8>();
        for byte in tail.iter_mut().rev() {
            let old = *byte;
            *byte = old >> from | carried;
            carried = old << (8 - from);
        }
        for word in words.iter_mut().rev() {
            let old = u64::from_le_bytes(*word);
            *word = (old >> from | u64::from(carried) << 56).to_le_bytes();
            carried = (old as u8) << (8 - from);
        }
    }
    bytes.truncate(usize::try_from(bits.div_ceil(8)).unwrap_or(usize::MAX));
    if let Some(last) = bytes.last_mut().filter(|_| !bits.is_multiple_of(8)) {
        *last &= (1 << (bits % 8)) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bit(bytes: &[u8], index: usize) -> bool {
        bytes[index / 8] >> (index % 8) & 1 == 1
    }

    #[test]
    fn every_bit_comes_to_its_place_and_the_rest_is_zero() {
        let stored: Vec<u8> = (0..41_u32).map(|index| (index * 151 + 89) as u8).collect();
        for from in 0..8_u8 {
            for bits in 1..=stored.len() * 8 - usize::from(from) {
                let mut bytes = stored[..(usize::from(from) + bits).div_ceil(8)].to_vec();
                to_first_bit(&mut bytes, from, bits as u64);
                assert_eq!(bytes.len(), bits.div_ceil(8));
                for index in 0..bytes.len() * 8 {
                    let expected = index < bits && bit(&stored, usize::from(from) + index);
                    assert_eq!(bit(&bytes, index), expected, "bit {index} of {bits} from {from}");
                }
            }
        }
    }
}

//! Numbers in as few bytes as they need: seven bits a byte, lowest first, the last byte below 128.

/// Appends a number.
pub fn push(out: &mut Vec<u8>, mut number: u64) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front of `rest`; `None` where it is cut or longer than ten bytes. Bits beyond 64
/// are lost.
#[inline(always)]
pub fn take(rest: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    while shift < 64 {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(number);
        }
        shift += 7;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back_in_the_bytes_that_they_need(numbers in prop::collection::vec((any::<u64>(), 0..64), 0..20)) {
            let numbers: Vec<u64> = numbers.into_iter().map(|(number, shift)| number >> shift).collect();
            let mut bytes = Vec::new();
            numbers.iter().for_each(|&number| push(&mut bytes, number));
            let needed = |number: u64| (64 - number.leading_zeros()).max(1).div_ceil(7) as usize;
            prop_assert_eq!(bytes.len(), numbers.iter().map(|&number| needed(number)).sum::<usize>());
            let mut rest = bytes.as_slice();
            for number in numbers {
                prop_assert_eq!(take(&mut rest), Some(number));
            }
            prop_assert_eq!(take(&mut rest), None);
        }

        #[test]
        fn any_bytes_are_a_number_or_none(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut rest = bytes.as_slice();
            let found = take(&mut rest);
            prop_assert_eq!(found.is_some(), bytes.iter().take(10).any(|&byte| byte < 128));
        }
    }
}

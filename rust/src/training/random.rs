//! The random numbers of numpy's `Generator(Philox(...))`, bit for bit.
//!
//! Philox4x64-10 of Salmon et al. (2011); bounded integers by Lemire's method (2019), as numpy draws scalars.

const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];

/// Random numbers that a key and a counter decide.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u64; 2],
    counter: [u64; 4],
    block: [u64; 4],
    used: usize,
    half: Option<u32>,
}

impl Philox {
    /// The numbers of `numpy.random.Philox(key=key, counter=counter)`.
    pub fn new(key: [u64; 2], counter: [u64; 4]) -> Self {
        Self { key, counter, block: [0; 4], used: 4, half: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        if let Some(found) = self.block.get(self.used) {
            self.used += 1;
            return *found;
        }
        for word in &mut self.counter {
            *word = word.wrapping_add(1);
            if *word != 0 {
                break;
            }
        }
        self.block = rounds(self.counter, self.key);
        self.used = 1;
        let [first, ..] = self.block;
        first
    }

    /// 32 random bits: the lower half of 64, then the upper.
    fn half_bits(&mut self) -> u32 {
        if let Some(upper) = self.half.take() {
            return upper;
        }
        let bits = self.bits();
        self.half = Some((bits >> 32) as u32);
        bits as u32
    }

    /// A number from 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        match end.saturating_sub(1) {
            0 => 0,
            most if most < u64::from(u32::MAX) => {
                let end = end as u32;
                let least = end.wrapping_neg() % end;
                loop {
                    let product = u64::from(self.half_bits()) * u64::from(end);
                    if product as u32 >= least {
                        return product >> 32;
                    }
                }
            }
            most if most == u64::from(u32::MAX) => u64::from(self.half_bits()),
            _ => {
                let least = end.wrapping_neg() % end;
                loop {
                    let product = u128::from(self.bits()) * u128::from(end);
                    if product as u64 >= least {
                        return (product >> 64) as u64;
                    }
                }
            }
        }
    }
}

fn rounds(mut words: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    let [m0, m1] = MULTIPLIERS;
    for round in 0..10 {
        if round > 0 {
            let ([k0, k1], [w0, w1]) = (key, WEYL);
            key = [k0.wrapping_add(w0), k1.wrapping_add(w1)];
        }
        let ([a, b, c, d], [k0, k1]) = (words, key);
        let (first, second) = (u128::from(m0) * u128::from(a), u128::from(m1) * u128::from(c));
        words = [(second >> 64) as u64 ^ b ^ k0, second as u64, (first >> 64) as u64 ^ d ^ k1, first as u64];
    }
    words
}

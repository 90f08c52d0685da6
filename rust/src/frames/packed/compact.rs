//! The compact forms for memory, about 16 bits a frame: contiguous items as Elias-Fano or as frames of
//! reference.
//!
//! Both hold the n + 1 borders of n items, relative to the first tag and divided by 2 where all are even. One
//! item is found without decoding the others.

use crate::base::error::Result;
use crate::frames::table::ItemsView;

use super::bits::{BitWriter, bits, select_pair, word};
use super::form::{FLAG_HALVED, Form, bad_table, pad};

/// Values between two select positions of the Elias-Fano form.
const SAMPLE: usize = 256;
/// Items in one block of the frames-of-reference form.
const BLOCK: usize = 64;
/// Bytes of the head of a block: u48 start, u24 least half-length, u8 width of residuals, u32 their bit
/// position.
const BLOCK_HEAD: usize = 14;

/// Borders in one of the compact forms.
pub(super) struct Compact {
    pub form: Form,
    pub flags: u8,
    pub low: u8,
    pub sections: Vec<u8>,
}

/// Encodes borders in the better of both forms; `None` where neither can hold them.
pub(super) fn encode(items: ItemsView<'_>, base: u64, end: u64) -> Option<Compact> {
    let mut borders: Vec<u64> = items.offsets.iter().map(|offset| offset - 8 - base).collect();
    borders.push(end - base);
    let halved = borders.iter().all(|border| border.is_multiple_of(2));
    if halved {
        borders.iter_mut().for_each(|border| *border /= 2);
    }
    let fano = elias_fano(&borders, halved)?;
    let reference = halved.then(|| frames_of_reference(&borders)).flatten();
    Some(match reference {
        // Elias-Fano finds a frame in a third of the time: use the other form only where it saves much.
        Some(other) if saves_much(&other, &fano, items.offsets.len()) => other,
        _ => fano,
    })
}

fn saves_much(other: &Compact, fano: &Compact, items: usize) -> bool {
    let (other, fano) = (other.sections.len(), fano.sections.len());
    (items <= 512 && other < fano) || other * 2 <= fano
}

fn elias_fano(borders: &[u64], halved: bool) -> Option<Compact> {
    let last = *borders.last()?;
    let low = (last / borders.len() as u64).checked_ilog2().unwrap_or(0);
    let upper_bits = usize::try_from(last >> low).ok()?.checked_add(borders.len())?;
    let mut upper = vec![0_u64; upper_bits.div_ceil(64)];
    let mut lower = BitWriter::default();
    let mut sections = Vec::new();
    for (index, &border) in borders.iter().enumerate() {
        let place = (border >> low) as usize + index;
        if index.is_multiple_of(SAMPLE) {
            sections.extend(u32::try_from(place).ok()?.to_le_bytes());
        }
        *upper.get_mut(place / 64)? |= 1 << (place % 64);
        lower.push(border & ((1 << low) - 1), low);
    }
    pad(&mut sections);
    upper.iter().for_each(|word| sections.extend(word.to_le_bytes()));
    lower.finish(&mut sections);
    let flags = if halved { FLAG_HALVED } else { 0 };
    Some(Compact { form: Form::EliasFano, flags, low: low as u8, sections })
}

fn frames_of_reference(borders: &[u64]) -> Option<Compact> {
    let lengths: Vec<u64> = borders.iter().zip(borders.iter().skip(1)).map(|(a, b)| b - a).collect();
    let mut heads = Vec::new();
    let mut residuals = BitWriter::default();
    for (block, starts) in lengths.chunks(BLOCK).zip(borders.chunks(BLOCK)) {
        let start = starts.first().filter(|&&start| start < 1 << 48)?;
        let least = *block.iter().min()?;
        let most = *block.iter().max()?;
        if most >= 1 << 24 {
            return None;
        }
        let width = 64 - (most - least).leading_zeros();
        heads.extend(start.to_le_bytes().get(..6)?);
        heads.extend(least.to_le_bytes().get(..3)?);
        heads.push(width as u8);
        heads.extend(u32::try_from(residuals.len()).ok()?.to_le_bytes());
        block.iter().for_each(|length| residuals.push(length - least, width));
    }
    pad(&mut heads);
    residuals.finish(&mut heads);
    Some(Compact { form: Form::For64, flags: FLAG_HALVED, low: 0, sections: heads })
}

/// The sections of a compact form, found from the head alone: a look-up needs no scan.
#[derive(Clone, Copy)]
pub(super) enum Borders<'a> {
    /// Select positions, upper parts in unary, lower parts of `low` bits.
    EliasFano { select: &'a [u8], upper: &'a [u8], lower: &'a [u8], low: u32 },
    /// Block heads and residuals.
    For64 { heads: &'a [u8], residuals: &'a [u8], items: usize },
}

impl<'a> Borders<'a> {
    /// Splits off the sections of `items` items that span `span` units; returns the rest of the table too.
    pub fn elias_fano(rest: &'a [u8], items: usize, span: u64, low: u8) -> Option<(Self, &'a [u8])> {
        let (low, values) = (u32::from(low), items.checked_add(1)?);
        if low > 57 {
            return None;
        }
        let upper_bits = usize::try_from(span >> low).ok()?.checked_add(values)?;
        let (select, rest) = rest.split_at_checked((values.div_ceil(SAMPLE) * 4).next_multiple_of(8))?;
        let (upper, rest) = rest.split_at_checked(upper_bits.div_ceil(64).checked_mul(8)?)?;
        let lower_bits = values.checked_mul(low as usize)?;
        let (lower, rest) = rest.split_at_checked(lower_bits.div_ceil(64).checked_mul(8)?)?;
        Some((Self::EliasFano { select, upper, lower, low }, rest))
    }

    /// Splits off the sections of frames of reference; returns the rest of the table too.
    pub fn for64(rest: &'a [u8], items: usize) -> Option<(Self, &'a [u8])> {
        let blocks = items.div_ceil(BLOCK);
        let (heads, rest) = rest.split_at_checked((blocks * BLOCK_HEAD).next_multiple_of(8))?;
        let residual_bits = match blocks.checked_sub(1) {
            None => 0,
            Some(last) => {
                let head = BlockHead::of(heads, last)?;
                head.bit_at.checked_add((items - last * BLOCK).checked_mul(head.width as usize)?)?
            }
        };
        let (residuals, rest) = rest.split_at_checked(residual_bits.div_ceil(64).checked_mul(8)?)?;
        Some((Self::For64 { heads, residuals, items }, rest))
    }

    /// Returns both borders of item `index`, in units of the table (1 or 2 bytes).
    #[inline]
    pub fn item(&self, index: usize) -> Option<(u64, u64)> {
        match *self {
            Self::EliasFano { select, upper, lower, low } => {
                let sample = select.get(index / SAMPLE * 4..)?.first_chunk()?;
                let from = u32::from_le_bytes(*sample) as usize;
                let (start, end) = select_pair(upper, from, index % SAMPLE)?;
                let value = |place: usize, index: usize| {
                    let high = place.checked_sub(index)? as u64;
                    Some(high << low | bits(lower, index * low as usize, low))
                };
                Some((value(start, index)?, value(end, index + 1)?))
            }
            Self::For64 { heads, residuals, items } => {
                if index >= items {
                    return None;
                }
                let head = BlockHead::of(heads, index / BLOCK)?;
                let mut at = head.bit_at;
                let mut start = head.start.checked_add(head.least * (index % BLOCK) as u64)?;
                for _ in 0..index % BLOCK {
                    start = start.checked_add(bits(residuals, at, head.width))?;
                    at += head.width as usize;
                }
                let length = head.least + bits(residuals, at, head.width);
                Some((start, start.checked_add(length)?))
            }
        }
    }

    /// Decodes all borders in one pass.
    ///
    /// # Errors
    /// `bad_table` for anything that [`encode`] does not write.
    pub fn all(&self, items: usize, span: u64) -> Result<Vec<u64>> {
        let borders = match *self {
            Self::EliasFano { select, upper, lower, low } => {
                all_of_elias_fano(select, upper, lower, low, items)?
            }
            Self::For64 { heads, residuals, .. } => all_of_for64(heads, residuals, items)?,
        };
        let ascending = borders.iter().zip(borders.iter().skip(1)).all(|(a, b)| a < b);
        if borders.len() != items + 1
            || !ascending
            || borders.first() != Some(&0)
            || borders.last() != Some(&span)
        {
            return Err(bad_table("has borders that do not ascend from its first to its last byte"));
        }
        Ok(borders)
    }
}

fn all_of_elias_fano(select: &[u8], upper: &[u8], lower: &[u8], low: u32, items: usize) -> Result<Vec<u64>> {
    let mut borders = Vec::with_capacity(items + 1);
    for at in 0..upper.len() / 8 {
        let mut rest = word(upper, at);
        while rest != 0 {
            let (place, index) = (at * 64 + rest.trailing_zeros() as usize, borders.len());
            rest &= rest - 1;
            let high = place.checked_sub(index).ok_or_else(|| bad_table("has borders out of order"))? as u64;
            if index.is_multiple_of(SAMPLE) {
                let sample = select.get(index / SAMPLE * 4..).and_then(|rest| rest.first_chunk());
                if sample.map(|sample| u32::from_le_bytes(*sample) as usize) != Some(place) {
                    return Err(bad_table("has wrong select positions"));
                }
            }
            borders.push(high << low | bits(lower, index * low as usize, low));
            if borders.len() > items + 1 {
                return Err(bad_table("has too many borders"));
            }
        }
    }
    Ok(borders)
}

fn all_of_for64(heads: &[u8], residuals: &[u8], items: usize) -> Result<Vec<u64>> {
    let mut borders = Vec::with_capacity(items + 1);
    let (mut border, mut at) = (0_u64, 0);
    for block in 0..items.div_ceil(BLOCK) {
        let head = BlockHead::of(heads, block).ok_or_else(|| bad_table("is shorter than its blocks"))?;
        if head.start != border || head.bit_at != at || head.width > 24 {
            return Err(bad_table("has blocks that do not join"));
        }
        for _ in block * BLOCK..items.min((block + 1) * BLOCK) {
            borders.push(border);
            border += head.least + bits(residuals, at, head.width);
            at += head.width as usize;
        }
    }
    borders.push(border);
    Ok(borders)
}

/// The head of a block.
struct BlockHead {
    start: u64,
    least: u64,
    width: u32,
    bit_at: usize,
}

impl BlockHead {
    #[inline]
    fn of(heads: &[u8], block: usize) -> Option<Self> {
        let bytes = heads.get(block * BLOCK_HEAD..)?.first_chunk::<BLOCK_HEAD>()?;
        let [a, b, c, d, e, f, g, h, i, width, position @ ..] = *bytes;
        Some(Self {
            start: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            least: u64::from_le_bytes([g, h, i, 0, 0, 0, 0, 0]),
            width: u32::from(width),
            bit_at: u32::from_le_bytes(position) as usize,
        })
    }
}

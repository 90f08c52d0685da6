//! Decodes a packed table to its layout and validates every field.

use crate::base::error::Result;
use crate::frames::table::{Items, Layout, Native};

use super::compact::Borders;
use super::form::{
    CHECKPOINT, FLAG_HALVED, FLAG_MAP, FLAG_NATIVE, FLAG_ONE_FRAME, FLAG_WIDE, Form, MOST_ITEMS, bad_table,
};
use super::head::Head;

/// Decodes a table with the full head. Checks version, checksum, exact length, order, and that all offsets
/// are below `limit`.
///
/// # Errors
/// `bad_table` for anything that [`encode`](super::encode) does not write.
pub fn decode(table: &[u8], limit: u64) -> Result<Layout> {
    if table.is_empty() {
        return Ok(Layout::Empty);
    }
    let (head, sections) = Head::read_full(table)?;
    layout_of(head, sections, limit)
}

/// Decodes a table with the short head, as it lies in memory.
///
/// # Errors
/// `bad_table` for anything that [`encode_for_memory`](super::encode_for_memory) does not write. There is no checksum:
/// damage that leaves a valid table goes unnoticed.
pub fn decode_from_memory(table: &[u8]) -> Result<Layout> {
    if table.is_empty() {
        return Ok(Layout::Empty);
    }
    let (head, sections) = Head::read_short(table).ok_or_else(|| bad_table("is shorter than its head"))?;
    layout_of(head, sections, u64::MAX)
}

fn layout_of(head: Head, sections: &[u8], limit: u64) -> Result<Layout> {
    let Head { form, flags, items, frames, base, end, .. } = head;
    if flags & FLAG_NATIVE != 0 {
        return native_of(head, sections, limit);
    }
    if items > MOST_ITEMS {
        return Err(bad_table("has too many items"));
    }
    let mut sections = Sections { rest: sections };
    let (offsets, lengths) = match form {
        Form::Affine => affine(items as usize, base, end)?,
        Form::Checkpoints => checkpoints(&mut sections, items as usize, end)?,
        Form::Raw => raw(&mut sections, items as usize, flags & FLAG_WIDE != 0)?,
        Form::For64 | Form::EliasFano => compact_positions(&mut sections, head)?,
    };
    let own_flag = match form {
        Form::Raw => FLAG_WIDE,
        Form::For64 | Form::EliasFano => FLAG_HALVED,
        Form::Affine | Form::Checkpoints => 0,
    };
    let frame_first = match flags & !own_flag {
        0 if items == frames => None,
        FLAG_ONE_FRAME if frames == 1 => Some(vec![0, items]),
        FLAG_MAP => Some(fragment_map(&mut sections, frames, items)?),
        _ => return Err(bad_table("has inconsistent flags or counts")),
    };
    let inside = offsets
        .iter()
        .zip(&lengths)
        .all(|(&offset, &length)| offset.checked_add(length).is_some_and(|end| end <= limit));
    if !sections.rest.is_empty() || !inside {
        return Err(bad_table("is longer than its sections, or reaches past the end of the file"));
    }
    Ok(Layout::Items(Items { offsets, lengths, frame_first }))
}

fn native_of(head: Head, sections: &[u8], limit: u64) -> Result<Layout> {
    let Head { form, flags, items, frames, base, end: frame_bits, .. } = head;
    let consistent = form == Form::Affine && flags == FLAG_NATIVE && items == frames && sections.is_empty();
    if !consistent || frame_bits == 0 || frames == 0 {
        return Err(bad_table("has inconsistent fields for native frames"));
    }
    // Frames of a cut file may end past its end (they are marked) but not begin there.
    if base > limit {
        return Err(bad_table("begins past the end of the file"));
    }
    Ok(Layout::Native(Native { base, frame_bits, frames }))
}

/// The sections after the head, taken off one by one.
struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (section, rest) =
            self.rest.split_at_checked(length).ok_or_else(|| bad_table("is shorter than its sections"))?;
        self.rest = rest;
        Ok(section)
    }

    fn longs(&mut self, count: usize) -> Result<impl Iterator<Item = u64> + use<'a>> {
        Ok(self.take(count * 8)?.as_chunks().0.iter().map(|chunk| u64::from_le_bytes(*chunk)))
    }

    /// Takes u32 values and the padding after them.
    fn words(&mut self, count: usize) -> Result<impl Iterator<Item = u32> + use<'a>> {
        let section = self.take((count * 4).next_multiple_of(8))?;
        Ok(section.as_chunks().0.iter().take(count).map(|chunk| u32::from_le_bytes(*chunk)))
    }
}

type Positions = (Vec<u64>, Vec<u64>);

fn affine(count: usize, base: u64, stride_bits: u64) -> Result<Positions> {
    let stride = stride_bits / 8;
    let length = stride
        .checked_sub(8)
        .filter(|_| stride_bits.is_multiple_of(8))
        .ok_or_else(|| bad_table("has a wrong stride"))?;
    let last = stride.checked_mul(count as u64).and_then(|span| span.checked_add(base));
    last.ok_or_else(|| bad_table("has offsets beyond 64 bits"))?;
    let offsets = (0..count as u64).map(|index| base + index * stride + 8).collect();
    Ok((offsets, vec![length; count]))
}

fn compact_positions(sections: &mut Sections<'_>, head: Head) -> Result<Positions> {
    let Head { form, flags, low, base, end, .. } = head;
    let items = head.items as usize;
    let unit = if flags & FLAG_HALVED != 0 { 2 } else { 1 };
    let span = end.checked_sub(base).filter(|span| span.is_multiple_of(unit));
    let span = span.ok_or_else(|| bad_table("has an end that does not fit its start"))? / unit;
    let cut = match form {
        Form::EliasFano => Borders::elias_fano(sections.rest, items, span, low),
        _ if unit == 2 => Borders::for64(sections.rest, items),
        _ => None,
    };
    let (borders, rest) = cut.ok_or_else(|| bad_table("is shorter than its sections"))?;
    sections.rest = rest;
    let borders = borders.all(items, span)?;
    let (mut offsets, mut lengths) = (Vec::with_capacity(items), Vec::with_capacity(items));
    for (start, next) in borders.iter().zip(borders.iter().skip(1)) {
        // Below `end`, which is a u64.
        offsets.push(base + start * unit + 8);
        lengths.push(
            ((next - start) * unit)
                .checked_sub(8)
                .ok_or_else(|| bad_table("has items of less than 8 bytes"))?,
        );
    }
    Ok((offsets, lengths))
}

fn checkpoints(sections: &mut Sections<'_>, count: usize, end: u64) -> Result<Positions> {
    let starts: Vec<u64> = sections.longs(count.div_ceil(CHECKPOINT))?.collect();
    let lengths: Vec<u64> = sections.words(count)?.map(u64::from).collect();
    let mut position = starts.first().copied().unwrap_or(end);
    let mut offsets = Vec::with_capacity(count);
    let mut starts = starts.into_iter();
    for block in lengths.chunks(CHECKPOINT) {
        if starts.next() != Some(position) {
            return Err(bad_table("has checkpoints that contradict its lengths"));
        }
        for length in block {
            let payload = position.checked_add(8).ok_or_else(|| bad_table("has offsets beyond 64 bits"))?;
            offsets.push(payload);
            position = payload.checked_add(*length).ok_or_else(|| bad_table("has offsets beyond 64 bits"))?;
        }
    }
    if position != end {
        return Err(bad_table("has lengths that do not add up to its end"));
    }
    Ok((offsets, lengths))
}

fn raw(sections: &mut Sections<'_>, count: usize, wide: bool) -> Result<Positions> {
    let tags: Vec<u64> = sections.longs(count)?.collect();
    let lengths =
        if wide { sections.longs(count)?.collect() } else { sections.words(count)?.map(u64::from).collect() };
    let offsets = tags.into_iter().map(|tag| tag.checked_add(8)).collect::<Option<Vec<u64>>>();
    Ok((offsets.ok_or_else(|| bad_table("has offsets beyond 64 bits"))?, lengths))
}

fn fragment_map(sections: &mut Sections<'_>, frames: u32, items: u32) -> Result<Vec<u32>> {
    let count = (frames as usize).checked_add(1).ok_or_else(|| bad_table("has too many frames"))?;
    let first: Vec<u32> = sections.words(count)?.collect();
    let ascending = first.iter().zip(first.iter().skip(1)).all(|(a, b)| a < b);
    if !ascending || first.first() != Some(&0) || first.last() != Some(&items) {
        return Err(bad_table("has a fragment map that does not ascend"));
    }
    Ok(first)
}

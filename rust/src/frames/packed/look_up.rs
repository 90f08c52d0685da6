//! Finds one frame of a packed table without decoding the table.

use super::compact::Borders;
use super::form::{CHECKPOINT, FLAG_HALVED, FLAG_MAP, FLAG_NATIVE, FLAG_ONE_FRAME, FLAG_WIDE, Form};
use super::head::Head;
use crate::frames::table::Native;

/// A view on a table in memory, as [`super::encode_for_memory`] wrote it.
///
/// Memory is trusted: on other bytes its answers may be wrong, but it never panics.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    items: usize,
    frames: usize,
    base: u64,
    unit: u64,
    map: Option<&'a [u8]>,
    one_frame: bool,
    places: Places<'a>,
}

#[derive(Clone, Copy)]
enum Places<'a> {
    Native { frame_bits: u64 },
    Affine { stride: u64 },
    Compact(Borders<'a>),
    Checkpoints { starts: &'a [u8], lengths: &'a [u8] },
    Raw { tags: &'a [u8], lengths: &'a [u8], wide: bool },
}

impl<'a> Table<'a> {
    /// Reads the head.
    #[inline(always)]
    pub fn from_memory(table: &'a [u8]) -> Option<Self> {
        let (head, sections) = Head::read_short(table)?;
        Self::new(head, sections)
    }

    #[inline(always)]
    pub(super) fn new(head: Head, rest: &'a [u8]) -> Option<Self> {
        let Head { form, flags, low, base, end, .. } = head;
        let (items, frames) = (head.items as usize, head.frames as usize);
        let unit = if flags & FLAG_HALVED != 0 { 2 } else { 1 };
        let (places, rest) = match form {
            Form::Affine if flags & FLAG_NATIVE != 0 => (Places::Native { frame_bits: end }, rest),
            Form::Affine => (Places::Affine { stride: end / 8 }, rest),
            Form::EliasFano => {
                let (borders, rest) = Borders::elias_fano(rest, items, end.checked_sub(base)? / unit, low)?;
                (Places::Compact(borders), rest)
            }
            Form::For64 => {
                let (borders, rest) = Borders::for64(rest, items)?;
                (Places::Compact(borders), rest)
            }
            Form::Checkpoints => {
                let (starts, rest) = rest.split_at_checked(items.div_ceil(CHECKPOINT) * 8)?;
                let (lengths, rest) = rest.split_at_checked((items * 4).next_multiple_of(8))?;
                (Places::Checkpoints { starts, lengths }, rest)
            }
            Form::Raw => {
                let wide = flags & FLAG_WIDE != 0;
                let (tags, rest) = rest.split_at_checked(items * 8)?;
                let length = if wide { items * 8 } else { (items * 4).next_multiple_of(8) };
                let (lengths, rest) = rest.split_at_checked(length)?;
                (Places::Raw { tags, lengths, wide }, rest)
            }
        };
        let map = (flags & FLAG_MAP != 0).then_some(rest);
        Some(Self { items, frames, base, unit, map, one_frame: flags & FLAG_ONE_FRAME != 0, places })
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The parameters of native frames, which have no items.
    pub fn native(&self) -> Option<Native> {
        match self.places {
            Places::Native { frame_bits } => {
                Some(Native { base: self.base, frame_bits, frames: self.frames as u32 })
            }
            _ => None,
        }
    }

    /// The numbers of a frame's items; empty for a frame that does not exist.
    #[inline(always)]
    pub fn items_of(&self, frame: usize) -> std::ops::Range<usize> {
        if frame >= self.frames {
            return 0..0;
        }
        match self.map {
            None if self.one_frame => 0..self.items,
            None => frame..frame + 1,
            Some(map) => match (u32_at(map, frame), u32_at(map, frame + 1)) {
                (Some(first), Some(end)) => first as usize..end as usize,
                _ => 0..0,
            },
        }
    }

    /// The payload of an item, as offset and length.
    #[inline(always)]
    pub fn item(&self, index: usize) -> Option<(u64, u64)> {
        if index >= self.items {
            return None;
        }
        match self.places {
            Places::Native { .. } => None,
            Places::Affine { stride } => Some((
                self.base.checked_add(stride.checked_mul(index as u64)?)?.checked_add(8)?,
                stride.checked_sub(8)?,
            )),
            Places::Compact(borders) => {
                let (start, end) = borders.item(index)?;
                let offset = self.base.checked_add(start.checked_mul(self.unit)?)?.checked_add(8)?;
                Some((offset, end.checked_sub(start)?.checked_mul(self.unit)?.checked_sub(8)?))
            }
            Places::Checkpoints { starts, lengths } => {
                let block = index / CHECKPOINT;
                let mut tag = u64_at(starts, block)?;
                for earlier in block * CHECKPOINT..index {
                    tag = tag.checked_add(8)?.checked_add(u64::from(u32_at(lengths, earlier)?))?;
                }
                Some((tag.checked_add(8)?, u32_at(lengths, index)?.into()))
            }
            Places::Raw { tags, lengths, wide } => {
                let length = if wide { u64_at(lengths, index)? } else { u32_at(lengths, index)?.into() };
                Some((u64_at(tags, index)?.checked_add(8)?, length))
            }
        }
    }

    /// Payload ranges `[start, end)` of a frame, clipped to `limit`; none for a frame that does not exist.
    pub fn ranges(&self, frame: usize, limit: u64) -> impl Iterator<Item = (u64, u64)> {
        let native = self.native().filter(|native| frame < native.frames as usize);
        let items = if native.is_some() { 0..0 } else { self.items_of(frame) };
        let ranges = items.map_while(move |index| {
            let (offset, length) = self.item(index)?;
            Some((offset, offset.checked_add(length)?))
        });
        native.map(|native| native.range(frame as u64, limit)).into_iter().chain(ranges)
    }
}

#[inline]
fn u32_at(section: &[u8], index: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*section.get(index.checked_mul(4)?..)?.first_chunk()?))
}

#[inline]
fn u64_at(section: &[u8], index: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*section.get(index.checked_mul(8)?..)?.first_chunk()?))
}

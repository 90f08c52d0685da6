//! Files that are DICOM and TIFF: the preamble is a TIFF header whose tile offsets are those of the
//! fragments' payloads. Slides of the Imaging Data Commons have no other table.

use super::offset_table::OffsetTable;
use crate::base::error::Result;
use crate::base::source::{Source, read_array, read_exact};
use crate::frames::table::Method;

const TILE_OFFSETS: u16 = 324;
const TILE_BYTE_COUNTS: u16 = 325;
/// Directories that are read at most, as they may form a loop; pyramids have far fewer.
const MOST_DIRECTORIES: usize = 256;
const MOST_ENTRIES: u64 = 4096;

/// Byte order and field widths of a classic or big TIFF.
#[derive(Clone, Copy)]
struct Layout {
    big_endian: bool,
    /// Whether offsets have eight bytes (version 43).
    wide: bool,
}

/// A directory entry: type, count, and the four or eight bytes of its value or offset.
struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    value: [u8; 8],
    position: u64,
}

/// Reads the table of the directory with `frames` tiles, if there is one; also returns whether the preamble
/// is a TIFF.
pub fn read(source: &dyn Source, frames: u32) -> Result<(Option<OffsetTable>, bool)> {
    let Some(start) = read_array::<16>(source, 0)? else { return Ok((None, false)) };
    let layout = match start {
        [b'I', b'I', 42, 0, ..] => Layout { big_endian: false, wide: false },
        [b'M', b'M', 0, 42, ..] => Layout { big_endian: true, wide: false },
        [b'I', b'I', 43, 0, 8, 0, 0, 0, ..] => Layout { big_endian: false, wide: true },
        [b'M', b'M', 0, 43, 0, 8, 0, 0, ..] => Layout { big_endian: true, wide: true },
        _ => return Ok((None, false)),
    };
    let mut next = layout.word(start.get(if layout.wide { 8.. } else { 4.. }).unwrap_or_default());
    for _ in 0..MOST_DIRECTORIES {
        if next == 0 {
            break;
        }
        let Some((entries, following)) = layout.directory(source, next)? else { break };
        let find = |tag| entries.iter().find(|entry| entry.tag == tag && entry.count == u64::from(frames));
        if let (Some(offsets), Some(counts)) = (find(TILE_OFFSETS), find(TILE_BYTE_COUNTS)) {
            let table = match (layout.values(source, offsets)?, layout.values(source, counts)?) {
                (Some(offsets), Some(lengths)) => as_table(&offsets, lengths),
                _ => None,
            };
            return Ok((table, true));
        }
        next = following;
    }
    Ok((None, true))
}

/// Makes a table of tile offsets: an Item tag is 8 bytes before its payload. `None` for missing or shared
/// tiles.
fn as_table(offsets: &[u64], lengths: Vec<u64>) -> Option<OffsetTable> {
    let tags: Option<Vec<u64>> = offsets.iter().map(|offset| offset.checked_sub(8)).collect();
    let ascending = offsets.iter().zip(offsets.iter().skip(1)).all(|(a, b)| a < b);
    let tags = tags.filter(|_| ascending)?;
    Some(OffsetTable { method: Method::Tiff, tags, lengths: Some(lengths) })
}

impl Layout {
    fn u16(self, bytes: &[u8]) -> u16 {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: &[u8]) -> u32 {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn u64(self, bytes: &[u8]) -> u64 {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        if self.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) }
    }

    /// Reads a count or offset in the width of this TIFF.
    fn word(self, bytes: &[u8]) -> u64 {
        if self.wide { self.u64(bytes) } else { u64::from(self.u32(bytes)) }
    }

    /// Reads the entries of the directory at `position` and the offset of the next one.
    fn directory(self, source: &dyn Source, position: u64) -> Result<Option<(Vec<Entry>, u64)>> {
        let (head, each, word) = if self.wide { (8, 20, 8) } else { (2, 12, 4) };
        let Some(start) = read_array::<8>(source, position)? else { return Ok(None) };
        let count = if self.wide { self.u64(&start) } else { u64::from(self.u16(&start)) };
        let length = count.saturating_mul(each).saturating_add(word);
        let first = position.saturating_add(head);
        if count > MOST_ENTRIES || first.saturating_add(length) > source.size() {
            return Ok(None);
        }
        let bytes = read_exact(source, first, usize::try_from(length).unwrap_or(0))?;
        let (entries, next) = bytes.split_at(bytes.len().saturating_sub(word as usize));
        let entries = entries.chunks_exact(each as usize).zip(0_u64..).map(|(entry, index)| {
            let (count, value) = entry.get(4..).unwrap_or_default().split_at(word as usize);
            let mut padded = [0; 8];
            padded.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
            Entry {
                tag: self.u16(entry),
                kind: self.u16(entry.get(2..).unwrap_or_default()),
                count: self.word(count),
                value: padded,
                position: first + index * each + 4 + word,
            }
        });
        Ok(Some((entries.collect(), self.word(next))))
    }

    /// Reads the values of an entry (SHORT, LONG or LONG8), which are in the entry itself where they fit.
    fn values(self, source: &dyn Source, entry: &Entry) -> Result<Option<Vec<u64>>> {
        let width: u64 = match entry.kind {
            3 => 2,
            4 => 4,
            16 => 8,
            _ => return Ok(None),
        };
        let length = entry.count.saturating_mul(width);
        let inline = length <= if self.wide { 8 } else { 4 };
        let position = if inline { entry.position } else { self.word(&entry.value) };
        if position.saturating_add(length) > source.size() {
            return Ok(None);
        }
        let bytes = read_exact(source, position, usize::try_from(length).unwrap_or(0))?;
        Ok(Some(match width {
            2 => bytes.chunks_exact(2).map(|chunk| u64::from(self.u16(chunk))).collect(),
            4 => bytes.chunks_exact(4).map(|chunk| u64::from(self.u32(chunk))).collect(),
            _ => bytes.chunks_exact(8).map(|chunk| self.u64(chunk)).collect(),
        }))
    }
}

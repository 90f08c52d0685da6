//! The head of a packed table, full and short.

use super::form::{FLAG_MAP, FLAG_ONE_FRAME, FLAG_WIDE, Form, HEADER, VERSION, bad_table};
use crate::base::error::Result;
use crate::base::varint;

const CRC_AT: usize = 4;
/// The flags that the first byte of a short head holds as they are; its highest bit is [`FLAG_WIDE`].
const LOW_FLAGS: u8 = 15;

/// The form of a table, its counts and its place in the file.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub form: Form,
    pub flags: u8,
    /// Low bits of the Elias-Fano form, else 0.
    pub low: u8,
    pub items: u32,
    pub frames: u32,
    /// Offset of the first Item tag; native: of the first pixel byte.
    pub base: u64,
    /// First byte after the last item; AFFINE: stride in bits.
    pub end: u64,
}

impl Head {
    /// Writes a table with the full head: 32 bytes, with the checksum of the whole table.
    pub fn write_full(&self, sections: &[u8]) -> Vec<u8> {
        let mut table = Vec::with_capacity(HEADER + sections.len());
        table.extend([VERSION, self.form as u8 + 1, self.flags, self.low, 0, 0, 0, 0]);
        table.extend(self.items.to_le_bytes());
        table.extend(self.frames.to_le_bytes());
        table.extend(self.base.to_le_bytes());
        table.extend(self.end.to_le_bytes());
        table.extend(sections);
        let crc = crc32c::crc32c(&table);
        if let Some(field) = table.get_mut(CRC_AT..CRC_AT + 4) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        table
    }

    /// Reads a full head; returns the sections too.
    ///
    /// # Errors
    /// `bad_table` for another version, an unknown form, or damage.
    pub fn read_full(table: &[u8]) -> Result<(Self, &[u8])> {
        let Some((fields, sections)) = table.split_first_chunk::<HEADER>() else {
            return Err(bad_table("is shorter than its head"));
        };
        let [version, form, flags, low, ..] = *fields;
        let mut words = fields.as_chunks::<4>().0.iter().map(|chunk| u32::from_le_bytes(*chunk));
        let [_, crc, items, frames]: [u32; 4] = std::array::from_fn(|_| words.next().unwrap_or(0));
        let mut longs = fields.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk));
        let [_, _, base, end]: [u64; 4] = std::array::from_fn(|_| longs.next().unwrap_or(0));
        if version != VERSION || (low != 0 && form != Form::EliasFano as u8 + 1) {
            return Err(bad_table("has another version"));
        }
        if checksum(table) != crc {
            return Err(bad_table("is damaged (wrong checksum)"));
        }
        let form =
            form.checked_sub(1).and_then(Form::from_code).ok_or_else(|| bad_table("has an unknown form"))?;
        Ok((Self { form, flags, low, items, frames, base, end }, sections))
    }

    /// Appends the short head: form and flags in a byte, then varints.
    pub fn write_short(&self, table: &mut Vec<u8>) {
        table.push(self.flags & LOW_FLAGS | (self.flags & FLAG_WIDE) << 1 | (self.form as u8) << 4);
        if self.form == Form::EliasFano {
            table.push(self.low);
        }
        varint::push(table, self.frames.into());
        if self.items_differ() {
            varint::push(table, self.items.into());
        }
        varint::push(table, self.base);
        varint::push(table, self.end);
    }

    /// Reads a short head; returns the sections too.
    #[inline(always)]
    pub fn read_short(table: &[u8]) -> Option<(Self, &[u8])> {
        let (&first, mut rest) = table.split_first()?;
        let form = Form::from_code(first >> 4 & 7)?;
        let flags = first & LOW_FLAGS | first >> 1 & FLAG_WIDE;
        let mut low = 0;
        if form == Form::EliasFano {
            (low, rest) = rest.split_first().map(|(&low, rest)| (low, rest))?;
        }
        let frames = u32::try_from(varint::take(&mut rest)?).ok()?;
        let mut head = Self { form, flags, low, items: frames, frames, base: 0, end: 0 };
        if head.items_differ() {
            head.items = u32::try_from(varint::take(&mut rest)?).ok()?;
        }
        head.base = varint::take(&mut rest)?;
        head.end = varint::take(&mut rest)?;
        Some((head, rest))
    }

    /// Whether there may be more items than frames.
    fn items_differ(&self) -> bool {
        self.flags & (FLAG_ONE_FRAME | FLAG_MAP) != 0
    }
}

/// The CRC-32C of a table with its checksum field 0.
pub(super) fn checksum(table: &[u8]) -> u32 {
    let (before, rest) = table.split_at(CRC_AT.min(table.len()));
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

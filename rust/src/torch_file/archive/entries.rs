//! Entries of the central directory, compared with their local headers and descriptors.

use std::collections::HashSet;

use super::super::verdict::{Checked, Finding, State};
use super::end::Directory;
use super::fields::{Fields, LOCAL, Wide, Window};
use super::record::Record;

const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const DESCRIPTOR: &[u8; 4] = b"PK\x07\x08";
const FLAG_DESCRIPTOR: u16 = 0x0008;
const FLAG_ENCRYPTED: u16 = 0x0001;
/// Among the attributes of an entry: torch reads nothing from a folder, and returns memory as it was.
const ATTRIBUTE_FOLDER: u32 = 0x10;
/// Largest central directory in bytes: room for a million records, where torch writes a handful.
const MAX_DIRECTORY: u64 = 64 << 20;

pub(super) fn read_directory(window: &mut Window<'_>, directory: &Directory) -> Checked<Vec<Record>> {
    if directory.length > MAX_DIRECTORY {
        let detail = format!(
            "the central directory of {} bytes exceeds the limit of {MAX_DIRECTORY}",
            directory.length
        );
        return Err(Finding::new(State::Unknown, detail));
    }
    let bytes = window.read_back(directory.offset, directory.length)?;
    let mut records = Vec::new();
    let mut names = HashSet::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = directory.offset + (bytes.len() - rest.len()) as u64;
        let (record, length) = read_entry(rest, at)?;
        // torch compares names without regard to case and takes the first record, Python's zipfile the last.
        if !names.insert(record.name.to_ascii_lowercase()) {
            return Err(Finding::damage("directory", at, format!("two records are named {}", record.name)));
        }
        records.push(record);
        rest = rest.get(length..).unwrap_or_default();
    }
    if records.len() as u64 != directory.entries {
        let detail = format!("{} records, the end record says {}", records.len(), directory.entries);
        return Err(Finding::damage("directory", directory.offset, detail));
    }
    Ok(records)
}

/// Reads one entry of the central directory; returns its length in bytes too.
fn read_entry(bytes: &[u8], at: u64) -> Checked<(Record, usize)> {
    let entry = Fields(bytes);
    let cut = || Finding::damage("directory", at, "the central directory ends inside an entry");
    if !bytes.starts_with(CENTRAL) {
        return Err(Finding::damage("directory", at, "an entry's signature is damaged"));
    }
    let (flags, method, crc) = (entry.u16(8)?, entry.u16(10)?, entry.u32(16)?);
    let name_end = 46 + usize::from(entry.u16(28)?);
    let extra_end = name_end + usize::from(entry.u16(30)?);
    let length = extra_end + usize::from(entry.u16(32)?);
    let name = bytes.get(46..name_end).ok_or_else(cut)?;
    let name = std::str::from_utf8(name)
        .map_err(|_| Finding::damage("directory", at, "a record's name is not UTF-8"))?;
    let extra = bytes.get(name_end..extra_end).ok_or_else(cut)?;
    if bytes.len() < length {
        return Err(cut());
    }
    if entry.u16(34)? != 0 {
        return Err(Finding::damage("directory", at, format!("record {name} claims to lie on another disk")));
    }
    if flags & FLAG_ENCRYPTED != 0 {
        return Err(Finding::damage("directory", at, format!("record {name} is marked as encrypted")));
    }
    if entry.u32(38)? & ATTRIBUTE_FOLDER != 0 {
        return Err(Finding::damage("directory", at, format!("record {name} is marked as a folder")));
    }
    let mut wide = Wide::find(extra);
    let size = wide.widen(entry.u32(24)?);
    let stored = wide.widen(entry.u32(20)?);
    let header = wide.widen(entry.u32(42)?);
    let (Some(size), Some(stored), Some(header)) = (size, stored, header) else {
        return Err(Finding::damage("directory", at, format!("record {name} lacks its ZIP64 sizes")));
    };
    if method == 0 && size != stored {
        return Err(Finding::damage("directory", at, format!("record {name} is stored but has two sizes")));
    }
    let record = Record {
        name: name.to_owned(),
        header,
        payload: header, // until `read_local` finds it
        stored,
        size,
        crc,
        descriptor_crc: None,
        flags,
        method,
    };
    Ok((record, length))
}

/// Checks the local header and the descriptor of `record`; returns the first byte after them.
///
/// The record must lie in `free_from..limit`.
pub(super) fn read_local(
    window: &mut Window<'_>,
    record: &mut Record,
    free_from: u64,
    limit: u64,
) -> Checked<u64> {
    let at = record.header;
    let bad = |detail: String| Finding::damage("header", at, detail);
    if at < free_from {
        return Err(bad(format!("record {} overlaps the one before it", record.name)));
    }
    let past = || bad(format!("record {} reaches past the central directory", record.name));
    let names_at = at.checked_add(30).filter(|&end| end <= limit).ok_or_else(past)?;
    let (flags, method, crc, sizes, name_length, extra_length) = {
        let header = Fields(window.read(at, 30)?);
        if !header.0.starts_with(LOCAL) {
            return Err(bad(format!("the local signature of {} is damaged", record.name)));
        }
        (
            header.u16(6)?,
            header.u16(8)?,
            header.u32(14)?,
            (header.u32(18)?, header.u32(22)?),
            header.u16(26)?,
            header.u16(28)?,
        )
    };
    if (flags, method) != (record.flags, record.method) {
        return Err(bad(format!("the local header of {} contradicts the central directory", record.name)));
    }
    let payload = names_at + u64::from(name_length) + u64::from(extra_length);
    let end = payload.checked_add(record.stored).filter(|&end| end <= limit).ok_or_else(past)?;
    let names = window.read(names_at, u64::from(name_length) + u64::from(extra_length))?;
    let (name, extra) = names.split_at_checked(usize::from(name_length)).unwrap_or_default();
    if name != record.name.as_bytes() {
        return Err(bad(format!("the local name of {} is damaged", record.name)));
    }
    record.payload = payload;
    if flags & FLAG_DESCRIPTOR == 0 {
        let mut wide = Wide::find(extra);
        let agree = wide.widen(sizes.1) == Some(record.size)
            && wide.widen(sizes.0) == Some(record.stored)
            && crc == record.crc;
        return if agree {
            Ok(end)
        } else {
            Err(bad(format!("the local header of {} contradicts the central directory", record.name)))
        };
    }
    let (crc, length) = read_descriptor(window, record, end, limit)?;
    record.descriptor_crc = Some(crc);
    Ok(end + length)
}

/// Checks the data descriptor at `at`; returns its CRC-32 and its length in bytes.
fn read_descriptor(window: &mut Window<'_>, record: &Record, at: u64, limit: u64) -> Checked<(u32, u64)> {
    let descriptor = Fields(window.read(at, limit.saturating_sub(at).min(24))?);
    let damaged =
        || Finding::damage("header", at, format!("the data descriptor of {} is damaged", record.name));
    if !descriptor.0.starts_with(DESCRIPTOR) {
        return Err(damaged());
    }
    let narrow = (u64::from(descriptor.u32(8)?), u64::from(descriptor.u32(12)?));
    let length = if narrow == (record.stored, record.size) {
        16
    } else if (descriptor.u64(8)?, descriptor.u64(16)?) == (record.stored, record.size) {
        24
    } else {
        return Err(damaged());
    };
    Ok((descriptor.u32(4)?, length))
}

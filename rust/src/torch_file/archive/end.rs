//! The end records of an archive, which say where its central directory lies.

use super::super::verdict::{Checked, Finding, State};
use super::fields::{Fields, LOCAL, Window};

const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR: &[u8; 4] = b"PK\x06\x07";

const END_LENGTH: u64 = 22;
const LOCATOR_LENGTH: u64 = 20;
const END64_LENGTH: u64 = 56;
/// How far from its end a file is searched for the end record: the longest comment allows no more.
const SEARCH: u64 = 65_535 + END_LENGTH + LOCATOR_LENGTH + END64_LENGTH;

/// The place of the central directory, by the end records.
pub(super) struct Directory {
    pub offset: u64,
    pub length: u64,
    pub entries: u64,
    /// First byte that belongs to the end records.
    pub end: u64,
    /// Number of bytes after the archive.
    pub trailing: u64,
}

pub(super) fn find_directory(window: &mut Window<'_>, size: u64) -> Checked<Directory> {
    let end = described_end(window, size)?;
    let mut directory = read_directory(window, end)?;
    directory.trailing = directory.trailing.saturating_add(size.saturating_sub(end));
    Ok(directory)
}

fn read_directory(window: &mut Window<'_>, size: u64) -> Checked<Directory> {
    if size == 0 {
        return Err(Finding::new(State::Truncated, "0 bytes"));
    }
    let at = match find_end(window, size)? {
        Some(at) => at,
        None => return Err(explain_missing_end(window, size)?),
    };
    if size.saturating_sub(at) < END_LENGTH {
        return Err(Finding::of(State::Truncated, "end", at, "the file ends inside the end record"));
    }
    let record = Fields(window.read(at, END_LENGTH)?);
    let (entries, length, offset) =
        (u64::from(record.u16(10)?), u64::from(record.u32(12)?), u64::from(record.u32(16)?));
    let comment = u64::from(record.u16(20)?);
    if record.u16(4)? != 0 || record.u16(6)? != 0 {
        return Err(Finding::damage("end", at, "the archive claims to span several disks"));
    }
    let after = at + END_LENGTH;
    let rest = size.saturating_sub(after);
    if comment > rest {
        return Err(Finding::of(State::Truncated, "end", at, "the file ends inside the archive's comment"));
    }
    let mut directory = Directory { offset, length, entries, end: at, trailing: rest - comment };
    if let Some(wide) = read_end64(window, at)? {
        let agrees = |narrow: u64, wide: u64, cap: u64| narrow == wide || narrow == cap;
        if !(agrees(entries, wide.entries, 0xFFFF)
            && agrees(length, wide.length, 0xFFFF_FFFF)
            && agrees(offset, wide.offset, 0xFFFF_FFFF))
        {
            return Err(Finding::damage("end", at, "the end record and its ZIP64 twin disagree"));
        }
        directory = Directory { trailing: directory.trailing, ..wide };
    }
    match directory.offset.checked_add(directory.length) {
        Some(end) if end == directory.end => Ok(directory),
        _ => Err(Finding::damage(
            "end",
            at,
            format!(
                "the central directory (offset {}, {} bytes) does not end where the end records begin ({})",
                directory.offset, directory.length, directory.end
            ),
        )),
    }
}

/// Where the archive ends that the last end record describes: an earlier whole end record, or the file's end.
///
/// An archive that was appended to another of the same layout describes the first, and its readers read that.
fn described_end(window: &mut Window<'_>, size: u64) -> Checked<u64> {
    let Some(at) = find_end(window, size)?.filter(|&at| size.saturating_sub(at) >= END_LENGTH) else {
        return Ok(size);
    };
    let record = Fields(window.read(at, END_LENGTH)?);
    let mut place = u64::from(record.u32(16)?).saturating_add(u64::from(record.u32(12)?));
    if let Some(before) = at.checked_sub(LOCATOR_LENGTH) {
        let locator = Fields(window.read_back(before, LOCATOR_LENGTH)?);
        if locator.0.starts_with(LOCATOR) {
            place = locator.u64(8)?.saturating_add(END64_LENGTH + LOCATOR_LENGTH);
        }
    }
    let Some(end) = place.checked_add(END_LENGTH).filter(|&end| end <= at) else { return Ok(size) };
    let earlier = window.read_back(place, END_LENGTH)?;
    Ok(if earlier.starts_with(END) && earlier.ends_with(&[0, 0]) { end } else { size })
}

/// Finds the offset of the last end record, which may be cut.
fn find_end(window: &mut Window<'_>, size: u64) -> Checked<Option<u64>> {
    if let Some(at) = size.checked_sub(END_LENGTH) {
        let tail = window.read_back(at, END_LENGTH)?;
        if tail.starts_with(END) && tail.ends_with(&[0, 0]) {
            return Ok(Some(at));
        }
    }
    let start = size.saturating_sub(SEARCH);
    let tail = window.read(start, size - start)?;
    Ok(tail.windows(4).rposition(|four| four == END).map(|at| start + at as u64))
}

fn explain_missing_end(window: &mut Window<'_>, size: u64) -> Checked<Finding> {
    let head = window.read(0, size.min(LOCAL.len() as u64))?.to_vec();
    if !head.starts_with(LOCAL) {
        return Ok(Finding::damage("header", 0, "not a zip archive: neither beginning nor end is right"));
    }
    let from = size.saturating_sub(END_LENGTH + LOCATOR_LENGTH);
    let tail = window.read(from, size - from)?;
    if tail.starts_with(LOCATOR) {
        return Ok(Finding::damage("end", from + LOCATOR_LENGTH, "the end record's signature is damaged"));
    }
    if tail.iter().all(|&byte| byte == 0) {
        return Ok(Finding::damage("end", from, "zeros stand where the archive must end"));
    }
    Ok(Finding::of(State::Truncated, "end", size, "the file ends before its central directory"))
}

fn read_end64(window: &mut Window<'_>, end: u64) -> Checked<Option<Directory>> {
    let Some(at) = end.checked_sub(LOCATOR_LENGTH) else { return Ok(None) };
    let locator = Fields(window.read_back(at, LOCATOR_LENGTH)?);
    if !locator.0.starts_with(LOCATOR) {
        return Ok(None);
    }
    if locator.u32(4)? != 0 || locator.u32(16)? != 1 {
        return Err(Finding::damage("end", at, "the ZIP64 locator claims several disks"));
    }
    let place = locator.u64(8)?;
    if place.checked_add(END64_LENGTH).is_none_or(|after| after != at) {
        return Err(Finding::damage("end", at, "the ZIP64 locator does not point at the record before it"));
    }
    let record = Fields(window.read_back(place, END64_LENGTH)?);
    if !record.0.starts_with(END64) {
        return Err(Finding::damage("end", place, "the ZIP64 end record's signature is damaged"));
    }
    if record.u64(4)? != END64_LENGTH - 12 || record.u32(16)? != 0 || record.u32(20)? != 0 {
        return Err(Finding::damage("end", place, "the ZIP64 end record is damaged"));
    }
    if record.u64(24)? != record.u64(32)? {
        return Err(Finding::damage("end", place, "the ZIP64 end record counts its entries in two ways"));
    }
    Ok(Some(Directory {
        entries: record.u64(32)?,
        length: record.u64(40)?,
        offset: record.u64(48)?,
        end: place,
        trailing: 0,
    }))
}

//! The ZIP structure of a torch file: end records, central directory, every local header and descriptor.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Checked, Finding, State};

const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";
const DESCRIPTOR: &[u8; 4] = b"PK\x07\x08";
/// The pickled magic number with which torch < 1.6 begins.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

const END_LENGTH: u64 = 22;
const LOCATOR_LENGTH: u64 = 20;
const END64_LENGTH: u64 = 56;
/// Readers look for the end record no further back than its longest comment.
const SEARCH: u64 = 65_535 + END_LENGTH + LOCATOR_LENGTH + END64_LENGTH;
/// A central directory of a million records; torch writes a handful.
const MAX_DIRECTORY: u64 = 64 << 20;
const FLAG_DESCRIPTOR: u16 = 0x0008;
const FLAG_ENCRYPTED: u16 = 0x0001;

/// One record of the archive.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Name without the archive's root folder.
    pub name: String,
    /// Offset of the local header.
    header: u64,
    /// Offset of the first payload byte.
    pub payload: u64,
    /// Bytes in the file; equal to `size` unless compressed.
    pub stored: u64,
    /// Bytes of the content.
    pub size: u64,
    /// CRC-32 of the content, by the central directory.
    pub crc: u32,
    /// CRC-32 of the content, by the data descriptor that follows the payload.
    descriptor_crc: Option<u32>,
    flags: u16,
    method: u16,
}

impl Record {
    /// Not STORED.
    pub fn compressed(&self) -> bool {
        self.method != 0
    }

    /// DEFLATE, the one compression whose content is checked.
    pub fn deflated(&self) -> bool {
        self.method == 8
    }

    /// Compares the recorded checksums with each other and, where it is known, with that of the payload.
    pub fn check_crc(&self, seen: Option<u32>) -> Checked<()> {
        let descriptor = self.descriptor_crc.unwrap_or(self.crc);
        let detail = match seen {
            None if descriptor == self.crc => return Ok(()),
            None => {
                "the central directory and the data descriptor record different CRC-32: one is damaged".into()
            }
            Some(seen) if seen == self.crc && seen == descriptor => return Ok(()),
            Some(seen) if seen == descriptor => {
                "the central directory's CRC-32 is damaged; the payload is right".into()
            }
            Some(seen) if seen == self.crc => {
                "the data descriptor's CRC-32 is damaged; the payload is right".into()
            }
            Some(seen) => format!("the payload has CRC-32 {seen:08x}, recorded is {:08x}", self.crc),
        };
        Err(Finding::of(State::BadCrc, &self.name, self.payload, detail))
    }
}

/// The checked structure of a file.
#[derive(Debug)]
pub(super) struct Archive {
    /// In the order of the central directory.
    pub records: Vec<Record>,
    /// Bytes behind the archive.
    pub trailing: u64,
    directory: u64,
}

/// Where the central directory lies, by the end records.
struct Directory {
    offset: u64,
    length: u64,
    entries: u64,
    /// First byte that belongs to the end records.
    end: u64,
    trailing: u64,
}

impl Archive {
    /// Reads and checks every header of `file`, which is `size` bytes long.
    pub fn read(file: &File, size: u64) -> Checked<Self> {
        let mut window = Window::new(file, size);
        let directory = find_directory(&mut window, size)?;
        let mut records = read_directory(&mut window, &directory)?;
        let mut order: Vec<usize> = (0..records.len()).collect();
        order.sort_by_key(|&index| records.get(index).map_or(0, |record| record.header));
        let mut free_from = 0u64;
        for index in order {
            if let Some(record) = records.get_mut(index) {
                free_from = read_local(&mut window, record, free_from, directory.offset)?;
            }
        }
        let root = common_root(&records)?;
        for record in &mut records {
            if let Some(rest) = record.name.strip_prefix(root.as_str()) {
                record.name = rest.to_owned();
            }
        }
        Ok(Self { records, trailing: directory.trailing, directory: directory.offset })
    }

    /// Whether the writer computed CRCs at all (`compute_crc32=False` writes zeros everywhere).
    pub fn has_crc(&self) -> bool {
        self.records.iter().any(|r| r.crc != 0 || r.descriptor_crc.is_some_and(|crc| crc != 0))
    }

    pub fn find(&self, name: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.name == name)
    }

    /// The record of that name, which torch cannot load without.
    pub fn require(&self, name: &str) -> Checked<&Record> {
        self.find(name).ok_or_else(|| {
            Finding::bad("directory", self.directory, format!("the archive has no record {name}"))
        })
    }
}

fn find_directory(window: &mut Window<'_>, size: u64) -> Checked<Directory> {
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
        return Err(Finding::bad("end", at, "the archive claims to span several disks"));
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
            return Err(Finding::bad("end", at, "the end record and its ZIP64 twin disagree"));
        }
        directory = Directory { trailing: directory.trailing, ..wide };
    }
    match directory.offset.checked_add(directory.length) {
        Some(end) if end == directory.end => Ok(directory),
        _ => Err(Finding::bad(
            "end",
            at,
            format!(
                "the central directory (offset {}, {} bytes) does not end where the end records begin ({})",
                directory.offset, directory.length, directory.end
            ),
        )),
    }
}

/// Offset of the last end record, which may be cut.
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
    let head = window.read(0, size.min(LEGACY.len() as u64))?.to_vec();
    if head == LEGACY {
        return Ok(Finding::new(State::LegacyFormat, "written by torch < 1.6 or with zip serialization off"));
    }
    if !head.starts_with(LOCAL) {
        return Ok(Finding::bad("header", 0, "not a zip archive: neither its beginning nor its end"));
    }
    let from = size.saturating_sub(END_LENGTH + LOCATOR_LENGTH);
    let tail = window.read(from, size - from)?;
    if tail.starts_with(LOCATOR) {
        return Ok(Finding::bad("end", from + LOCATOR_LENGTH, "the end record's signature is damaged"));
    }
    if tail.iter().all(|&byte| byte == 0) {
        return Ok(Finding::bad("end", from, "zeros where the archive should end"));
    }
    Ok(Finding::of(State::Truncated, "end", size, "the file ends before its central directory"))
}

fn read_end64(window: &mut Window<'_>, end: u64) -> Checked<Option<Directory>> {
    let Some(at) = end.checked_sub(LOCATOR_LENGTH) else { return Ok(None) };
    let locator = Fields(window.read_back(at, LOCATOR_LENGTH)?);
    if !locator.0.starts_with(LOCATOR) {
        return Ok(None);
    }
    if locator.u32(4)? != 0 || locator.u32(16)? > 1 {
        return Err(Finding::bad("end", at, "the ZIP64 locator claims several disks"));
    }
    let place = locator.u64(8)?;
    if place.checked_add(END64_LENGTH).is_none_or(|after| after != at) {
        return Err(Finding::bad("end", at, "the ZIP64 locator does not point at the record before it"));
    }
    let record = Fields(window.read_back(place, END64_LENGTH)?);
    if !record.0.starts_with(END64) {
        return Err(Finding::bad("end", place, "the ZIP64 end record's signature is damaged"));
    }
    if record.u64(4)? != END64_LENGTH - 12 || record.u32(16)? != 0 || record.u32(20)? != 0 {
        return Err(Finding::bad("end", place, "the ZIP64 end record is damaged"));
    }
    if record.u64(24)? != record.u64(32)? {
        return Err(Finding::bad("end", place, "the ZIP64 end record counts its entries in two ways"));
    }
    Ok(Some(Directory {
        entries: record.u64(32)?,
        length: record.u64(40)?,
        offset: record.u64(48)?,
        end: place,
        trailing: 0,
    }))
}

fn read_directory(window: &mut Window<'_>, directory: &Directory) -> Checked<Vec<Record>> {
    if directory.length > MAX_DIRECTORY {
        let detail = format!("a central directory of {} bytes is over the cap", directory.length);
        return Err(Finding::new(State::Unknown, detail));
    }
    let bytes = window.read_back(directory.offset, directory.length)?;
    let mut records = Vec::new();
    let mut names = HashSet::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = directory.offset + (bytes.len() - rest.len()) as u64;
        let (record, length) = read_entry(rest, at)?;
        // torch finds records without regard to case and takes the first, Python's zipfile the last.
        if !names.insert(record.name.to_ascii_lowercase()) {
            return Err(Finding::bad("directory", at, format!("two records are named {}", record.name)));
        }
        records.push(record);
        rest = rest.get(length..).unwrap_or_default();
    }
    if records.len() as u64 != directory.entries {
        let detail = format!("{} records, the end record says {}", records.len(), directory.entries);
        return Err(Finding::bad("directory", directory.offset, detail));
    }
    Ok(records)
}

/// One entry of the central directory and its length in bytes.
fn read_entry(bytes: &[u8], at: u64) -> Checked<(Record, usize)> {
    let entry = Fields(bytes);
    let cut = || Finding::bad("directory", at, "the central directory ends inside an entry");
    if !bytes.starts_with(CENTRAL) {
        return Err(Finding::bad("directory", at, "an entry's signature is damaged"));
    }
    let (flags, method, crc) = (entry.u16(8)?, entry.u16(10)?, entry.u32(16)?);
    let name_end = 46 + usize::from(entry.u16(28)?);
    let extra_end = name_end + usize::from(entry.u16(30)?);
    let length = extra_end + usize::from(entry.u16(32)?);
    let name = bytes.get(46..name_end).ok_or_else(cut)?;
    let name = std::str::from_utf8(name)
        .map_err(|_| Finding::bad("directory", at, "a record's name is not UTF-8"))?;
    let extra = bytes.get(name_end..extra_end).ok_or_else(cut)?;
    if bytes.len() < length {
        return Err(cut());
    }
    if entry.u16(34)? != 0 {
        return Err(Finding::bad("directory", at, format!("record {name} claims to lie on another disk")));
    }
    if flags & FLAG_ENCRYPTED != 0 {
        return Err(Finding::bad("directory", at, format!("record {name} is marked as encrypted")));
    }
    let mut wide = Wide::find(extra);
    let size = wide.widen(entry.u32(24)?);
    let stored = wide.widen(entry.u32(20)?);
    let header = wide.widen(entry.u32(42)?);
    let (Some(size), Some(stored), Some(header)) = (size, stored, header) else {
        return Err(Finding::bad("directory", at, format!("record {name} lacks its ZIP64 sizes")));
    };
    if method == 0 && size != stored {
        return Err(Finding::bad("directory", at, format!("record {name} is stored but has two sizes")));
    }
    let record = Record {
        name: name.to_owned(),
        header,
        payload: header, // `read_local` knows better
        stored,
        size,
        crc,
        descriptor_crc: None,
        flags,
        method,
    };
    Ok((record, length))
}

/// Checks the local header and the descriptor of `record`; returns the first byte behind them.
fn read_local(window: &mut Window<'_>, record: &mut Record, free_from: u64, limit: u64) -> Checked<u64> {
    let at = record.header;
    let bad = |detail: String| Finding::bad("header", at, detail);
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
    let available = limit.saturating_sub(end).min(24);
    let descriptor = Fields(window.read(end, available)?);
    let broken = || Finding::bad("header", end, format!("the data descriptor of {} is damaged", record.name));
    if !descriptor.0.starts_with(DESCRIPTOR) {
        return Err(broken());
    }
    let narrow = (u64::from(descriptor.u32(8)?), u64::from(descriptor.u32(12)?));
    let length = if narrow == (record.stored, record.size) {
        16
    } else if (descriptor.u64(8)?, descriptor.u64(16)?) == (record.stored, record.size) {
        24
    } else {
        return Err(broken());
    };
    record.descriptor_crc = Some(descriptor.u32(4)?);
    Ok(end + length)
}

/// The folder that torch takes as the archive's root: that of the first record, with its slash.
fn common_root(records: &[Record]) -> Checked<String> {
    let first = records.first().map_or("", |record| record.name.as_str());
    match first.split_once('/') {
        Some((root, _)) if !root.is_empty() => Ok(format!("{root}/")),
        _ => Err(Finding::bad("directory", 0, "the archive has no root folder: not written by torch")),
    }
}

/// The ZIP64 extra field: the values, in order, that did not fit their 32-bit fields.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    fn find(mut extra: &'a [u8]) -> Self {
        while let Some((head, rest)) = extra.split_at_checked(4) {
            let fields = Fields(head);
            let (Ok(tag), Ok(length)) = (fields.u16(0), fields.u16(2)) else { break };
            let Some((body, next)) = rest.split_at_checked(usize::from(length)) else { break };
            if tag == 1 {
                return Self(body);
            }
            extra = next;
        }
        Self(&[])
    }

    /// `narrow`, or the next wide value when `narrow` says that it lies here.
    fn widen(&mut self, narrow: u32) -> Option<u64> {
        if narrow != u32::MAX {
            return Some(u64::from(narrow));
        }
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }
}

/// Little-endian fields at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> Checked<[u8; N]> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk::<N>())
            .copied()
            .ok_or_else(|| Finding::new(State::BadStructure, "a header is cut"))
    }

    fn u16(&self, at: usize) -> Checked<u16> {
        self.take(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Checked<u32> {
        self.take(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Checked<u64> {
        self.take(at).map(u64::from_le_bytes)
    }
}

/// The last stretch of the file that was read: headers lie close to each other, so few reads suffice.
struct Window<'a> {
    file: &'a File,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    const LENGTH: u64 = 2048;

    fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, start: 0, bytes: Vec::new() }
    }

    /// Bytes `[at, at + length)`; reads ahead.
    fn read(&mut self, at: u64, length: u64) -> Checked<&[u8]> {
        self.fetch(at, length, at)
    }

    /// Bytes `[at, at + length)`; reads behind, for a walk from the end.
    fn read_back(&mut self, at: u64, length: u64) -> Checked<&[u8]> {
        let from = (at + length).saturating_sub(Self::LENGTH).min(at);
        self.fetch(at, length, from)
    }

    fn fetch(&mut self, at: u64, length: u64, from: u64) -> Checked<&[u8]> {
        let end = at.checked_add(length).filter(|&end| end <= self.size).ok_or_else(|| {
            Finding::of(State::BadStructure, "header", at, "a header reaches past the end of the file")
        })?;
        let held = self.start + self.bytes.len() as u64;
        if at < self.start || end > held {
            let until = end.max((from + Self::LENGTH).min(self.size));
            self.bytes.clear();
            self.bytes.resize((until - from) as usize, 0);
            self.start = from;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, from) {
                self.bytes.clear();
                return Err(error.into());
            }
        }
        let begin = (at - self.start) as usize;
        self.bytes
            .get(begin..begin + length as usize)
            .ok_or_else(|| Finding::new(State::Unknown, "a header could not be read"))
    }
}

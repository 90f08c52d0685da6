//! The ZIP structure of a torch file: end records, central directory, every local header and descriptor.

mod end;
mod entries;
mod fields;

use std::fs::File;

use self::end::find_directory;
use self::entries::{read_directory, read_local};
use self::fields::Window;
use super::{Checked, Finding, State};

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

/// The folder that torch takes as the archive's root: that of the first record, with its slash.
fn common_root(records: &[Record]) -> Checked<String> {
    let first = records.first().map_or("", |record| record.name.as_str());
    match first.split_once('/') {
        Some((root, _)) if !root.is_empty() => Ok(format!("{root}/")),
        _ => Err(Finding::bad("directory", 0, "the archive has no root folder: not written by torch")),
    }
}

//! The ZIP structure of a torch file: end records, central directory, local headers and descriptors.

mod end;
mod entries;
mod fields;
mod record;

use std::fs::File;

use self::end::find_directory;
use self::entries::{read_directory, read_local};
use self::fields::Window;
pub use self::record::Record;
use super::verdict::{Checked, Finding};

/// The structure of a file, checked.
#[derive(Debug)]
pub struct Archive {
    /// In the order of the central directory.
    pub records: Vec<Record>,
    /// Number of bytes after the archive.
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

    /// Whether the writer stored CRCs: `compute_crc32=False` writes zeros everywhere.
    pub fn has_crc(&self) -> bool {
        self.records.iter().any(|r| r.crc != 0 || r.descriptor_crc.is_some_and(|crc| crc != 0))
    }

    /// The record of that name.
    pub fn find(&self, name: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.name == name)
    }

    /// The record of that name, without which torch cannot load the file.
    pub fn require(&self, name: &str) -> Checked<&Record> {
        self.find(name).ok_or_else(|| {
            Finding::damage("directory", self.directory, format!("the archive has no record {name}"))
        })
    }
}

/// The folder that torch takes as the root of the archive, with its slash: that of the first record.
fn common_root(records: &[Record]) -> Checked<String> {
    let first = records.first().map_or("", |record| record.name.as_str());
    match first.split_once('/') {
        Some((root, _)) if !root.is_empty() => Ok(format!("{root}/")),
        _ => Err(Finding::damage("directory", 0, "the archive has no root folder: not written by torch")),
    }
}

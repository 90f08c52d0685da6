//! What holds the records: the ZIP structure of a torch file (end records, central directory, local headers and
//! descriptors), the form of torch < 1.6, and the forms of other programs, which are told apart first.

mod end;
mod entries;
mod fields;
mod foreign;
mod legacy;
mod record;

use std::fs::File;

use self::end::find_directory;
use self::entries::{read_directory, read_local};
pub use self::fields::read_range;
use self::fields::{LOCAL, Window};
pub use self::legacy::Legacy;
pub use self::record::Record;
use super::verdict::{Checked, Finding};

/// What a file is.
pub enum Container {
    Zip(Archive),
    Legacy(Legacy),
}

impl Container {
    /// Reads and checks all but the payloads of `file`, which is `size` bytes long.
    ///
    /// A file of another program is a finding of its own, never damage.
    pub fn read(file: &File, size: u64) -> Checked<Self> {
        let head = read_range(file, 0, size.min(foreign::HEAD))?;
        if head.starts_with(LOCAL) {
            return Archive::read(file, size, &head).map(Self::Zip);
        }
        if legacy::is_legacy(&head) {
            return Legacy::read(file, size).map(Self::Legacy);
        }
        foreign::check_beginning(file, &head, size)?;
        Archive::read(file, size, &head).map(Self::Zip)
    }
}

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
    /// Reads and checks every header of `file`, which is `size` bytes long and begins with `head`.
    fn read(file: &File, size: u64, head: &[u8]) -> Checked<Self> {
        let mut window = Window::new(file, size);
        let found = find_directory(&mut window, size)
            .and_then(|directory| Ok((read_directory(&mut window, &directory)?, directory)));
        let (mut records, directory) = match found {
            Ok(found) => found,
            Err(finding) => {
                foreign::check_first_name(head)?;
                return Err(finding);
            }
        };
        foreign::check_names(records.iter().map(|record| record.name.as_str()))?;
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

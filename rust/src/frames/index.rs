//! One file of an index run: skipped when its row still describes it, otherwise read and written as a row.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{FileSource, Fingerprint, Source};
use crate::base::window::Buffer;
use crate::dicom;
use crate::frames::row;
use crate::frames::table::{FrameTable, Verify};

/// Longest path in bytes that an entry of the database's B-tree holds, with room for the rest of the entry.
pub const LONGEST_PATH: usize = 2600;

/// A file to index.
pub struct Job {
    /// The caller's number.
    pub id: u32,
    /// The file, or why its path cannot be a row: see [`storable`].
    pub path: Result<String>,
    /// What its row says, where that is complete and of this parser version, and no listing says otherwise.
    pub known: Option<Known>,
}

/// A file as its row describes it.
#[derive(Clone, Copy)]
pub struct Known {
    /// The state in which it need not be read again.
    pub fingerprint: Fingerprint,
    /// Frames that can be addressed.
    pub frames: usize,
    /// First frame that is not completely in the file.
    pub truncated_from: Option<u32>,
}

/// What came of one file.
pub enum Indexed {
    /// Size and time are those of the row: the file was not read. What the row says.
    Unchanged(Option<Known>),
    /// The file was read and its row written.
    Row {
        /// See [`row::encode`].
        row: Vec<u8>,
        /// What was found.
        found: Found,
    },
    /// The path cannot be a row: it cannot be stored, or it is a folder.
    Refused(Error),
}

/// What an index run reports of a file that it read.
pub struct Found {
    /// The status of the row: `ok`, `truncated`, `no_pixels`, `ambiguous` or `error`.
    pub status: &'static str,
    /// Frames that can be addressed.
    pub frames: usize,
    /// First frame that is not completely in the file.
    pub truncated_from: Option<u32>,
    /// Why the file was refused.
    pub error: Option<Error>,
}

/// Indexes one file.
pub fn index_path(source: &str, job: Job, verify: Verify, buffer: &mut Buffer) -> Indexed {
    let name = match job.path {
        Ok(name) => name,
        Err(error) => return Indexed::Refused(error),
    };
    let path = Path::new(&name);
    if let Some(known) = job.known
        && Fingerprint::at(path).is_ok_and(|now| known.fingerprint.covers(&now))
    {
        return Indexed::Unchanged(job.known);
    }
    let (mut fingerprint, mut uids) = (None, None);
    let outcome = FileSource::open(path).and_then(|file| {
        fingerprint = Some(file.fingerprint());
        dicom::read_table_or_uids(&file, verify, buffer, &mut uids)
    });
    if let Err(error) = &outcome
        && fingerprint.is_none()
        && path.is_dir()
    {
        return Indexed::Refused(error.clone());
    }
    row_of(source, &name, fingerprint, outcome, uids.as_ref())
}

/// What reading an object tells beside its table.
#[derive(Default)]
pub struct Told {
    /// The state of the object, as soon as it is known.
    pub fingerprint: Option<Fingerprint>,
    /// See [`dicom::read_table_or_uids`].
    pub uids: Option<FrameTable>,
}

/// Indexes one object of a store. `read` reads its table; given the state of the row, where no listing said another,
/// it returns `None` where the object still has it.
pub fn index_object(
    source: &str,
    job: Job,
    read: impl FnOnce(&str, Option<Fingerprint>, &mut Told) -> Result<Option<FrameTable>>,
) -> Indexed {
    let name = match job.path {
        Ok(name) => name,
        Err(error) => return Indexed::Refused(error),
    };
    let mut told = Told::default();
    match read(&name, job.known.map(|known| known.fingerprint), &mut told).transpose() {
        Some(outcome) => row_of(source, &name, told.fingerprint, outcome, told.uids.as_ref()),
        None => Indexed::Unchanged(job.known),
    }
}

fn row_of(
    source: &str,
    name: &str,
    fingerprint: Option<Fingerprint>,
    outcome: Result<FrameTable>,
    uids: Option<&FrameTable>,
) -> Indexed {
    let mut row = Vec::with_capacity(512);
    row::encode(source, name, fingerprint, outcome.as_ref().map_err(|error| (error, uids)), &mut row);
    let found = match outcome {
        Ok(table) => Found {
            status: table.status.name(),
            frames: table.frames(),
            truncated_from: table.truncated_from,
            error: None,
        },
        Err(error) => Found {
            status: row::refused_status(error.kind),
            frames: 0,
            truncated_from: None,
            error: Some(error),
        },
    };
    Indexed::Row { row, found }
}

/// The path as text, or why the database cannot hold it: it must be UTF-8 without NUL, of 1 to [`LONGEST_PATH`] bytes.
pub fn storable(path: &OsStr) -> Result<&str> {
    let refuse = |detail: String| Error::new(ErrorKind::InvalidArgument, detail);
    let length = path.len();
    if length == 0 || length > LONGEST_PATH {
        return Err(refuse(format!("a path of {length} bytes cannot be stored (1 to {LONGEST_PATH})")));
    }
    let name = std::str::from_utf8(path.as_bytes());
    let name = name.map_err(|_| refuse("a path that is not UTF-8 cannot be stored".to_owned()))?;
    if name.contains('\0') {
        return Err(refuse("a path with a NUL cannot be stored".to_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_cannot_be_stored_are_refused() {
        for path in ["", "a\0b", &"x".repeat(LONGEST_PATH + 1)] {
            assert!(storable(OsStr::new(path)).is_err());
        }
        assert!(storable(OsStr::from_bytes(b"\xFF")).is_err());
        assert!(storable(OsStr::new("/datä/'\"%s.dcm")).is_ok());
    }
}

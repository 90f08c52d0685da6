//! One file of an index run: skipped when its row is still true, else read, and written as the row that
//! Postgres takes by `COPY ... (FORMAT binary)`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{self, FileSource, Fingerprint, Source};
use crate::base::window::Buffer;
use crate::dicom::{self, PARSER_VERSION};
use crate::frames::packed;
use crate::frames::table::{FrameTable, Verify};

/// Longest path that a b-tree of the database takes, with room for the rest of its entry.
pub const LONGEST_PATH: usize = 2600;
/// Longest refusal that a row keeps.
const LONGEST_DETAIL: usize = 500;

/// The columns of [`Row`] in their order: the contract with the staging table of the store.
pub const COLUMNS: [&str; 29] = [
    "key",
    "path",
    "parser_version",
    "etag",
    "status",
    "kind",
    "method",
    "verified",
    "offsets_in",
    "truncated_from",
    "notes",
    "transfer_syntax_uid",
    "number_of_frames",
    "frame_count",
    "rows",
    "columns",
    "samples_per_pixel",
    "bits_allocated",
    "photometric_interpretation",
    "pixel_data_pos",
    "sop_instance_uid",
    "series_instance_uid",
    "study_instance_uid",
    "size",
    "mtime_ns",
    "error_kind",
    "error_offset",
    "error_detail",
    "frames",
];

/// What came of one file.
pub enum Indexed {
    /// Size and time are those of the row: nothing was read.
    Unchanged,
    /// The file was read and its row written.
    Row {
        /// The row as COPY BINARY takes it.
        row: Vec<u8>,
        /// What was found.
        found: Found,
    },
    /// The path cannot be a row at all: it cannot be stored, or it is a folder.
    Refused(Error),
}

/// What an index run reports of a file that it read.
pub struct Found {
    /// The status of the row: `ok`, `truncated`, `no_pixels`, `ambiguous` or `error`.
    pub status: &'static str,
    /// Frames that can be addressed.
    pub frames: usize,
    /// First frame that is not wholly in the file.
    pub truncated_from: Option<u32>,
    /// Why the file was refused.
    pub error: Option<Error>,
}

/// The 16-byte key of a file: BLAKE2b-128 of the source's name, a NUL and the path.
pub fn key(source: &str, path: &[u8]) -> [u8; 16] {
    let mut digest = Blake2b::<U16>::new();
    digest.update(source.as_bytes());
    digest.update([0]);
    digest.update(path);
    digest.finalize().into()
}

/// Indexes the file at `path`; `known` is the fingerprint of a row that needs no second look.
pub fn index_path(
    source: &str,
    path: &Path,
    known: Option<Fingerprint>,
    verify: Verify,
    buffer: &mut Buffer,
) -> Indexed {
    let name = match storable(path.as_os_str()) {
        Ok(name) => name,
        Err(error) => return Indexed::Refused(error),
    };
    if known.is_some_and(|known| source::fingerprint_at(path).is_ok_and(|now| now == known)) {
        return Indexed::Unchanged;
    }
    let mut fingerprint = None;
    let outcome = FileSource::open(path).and_then(|file| {
        fingerprint = Some(file.fingerprint());
        dicom::read_table(&file, verify, buffer)
    });
    if let Err(error) = &outcome
        && fingerprint.is_none()
        && path.is_dir()
    {
        return Indexed::Refused(error.clone());
    }
    let row = write_row(key(source, name.as_bytes()), name, fingerprint, &outcome);
    let found = match outcome {
        Ok(table) => Found {
            status: table.status.name(),
            frames: table.frames(),
            truncated_from: table.truncated_from,
            error: None,
        },
        Err(error) => {
            Found { status: refused_status(error.kind), frames: 0, truncated_from: None, error: Some(error) }
        }
    };
    Indexed::Row { row, found }
}

/// A path that the database can hold: UTF-8, without NUL, not longer than an index entry.
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

/// Refused grouping is a status of its own: the file is sound, but nobody can say which fragment is whose.
pub fn refused_status(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::AmbiguousFragments | ErrorKind::FewerFragmentsThanFrames => "ambiguous",
        _ => "error",
    }
}

fn write_row(
    key: [u8; 16],
    path: &str,
    fingerprint: Option<Fingerprint>,
    outcome: &Result<FrameTable>,
) -> Vec<u8> {
    let refused = FrameTable::default();
    let (table, error) = match outcome {
        Ok(table) => (table, None),
        Err(error) => (&refused, Some(error)),
    };
    let (status, kind) = match error {
        None => (table.status.name(), table.kind.name()),
        Some(error) => (refused_status(error.kind), "error"),
    };
    let image = error.is_none().then_some(&table.image);
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let notes: Vec<&str> = table.notes.names().collect();
    let frames = packed::encode(&table.layout);

    let mut row = Row::new();
    row.bytes(Some(&key));
    row.bytes(Some(path.as_bytes()));
    row.bytes(Some(&PARSER_VERSION.to_be_bytes()));
    row.bytes(None);
    for name in [status, kind, table.method.name(), table.verified.name(), table.offsets_in.name()] {
        row.bytes(Some(name.as_bytes()));
    }
    row.int(table.truncated_from.map(number));
    row.texts(&notes);
    row.text(&table.transfer_syntax_uid);
    row.int(image.map(|image| number(image.number_of_frames)));
    row.int(Some(i32::try_from(table.frames()).unwrap_or(i32::MAX)));
    row.int(image.map(|image| number(image.rows)));
    row.int(image.map(|image| number(image.columns)));
    row.int(image.map(|image| i32::from(image.samples_per_pixel)));
    row.int(image.map(|image| i32::from(image.bits_allocated)));
    row.text(&table.image.photometric_interpretation);
    row.long(table.pixel_data_pos.map(u64::cast_signed));
    row.text(&table.image.sop_instance_uid);
    row.text(&table.image.series_instance_uid);
    row.text(&table.image.study_instance_uid);
    row.long(fingerprint.map(|fingerprint| fingerprint.size.cast_signed()));
    row.long(fingerprint.and_then(|fingerprint| fingerprint.mtime_ns));
    row.text(error.map_or("", |error| error.kind.name()));
    row.long(error.and_then(|error| error.offset).map(u64::cast_signed));
    let detail = error.map(|error| error.detail.replace('\0', " ").chars().take(LONGEST_DETAIL).collect());
    row.text(detail.unwrap_or(String::new()).as_str());
    row.bytes(Some(frames.as_slice()).filter(|frames| !frames.is_empty()));
    row.bytes
}

/// A row of PostgreSQL's binary COPY format: the number of fields, then each with its length, in network
/// byte order; length -1 is NULL.
struct Row {
    bytes: Vec<u8>,
}

impl Row {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend((COLUMNS.len() as u16).to_be_bytes());
        Self { bytes }
    }

    fn bytes(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.bytes.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                self.bytes.extend((value.len() as u32).to_be_bytes());
                self.bytes.extend(value);
            }
        }
    }

    fn long(&mut self, value: Option<i64>) {
        self.bytes(value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    fn int(&mut self, value: Option<i32>) {
        self.bytes(value.map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    }

    /// Absent text is NULL, never empty.
    fn text(&mut self, value: &str) {
        self.bytes(Some(value.as_bytes()).filter(|value| !value.is_empty()));
    }

    /// `text[]`: one dimension from 1, no NULLs, elements of type 25; NULL where there is none.
    fn texts(&mut self, values: &[&str]) {
        if values.is_empty() {
            return self.bytes(None);
        }
        let mut array = Vec::new();
        for number in [1, 0, 25, values.len() as u32, 1] {
            array.extend(number.to_be_bytes());
        }
        for value in values {
            array.extend((value.len() as u32).to_be_bytes());
            array.extend(value.as_bytes());
        }
        self.bytes(Some(&array));
    }
}

/// A path to index and the fingerprint of its row, where that needs no second look.
pub struct Job {
    /// The caller's number.
    pub id: u32,
    /// The file.
    pub path: PathBuf,
    /// Size and time of a row that is complete and of this parser version.
    pub known: Option<Fingerprint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_fields_as_columns() {
        let row = write_row([7; 16], "/a", None, &Err(Error::at(ErrorKind::NotDicom, 0, "x\0y")));
        let mut at = 2;
        let mut fields = 0;
        while at < row.len() {
            let length = i32::from_be_bytes(row[at..at + 4].try_into().unwrap());
            at += 4 + usize::try_from(length).unwrap_or(0);
            fields += 1;
        }
        assert_eq!((fields, at), (COLUMNS.len(), row.len()));
    }

    #[test]
    fn keys_differ_by_source_and_path() {
        assert_ne!(key("a", b"bc"), key("ab", b"c"));
        assert_eq!(key("s", b"/p"), key("s", b"/p"));
    }

    #[test]
    fn paths_that_cannot_be_stored_are_refused() {
        for path in ["", "a\0b", &"x".repeat(LONGEST_PATH + 1)] {
            assert!(storable(OsStr::new(path)).is_err());
        }
        assert!(storable(OsStr::from_bytes(b"\xFF")).is_err());
        assert!(storable(OsStr::new("/datä/'\"%s.dcm")).is_ok());
    }
}

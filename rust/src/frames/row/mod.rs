//! A row of the index: its columns, how it is written, and how it is read. No other module knows them.
//!
//! A row is written as a tuple of `COPY ... FROM STDIN (FORMAT binary)`. It is read as such a tuple (the
//! preload) or as a value of type `record` in binary form (look-ups): both hold the same fields.

mod fields;
mod key;
#[cfg(test)]
mod tests;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Etag, Fingerprint};
use crate::dicom::PARSER_VERSION;
use crate::frames::attributes::Attributes;
use crate::frames::packed;
use crate::frames::table::{FrameTable, Kind, Method, OffsetsIn, Status, Verified};

pub use key::key;

use fields::{Writer, bad, int, member, note_set, number, short, take, take_field, text};

/// Longest detail of a refusal, in characters.
const LONGEST_DETAIL: usize = 500;

/// A column of the index.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type in PostgreSQL. A value of an enumeration travels as its label.
    pub sql_type: &'static str,
    /// Whether memory keeps the value; a preload sends NULL for the others.
    pub in_memory: bool,
}

const fn in_memory(name: &'static str, sql_type: &'static str) -> Column {
    Column { name, sql_type, in_memory: true }
}

const fn in_index(name: &'static str, sql_type: &'static str) -> Column {
    Column { name, sql_type, in_memory: false }
}

/// The columns in the order of [`encode`] and [`decode`]. When a row is read, one field may follow them: the
/// last access that the database knows of, int8, µs since 1970.
pub const COLUMNS: [Column; 31] = [
    in_index("key", "uuid"),
    in_memory("path", "text"),
    in_memory("parser_version", "int2"),
    in_memory("etag", "text"),
    in_memory("status", "voxtier.table_status"),
    in_memory("kind", "voxtier.pixel_kind"),
    in_memory("method", "voxtier.table_method"),
    in_memory("verified", "voxtier.table_verified"),
    in_memory("offsets_in", "voxtier.offsets_in"),
    in_memory("truncated_from", "int4"),
    in_memory("notes", "text[]"),
    in_memory("transfer_syntax_uid", "text"),
    in_memory("number_of_frames", "int4"),
    in_index("frame_count", "int4"),
    in_memory("rows", "int4"),
    in_memory("columns", "int4"),
    in_memory("samples_per_pixel", "int4"),
    in_memory("bits_allocated", "int4"),
    in_memory("photometric_interpretation", "text"),
    in_memory("pixel_data_pos", "int8"),
    in_index("sop_instance_uid", "text"),
    in_index("series_instance_uid", "text"),
    in_index("study_instance_uid", "text"),
    in_memory("size", "int8"),
    in_memory("mtime_ns", "int8"),
    in_memory("ctime_ns", "int8"),
    in_memory("inode", "int8"),
    in_index("error_kind", "text"),
    in_index("error_offset", "int8"),
    in_index("error_detail", "text"),
    in_memory("frames", "bytea"),
];

/// A row as it was read.
pub struct Row<'a> {
    /// The file.
    pub path: &'a str,
    /// State of the file that `outcome` describes; `None` where it could not be opened.
    pub fingerprint: Option<Fingerprint>,
    /// SOP Instance UID, of a refused file too; empty where it is not known.
    pub sop_instance_uid: &'a str,
    /// Its table, or why it was refused.
    pub outcome: Result<FrameTable>,
    /// Last access that the database knows of, µs since 1970; 0 for none.
    pub used_at: i64,
}

/// The status of a file that was refused. Refused grouping has one of its own: the file is sound, but
/// nothing tells which fragment belongs to which frame.
pub fn refused_status(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::AmbiguousFragments | ErrorKind::FewerFragmentsThanFrames => "ambiguous",
        _ => "error",
    }
}

/// Appends the row of one file: its table, or why it was refused and the UIDs of the instance that it holds all the
/// same, if they are known. A number that its column cannot hold becomes the largest that it can; absent text is NULL.
pub fn encode(
    source: &str,
    path: &str,
    fingerprint: Option<Fingerprint>,
    outcome: std::result::Result<&FrameTable, (&Error, Option<&FrameTable>)>,
    out: &mut Vec<u8>,
) {
    let nothing = FrameTable::default();
    let (table, error) = match outcome {
        Ok(table) => (table, None),
        Err((error, uids)) => (uids.unwrap_or(&nothing), Some(error)),
    };
    let (status, kind) = match error {
        None => (table.status.name(), table.kind.name()),
        Some(error) => (refused_status(error.kind), "error"),
    };
    let image = error.is_none().then_some(&table.image);
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    let notes: Vec<&str> = table.notes.names().collect();
    let detail: String = error.map_or(String::new(), |error| {
        error.detail.replace('\0', " ").chars().take(LONGEST_DETAIL).collect()
    });
    let frames = packed::encode(&table.layout);

    out.extend((COLUMNS.len() as u16).to_be_bytes());
    let mut row = Writer { out };
    row.bytes(Some(&key(source, path.as_bytes())));
    row.text(path);
    row.bytes(Some(&PARSER_VERSION.to_be_bytes()));
    row.text(fingerprint.and_then(|fingerprint| fingerprint.etag).as_deref().unwrap_or_default());
    for label in [status, kind, table.method.name(), table.verified.name(), table.offsets_in.name()] {
        row.text(label);
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
    row.long(fingerprint.and_then(|fingerprint| fingerprint.ctime_ns));
    row.long(fingerprint.and_then(|fingerprint| fingerprint.inode).map(u64::cast_signed));
    row.text(error.map_or("", |error| error.kind.name()));
    row.long(error.and_then(|error| error.offset).map(u64::cast_signed));
    row.text(&detail);
    row.bytes(Some(frames.as_slice()).filter(|frames| !frames.is_empty()));
}

/// What a row says of its file without its table.
pub struct FileState<'a> {
    /// The file.
    pub path: &'a str,
    /// The state of the file; `None` where it could not be opened.
    pub fingerprint: Option<Fingerprint>,
    /// Version of the parser that wrote the row.
    pub parser_version: i64,
    /// Why the file was refused.
    pub error_kind: Option<&'a str>,
    /// Frames that can be addressed.
    pub frames: usize,
    /// First frame that is not completely in the file.
    pub truncated_from: Option<u32>,
}

impl FileState<'_> {
    /// The state of the file in which it need not be read again.
    pub fn lasting(&self) -> Option<Fingerprint> {
        self.fingerprint
            .filter(|_| self.error_kind.is_none() && self.parser_version == i64::from(PARSER_VERSION))
    }
}

/// Takes the next state off `rest`: a record of path, size, `mtime_ns`, `ctime_ns`, inode, etag, parser version,
/// kind of error, frames and first cut frame; `None` at the end. The inner result is that of one record.
///
/// # Errors
/// `bad_table` when the bytes are no such records: nothing behind them can be read.
pub fn next_state<'a>(rest: &mut &'a [u8]) -> Result<Option<Result<FileState<'a>>>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut fields = [None; 10];
    let count = u32::from_be_bytes(take(rest)?);
    if count as usize != fields.len() {
        return Err(bad(&format!("{count} columns, not {}", fields.len())));
    }
    for field in &mut fields {
        *field = take_field(rest, true)?;
    }
    Ok(Some(decode_state(fields)))
}

fn decode_state(fields: [Option<&[u8]>; 10]) -> Result<FileState<'_>> {
    let [path, size, mtime_ns, ctime_ns, inode, etag, parser_version, error_kind, frames, cut] = fields;
    let absent = || bad("nothing where a number stands");
    Ok(FileState {
        path: text(path)?,
        fingerprint: fingerprint(size, [mtime_ns, ctime_ns, inode], etag)?,
        parser_version: int(parser_version)?.ok_or_else(absent)?,
        error_kind: error_kind.map(|kind| text(Some(kind))).transpose()?,
        frames: number(frames)?.ok_or_else(absent)?,
        truncated_from: number(cut)?,
    })
}

/// The state of a file by its columns; `None` without a size.
fn fingerprint(
    size: Option<&[u8]>,
    [mtime_ns, ctime_ns, inode]: [Option<&[u8]>; 3],
    etag: Option<&[u8]>,
) -> Result<Option<Fingerprint>> {
    let Some(size) = number(size)? else { return Ok(None) };
    Ok(Some(Fingerprint {
        size,
        mtime_ns: int(mtime_ns)?,
        ctime_ns: int(ctime_ns)?,
        inode: int(inode)?.map(i64::cast_unsigned),
        etag: etag.map(|etag| text(Some(etag))).transpose()?.and_then(|etag| Etag::from(etag).ok()),
    }))
}

type Fields<'a> = [Option<&'a [u8]>; COLUMNS.len()];

/// Takes the next row off `rest`; `None` at COPY's trailer or at the end.
///
/// The inner result is that of one row: a row of another parser version, or one that does not decode, is of
/// no use, but those behind it are.
///
/// # Errors
/// `bad_table` when the bytes are no rows at all: nothing behind them can be read.
pub fn next_row<'a>(rest: &mut &'a [u8]) -> Result<Option<Result<Row<'a>>>> {
    // A tuple of COPY counts its fields in 16 bits; a record does so in 32, and names the type of each.
    let (count, is_record) = match **rest {
        [] | [0xFF, 0xFF, ..] => return Ok(None),
        [0, 0, _, _, ..] => (u32::from_be_bytes(take(rest)?), true),
        _ => (u32::from(u16::from_be_bytes(take(rest)?)), false),
    };
    let extra = count.checked_sub(COLUMNS.len() as u32).filter(|&extra| extra <= 1);
    let extra = extra.ok_or_else(|| bad(&format!("{count} columns, not {}", COLUMNS.len())))?;
    let mut fields: Fields<'a> = [None; COLUMNS.len()];
    for field in &mut fields {
        *field = take_field(rest, is_record)?;
    }
    let used_at = if extra == 1 { take_field(rest, is_record)? } else { None };
    Ok(Some(decode(fields, used_at)))
}

fn decode<'a>(fields: Fields<'a>, used_at: Option<&[u8]>) -> Result<Row<'a>> {
    let [
        _key,
        path,
        parser_version,
        etag,
        status,
        kind,
        method,
        verified,
        offsets_in,
        truncated_from,
        notes,
        transfer_syntax_uid,
        number_of_frames,
        _frame_count,
        rows,
        columns,
        samples_per_pixel,
        bits_allocated,
        photometric_interpretation,
        pixel_data_pos,
        sop_instance_uid,
        series_instance_uid,
        study_instance_uid,
        size,
        mtime_ns,
        ctime_ns,
        inode,
        error_kind,
        error_offset,
        error_detail,
        frames,
    ] = fields;
    if int(parser_version)? != Some(PARSER_VERSION.into()) {
        return Err(bad("tables of another parser version"));
    }
    let fingerprint = fingerprint(size, [mtime_ns, ctime_ns, inode], etag)?;
    let row = |outcome| -> Result<Row<'a>> {
        let sop_instance_uid = text(sop_instance_uid)?;
        let used_at = int(used_at)?.unwrap_or(0);
        Ok(Row { path: text(path)?, fingerprint, sop_instance_uid, outcome, used_at })
    };
    if error_kind.is_some() {
        let kind = member(ErrorKind::from_name, error_kind)?;
        let detail = text(error_detail)?.to_owned();
        return row(Err(Error { kind, offset: number(error_offset)?, detail, errno: None }));
    }
    let mut table = FrameTable {
        status: member(Status::from_name, status)?,
        kind: member(Kind::from_name, kind)?,
        method: member(Method::from_name, method)?,
        verified: member(Verified::from_name, verified)?,
        offsets_in: member(OffsetsIn::from_name, offsets_in)?,
        truncated_from: number(truncated_from)?,
        notes: note_set(notes)?,
        transfer_syntax_uid: short(transfer_syntax_uid)?,
        image: Attributes {
            sop_instance_uid: short(sop_instance_uid)?,
            study_instance_uid: short(study_instance_uid)?,
            series_instance_uid: short(series_instance_uid)?,
            photometric_interpretation: short(photometric_interpretation)?,
            rows: number(rows)?.unwrap_or(Attributes::ABSENT.rows),
            columns: number(columns)?.unwrap_or(Attributes::ABSENT.columns),
            samples_per_pixel: number(samples_per_pixel)?.unwrap_or(Attributes::ABSENT.samples_per_pixel),
            bits_allocated: number(bits_allocated)?.unwrap_or(Attributes::ABSENT.bits_allocated),
            number_of_frames: number(number_of_frames)?.unwrap_or(Attributes::ABSENT.number_of_frames),
        },
        pixel_data_pos: number(pixel_data_pos)?,
        fingerprint: fingerprint.ok_or_else(|| bad("a table without the size of its file"))?,
        ..FrameTable::default()
    };
    table.layout = packed::decode(frames.unwrap_or_default(), table.limit())?;
    row(Ok(table))
}

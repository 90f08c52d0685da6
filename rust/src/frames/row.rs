//! A row of the index: its columns, how it is written, and how it is read. Nothing else in the package
//! knows them.
//!
//! A row is written as a tuple of `COPY ... FROM STDIN (FORMAT binary)`. It is read as such a tuple (the
//! preload) or as a value of type `record` in binary form (look-ups): both hold the same fields.

use arrayvec::ArrayString;
use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Fingerprint;
use crate::dicom::PARSER_VERSION;
use crate::frames::attributes::Attributes;
use crate::frames::notes::{Note, Notes};
use crate::frames::packed;
use crate::frames::table::{FrameTable, Kind, Method, OffsetsIn, Status, Verified};

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
pub const COLUMNS: [Column; 29] = [
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
    in_index("notes", "text[]"),
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
    in_index("error_kind", "text"),
    in_index("error_offset", "int8"),
    in_index("error_detail", "text"),
    in_memory("frames", "bytea"),
];

/// A row as it was read.
pub struct Row<'a> {
    /// The file.
    pub path: &'a str,
    /// Fingerprint of an object that has no modification time.
    pub etag: Option<&'a str>,
    /// State of the file that `outcome` describes; `None` where it could not be opened.
    pub fingerprint: Option<Fingerprint>,
    /// Its table, or why it was refused.
    pub outcome: Result<FrameTable>,
    /// Last access that the database knows of, µs since 1970; 0 for none.
    pub used_at: i64,
}

/// The 16-byte key of a file: BLAKE2b-128 of the source's name, a NUL and the path.
pub fn key(source: &str, path: &[u8]) -> [u8; 16] {
    let mut digest = Blake2b::<U16>::new();
    digest.update(source.as_bytes());
    digest.update([0]);
    digest.update(path);
    digest.finalize().into()
}

/// The status of a file that was refused. Refused grouping has one of its own: the file is sound, but
/// nothing tells which fragment belongs to which frame.
pub fn refused_status(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::AmbiguousFragments | ErrorKind::FewerFragmentsThanFrames => "ambiguous",
        _ => "error",
    }
}

/// Appends the row of one file. A number that its column cannot hold becomes the largest that it can;
/// absent text is NULL.
pub fn encode(
    source: &str,
    path: &str,
    fingerprint: Option<Fingerprint>,
    outcome: std::result::Result<&FrameTable, &Error>,
    out: &mut Vec<u8>,
) {
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
    let detail: String = error.map_or(String::new(), |error| {
        error.detail.replace('\0', " ").chars().take(LONGEST_DETAIL).collect()
    });
    let frames = packed::encode(&table.layout);

    out.extend((COLUMNS.len() as u16).to_be_bytes());
    let mut row = Writer { out };
    row.bytes(Some(&key(source, path.as_bytes())));
    row.text(path);
    row.bytes(Some(&PARSER_VERSION.to_be_bytes()));
    row.text(""); // etag
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
    row.text(error.map_or("", |error| error.kind.name()));
    row.long(error.and_then(|error| error.offset).map(u64::cast_signed));
    row.text(&detail);
    row.bytes(Some(frames.as_slice()).filter(|frames| !frames.is_empty()));
}

/// Fields of a tuple: each its length and its value in network byte order; length -1 is NULL.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn bytes(&mut self, value: Option<&[u8]>) {
        let length = value.map_or(-1, |value| value.len() as i32);
        self.out.extend(length.to_be_bytes());
        self.out.extend(value.unwrap_or_default());
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
        for number in [1, 0, TEXT_TYPE, values.len() as u32, 1] {
            array.extend(number.to_be_bytes());
        }
        for value in values {
            array.extend((value.len() as u32).to_be_bytes());
            array.extend(value.as_bytes());
        }
        self.bytes(Some(&array));
    }
}

/// Object identifier of the type `text`.
const TEXT_TYPE: u32 = 25;

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

fn take_field<'a>(rest: &mut &'a [u8], is_record: bool) -> Result<Option<&'a [u8]>> {
    if is_record {
        let _type: [u8; 4] = take(rest)?;
    }
    let Ok(length) = usize::try_from(i32::from_be_bytes(take(rest)?)) else { return Ok(None) };
    let (value, after) = rest.split_at_checked(length).ok_or_else(|| bad("a cut row"))?;
    *rest = after;
    Ok(Some(value))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk().ok_or_else(|| bad("a cut row"))?;
    *rest = after;
    Ok(*bytes)
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
        error_kind,
        error_offset,
        error_detail,
        frames,
    ] = fields;
    if int(parser_version)? != Some(PARSER_VERSION.into()) {
        return Err(bad("tables of another parser version"));
    }
    let fingerprint = match number(size)? {
        Some(size) => Some(Fingerprint { size, mtime_ns: int(mtime_ns)? }),
        None => None,
    };
    let row = |outcome| -> Result<Row<'a>> {
        let etag = etag.map(|etag| text(Some(etag))).transpose()?;
        Ok(Row { path: text(path)?, etag, fingerprint, outcome, used_at: int(used_at)?.unwrap_or(0) })
    };
    if error_kind.is_some() {
        let kind = member(ErrorKind::from_name, error_kind)?;
        let detail = text(error_detail)?.to_owned();
        return row(Err(Error { kind, offset: number(error_offset)?, detail, errno: None }));
    }
    let absent = Attributes::default();
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
            rows: number(rows)?.unwrap_or(absent.rows),
            columns: number(columns)?.unwrap_or(absent.columns),
            samples_per_pixel: number(samples_per_pixel)?.unwrap_or(absent.samples_per_pixel),
            bits_allocated: number(bits_allocated)?.unwrap_or(absent.bits_allocated),
            number_of_frames: number(number_of_frames)?.unwrap_or(absent.number_of_frames),
        },
        pixel_data_pos: number(pixel_data_pos)?,
        fingerprint: fingerprint.ok_or_else(|| bad("a table without the size of its file"))?,
        ..FrameTable::default()
    };
    table.layout = packed::decode(frames.unwrap_or_default(), table.limit())?;
    row(Ok(table))
}

/// A number of 2, 4 or 8 bytes.
fn int(field: Option<&[u8]>) -> Result<Option<i64>> {
    Ok(Some(match *field.unwrap_or_default() {
        [] if field.is_none() => return Ok(None),
        [a, b] => i16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(bad("a number that is no integer")),
    }))
}

/// A number that is not negative and fits its attribute.
fn number<T: TryFrom<i64>>(field: Option<&[u8]>) -> Result<Option<T>> {
    let value = int(field)?;
    value.map(|value| T::try_from(value).map_err(|_| bad(&format!("{value}, out of range")))).transpose()
}

fn text(field: Option<&[u8]>) -> Result<&str> {
    std::str::from_utf8(field.unwrap_or_default()).map_err(|_| bad("text that is not UTF-8"))
}

fn short<const N: usize>(field: Option<&[u8]>) -> Result<ArrayString<N>> {
    ArrayString::from(text(field)?).map_err(|_| bad("a text too long for its attribute"))
}

/// The member of a closed list that has this name.
fn member<T>(from_name: fn(&str) -> Option<T>, field: Option<&[u8]>) -> Result<T> {
    let name = text(field)?;
    from_name(name).ok_or_else(|| bad(&format!("the unknown name {name:.40?}")))
}

/// See [`Writer::texts`].
fn note_set(field: Option<&[u8]>) -> Result<Notes> {
    let Some(mut array) = field else { return Ok(Notes::default()) };
    let dimensions = u32::from_be_bytes(take(&mut array)?);
    let [_has_nulls, _type, _length, _from]: [u32; 4] = match dimensions {
        0 => return Ok(Notes::default()),
        1 => [take(&mut array)?, take(&mut array)?, take(&mut array)?, take(&mut array)?]
            .map(u32::from_be_bytes),
        _ => return Err(bad("notes of several dimensions")),
    };
    let mut notes = Notes::default();
    while !array.is_empty() {
        let length = u32::from_be_bytes(take(&mut array)?) as usize;
        let (name, after) = array.split_at_checked(length).ok_or_else(|| bad("a cut note"))?;
        array = after;
        notes.add(member(Note::from_name, Some(name))?);
    }
    Ok(notes)
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the index holds {what}: index the file again"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::table::{Layout, Native};

    const STATE: Fingerprint = Fingerprint { size: 9000, mtime_ns: Some(-5) };

    fn table() -> FrameTable {
        let short = |text: &str| ArrayString::from(text).unwrap();
        FrameTable {
            status: Status::Truncated,
            kind: Kind::Native,
            method: Method::Native,
            verified: Verified::All,
            offsets_in: OffsetsIn::Inflated,
            truncated_from: Some(2),
            notes: [Note::no_preamble, Note::excess_pixel_data].into_iter().collect(),
            transfer_syntax_uid: short("1.2.840.10008.1.2.1"),
            image: Attributes {
                sop_instance_uid: short("1.2"),
                study_instance_uid: short("1.3"),
                series_instance_uid: short("1.4"),
                photometric_interpretation: ArrayString::from("RGB").unwrap(),
                rows: 7,
                columns: 8,
                samples_per_pixel: 3,
                bits_allocated: 16,
                number_of_frames: 5,
            },
            pixel_data_pos: Some(900),
            fingerprint: STATE,
            layout: Layout::Native(Native { base: 1000, frame_bits: 160, frames: 3 }),
        }
    }

    fn tuple(outcome: &Result<FrameTable>) -> Vec<u8> {
        let mut out = Vec::new();
        encode("s", "/a/b", Some(STATE), outcome.as_ref(), &mut out);
        out
    }

    /// Where each field of a tuple begins, at its length, and where the last ends.
    fn places(tuple: &[u8]) -> Vec<usize> {
        let mut places = vec![2];
        while *places.last().unwrap() < tuple.len() {
            let at = *places.last().unwrap();
            let length = i32::from_be_bytes(tuple[at..at + 4].try_into().unwrap());
            places.push(at + 4 + usize::try_from(length).unwrap_or(0));
        }
        places
    }

    /// The tuple as a value of type record: 32 bits of count, a type before each field, a last access.
    fn record(tuple: &[u8], used_at: i64) -> Vec<u8> {
        let mut out = (COLUMNS.len() as u32 + 1).to_be_bytes().to_vec();
        for field in places(tuple).windows(2) {
            out.extend([0, 0, 0, 25]);
            out.extend(&tuple[field[0]..field[1]]);
        }
        out.extend([0, 0, 0, 20, 0, 0, 0, 8]);
        out.extend(used_at.to_be_bytes());
        out
    }

    fn with_null(tuple: &[u8], column: &str) -> Vec<u8> {
        let places = places(tuple);
        let at = COLUMNS.iter().position(|each| each.name == column).unwrap();
        [&tuple[..places[at]], &[0xFF; 4], &tuple[places[at + 1]..]].concat()
    }

    fn only(rows: &[u8]) -> Row<'_> {
        let mut rest = rows;
        let row = next_row(&mut rest).unwrap().unwrap().unwrap();
        assert!(next_row(&mut rest).unwrap().is_none());
        row
    }

    #[test]
    fn a_table_comes_back_from_a_tuple_and_from_a_record() {
        let tuple = tuple(&Ok(table()));
        assert_eq!(places(&tuple).len(), COLUMNS.len() + 1);
        let record = record(&tuple, 7);
        for (bytes, used_at) in [(tuple, 0), (record, 7)] {
            let row = only(&bytes);
            assert_eq!(
                (row.path, row.etag, row.fingerprint, row.used_at),
                ("/a/b", None, Some(STATE), used_at)
            );
            assert_eq!(row.outcome, Ok(table()));
        }
    }

    #[test]
    fn a_refusal_comes_back_without_its_errno() {
        let error = Error { errno: Some(5), ..Error::at(ErrorKind::IoError, 9, "x\0y") };
        let bytes = tuple(&Err(error));
        let row = only(&bytes);
        assert_eq!(row.outcome, Err(Error::at(ErrorKind::IoError, 9, "x y")));
        assert_eq!(row.fingerprint, Some(STATE));
    }

    #[test]
    fn null_means_what_the_attributes_promise() {
        let mut bytes = tuple(&Ok(table()));
        for column in COLUMNS.iter().skip(9).filter(|each| !matches!(each.name, "size" | "frames")) {
            bytes = with_null(&bytes, column.name);
        }
        let table = table();
        let expected = FrameTable {
            truncated_from: None,
            notes: Notes::default(),
            transfer_syntax_uid: ArrayString::new(),
            image: Attributes::default(),
            pixel_data_pos: None,
            fingerprint: Fingerprint { mtime_ns: None, ..STATE },
            ..table
        };
        assert_eq!(only(&bytes).outcome, Ok(expected));
        assert_eq!((Attributes::default().samples_per_pixel, Attributes::default().number_of_frames), (1, 1));
        assert!(next_row(&mut with_null(&bytes, "size").as_slice()).unwrap().unwrap().is_err());
    }

    #[test]
    fn a_damaged_row_does_not_end_the_stream() {
        let good = tuple(&Ok(table()));
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let stream = [&good, &damaged, &record(&good, 1), [0xFF_u8; 2].as_slice()].concat();
        let mut rest = stream.as_slice();
        assert!(next_row(&mut rest).unwrap().unwrap().is_ok());
        assert!(next_row(&mut rest).unwrap().unwrap().is_err());
        assert!(next_row(&mut rest).unwrap().unwrap().is_ok());
        assert!(next_row(&mut rest).unwrap().is_none());
        assert!(next_row(&mut &good[..good.len() - 1]).is_err());
        assert!(next_row(&mut [0, 3, 0].as_slice()).is_err());
    }

    #[test]
    fn keys_differ_by_source_and_path() {
        assert_ne!(key("a", b"bc"), key("ab", b"c"));
        assert_eq!(key("s", b"/p"), key("s", b"/p"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(at in 0..700_usize, byte in any::<u8>(), as_record in any::<bool>()) {
            let mut bytes = tuple(&Ok(table()));
            if as_record { bytes = record(&bytes, 0); }
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
            let _ = next_row(&mut bytes.as_slice());
        }
    }
}

//! Rows are written, read back and damaged.

use arrayvec::ArrayString;
use proptest::prelude::*;

use super::*;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Layout, Native};

const STATE: Fingerprint =
    Fingerprint { size: 9000, mtime_ns: Some(-5), ctime_ns: Some(-4), inode: Some(u64::MAX), etag: None };

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
    encode("s", "/a/b", Some(STATE), outcome.as_ref().map_err(|error| (error, None)), &mut out);
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
        assert_eq!((row.path, row.fingerprint, row.used_at), ("/a/b", Some(STATE), used_at));
        assert_eq!(row.outcome, Ok(table()));
    }
}

#[test]
fn the_entity_tag_of_an_object_comes_back_with_its_table_or_refusal() {
    let object = Fingerprint { etag: Etag::from("5d41-2").ok(), ..Fingerprint::of_size(9000) };
    let table = FrameTable { fingerprint: object, ..table() };
    for outcome in [Ok(&table), Err((&Error::new(ErrorKind::NotDicom, "x"), None))] {
        let mut bytes = Vec::new();
        encode("s", "s3://b/a", Some(object), outcome, &mut bytes);
        let row = only(&bytes);
        assert_eq!(row.fingerprint, Some(object));
        assert!(row.outcome.is_err() || row.outcome == Ok(table.clone()));
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
fn a_refusal_keeps_the_uids_of_its_instance_and_nothing_else_of_the_image() {
    let error = Error::at(ErrorKind::NoBotItem, 9, "x");
    let FrameTable { transfer_syntax_uid, image, .. } = table();
    let image = Attributes { photometric_interpretation: ArrayString::new(), ..image };
    let uids = FrameTable { transfer_syntax_uid, image, ..FrameTable::default() };
    let mut bytes = Vec::new();
    encode("s", "/a/b", Some(STATE), Err((&error, Some(&uids))), &mut bytes);
    let row = only(&bytes);
    assert_eq!((row.sop_instance_uid, &row.outcome), ("1.2", &Err(error)));
    assert_eq!(only(&tuple(&Ok(table()))).sop_instance_uid, "1.2");
    let field = |name| {
        let at = COLUMNS.iter().position(|each| each.name == name).unwrap();
        let places = places(&bytes);
        bytes[places[at] + 4..places[at + 1]].to_vec()
    };
    for (name, value) in [
        ("transfer_syntax_uid", "1.2.840.10008.1.2.1"),
        ("study_instance_uid", "1.3"),
        ("series_instance_uid", "1.4"),
        ("status", "error"),
        ("rows", ""),
        ("number_of_frames", ""),
        ("pixel_data_pos", ""),
        ("photometric_interpretation", ""),
        ("frames", ""),
    ] {
        assert_eq!(String::from_utf8(field(name)).unwrap(), value, "{name}");
    }
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
        fingerprint: Fingerprint::of_size(STATE.size),
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

#[test]
fn keys_of_one_folder_begin_alike() {
    let folder = |path: &[u8]| key("s", path)[..4].to_vec();
    assert_eq!(folder(b"/a/b/c"), folder(b"/a/b/d"));
    assert_eq!(folder(b"c"), folder(b"d"));
    for other in [b"/a/c".as_slice(), b"/a/b", b"/a/b/c/d", b"c"] {
        assert_ne!(folder(b"/a/b/c"), folder(other));
    }
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

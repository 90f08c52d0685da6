use super::{Bulk, BulkData, Options, find_bulk, stream, write};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Bytes, Fingerprint, Source};
use crate::base::window::Buffer;

fn element(tag: u32, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((tag >> 16) as u16).to_le_bytes());
    bytes.extend_from_slice(&(tag as u16).to_le_bytes());
    bytes.extend_from_slice(vr);
    if matches!(vr, b"SQ" | b"OB" | b"OW" | b"UT" | b"UN") {
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    } else {
        bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
    }
    bytes.extend_from_slice(value);
    bytes
}

fn item(content: &[u8]) -> Vec<u8> {
    [&[0xFE, 0xFF, 0x00, 0xE0][..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// A data set with `count` Items of two attributes, in whatever order `swapped` has them in.
fn functional_groups(count: usize, swapped: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut items = Vec::new();
    for number in 0..count {
        let position = element(0x0020_0032, b"DS", format!("{number}\\0 ").as_bytes());
        let index = element(0x0020_9057, b"UL", &(number as u32).to_le_bytes());
        let content = if swapped(number) { [index, position] } else { [position, index] };
        items.extend(item(&content.concat()));
    }
    [element(0x0008_0060, b"CS", b"CT"), element(0x5200_9230, b"SQ", &items)].concat()
}

fn written(content: &[u8], options: &Options<'_>) -> Result<Vec<u8>> {
    write(&Bytes(content), options, &mut Buffer::default())
}

/// What `stream` passes on, piece by piece.
fn streamed(content: &[u8], options: &Options<'_>) -> (Result<()>, Vec<Vec<u8>>) {
    let mut pieces = Vec::new();
    let result = stream(&Bytes(content), options, &mut Buffer::default(), &mut |piece| {
        pieces.push(piece.to_vec());
        Ok(())
    });
    (result, pieces)
}

#[test]
fn a_long_data_set_comes_in_pieces_that_make_the_same_text() {
    let content = functional_groups(20_000, |_| false);
    let options = Options { with_transfer_syntax: true, ..Options::default() };
    let whole = written(&content, &options).unwrap();
    let (result, pieces) = streamed(&content, &options);
    result.unwrap();
    assert!(whole.len() > 1 << 20);
    assert_eq!(pieces.concat(), whole);
    assert!(pieces.len() > 4 && pieces.iter().all(|piece| piece.len() < 512 << 10));
}

#[test]
fn attributes_out_of_order_are_sorted_wherever_they_stand() {
    let right = written(&functional_groups(20_000, |_| false), &Options::default()).unwrap();
    for swapped in [0, 1, 19_999] {
        let content = functional_groups(20_000, |number| number == swapped);
        assert_eq!(written(&content, &Options::default()).unwrap(), right);
        let (result, pieces) = streamed(&content, &Options::default());
        result.unwrap();
        assert_eq!(pieces.concat(), right);
    }
}

#[test]
fn the_limit_counts_what_was_passed_on() {
    let content = functional_groups(20_000, |_| false);
    let length = written(&content, &Options::default()).unwrap().len();
    for (most_bytes, is_enough) in [(length, true), (length - 1, false), (length / 2, false)] {
        let (result, pieces) = streamed(&content, &Options { most_bytes, ..Options::default() });
        assert_eq!(result.err().map(|error| error.kind), (!is_enough).then_some(ErrorKind::LimitExceeded));
        assert!(pieces.iter().map(Vec::len).sum::<usize>() <= most_bytes);
    }
}

#[test]
fn nothing_is_passed_on_of_a_malformed_header() {
    let content = functional_groups(20_000, |_| false);
    for cut in [1, 20, content.len() / 2] {
        let (result, pieces) = streamed(&content[..content.len() - cut], &Options::default());
        assert_eq!(result.unwrap_err().kind, ErrorKind::ValuePastEnd);
        assert!(pieces.is_empty());
    }
    let late = [content.clone(), element(0x0008_0060, b"CS", b"MR")].concat();
    let (result, pieces) = streamed(&late, &Options::default());
    assert_eq!(result.unwrap_err().kind, ErrorKind::MisplacedElement);
    assert!(pieces.is_empty());
}

#[test]
fn an_error_of_the_sink_ends_the_stream() {
    let content = functional_groups(20_000, |_| false);
    let mut count = 0;
    let result = stream(&Bytes(&content), &Options::default(), &mut Buffer::default(), &mut |_| {
        count += 1;
        Err(Error::new(ErrorKind::IoError, "the client is gone"))
    });
    assert_eq!((result.unwrap_err().kind, count), (ErrorKind::IoError, 1));
}

#[test]
fn the_text_is_limited() {
    let content = functional_groups(1_000, |_| false);
    let most_bytes = written(&content, &Options::default()).unwrap().len();
    for limit in [most_bytes, most_bytes + 1] {
        written(&content, &Options { most_bytes: limit, ..Options::default() }).unwrap();
    }
    for limit in [0, 100, most_bytes / 2, most_bytes - 1] {
        let error = written(&content, &Options { most_bytes: limit, ..Options::default() }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LimitExceeded);
    }
    for vr in [b"OB", b"UT", b"UN"] {
        let value = element(0x0009_1010, vr, &[b'a'; 1 << 20]);
        let long = [element(0x0008_0060, b"CS", b"CT"), value].concat();
        let error = written(&long, &Options { most_bytes: 1 << 18, ..Options::default() }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LimitExceeded);
        let bulk_data = Some(BulkData { uri: "b", inline_limit: 9 });
        let named = Options { most_bytes: 1 << 18, bulk_data, ..Options::default() };
        assert!(written(&long, &named).unwrap().ends_with(b"\"BulkDataURI\":\"b/00091010\"}}"));
    }
}

/// A file that gets another length while it is read.
struct Growing<'a>(&'a [u8]);

impl Source for Growing<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { mtime_ns: Some(1), ..Fingerprint::of_size(self.0.len() as u64) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Bytes(self.0).read_at(offset, buffer)
    }

    fn check_unchanged(&self) -> Result<()> {
        Err(Error::new(ErrorKind::ChangedDuringRead, "it grew"))
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_neither_answered_nor_malformed() {
    let content = functional_groups(3, |_| false);
    for content in [&content[..], &content[..content.len() - 1]] {
        let error = write(&Growing(content), &Options::default(), &mut Buffer::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ChangedDuringRead);
    }
}

fn found(content: &[u8], place: &str) -> Result<Option<Bulk>> {
    find_bulk(&Bytes(content), place, 1 << 20, &mut Buffer::default())
}

#[test]
fn the_value_of_a_uri_is_where_the_uri_says() {
    let document = element(0x0042_0011, b"OB", b"document");
    let inner = element(0x0040_A730, b"SQ", &[item(&[]), item(&document)].concat());
    let outer = element(0x0008_1032, b"SQ", &[item(&[]), item(&[]), item(&inner)].concat());
    let content = [outer, element(0x0010_0010, b"PN", b"A^B "), document].concat();
    let last = content.len() as u64 - 8;
    assert_eq!(found(&content, "00420011").unwrap(), Some(Bulk::Range { start: last, length: 8 }));
    match found(&content, "00081032/3/0040A730/2/00420011").unwrap() {
        Some(Bulk::Range { start, length: 8 }) => {
            assert!(start < last && content[start as usize..].starts_with(b"document"));
        }
        other => panic!("{other:?}"),
    }
    for nothing in [
        "",
        "x",
        "00420012",
        "0042001",
        "+0420011",
        "00420011/",
        "/00420011",
        "00420011/1",
        "00420011/1/00420011",
        "00081032/0/0040A730/2/00420011",
        "00081032/3/0040A730/1/00420011",
        "00081032/4/0040A730/2/00420011",
        "00081032/99999999999/0040A730/2/00420011",
        "00081032",
        "00100010", // a name has no URI (PS3.18 F.2.2)
    ] {
        assert_eq!(found(&content, nothing).unwrap(), None, "{nothing}");
    }
}

#[test]
fn a_value_is_sent_little_endian_and_a_text_in_utf_8() {
    let big = |tag: u32, vr: &[u8; 2], value: &[u8]| {
        let mut bytes = [&tag.to_be_bytes()[..], vr].concat();
        match vr {
            b"OW" | b"UT" | b"OB" => {
                bytes.extend([&[0, 0][..], &(value.len() as u32).to_be_bytes()].concat())
            }
            _ => bytes.extend((value.len() as u16).to_be_bytes()),
        }
        [&bytes, value].concat()
    };
    let content = [
        big(0x0008_0005, b"CS", b"ISO_IR 144"),
        big(0x0028_0010, b"US", &[1, 2]),
        big(0x0028_1201, b"OW", &[1, 2, 3, 4]),
        big(0x0040_A160, b"UT", &[0xB1, 0xB2]),
        big(0x0042_0011, b"OB", &[1, 2, 3, 4]),
    ]
    .concat();
    assert_eq!(found(&content, "00280010").unwrap(), Some(Bulk::Bytes(vec![2, 1])));
    assert_eq!(found(&content, "00281201").unwrap(), Some(Bulk::Bytes(vec![2, 1, 4, 3])));
    assert_eq!(found(&content, "0040A160").unwrap(), Some(Bulk::Bytes("БВ".into())));
    assert!(matches!(found(&content, "00420011").unwrap(), Some(Bulk::Range { length: 4, .. })));
    let limited = find_bulk(&Bytes(&content), "00281201", 3, &mut Buffer::default());
    assert_eq!(limited.unwrap_err().kind, ErrorKind::LimitExceeded);
}

#[test]
fn pixels_are_a_range_or_fragments_and_nothing_when_cut() {
    let native = [element(0x0028_0010, b"US", &[1, 0]), element(0x7FE0_0010, b"OW", &[7; 10])].concat();
    let start = native.len() as u64 - 10;
    assert_eq!(found(&native, "7FE00010").unwrap(), Some(Bulk::Range { start, length: 10 }));
    let cut = found(&native[..native.len() - 1], "7FE00010");
    assert_eq!(cut.unwrap_err().kind, ErrorKind::ValuePastEnd);
    let mut compressed = native[..native.len() - 14].to_vec();
    compressed.extend([&[0xFF; 4][..], &item(&[]), &item(&[1, 2])].concat());
    assert_eq!(found(&compressed, "7FE00010").unwrap(), Some(Bulk::Frames));
}

#[test]
fn fragments_beside_the_image_are_their_own_bytes() {
    const UNDEFINED: [u8; 4] = [0xFF; 4];
    let delimiter = [&[0xFE, 0xFF, 0xDD, 0xE0][..], &[0; 4]].concat();
    let in_items = |tag: u32, payloads: &[&[u8]]| {
        let head = element(tag, b"OB", &[]);
        let items: Vec<u8> = [&[][..]].iter().chain(payloads).flat_map(|each| item(each)).collect();
        [&head[..8], &UNDEFINED[..], &items, &delimiter].concat()
    };
    let icon = element(0x0088_0200, b"SQ", &item(&in_items(0x7FE0_0010, &[b"icon", b"ic"])));
    let content = [
        element(0x0008_0060, b"CS", b"OT"),
        in_items(0x0029_1010, &[b"private!"]),
        in_items(0x0029_1011, &[]),
        icon,
        in_items(0x7FE0_0010, &[b"image1", b"image2"]),
    ]
    .concat();
    let bytes = |text: &[u8]| Some(Bulk::Bytes(text.to_vec()));
    assert_eq!(found(&content, "00291010").unwrap(), bytes(b"private!"));
    assert_eq!(found(&content, "00291011").unwrap(), bytes(b""));
    assert_eq!(found(&content, "00880200/1/7FE00010").unwrap(), bytes(b"iconic"));
    assert_eq!(found(&content, "7FE00010").unwrap(), Some(Bulk::Frames));
    let limited = find_bulk(&Bytes(&content), "00880200/1/7FE00010", 5, &mut Buffer::default());
    assert_eq!(limited.unwrap_err().kind, ErrorKind::LimitExceeded);
}

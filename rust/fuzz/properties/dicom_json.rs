//! Any bytes as a DICOM file: DICOM JSON that every reader of JSON takes, the same from memory and from pieces,
//! whole and as a stream.

use _core::base::error::ErrorKind;
use _core::base::source::{Bytes, Fingerprint, Source};
use _core::base::window::Buffer;
use _core::dicom::json::{Bulk, BulkData, Options, find_bulk, stream, write};
use serde_json::Value;

/// The same bytes as a source that is not memory, which is read through windows and buffers.
struct Pieces<'a>(&'a [u8]);

impl Source for Pieces<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_size(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> _core::Result<usize> {
        Bytes(self.0).read_at(offset, buffer)
    }
}

const MOST_BYTES: usize = 1 << 20;

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    let bulk_data = Some(BulkData { uri: "\"b", inline_limit: 16 });
    for options in [
        Options { most_bytes: MOST_BYTES, ..Options::default() },
        Options { bulk_data, with_transfer_syntax: true, most_bytes: MOST_BYTES, ..Options::default() },
    ] {
        let mut buffer = Buffer::default();
        let whole = write(&Bytes(bytes), &options, &mut buffer);
        assert_eq!(whole, write(&Pieces(bytes), &options, &mut buffer));
        let mut text = Vec::new();
        let streamed = stream(&Pieces(bytes), &options, &mut buffer, &mut |piece| {
            text.extend_from_slice(piece);
            Ok(())
        });
        match (whole, streamed) {
            (Ok(whole), Ok(())) => {
                assert_eq!(whole, text);
                let mut uris = Vec::new();
                check(&serde_json::from_slice(&whole).expect("JSON"), 0, &mut uris);
                for uri in uris.iter().take(16) {
                    find(bytes, uri.strip_prefix("\"b/").expect("the beginning that was chosen"));
                }
            }
            (Err(error), Err(other)) => assert_eq!(error, other),
            (whole, streamed) => panic!("whole {whole:?}, streamed {streamed:?}"),
        }
    }
}

/// Every URI leads to a value, but for pixels that are cut.
fn find(bytes: &[u8], place: &str) {
    match find_bulk(&Pieces(bytes), place, MOST_BYTES, &mut Buffer::default()) {
        Ok(Some(Bulk::Range { start, length })) => assert!(start + length <= bytes.len() as u64),
        Ok(Some(Bulk::Bytes(_) | Bulk::Frames)) => {}
        Err(error) if error.kind == ErrorKind::ValuePastEnd && place.starts_with("7FE000") => {}
        other => panic!("{place}: {other:?}"),
    }
}

/// Attributes ascend, have a VR and at most one form of value (PS3.18 F.2.2).
fn check(attributes: &Value, depth: usize, uris: &mut Vec<String>) {
    assert!(depth <= 64);
    let attributes = attributes.as_object().expect("an object");
    assert!(attributes.keys().is_sorted());
    for (tag, attribute) in attributes {
        assert!(tag.len() == 8 && tag.bytes().all(|digit| b"0123456789ABCDEF".contains(&digit)));
        let attribute = attribute.as_object().expect("an attribute");
        let vr = attribute["vr"].as_str().expect("a VR");
        assert!(vr.len() == 2 && vr.bytes().all(|letter| letter.is_ascii_uppercase()), "{vr}");
        assert!(attribute.len() <= 2);
        uris.extend(attribute.get("BulkDataURI").map(|uri| uri.as_str().expect("a URI").to_owned()));
        let Some(values) = attribute.get("Value") else { continue };
        let values = values.as_array().expect("a list");
        assert!(!values.is_empty());
        if vr == "SQ" {
            values.iter().for_each(|item| check(item, depth + 1, uris));
        }
    }
}

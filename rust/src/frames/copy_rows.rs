//! Rows of Postgres's binary COPY, as the preload query of the store sends them, turned into cache records.

use arrayvec::ArrayString;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Fingerprint;
use crate::frames::attributes::Attributes;
use crate::frames::cached;
use crate::frames::lru::Record;
use crate::frames::packed;
use crate::frames::table::{FrameTable, Kind, Method, OffsetsIn, Status, Verified};

/// The columns of the preload query, in their order. Numbers are int8, lists of names are text.
pub const COLUMNS: [&str; 20] = [
    "path",
    "etag",
    "transfer_syntax_uid",
    "photometric_interpretation",
    "status",
    "kind",
    "method",
    "verified",
    "offsets_in",
    "last_used_us",
    "size",
    "mtime_ns",
    "pixel_data_pos",
    "truncated_from",
    "number_of_frames",
    "rows",
    "columns",
    "samples_per_pixel",
    "bits_allocated",
    "frames",
];

/// One row: the record to store, and the last access that the database knows of (µs since 1970, 0 if none).
pub struct Preloaded {
    /// Ready to be put.
    pub record: Record,
    /// See [`crate::frames::lru::Put::used_at`].
    pub used_at: i64,
}

/// Takes the next row off `rest`; `None` at the trailer or the end. The inner result is that of one row,
/// which may be damaged while the stream goes on.
///
/// # Errors
/// `bad_table` when the stream itself is not what COPY writes.
pub fn next_row(rest: &mut &[u8]) -> Result<Option<Result<Preloaded>>> {
    let Some((count, after)) = rest.split_first_chunk::<2>() else { return Ok(None) };
    let count = i16::from_be_bytes(*count);
    *rest = after;
    if count == -1 {
        return Ok(None);
    }
    if count != COLUMNS.len() as i16 {
        return Err(bad(&format!("{count} columns, not {}", COLUMNS.len())));
    }
    let mut fields = [None; COLUMNS.len()];
    for field in &mut fields {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(|| bad("a cut row"))?;
        *rest = after;
        let length = i32::from_be_bytes(*length);
        if length >= 0 {
            let (value, after) = rest.split_at_checked(length as usize).ok_or_else(|| bad("a cut row"))?;
            *rest = after;
            *field = Some(value);
        }
    }
    Ok(Some(preloaded(fields)))
}

fn preloaded(fields: [Option<&[u8]>; COLUMNS.len()]) -> Result<Preloaded> {
    let [path, etag, syntax, photometric, status, kind, method, verified, offsets_in, numbers @ .., frames] =
        fields;
    let mut longs = [None; 10];
    for (long, field) in longs.iter_mut().zip(numbers) {
        *long = match field {
            None => None,
            Some(bytes) => {
                Some(i64::from_be_bytes(*bytes.first_chunk().ok_or_else(|| bad("a short number"))?))
            }
        };
    }
    let [used_at, size, mtime_ns, pixels, cut, declared, rows, columns, samples, bits] = longs;
    let unsigned = |long: Option<i64>| u64::try_from(long.unwrap_or(0)).map_err(|_| bad("a negative number"));
    let small =
        |long: Option<i64>| u32::try_from(long.unwrap_or(0)).map_err(|_| bad("a number beyond 32 bits"));
    let tiny =
        |long: Option<i64>| u16::try_from(long.unwrap_or(0)).map_err(|_| bad("a number beyond 16 bits"));
    let mut table = FrameTable {
        status: Status::from_name(text(status)?).ok_or_else(|| bad("a status"))?,
        kind: Kind::from_name(text(kind)?).ok_or_else(|| bad("a kind"))?,
        method: Method::from_name(text(method)?).ok_or_else(|| bad("a method"))?,
        verified: Verified::from_name(text(verified)?).ok_or_else(|| bad("a check"))?,
        offsets_in: OffsetsIn::from_name(text(offsets_in)?).ok_or_else(|| bad("what offsets count in"))?,
        truncated_from: cut.map(|cut| small(Some(cut))).transpose()?,
        transfer_syntax_uid: short(syntax)?,
        image: Attributes {
            rows: small(rows)?,
            columns: small(columns)?,
            number_of_frames: small(declared)?,
            samples_per_pixel: tiny(samples)?,
            bits_allocated: tiny(bits)?,
            photometric_interpretation: short(photometric)?,
            ..Attributes::default()
        },
        pixel_data_pos: pixels.map(|place| unsigned(Some(place))).transpose()?,
        fingerprint: Fingerprint { size: unsigned(size)?, mtime_ns },
        ..FrameTable::default()
    };
    table.layout = packed::decode(frames.unwrap_or_default(), table.limit())?;
    let etag = etag.map(|etag| text(Some(etag))).transpose()?;
    let record = cached::record(text(path)?, &table, etag)?;
    Ok(Preloaded { record, used_at: used_at.unwrap_or(0) })
}

fn short<const N: usize>(field: Option<&[u8]>) -> Result<ArrayString<N>> {
    ArrayString::from(text(field)?).map_err(|_| bad("a text too long for its kind"))
}

fn text(field: Option<&[u8]>) -> Result<&str> {
    std::str::from_utf8(field.unwrap_or_default()).map_err(|_| bad("text that is not UTF-8"))
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the rows of a preload hold {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::table::{Layout, Native};

    fn row(frames: &[u8]) -> Vec<u8> {
        let mut out = (COLUMNS.len() as i16).to_be_bytes().to_vec();
        let mut push = |field: Option<&[u8]>| match field {
            None => out.extend((-1_i32).to_be_bytes()),
            Some(bytes) => {
                out.extend((bytes.len() as i32).to_be_bytes());
                out.extend(bytes);
            }
        };
        push(Some(b"/a/b"));
        push(None);
        for text in ["1.2.840.10008.1.2.1", "MONOCHROME2", "ok", "native", "native", "all", "file"] {
            push(Some(text.as_bytes()));
        }
        for number in
            [Some(7_i64), Some(9000), Some(5), Some(900), None, Some(3), Some(4), Some(5), Some(1), Some(8)]
        {
            push(number.map(i64::to_be_bytes).as_ref().map(|bytes| bytes.as_slice()));
        }
        push(Some(frames));
        out
    }

    fn frames() -> Vec<u8> {
        packed::encode(&Layout::Native(Native { base: 1000, frame_bits: 160, frames: 3 }))
    }

    #[test]
    fn a_row_becomes_a_record_and_a_damaged_one_does_not_end_the_stream() {
        let mut damaged = frames();
        damaged[20] ^= 1;
        let stream =
            [row(&frames()), row(&damaged), row(&frames()), (-1_i16).to_be_bytes().to_vec()].concat();
        let mut rest = stream.as_slice();
        let first = next_row(&mut rest).unwrap().unwrap().unwrap();
        assert_eq!((first.record.key(), first.used_at), (b"/a/b".as_slice(), 7));
        assert!(next_row(&mut rest).unwrap().unwrap().is_err());
        assert!(next_row(&mut rest).unwrap().unwrap().is_ok());
        assert!(next_row(&mut rest).unwrap().is_none());
        let cut = row(&frames());
        assert!(next_row(&mut &cut[..cut.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(at in 0..300_usize, byte in any::<u8>()) {
            let mut bytes = row(&frames());
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
            let _ = next_row(&mut bytes.as_slice());
        }
    }
}

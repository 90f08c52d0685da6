//! Any bytes as a record of a table with a right checksum: refused, or decoded and encoded to the same bytes.
//! Any bytes as rows of the index: refused, or decoded.

use _core::frames::memory::cached::decode_meta;
use _core::frames::record::{decode, encode};
use _core::frames::row::next_row;

const MAGIC: usize = 4;

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    let _ = decode_meta(bytes);
    let mut rows = bytes;
    while let Ok(Some(_)) = next_row(&mut rows) {}
    let mut record = bytes.to_vec();
    if record.len() < MAGIC + 4 {
        return;
    }
    let crc =
        crc32c::crc32c_append(crc32c::crc32c(&[&record[..MAGIC], &[0; 4]].concat()), &record[MAGIC + 4..]);
    record[MAGIC..MAGIC + 4].copy_from_slice(&crc.to_le_bytes());
    let Ok(table) = decode(&record) else { return };
    let again = encode(&table);
    assert_eq!(decode(&again).as_ref(), Ok(&table));
}

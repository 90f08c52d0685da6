//! The key of a file's row: 16 bytes that put the files of one folder side by side.
//!
//! A run asks about a folder's files together and writes them together, so that they share pages of the index.
//! Keys that were hashes of the whole path alone met a page each (docs/decisions/157-keys-by-folder.md).

use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};
use sha2::Sha256;

/// How many bytes of a key tell the folder.
const FOLDER: usize = 4;

/// The key of a file: BLAKE2b-128 of the source's name, a NUL and the path, its first four bytes replaced by
/// those of SHA-256 of the folder, which is the path up to its last slash and with it.
///
/// SQL can say the folder's part too, and puts it into the keys of older versions that way.
pub fn key(source: &str, path: &[u8]) -> [u8; 16] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    let folder = slash.and_then(|slash| path.get(..=slash)).unwrap_or_default();
    let mut digest = Blake2b::<U16>::new();
    digest.update(source.as_bytes());
    digest.update([0]);
    digest.update(path);
    let mut key: [u8; 16] = digest.finalize().into();
    key.iter_mut().zip(Sha256::digest(folder)).take(FOLDER).for_each(|(place, byte)| *place = byte);
    key
}

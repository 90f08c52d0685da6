//! The bytes of the voxels of a NIfTI file, inflated where it is gzipped.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::gzip::{Inflated, gunzip_range};

/// Longest file that is read and inflated in one call, which costs its own size in memory.
const MOST_AT_ONCE: u64 = 1 << 30;

/// Reads the bytes `offset..offset + count` of a file, or of what it inflates to.
///
/// # Errors
/// `bad_deflate` for a damaged stream, `value_past_end` for a file that ends before, `io_error`, `limit_exceeded`.
pub fn read_voxels(path: &Path, is_gzipped: bool, offset: u64, count: u64) -> Result<Inflated> {
    let found = if is_gzipped {
        gunzip_range(path, offset, count, MOST_AT_ONCE)?
    } else {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let plausible = usize::try_from(count.min(size)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(plausible).map_err(|_| {
            Error::new(ErrorKind::LimitExceeded, format!("cannot allocate {plausible} bytes for voxels"))
        })?;
        file.seek(SeekFrom::Start(offset))?;
        file.take(count).read_to_end(&mut bytes)?;
        Inflated { bytes, skip: 0 }
    };
    let held = found.bytes.len().saturating_sub(found.skip) as u64;
    if held != count {
        return Err(Error::at(
            ErrorKind::ValuePastEnd,
            offset,
            format!("the header promises {count} bytes of voxels, the file has {held}"),
        ));
    }
    Ok(found)
}

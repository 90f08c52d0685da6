//! A byte range of a gzip file, for images that are read once: inflated without a Python loop.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, ErrorKind, Result};

/// No deflate stream yields more than this many bytes for one of its own (1032 by the format's limit).
const MAX_RATIO: u64 = 1032;

/// Bytes after the wanted ones that are inflated to reach the checksum.
const MAX_TAIL: u64 = 4 << 20;

/// Inflates `path` and returns the bytes `offset..offset + count`, fewer when the stream ends before.
///
/// Memory is reserved by what the file's size makes possible, never by `count` alone.
pub fn gunzip_range(path: &Path, offset: u64, count: u64) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut stream = MultiGzDecoder::new(BufReader::with_capacity(256 << 10, file));
    let skipped = std::io::copy(&mut (&mut stream).take(offset), &mut std::io::sink())
        .map_err(|e| refused(path, &e))?;
    let mut bytes = Vec::new();
    if skipped < offset {
        return Ok(bytes);
    }
    let plausible = usize::try_from(count.min(size.saturating_mul(MAX_RATIO))).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(plausible).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("no memory for {plausible} bytes of voxels"))
    })?;
    (&mut stream).take(count).read_to_end(&mut bytes).map_err(|error| refused(path, &error))?;
    // the checksum stands at the end of the stream: go there, unless much else lies between
    std::io::copy(&mut stream.take(MAX_TAIL), &mut std::io::sink()).map_err(|error| refused(path, &error))?;
    Ok(bytes)
}

fn refused(path: &Path, error: &std::io::Error) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Error::new(ErrorKind::BadDeflate, format!("{name}: the gzip stream is damaged or cut off: {error}"))
}

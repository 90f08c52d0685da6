//! Inflates a byte range of a gzip file: images that are read once, from first to last byte.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::ptr::NonNull;

use flate2::bufread::GzDecoder;
use libdeflate_sys::{
    libdeflate_alloc_decompressor, libdeflate_decompressor, libdeflate_free_decompressor,
    libdeflate_gzip_decompress_ex, libdeflate_result_LIBDEFLATE_SUCCESS,
};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::kernel::{Pages, advise_pages};

/// Largest ratio of inflated to stored bytes that deflate can reach.
const MAX_RATIO: u64 = 1032;

/// Bytes after the requested ones that are inflated at most, to reach the checksum.
const MAX_TAIL: u64 = 4 << 20;

/// Bytes from which on the allocator takes a mapping of its own for a buffer, and gives it back.
const LARGE: usize = 32 << 20;

/// Alignment in bytes that voxels need in memory.
const ALIGNED: u64 = 16;

/// Inflated bytes; the requested ones come after the first `skip`.
pub struct Inflated {
    /// All inflated bytes.
    pub bytes: Vec<u8>,
    /// Number of bytes before the requested ones; a multiple of 16.
    pub skip: usize,
}

/// Inflates the bytes `offset..offset + count` of a file, fewer when the stream ends before.
///
/// Zeros between and after the members are padding, as gzip(1) and Python's gzip take them.
///
/// Reserves no more memory than a file of this size can inflate to, whatever `count` is. A file of at most
/// `most_at_once` bytes is read and inflated in one call, which is up to twice as fast as piece by piece.
///
/// # Errors
/// `bad_deflate` for a damaged stream, `limit_exceeded` where memory is short, `io_error`.
pub fn gunzip_range(path: &Path, offset: u64, count: u64, most_at_once: u64) -> Result<Inflated> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let wanted = offset.checked_add(count).filter(|all| *all <= size.saturating_mul(MAX_RATIO));
    if let Some(wanted) = wanted
        && offset.is_multiple_of(ALIGNED)
        && size <= most_at_once
        && let Some(bytes) = at_once(&mut file, size, wanted)?
    {
        return Ok(Inflated { bytes, skip: offset as usize });
    }
    // Another length than expected, several members, or damage: the stream tells which.
    let bytes = piece_by_piece(path, File::open(path)?, size, offset, count)?;
    Ok(Inflated { bytes, skip: 0 })
}

/// Inflates a file of one member (and padding) that holds exactly `wanted` bytes; `None` for any other.
fn at_once(file: &mut File, size: u64, wanted: u64) -> Result<Option<Vec<u8>>> {
    let (Ok(size), Ok(wanted)) = (usize::try_from(size), usize::try_from(wanted)) else { return Ok(None) };
    let mut packed = Vec::new();
    if packed.try_reserve_exact(size).is_err() {
        return Ok(None);
    }
    prefer_huge_pages(&mut packed);
    file.take(size as u64).read_to_end(&mut packed)?;
    let mut bytes: Vec<u8> = Vec::new();
    let Some(decoder) = Decoder::new().filter(|_| bytes.try_reserve_exact(wanted).is_ok()) else {
        return Ok(None);
    };
    prefer_huge_pages(&mut bytes);
    let (mut taken, mut written) = (0_usize, 0_usize);
    // SAFETY: both buffers live and have the given lengths; no other thread has the decoder.
    let outcome = unsafe {
        libdeflate_gzip_decompress_ex(
            decoder.0.as_ptr(),
            packed.as_ptr().cast(),
            packed.len(),
            bytes.as_mut_ptr().cast(),
            wanted,
            &mut taken,
            &mut written,
        )
    };
    let is_padding = |rest: &[u8]| rest.iter().all(|byte| *byte == 0);
    if outcome != libdeflate_result_LIBDEFLATE_SUCCESS
        || written != wanted
        || !packed.get(taken..).is_some_and(is_padding)
    {
        return Ok(None);
    }
    // SAFETY: `wanted` bytes were reserved and written.
    unsafe { bytes.set_len(wanted) };
    Ok(Some(bytes))
}

/// Asks the kernel for pages of 2 MiB behind a large empty buffer that is filled next: a volume of 126 MB
/// takes 60 page faults instead of 31,000.
fn prefer_huge_pages(buffer: &mut Vec<u8>) {
    let room = buffer.spare_capacity_mut();
    if room.len() < LARGE {
        return; // of the heap: what is asked for would outlive the buffer
    }
    let page = rustix::param::page_size();
    let unused = room.as_ptr().align_offset(page);
    let length = room.len().saturating_sub(unused) / page * page;
    if let Some(first) = room.get_mut(unused) {
        // SAFETY: the pages are the buffer's own, and advice changes no byte of them. Refused: small pages.
        let _ = unsafe { advise_pages(first.as_mut_ptr().cast(), length, Pages::Large) };
    }
}

struct Decoder(NonNull<libdeflate_decompressor>);

impl Decoder {
    fn new() -> Option<Self> {
        // SAFETY: returns null or a decoder, which `drop` frees.
        NonNull::new(unsafe { libdeflate_alloc_decompressor() }).map(Self)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: from `libdeflate_alloc_decompressor`, and freed once.
        unsafe { libdeflate_free_decompressor(self.0.as_ptr()) };
    }
}

fn piece_by_piece(path: &Path, file: File, size: u64, offset: u64, count: u64) -> Result<Vec<u8>> {
    let mut stream = Members { current: Some(GzDecoder::new(BufReader::with_capacity(256 << 10, file))) };
    let skipped = std::io::copy(&mut (&mut stream).take(offset), &mut std::io::sink())
        .map_err(|error| damaged(path, &error))?;
    let mut bytes = Vec::new();
    if skipped < offset {
        return Ok(bytes);
    }
    let plausible = usize::try_from(count.min(size.saturating_mul(MAX_RATIO))).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(plausible).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("cannot allocate {plausible} bytes for voxels"))
    })?;
    (&mut stream).take(count).read_to_end(&mut bytes).map_err(|error| damaged(path, &error))?;
    // Inflate on to the checksum at the end of the stream, unless it is far away.
    std::io::copy(&mut stream.take(MAX_TAIL), &mut std::io::sink()).map_err(|error| damaged(path, &error))?;
    Ok(bytes)
}

/// The inflated bytes of all members of a file, one after the other.
struct Members {
    /// Decoder of the member that is being read; `None` after the last.
    current: Option<GzDecoder<BufReader<File>>>,
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let Some(decoder) = &mut self.current {
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if let Some(decoder) = self.current.take() {
                let mut rest = decoder.into_inner();
                if skip_padding(&mut rest)? {
                    self.current = Some(GzDecoder::new(rest));
                }
            }
        }
        Ok(0)
    }
}

/// Skips zeros; returns whether something else follows.
fn skip_padding(file: &mut BufReader<File>) -> std::io::Result<bool> {
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let is_over = zeros < buffer.len();
        file.consume(zeros);
        if is_over {
            return Ok(true);
        }
    }
}

fn damaged(path: &Path, error: &std::io::Error) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Error::new(
        ErrorKind::BadDeflate,
        format!("{name}: the gzip stream is damaged or cut off ({error}): copy the file again"),
    )
}

//! Reads the payload of a record once: CRC-32 and digest, and past the watches of plausibility.rs.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use flate2::read::DeflateDecoder;
use xxhash_rust::xxh3::Xxh3;

use super::archive::{Record, read_range};
use super::plausibility::Watch;
use super::verdict::{Checked, Finding, State};
use crate::base::window::Buffer;

/// Bytes of one read: fits the second-level cache, so that the checksum finds what the kernel just wrote.
const CHUNK: usize = 256 << 10;

/// The result of one pass over a record.
pub(super) struct Payload {
    /// CRC-32 of the content; `None` for a compression other than DEFLATE.
    pub crc: Option<u32>,
    /// Digest of the content, when requested.
    pub digest: Option<u128>,
    /// Why its numbers are implausible.
    pub implausible: Option<String>,
}

/// Reads all of a small record and decompresses it.
pub(super) fn read_whole(file: &File, record: &Record, cap: u64) -> Checked<Vec<u8>> {
    if record.size > cap || record.stored > cap {
        let detail = format!("{} of {} bytes exceeds the limit of {cap}", record.name, record.size);
        return Err(Finding::of(State::Unknown, &record.name, record.payload, detail));
    }
    let bytes = read_range(file, record.payload, record.stored)?;
    if !record.compressed() {
        return Ok(bytes);
    }
    if !record.deflated() {
        let detail = "the record is compressed by a method that this check does not know, nor does torch";
        return Err(Finding::of(State::Unknown, &record.name, record.payload, detail));
    }
    let mut content = Vec::new();
    let decoded = DeflateDecoder::new(bytes.as_slice()).take(record.size + 1).read_to_end(&mut content);
    if decoded.is_err() || content.len() as u64 != record.size {
        return Err(Finding::damage(
            &record.name,
            record.payload,
            "the compressed record does not decompress",
        ));
    }
    Ok(content)
}

/// Reads a record once, past the watches of its tensors.
pub(super) fn read_record(
    file: &File,
    record: &Record,
    buffer: &mut Buffer,
    watches: Vec<Watch>,
    digest: bool,
) -> Checked<Payload> {
    let stored = Span { file, at: record.payload, left: record.stored };
    if !record.compressed() {
        return read_pass(stored, record, buffer, watches, digest);
    }
    if !record.deflated() {
        return Ok(Payload { crc: None, digest: None, implausible: None });
    }
    read_pass(DeflateDecoder::new(stored).take(record.size + 1), record, buffer, watches, digest)
}

fn read_pass(
    mut source: impl Read,
    record: &Record,
    buffer: &mut Buffer,
    mut watches: Vec<Watch>,
    digest: bool,
) -> Checked<Payload> {
    let mut crc = crc32fast::Hasher::new();
    let mut hash = digest.then(Xxh3::new);
    let mut total = 0u64;
    let space = buffer.at_least(CHUNK).get_mut(..CHUNK).unwrap_or_default();
    loop {
        let filled = fill(&mut source, space).map_err(|error| match error.kind() {
            // These two come from the decoder; errors of the file have the system's number.
            std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                Finding::damage(&record.name, record.payload, "the compressed record does not decompress")
            }
            _ => Finding::from(error),
        })?;
        let Some(chunk) = space.get(..filled).filter(|chunk| !chunk.is_empty()) else { break };
        crc.update(chunk);
        if let Some(hash) = &mut hash {
            hash.update(chunk);
        }
        for watch in &mut watches {
            watch.look_at(total, chunk);
        }
        total += filled as u64;
    }
    if total != record.size {
        let detail = format!("the content has {total} bytes, its headers say {}", record.size);
        return Err(Finding::damage(&record.name, record.payload, detail));
    }
    Ok(Payload {
        crc: Some(crc.finalize()),
        digest: hash.map(|hash| hash.digest128()),
        implausible: watches.iter().find_map(Watch::reason),
    })
}

/// Reads until `space` is full or the source ends.
fn fill(source: &mut impl Read, space: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A range of a file, as a reader that needs no seek.
struct Span<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Span<'_> {
    fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(space.len());
        let Some(space) = space.get_mut(..wanted).filter(|space| !space.is_empty()) else { return Ok(0) };
        let count = self.file.read_at(space, self.at)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

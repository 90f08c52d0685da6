//! Reads the payload of a record once: CRC-32, digest and plausibility.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use flate2::read::DeflateDecoder;
use xxhash_rust::xxh3::Xxh3;

use super::archive::Record;
use super::pickle::Storage;
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
    let mut bytes = vec![0; record.stored as usize];
    file.read_exact_at(&mut bytes, record.payload)?;
    if !record.compressed() {
        return Ok(bytes);
    }
    let mut content = Vec::new();
    let decoded = DeflateDecoder::new(bytes.as_slice()).take(record.size + 1).read_to_end(&mut content);
    if !record.deflated() || decoded.is_err() || content.len() as u64 != record.size {
        return Err(Finding::damage(
            &record.name,
            record.payload,
            "the compressed record does not decompress",
        ));
    }
    Ok(content)
}

/// Reads a record once. `storage` is given where its numbers are to be judged.
pub(super) fn read_record(
    file: &File,
    record: &Record,
    buffer: &mut Buffer,
    storage: Option<&Storage>,
    digest: bool,
) -> Checked<Payload> {
    let stored = Span { file, at: record.payload, left: record.stored };
    if !record.compressed() {
        return read_pass(stored, record, buffer, storage, digest);
    }
    if !record.deflated() {
        return Ok(Payload { crc: None, digest: None, implausible: None });
    }
    read_pass(DeflateDecoder::new(stored).take(record.size + 1), record, buffer, storage, digest)
}

fn read_pass(
    mut source: impl Read,
    record: &Record,
    buffer: &mut Buffer,
    storage: Option<&Storage>,
    digest: bool,
) -> Checked<Payload> {
    let mut crc = crc32fast::Hasher::new();
    let mut hash = digest.then(Xxh3::new);
    let mut watch = storage.and_then(Watch::of);
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
        if let Some(watch) = &mut watch {
            watch.look_at(chunk);
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
        implausible: watch.and_then(|watch| watch.reason()),
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

/// Watches floating-point elements for what no real volume is: constant, NaN or infinite.
///
/// Integers are masks and counts, which may be constant, and so may few numbers.
struct Watch {
    kind: Float,
    first: Option<[u8; 8]>,
    constant: bool,
    not_a_number: u64,
    infinite: u64,
}

#[derive(Clone, Copy)]
enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Watch {
    /// Elements from which a storage is watched.
    const FROM: u64 = 64;

    fn of(storage: &Storage) -> Option<Self> {
        let kind = match &*storage.class {
            "torch.HalfStorage" => Float::F16,
            "torch.BFloat16Storage" => Float::Bf16,
            "torch.FloatStorage" => Float::F32,
            "torch.DoubleStorage" => Float::F64,
            _ => return None,
        };
        (storage.numel >= Self::FROM).then_some(Self {
            kind,
            first: None,
            constant: true,
            not_a_number: 0,
            infinite: 0,
        })
    }

    fn look_at(&mut self, chunk: &[u8]) {
        match self.kind {
            Float::F16 => self.elements::<2>(chunk, |b| classify_16(u16::from_le_bytes(b), 0x7C00)),
            Float::Bf16 => self.elements::<2>(chunk, |b| classify_16(u16::from_le_bytes(b), 0x7F80)),
            Float::F32 => self.elements::<4>(chunk, |b| {
                let value = f32::from_le_bytes(b);
                (value.is_nan(), value.is_infinite())
            }),
            Float::F64 => self.elements::<8>(chunk, |b| {
                let value = f64::from_le_bytes(b);
                (value.is_nan(), value.is_infinite())
            }),
        }
    }

    fn elements<const N: usize>(&mut self, chunk: &[u8], classify: impl Fn([u8; N]) -> (bool, bool)) {
        let (elements, _) = chunk.as_chunks::<N>();
        let Some(head) = elements.first() else { return };
        let mut wide = [0; 8];
        for (to, &from) in wide.iter_mut().zip(head) {
            *to = from;
        }
        let first = *self.first.get_or_insert(wide);
        self.constant &= first == wide && elements.iter().all(|element| element == head);
        for &element in elements {
            let (not_a_number, infinite) = classify(element);
            self.not_a_number += u64::from(not_a_number);
            self.infinite += u64::from(infinite);
        }
    }

    /// Why the elements are implausible.
    fn reason(&self) -> Option<String> {
        if self.not_a_number > 0 || self.infinite > 0 {
            return Some(format!("{} NaN and {} infinite elements", self.not_a_number, self.infinite));
        }
        let zero = self.first.is_some_and(|first| first == [0; 8]);
        self.constant
            .then(|| if zero { "every element is zero" } else { "every element is equal" }.to_owned())
    }
}

/// Whether a 16-bit float with that exponent mask is NaN, and whether it is infinite.
fn classify_16(bits: u16, exponent: u16) -> (bool, bool) {
    let special = bits & exponent == exponent;
    let fraction = bits & !exponent & 0x7FFF;
    (special && fraction != 0, special && fraction == 0)
}

//! Reading of record payloads: CRC-32, digest and plausibility in one pass.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use flate2::read::DeflateDecoder;
use xxhash_rust::xxh3::Xxh3;

use super::archive::Record;
use super::pickle::Storage;
use super::verdict::{Checked, Finding, State};

/// Scratch space for reads. It begins at a page: on Zen 3 the kernel copies into a buffer at page offset 8
/// or 16, where large allocations land, at a quarter of the speed.
pub struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
}

impl Buffer {
    /// Fits the second-level cache, so that the checksum reads what the kernel has just written there.
    const LENGTH: usize = 256 << 10;
    const PAGE: usize = 4096;

    /// Allocates it.
    pub fn new() -> Self {
        let bytes = vec![0; Self::LENGTH + Self::PAGE];
        let begin = bytes.as_ptr().align_offset(Self::PAGE).min(Self::PAGE);
        Self { bytes, begin }
    }

    fn space(&mut self) -> &mut [u8] {
        let end = self.begin.saturating_add(Self::LENGTH);
        self.bytes.get_mut(self.begin..end).unwrap_or_default()
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

/// What one pass over a record saw.
pub(super) struct Seen {
    /// `None` when the content could not be decompressed by us.
    pub crc: Option<u32>,
    pub digest: Option<u128>,
    pub complaint: Option<String>,
}

/// The whole content of a small record, decompressed.
pub(super) fn read_whole(file: &File, record: &Record, cap: u64) -> Checked<Vec<u8>> {
    if record.size > cap || record.stored > cap {
        let detail = format!("{} of {} bytes is over the cap of {cap}", record.name, record.size);
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
        return Err(Finding::bad(&record.name, record.payload, "the compressed record does not decompress"));
    }
    Ok(content)
}

/// Reads a record once.
pub(super) fn read_record(
    file: &File,
    record: &Record,
    buffer: &mut Buffer,
    storage: Option<&Storage>,
    digest: bool,
) -> Checked<Seen> {
    let stored = Span { file, at: record.payload, left: record.stored };
    if !record.compressed() {
        return Pass::over(stored, record, buffer, storage, digest);
    }
    if !record.deflated() {
        return Ok(Seen { crc: None, digest: None, complaint: None });
    }
    Pass::over(DeflateDecoder::new(stored).take(record.size + 1), record, buffer, storage, digest)
}

struct Pass;

impl Pass {
    fn over(
        mut source: impl Read,
        record: &Record,
        buffer: &mut Buffer,
        storage: Option<&Storage>,
        digest: bool,
    ) -> Checked<Seen> {
        let mut crc = crc32fast::Hasher::new();
        let mut hash = digest.then(Xxh3::new);
        let mut plausible = storage.and_then(Plausible::of);
        let mut total = 0u64;
        loop {
            let filled = fill(&mut source, buffer.space()).map_err(|error| match error.kind() {
                // The decoder's words; the file's own errors carry the system's number.
                std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                    Finding::bad(&record.name, record.payload, "the compressed record does not decompress")
                }
                _ => Finding::from(error),
            })?;
            let Some(chunk) = buffer.space().get(..filled).filter(|chunk| !chunk.is_empty()) else { break };
            crc.update(chunk);
            if let Some(hash) = &mut hash {
                hash.update(chunk);
            }
            if let Some(plausible) = &mut plausible {
                plausible.look_at(chunk);
            }
            total += filled as u64;
        }
        if total != record.size {
            let detail = format!("{total} bytes instead of {}", record.size);
            return Err(Finding::bad(&record.name, record.payload, detail));
        }
        Ok(Seen {
            crc: Some(crc.finalize()),
            digest: hash.map(|hash| hash.digest128()),
            complaint: plausible.and_then(|plausible| plausible.complaint()),
        })
    }
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

/// A stretch of a file as a reader that needs no seek.
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

/// Watches floating-point elements for what a real volume never is. Integers are masks and counts, whose
/// constancy means nothing; neither does that of a handful of numbers.
struct Plausible {
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

impl Plausible {
    const FEWEST: u64 = 64;

    fn of(storage: &Storage) -> Option<Self> {
        let kind = match &*storage.class {
            "torch.HalfStorage" => Float::F16,
            "torch.BFloat16Storage" => Float::Bf16,
            "torch.FloatStorage" => Float::F32,
            "torch.DoubleStorage" => Float::F64,
            _ => return None,
        };
        (storage.numel >= Self::FEWEST).then_some(Self {
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

    fn complaint(&self) -> Option<String> {
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

//! Reads ranges of a file, and headers: little-endian fields at fixed offsets, from a window on the file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::verdict::{Checked, Finding, State};

/// The signature of a local header, with which an archive begins.
pub(super) const LOCAL: &[u8; 4] = b"PK\x03\x04";

/// The ZIP64 extra field: the values that did not fit their 32-bit fields, in order.
pub(super) struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    /// Finds it among a record's extra fields.
    pub fn find(mut extra: &'a [u8]) -> Self {
        while let Some((head, rest)) = extra.split_at_checked(4) {
            let fields = Fields(head);
            let (Ok(tag), Ok(length)) = (fields.u16(0), fields.u16(2)) else { break };
            let Some((body, next)) = rest.split_at_checked(usize::from(length)) else { break };
            if tag == 1 {
                return Self(body);
            }
            extra = next;
        }
        Self(&[])
    }

    /// Returns `narrow`, or the next 64-bit value where `narrow` is the mark for one.
    pub fn widen(&mut self, narrow: u32) -> Option<u64> {
        if narrow != u32::MAX {
            return Some(u64::from(narrow));
        }
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }
}

/// Little-endian fields at fixed offsets.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> Checked<[u8; N]> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk::<N>())
            .copied()
            .ok_or_else(|| Finding::new(State::BadStructure, "a header ends too early"))
    }

    pub fn u16(&self, at: usize) -> Checked<u16> {
        self.take(at).map(u16::from_le_bytes)
    }

    pub fn u32(&self, at: usize) -> Checked<u32> {
        self.take(at).map(u32::from_le_bytes)
    }

    pub fn u64(&self, at: usize) -> Checked<u64> {
        self.take(at).map(u64::from_le_bytes)
    }
}

/// Reads a range of a file that was found to lie in it, or says that the memory does not suffice.
pub fn read_range(file: &File, at: u64, length: u64) -> Checked<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes.try_reserve_exact(length).is_err() {
        return Err(Finding::new(State::IoError, format!("no memory for {length} bytes")));
    }
    bytes.resize(length, 0);
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A window on the file: headers lie close to each other, so few reads suffice.
pub(super) struct Window<'a> {
    file: &'a File,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    const LENGTH: u64 = 2048;

    pub fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, start: 0, bytes: Vec::new() }
    }

    /// Returns bytes `[at, at + length)`; reads ahead.
    pub fn read(&mut self, at: u64, length: u64) -> Checked<&[u8]> {
        self.fetch(at, length, at)
    }

    /// Returns bytes `[at, at + length)`; reads what lies before them too, for a walk from the end.
    pub fn read_back(&mut self, at: u64, length: u64) -> Checked<&[u8]> {
        let from = (at + length).saturating_sub(Self::LENGTH).min(at);
        self.fetch(at, length, from)
    }

    fn fetch(&mut self, at: u64, length: u64, from: u64) -> Checked<&[u8]> {
        let end = at.checked_add(length).filter(|&end| end <= self.size).ok_or_else(|| {
            Finding::of(State::BadStructure, "header", at, "a header reaches past the end of the file")
        })?;
        let window_end = self.start + self.bytes.len() as u64;
        if at < self.start || end > window_end {
            let until = end.max((from + Self::LENGTH).min(self.size));
            self.bytes.clear();
            self.bytes.resize((until - from) as usize, 0);
            self.start = from;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, from) {
                self.bytes.clear();
                return Err(error.into());
            }
        }
        let begin = (at - self.start) as usize;
        self.bytes
            .get(begin..begin + length as usize)
            .ok_or_else(|| Finding::new(State::Unknown, "a header could not be read"))
    }
}

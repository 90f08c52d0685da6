//! Tier 1: keeps frame tables in memory, shared by threads, and reads frames by them.

use rustix::io::IoSliceMut;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::fork_lock::ForkLock;
use crate::base::source::{FileSource, Range, Resident, Source, read_exact};
use crate::dicom::pixel_data::before::Before;
use crate::dicom::read::fill::fill;
use crate::dicom::read::{FrameBytes, prefetch, read_by_table, read_payload};
use crate::frames::memory::cached::{self, Selection};
use crate::frames::memory::lru::{Access, Class, Lru, Put, PutOutcome, Request};
use crate::frames::record;
use crate::frames::row::{Row, next_row};
use crate::frames::table::{FrameTable, Layout, OffsetsIn};

/// Entries or slots that are passed over while the mutex is held: other threads wait for microseconds.
const SLICE: usize = 256;
/// Neighbouring frames are read together up to this many bytes.
const LONGEST_RUN: u64 = 64 << 20;
/// Bytes that a thread which serves others copies at once: a fraction of a millisecond.
const MOST_RESIDENT: u64 = 1 << 20;

/// Frame tables within a budget of bytes, behind one mutex.
pub struct FrameCache {
    /// The entries. A thread that holds the mutex neither waits for anything nor calls Python.
    pub lru: ForkLock<Lru>,
}

/// Microseconds since 1970, some milliseconds old: takes a tenth of the time of the exact clock.
pub fn now_us() -> i64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::RealtimeCoarse;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Realtime;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000)
}

/// A look-up that happens now.
pub fn request(scan: bool) -> Request {
    Request { scan, now: if scan { 0 } else { now_us() } }
}

impl FrameCache {
    /// See [`Lru::new`].
    pub fn new(budget: u64, max_entry_fraction: f64, debounce_us: u64) -> Self {
        Self { lru: ForkLock::new(Lru::new(budget, max_entry_fraction, debounce_us)) }
    }

    /// Stores tables in the form of [`record::encode`]; returns how many were stored, refused and damaged.
    pub fn put_packed_many<'a>(
        &self,
        tables: impl Iterator<Item = (&'a String, &'a [u8])>,
        put: Put,
    ) -> (u64, u64, u64) {
        let (mut stored, mut refused, mut damaged) = (0, 0, 0);
        for (key, bytes) in tables {
            let made = record::decode(bytes).and_then(|table| cached::record(key, &table, None));
            match made.map(|record| self.lru.lock().put(record, put)) {
                Ok(PutOutcome::Stored) => stored += 1,
                Ok(_) => refused += 1,
                Err(_) => damaged += 1,
            }
        }
        (stored, refused, damaged)
    }

    /// Stores the rows of a look-up: the first as a put of `class`, those behind it (its series) where they
    /// are absent, until they have filled half the budget. Rows without a table are passed over.
    ///
    /// Returns the paths of the rows, and how many of those behind the first were stored.
    ///
    /// # Errors
    /// See [`next_row`] and [`cached::record`].
    pub fn put_rows(&self, rows: &[u8], class: Class) -> Result<(Vec<String>, u64)> {
        let (mut rest, mut paths, mut stored, mut room) = (rows, Vec::new(), 0, 0);
        while let Some(row) = next_row(&mut rest)? {
            let Ok(Row { path, outcome: Ok(table), used_at, .. }) = row else { continue };
            let record = cached::record(path, &table, None)?;
            let put = Put { class, used_at, preload_limit: None };
            let mut lru = self.lru.lock();
            let weight = Lru::weight(record.size());
            if paths.is_empty() {
                room = lru.budget() / 2;
                lru.put(record, put);
            } else if weight <= room && lru.peek(path.as_bytes()).is_none() {
                room -= weight;
                stored += u64::from(lru.put(record, put) == PutOutcome::Stored);
            }
            paths.push(path.to_owned());
        }
        Ok((paths, stored))
    }

    /// Stores the rows of a preload, best first, up to `limit` used bytes: see [`Put::preload_limit`].
    ///
    /// Returns how many are in, were skipped, hold no table that is of use.
    ///
    /// # Errors
    /// See [`next_row`].
    pub fn preload_rows(&self, rows: &[u8], limit: u64) -> Result<(u64, u64, u64)> {
        let (mut rest, mut stored, mut skipped, mut damaged) = (rows, 0, 0, 0);
        while let Some(row) = next_row(&mut rest)? {
            let made = row.and_then(|row| Ok((cached::record(row.path, &row.outcome?, None)?, row.used_at)));
            let Ok((record, used_at)) = made else {
                damaged += 1;
                continue;
            };
            let put = Put { class: Class::Normal, used_at, preload_limit: Some(limit) };
            match self.lru.lock().put(record, put) {
                PutOutcome::Stored => stored += 1,
                _ => skipped += 1,
            }
        }
        Ok((stored, skipped, damaged))
    }

    /// Changes the budget in steps, between which other threads get the mutex; `used` never exceeds it.
    pub fn resize(&self, budget: u64) {
        while !self.lru.lock().resize_step(budget, SLICE) {}
    }

    /// Takes all accesses since the last call.
    pub fn drain(&self) -> Vec<Access> {
        let mut out = Vec::new();
        let mut from = Some(0);
        while let Some(begin) = from {
            from = self.lru.lock().drain_step(begin, SLICE as u32, &mut out);
        }
        out
    }

    /// Puts back accesses that could not be written.
    pub fn restore(&self, accesses: &[Access]) {
        accesses.chunks(SLICE).for_each(|slice| self.lru.lock().restore(slice));
    }
}

/// Looks up `frames` of a key; `None` when the key is absent, `Err` when a frame does not exist.
pub fn look_up(lru: &mut Lru, key: &str, frames: &[u32], request: Request) -> Option<Selection> {
    let slot = lru.get(key.as_bytes(), request)?;
    cached::select(slot.meta(), slot.value(), frames)
}

/// Reads every frame of a selection, neighbours in the file with one read.
///
/// # Errors
/// As [`read_by_table`]; `bad_table` where that finds the table wrong: the file must be walked.
pub fn read_frames(source: &dyn Source, table: &FrameTable) -> Result<Vec<FrameBytes>> {
    let Layout::Items(items) = &table.layout else { return Ok(Vec::new()) };
    let single = items.frames() == items.offsets.len();
    table.check_state(source)?;
    prefetch(source, table, 0..table.frames())?;
    if table.offsets_in == OffsetsIn::Inflated || table.is_unwalked() || !single {
        return (0..table.frames()).map(|index| read_one(source, table, index)).collect();
    }
    let mut out = Vec::with_capacity(items.frames());
    let ranges: Vec<(u64, u64)> = items.offsets.iter().copied().zip(items.lengths.iter().copied()).collect();
    let mut rest = ranges.as_slice();
    while let Some(&(start, first_length)) = rest.first() {
        let mut end = start.saturating_add(first_length);
        let mut count = 1;
        for &(next, length) in rest.iter().skip(1) {
            // Frames of odd bits share a byte with their neighbour; fragments have an Item header between.
            let joins = next.checked_sub(end).is_some_and(|gap| gap <= 8) || end.checked_sub(next) == Some(1);
            if !joins || next.saturating_add(length).saturating_sub(start) > LONGEST_RUN {
                break;
            }
            end = next.saturating_add(length).max(end);
            count += 1;
        }
        let (run, others) = rest.split_at(count);
        for index in out.len()..out.len() + count {
            table.check_readable(index)?;
        }
        match run {
            [_] => out.push(read_payload(source, table, start, end)?.ok_or_else(wrong_table)?),
            _ => read_run(source, table, run, end, &mut out)?,
        }
        rest = others;
    }
    // Bytes of a file that changed while it was read are not returned.
    source.check_unchanged()?;
    Ok(out)
}

/// As [`read_frames`], into memory that was made for them: see [`fill`].
///
/// # Errors
/// As [`read_frames`].
pub fn fill_frames(
    source: &dyn Source,
    table: &FrameTable,
    frames: &[usize],
    places: Vec<&mut [u8]>,
) -> Result<()> {
    if fill(source, table, frames, places)? { Ok(()) } else { Err(wrong_table()) }
}

/// Reads neighbouring payloads by one request, and compares the header before each with the table.
fn read_run(
    source: &dyn Source,
    table: &FrameTable,
    run: &[(u64, u64)],
    end: u64,
    out: &mut Vec<FrameBytes>,
) -> Result<()> {
    let start = run.first().map_or(0, |&(start, _)| start);
    let begin = start.saturating_sub(Before::of(table, start).length() as u64);
    let bytes = read_exact(source, begin, usize::try_from(end - begin).unwrap_or(usize::MAX))?;
    for &(offset, length) in run {
        let from = (offset - begin) as usize;
        let before = Before::of(table, offset);
        let header = from.checked_sub(before.length()).and_then(|at| bytes.get(at..from));
        if !header.is_some_and(|header| before.fits(header, length)) {
            return Err(wrong_table());
        }
        let payload = bytes.get(from..from + length as usize).unwrap_or_default();
        out.push(payload.to_vec().into());
    }
    Ok(())
}

/// Reads as [`read_frames`] does where all bytes lie in the page cache; `None` where that might take long: they
/// come from storage, they must be inflated or walked, or there are more than [`MOST_RESIDENT`].
///
/// # Errors
/// As [`read_frames`].
pub fn read_resident_frames(source: &dyn Source, table: &FrameTable) -> Result<Option<Vec<FrameBytes>>> {
    at_once(source, table, |resident| read_frames(resident, table))
}

/// As [`read_resident_frames`], into memory that was made for the frames: see [`fill`].
///
/// # Errors
/// As [`read_frames`].
pub fn fill_resident_frames(
    source: &dyn Source,
    table: &FrameTable,
    frames: &[usize],
    places: Vec<&mut [u8]>,
) -> Result<Option<()>> {
    at_once(source, table, |resident| fill_frames(resident, table, frames, places))
}

/// Whether the frames of a selection can be had at once, if the page cache holds them.
pub fn may_be_resident(table: &FrameTable) -> bool {
    let Layout::Items(items) = &table.layout else { return false };
    let bytes = items.lengths.iter().fold(0_u64, |sum, length| sum.saturating_add(*length));
    table.offsets_in == OffsetsIn::File && !table.is_unwalked() && bytes <= MOST_RESIDENT
}

fn at_once<T>(
    source: &dyn Source,
    table: &FrameTable,
    read: impl FnOnce(&Resident<'_>) -> Result<T>,
) -> Result<Option<T>> {
    if !may_be_resident(table) {
        return Ok(None);
    }
    let resident = Resident::new(source);
    match read(&resident) {
        Err(_) if resident.lacks_bytes() => Ok(None),
        read => read.map(Some),
    }
}

/// Appends a payload to `out`; `false`, and `out` as it was, where the page cache lacks some of it.
///
/// # Errors
/// As [`read_frames`].
pub fn append_resident(
    source: &FileSource,
    table: &FrameTable,
    (start, end): Range,
    out: &mut Vec<u8>,
) -> Result<bool> {
    let before = Before::of(table, start);
    let mut header = [0; 16];
    let header = header.get_mut(..before.length()).unwrap_or_default();
    let filled = out.len();
    out.resize(filled + end.saturating_sub(start) as usize, 0);
    let payload = out.get_mut(filled..).unwrap_or_default();
    let length = payload.len() as u64;
    let from = start.saturating_sub(header.len() as u64);
    if !source.read_resident_into(from, &mut [IoSliceMut::new(header), IoSliceMut::new(payload)]) {
        out.truncate(filled);
        return Ok(false);
    }
    if !before.fits(header, length) {
        return Err(wrong_table());
    }
    source.check_unchanged()?;
    Ok(true)
}

fn read_one(source: &dyn Source, table: &FrameTable, index: usize) -> Result<FrameBytes> {
    read_by_table(source, table, index)?.ok_or_else(wrong_table)
}

/// The table describes other bytes, whatever the state of the file says: it must be made anew by a walk.
fn wrong_table() -> Error {
    Error::new(ErrorKind::BadTable, "the file's headers are not those of the table: read its table again")
}

/// The class that has this name.
pub fn class_of(name: &str) -> Option<Class> {
    match name {
        "normal" => Some(Class::Normal),
        "scan" => Some(Class::Scan),
        "pinned" => Some(Class::Pinned),
        _ => None,
    }
}

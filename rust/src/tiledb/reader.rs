//! One fragment file, open: selections and patches read from it, each chunk decoded once per call.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;

use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};

use super::blocks::Block;
use super::cache::{Cache, Found, Key};
use super::cells::Cells;
use super::codec::Pipeline;
use super::framing::{Chunk, ChunkIndex, bad};
use super::layout::{Grid, Range};
use super::pool::process;
use super::runs::{MAX_DIMS, Placement};
use super::scatter::{Part, Target};
use crate::base::error::{Error, ErrorKind, Result};

/// Chunks that lie this close in the file are read together.
const COALESCE_GAP: u64 = 4 << 10;
/// Stored bytes that one task reads and decodes at most (one chunk always).
const TASK_BYTES: u64 = 512 << 10;
/// A stored byte takes as long to decode as this many decoded ones take to be written.
const WEIGHT: u64 = 8;
/// Decoded bytes below which helpers cost more than they bring.
const WORTH_HELP: u64 = 160 << 10;
/// Bytes of the output below which the same holds for decoded chunks, which only need to be copied.
const COPY_WORTH_HELP: u64 = 4 << 20;

/// How a read may use the machine.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Threads that decode, the caller's among them; >= 1.
    pub threads: usize,
    /// Whether decoded chunks are kept for later reads.
    pub keep: bool,
}

/// A fragment's file of tiles.
pub struct TileFile {
    file: File,
    identity: u128,
    index: ChunkIndex,
    grid: Grid,
    cell: usize,
    pipeline: Pipeline,
}

/// A chunk that a read needs and the placements (a range of the sorted list) that want its cells.
#[derive(Clone, Copy)]
struct Need {
    number: u32,
    chunk: Chunk,
    first: u32,
    count: u32,
}

impl TileFile {
    /// Opens a file and hops over its chunks; refuses one that does not fit grid and cell size.
    pub fn open(path: &Path, grid: Grid, cell: u32, pipeline: Pipeline) -> Result<Self> {
        let file = File::open(path)?;
        let state = file.metadata()?;
        if !matches!(cell, 1 | 2 | 4 | 8) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("cells of {cell} bytes")));
        }
        let tile_bytes = grid.tile_cells() * u64::from(cell);
        let index = ChunkIndex::scan(&file, state.len(), grid.tiles(), tile_bytes, cell)?;
        let mut digest = Blake2b::<U16>::new();
        digest.update(path.as_os_str().as_encoded_bytes());
        for number in [state.len(), state.ino(), state.dev(), state.mtime() as u64, state.mtime_nsec() as u64]
        {
            digest.update(number.to_le_bytes());
        }
        Ok(Self {
            file,
            identity: u128::from_le_bytes(digest.finalize().into()),
            index,
            grid,
            cell: cell as usize,
            pipeline,
        })
    }

    /// The layout that the file was opened with.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Bytes of a cell.
    pub fn cell(&self) -> usize {
        self.cell
    }

    /// Chunks in the file.
    pub fn chunks(&self) -> usize {
        self.index.len()
    }

    /// Reads a selection into `out` (row-major, exactly as long as the selection).
    pub fn read(&self, wanted: &[Range], out: &mut [u8], effort: Effort) -> Result<()> {
        let cells = self.grid.check(wanted)?;
        self.expect_length(out, cells)?;
        let mut placements = Vec::new();
        self.grid.place(wanted, &strides(wanted.iter().map(|range| range.count)), 0, &mut placements);
        // a read of everything would only push out what patches and slices come back for
        let keep = effort.keep && cells < self.grid.cells();
        self.run(placements, out, Effort { keep, ..effort })
    }

    /// Reads boxes of one size into `out` (N, size...); cells outside the array are left as they are.
    pub fn read_patches(&self, starts: &[i64], size: &[u64], out: &mut [u8], effort: Effort) -> Result<()> {
        let dims = self.grid.dims();
        if size.len() != dims || !starts.len().is_multiple_of(dims) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("patches of {size:?} in {dims} dimensions"),
            ));
        }
        let each = size.iter().try_fold(1_u64, |all, &one| all.checked_mul(one)).unwrap_or(u64::MAX);
        self.expect_length(out, each.saturating_mul((starts.len() / dims) as u64))?;
        let steps = strides(size.iter().copied());
        let mut placements = Vec::new();
        let mut wanted = [Range::default(); MAX_DIMS];
        for (number, corner) in starts.chunks_exact(dims).enumerate() {
            let mut base = number as u64 * each;
            for (dim, ((&start, &count), &step)) in corner.iter().zip(size).zip(&steps).enumerate() {
                let range = inside(start, count, self.grid.size(dim));
                base += range.start.saturating_add_signed(start.saturating_neg())
                    * step
                    * u64::from(range.count > 0);
                if let Some(slot) = wanted.get_mut(dim) {
                    *slot = range;
                }
            }
            if let Some(wanted) = wanted.get(..dims) {
                self.grid.place(wanted, &steps, base, &mut placements);
            }
        }
        self.run(placements, out, effort)
    }

    fn expect_length(&self, out: &[u8], cells: u64) -> Result<()> {
        if cells.checked_mul(self.cell as u64) == Some(out.len() as u64) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{} bytes for {cells} cells of {}", out.len(), self.cell),
        ))
    }

    fn run(&self, mut placements: Vec<Placement>, out: &mut [u8], effort: Effort) -> Result<()> {
        placements.sort_by_key(|placement| placement.tile);
        let needs = self.needs(&placements)?;
        let cache = &process().cache;
        let target = Target::new(out, self.cell);
        let found = cache.look_up(needs.iter().map(|need| self.key(need)), effort.keep);
        let mut missing = Vec::with_capacity(needs.len());
        let mut flying = Vec::new();
        let mut hits = Vec::new();
        for (need, found) in needs.iter().zip(found) {
            match found {
                Found::Cells(cells) => hits.push((*need, cells)),
                Found::Decode => missing.push(*need),
                Found::Flying => flying.push(*need),
            }
        }
        let flights =
            effort.keep.then(|| Flights::new(cache, missing.iter().map(|need| self.key(need)).collect()));
        self.scatter_all(&hits, &placements, &target, effort.threads)?;
        self.decode_all(&missing, &placements, &target, effort, flights.as_ref())?;
        drop(flights);
        for need in &flying {
            match cache.wait(self.key(need)) {
                Some(block) => self.scatter(need, &placements, block.cells(), &target),
                None => {
                    self.decode_all(&[*need], &placements, &target, Effort { threads: 1, keep: false }, None)?
                }
            }
        }
        Ok(())
    }

    fn key(&self, need: &Need) -> Key {
        Key { file: self.identity, chunk: need.number }
    }

    /// The chunks that hold wanted cells, in file order.
    fn needs(&self, placements: &[Placement]) -> Result<Vec<Need>> {
        let mut needs = Vec::new();
        let cell = self.cell as u64;
        let mut first = 0_usize;
        for same_tile in placements.chunk_by(|a, b| a.tile == b.tile) {
            let tile = same_tile.first().map_or(0, |placement| placement.tile);
            let (begin, chunks) = self.index.tile(tile)?;
            for (number, chunk) in (begin..).zip(chunks) {
                let (low, high) = (chunk.start / cell, (chunk.start + u64::from(chunk.original)) / cell);
                if same_tile.iter().any(|placement| placement.runs(low, high).next().is_some()) {
                    needs.push(Need {
                        number,
                        chunk: *chunk,
                        first: first as u32,
                        count: same_tile.len() as u32,
                    });
                }
            }
            first += same_tile.len();
        }
        if u32::try_from(first).is_err() {
            return Err(Error::new(ErrorKind::LimitExceeded, "more than 2^32 parts in one read"));
        }
        Ok(needs)
    }

    fn decode_all(
        &self,
        needs: &[Need],
        placements: &[Placement],
        target: &Target,
        effort: Effort,
        flights: Option<&Flights<'_>>,
    ) -> Result<()> {
        let decoded: u64 = needs.iter().map(|need| u64::from(need.chunk.original)).sum();
        let stored: u64 = needs.iter().map(|need| need.chunk.stored()).sum();
        process().cache.count(stored, decoded);
        let threads = if decoded < WORTH_HELP { 1 } else { effort.threads.max(1) };
        let share = if threads == 1 { u64::MAX } else { (decoded + WEIGHT * stored) / (threads as u64 * 8) };
        let tasks = tasks(needs, share);
        process().share(&tasks, threads, |task| self.decode_task(task, placements, target, flights))
    }

    fn decode_task(
        &self,
        task: &[Need],
        placements: &[Placement],
        target: &Target,
        flights: Option<&Flights<'_>>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (task.first(), task.last()) else { return Ok(()) };
        let start = first.chunk.offset;
        let length = usize::try_from(last.chunk.offset + last.chunk.stored() - start)
            .map_err(|_| Error::new(ErrorKind::LimitExceeded, "a read of more than the address space"))?;
        STORED.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let bytes = buffer.get_mut(..length).ok_or_else(|| bad(start, "no memory for a chunk"))?;
            self.file.read_exact_at(bytes, start)?;
            for need in task {
                let from = (need.chunk.offset - start) as usize;
                let stored = bytes.get(from..from + need.chunk.stored() as usize);
                let stored = stored.ok_or_else(|| bad(need.chunk.offset, "a chunk past its neighbours"))?;
                self.decode_need(need, stored, placements, target, flights)?;
            }
            Ok(())
        })
    }

    fn decode_need(
        &self,
        need: &Need,
        stored: &[u8],
        placements: &[Placement],
        target: &Target,
        flights: Option<&Flights<'_>>,
    ) -> Result<()> {
        let Chunk { offset, metadata, original, .. } = need.chunk;
        self.pipeline.decode(stored, metadata as usize, original as usize, self.cell, offset, |cells| {
            if let Some(flights) = flights {
                let block = Block::copy_of(cells, self.cell);
                self.scatter(need, placements, block.cells(), target);
                flights.land(self.key(need), block);
            } else {
                self.scatter(need, placements, cells, target);
            }
        })
    }

    fn wanted<'a>(&self, need: &Need, placements: &'a [Placement]) -> &'a [Placement] {
        placements.get(need.first as usize..(need.first + need.count) as usize).unwrap_or_default()
    }

    fn scatter(&self, need: &Need, placements: &[Placement], cells: Cells<'_>, target: &Target) {
        for part in self.parts(need, placements, cells) {
            // SAFETY: placements of one call never overlap in the output (see Target).
            unsafe { target.copy(&part.run, part.cells, part.low) };
        }
    }

    /// What is wanted of a chunk.
    fn parts<'a>(
        &self,
        need: &Need,
        placements: &'a [Placement],
        cells: Cells<'a>,
    ) -> impl Iterator<Item = Part<'a>> {
        let cell = self.cell as u64;
        let low = need.chunk.start / cell;
        let high = low + u64::from(need.chunk.original) / cell;
        let runs = self.wanted(need, placements).iter().flat_map(move |all| all.runs(low, high));
        runs.map(move |run| Part { run, cells, low })
    }

    /// Scatters chunks that were found decoded, in parallel where that pays.
    fn scatter_all(
        &self,
        hits: &[(Need, Block)],
        placements: &[Placement],
        target: &Target,
        threads: usize,
    ) -> Result<()> {
        let threads = if target.bytes() < COPY_WORTH_HELP { 1 } else { threads.max(1) };
        let shares = if threads == 1 { 1 } else { threads * 8 };
        let shares: Vec<_> = hits.chunks(hits.len().div_ceil(shares).max(1)).collect();
        process().share(&shares, threads, |share| {
            let mut parts = Vec::with_capacity(share.len());
            for (need, block) in *share {
                parts.extend(self.parts(need, placements, block.cells()));
            }
            // SAFETY: placements of one call never overlap in the output (see Target).
            unsafe { target.copy_all(&mut parts) };
            Ok(())
        })
    }
}

thread_local! {
    static STORED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Groups needs that lie close together into tasks of about `share` of the work, which [`TASK_BYTES`] bounds.
fn tasks(needs: &[Need], share: u64) -> Vec<&[Need]> {
    let (mut bytes, mut work) = (0, 0);
    needs
        .chunk_by(|a, b| {
            bytes += a.chunk.stored();
            work += u64::from(a.chunk.original) + WEIGHT * a.chunk.stored();
            let gap = b.chunk.offset.saturating_sub(a.chunk.offset + a.chunk.stored());
            let together = gap <= COALESCE_GAP && bytes + b.chunk.stored() <= TASK_BYTES && work < share;
            if !together {
                (bytes, work) = (0, 0);
            }
            together
        })
        .collect()
}

/// Row-major strides, in cells, of an output with these sizes.
fn strides(sizes: impl DoubleEndedIterator<Item = u64>) -> Vec<u64> {
    let mut steps: Vec<u64> = sizes
        .rev()
        .scan(1_u64, |weight, size| {
            let step = *weight;
            *weight = weight.saturating_mul(size);
            Some(step)
        })
        .collect();
    steps.reverse();
    steps
}

/// The part of `start..start + count` that lies in `0..size`.
fn inside(start: i64, count: u64, size: u64) -> Range {
    let end = start.saturating_add_unsigned(count).max(0).unsigned_abs().min(size);
    let begin = start.max(0).unsigned_abs().min(size);
    Range { start: begin, count: end.saturating_sub(begin), step: 1 }
}

/// Chunks that this call has promised to decode; an error or a panic on the way releases those who wait.
struct Flights<'a> {
    cache: &'a Cache,
    open: Mutex<std::collections::HashSet<Key>>,
}

impl<'a> Flights<'a> {
    fn new(cache: &'a Cache, keys: std::collections::HashSet<Key>) -> Self {
        Self { cache, open: Mutex::new(keys) }
    }

    fn land(&self, key: Key, block: Block) {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&key);
        self.cache.land(key, Some(block));
    }
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        let open = std::mem::take(self.open.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
        for key in open {
            self.cache.land(key, None);
        }
    }
}

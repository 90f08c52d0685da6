//! One tile file, open: reads selections and patches, and decodes each chunk once per call.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range as Span;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::codec::{Cells, Pipeline};
use super::framing::{Chunk, ChunkIndex, bad_tile};
use super::layout::{Grid, Range};
use super::memory::cache::{Block, Cache, Lookup};
use super::memory::handles::{Handle, announce, expect_ranges};
use super::memory::key::Key;
use super::output::convert::{Number, Recipe};
use super::output::scatter::Part;
use super::output::sink::Sink;
use super::plan::{Boxes, Need, Plan, strides};
use super::pool::process;
use super::runs::Placement;
use crate::base::error::{Error, ErrorKind, Result};

/// Chunks at most this many bytes apart in the file are read together.
const COALESCE_GAP: u64 = 4 << 10;
/// Stored bytes that one task reads and decodes at most; a task has at least one chunk.
const TASK_BYTES: u64 = 512 << 10;
/// Decoding one stored byte takes as long as copying this many decoded ones.
const WEIGHT: u64 = 8;
/// Decoded bytes of a read from which several threads pay.
const PARALLEL_DECODE_FROM: u64 = 160 << 10;
/// Bytes of output from which several threads pay to copy chunks that the cache holds.
const PARALLEL_COPY_FROM: u64 = 4 << 20;
/// Tasks for each thread, so that threads that finish early find more work.
const TASKS_PER_THREAD: usize = 8;

/// How a read may use the machine.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Threads that decode, the caller's among them; >= 1.
    pub threads: usize,
    /// Whether decoded chunks are kept for later reads.
    pub keep: bool,
    /// Whether they are kept in memory that other processes use too, where this one has joined one.
    pub shared: bool,
}

/// The tiles of one fragment.
pub struct TileFile {
    handle: Arc<Handle>,
    index: ChunkIndex,
    grid: Grid,
    /// Bytes of one cell.
    cell: usize,
    pipeline: Pipeline,
}

impl TileFile {
    /// Opens a file and finds its chunks.
    ///
    /// # Errors
    /// `invalid_argument` for cells of other than 1, 2, 4 or 8 bytes, `bad_tile` for a file that does not fit
    /// grid and cell size, `io_error`.
    pub fn open(path: &Path, grid: Grid, cell: u32, pipeline: Pipeline) -> Result<Self> {
        if !matches!(cell, 1 | 2 | 4 | 8) {
            return Err(invalid(format!("cells of {cell} bytes: only 1, 2, 4 and 8 can be read")));
        }
        let (handle, state) = process().handles.open(path)?;
        let tile_bytes = grid.tile_cells() * u64::from(cell);
        let file = process().handles.file(&handle)?;
        let index = ChunkIndex::scan(&file, state.len(), grid.tiles(), tile_bytes, cell)?;
        expect_ranges(&file); // the headers of chunks were read from end to end
        Ok(Self { handle, index, grid, cell: cell as usize, pipeline })
    }

    /// Chunks in the file.
    pub fn chunks(&self) -> usize {
        self.index.len()
    }

    /// Reads a selection (one range for each dimension) into `out`: row-major, exactly as long as the
    /// selection.
    ///
    /// # Errors
    /// `invalid_argument` for a selection outside the array or an output of another length, `bad_tile`,
    /// `io_error`.
    pub fn read(&self, selection: &[Range], out: &mut [u8], effort: Effort) -> Result<()> {
        let cells = self.grid.check(selection)?;
        self.check_length(out, cells)?;
        let mut placements = Vec::new();
        let steps = strides(selection.iter().map(|range| range.count));
        self.grid.place(selection, &steps, 0, &mut placements);
        // A read of the whole array would evict the chunks that patches and slices come back for.
        let keep = effort.keep && cells < self.grid.cells();
        let plan = Plan::new(&self.index, self.cell, placements)?;
        self.read_all(&plan, &Sink::new(out, self.bare()), Effort { keep, ..effort })
    }

    /// Reads boxes of one size into `out` (N, size...); cells outside the array keep their bytes.
    ///
    /// `starts` holds the first index of each box, dimension by dimension; it may be negative.
    ///
    /// # Errors
    /// As [`TileFile::read`].
    pub fn read_patches(&self, starts: &[i64], size: &[u64], out: &mut [u8], effort: Effort) -> Result<()> {
        let each = size.iter().try_fold(1_u64, |all, &one| all.checked_mul(one)).unwrap_or(u64::MAX);
        self.check_length(out, each.saturating_mul((starts.len() / self.grid.dims()) as u64))?;
        let steps = strides(size.iter().copied());
        let boxes = Boxes { starts, size, steps: &steps, first: 0, each };
        let plan = Plan::new(&self.index, self.cell, boxes.place(&self.grid)?)?;
        self.read_all(&plan, &Sink::new(out, self.bare()), effort)
    }

    /// Reads boxes of one size to any places of an output, converted; cells outside the array become `fill`.
    ///
    /// # Errors
    /// As [`TileFile::read`].
    pub fn read_boxes(&self, boxes: &Boxes<'_>, fill: [u8; 8], sink: &Sink, effort: Effort) -> Result<()> {
        let plan = self.prepare(boxes, fill, sink, |_, _| true)?;
        self.read_all(&plan, sink, effort)
    }

    /// Checks that boxes fit an output, fills what lies outside the array, and finds the chunks of the rest.
    ///
    /// `touches` says of the first and one past the last cell of a tile whether it is wanted.
    ///
    /// # Errors
    /// As [`TileFile::read`].
    pub fn prepare(
        &self,
        boxes: &Boxes<'_>,
        fill: [u8; 8],
        sink: &Sink,
        touches: impl Fn([u64; 3], [u64; 3]) -> bool,
    ) -> Result<Plan> {
        let mut placements = boxes.place(&self.grid)?;
        self.check_places(boxes, sink)?;
        // SAFETY: the output is borrowed for the call, and nothing else writes to these places yet.
        boxes.outside(&self.grid, &mut |first, count| unsafe { sink.fill(fill, first, count) });
        placements.retain(|placement| {
            let (low, high) = self.grid.tile_box(placement.tile);
            touches(low, high)
        });
        Plan::new(&self.index, self.cell, placements)
    }

    /// Checks that boxes lie inside an output, and that its cells are those of this file.
    fn check_places(&self, boxes: &Boxes<'_>, sink: &Sink) -> Result<()> {
        let count = (boxes.starts.len() / boxes.size.len().max(1)) as u64;
        let last = count.saturating_sub(1).checked_mul(boxes.each);
        let end = last.and_then(|last| last.checked_add(boxes.first)?.checked_add(boxes.numbers()));
        if sink.cell() == self.cell && end.is_some_and(|end| end <= sink.numbers()) {
            return Ok(());
        }
        Err(invalid(format!(
            "{count} patches of size {:?} do not fit into an output of {} numbers, or its cells are not of {} bytes",
            boxes.size,
            sink.numbers(),
            self.cell
        )))
    }

    /// Cells of the array along each stored dimension.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Bytes of a cell.
    pub fn cell(&self) -> usize {
        self.cell
    }

    /// A recipe that copies cells of this size.
    fn bare(&self) -> Recipe {
        Recipe::copy(match self.cell {
            1 => Number::U8,
            2 => Number::U16,
            4 => Number::U32,
            _ => Number::U64,
        })
    }

    fn check_length(&self, out: &[u8], cells: u64) -> Result<()> {
        if cells.checked_mul(self.cell as u64) == Some(out.len() as u64) {
            return Ok(());
        }
        Err(invalid(format!("the output has {} bytes for {cells} cells of {} bytes", out.len(), self.cell)))
    }

    fn read_all(&self, plan: &Plan, sink: &Sink, effort: Effort) -> Result<()> {
        self.read_part(plan, 0..plan.needs.len(), sink, effort)
    }

    /// Reads some of the chunks of a plan; the caller has checked that the plan fits the sink.
    ///
    /// # Errors
    /// `bad_tile`, `io_error`, `changed_during_read`.
    pub fn read_part(&self, plan: &Plan, part: Span<usize>, sink: &Sink, effort: Effort) -> Result<()> {
        let cache = &process().cache;
        let shared = effort.shared;
        let mut read = Read { file: self, placements: &plan.placements, sink, shared, claims: None };
        let needs = plan.needs.get(part).unwrap_or_default();
        let (mut in_cache, mut missing, mut in_progress) = (Vec::new(), Vec::new(), Vec::new());
        let answers = cache.look_up(needs.iter().map(|need| self.key(need)), effort.keep, shared);
        for (need, answer) in needs.iter().copied().zip(answers) {
            match answer {
                Lookup::Cells(block) if need.has(&block) => in_cache.push((need, block)),
                Lookup::Decode | Lookup::Cells(_) => missing.push(need),
                Lookup::InProgress => in_progress.push(need),
            }
        }
        if effort.keep {
            let keys = missing.iter().map(|need| self.key(need)).collect();
            read.claims = Some(Claims { cache, open: Mutex::new(keys) });
        }
        read.copy_all(&in_cache, effort.threads)?;
        // What other processes took away while it was copied is decoded.
        missing.extend(in_cache.iter().filter(|(_, block)| !block.is_valid()).map(|(need, _)| *need));
        missing.sort_unstable_by_key(|need| need.chunk.offset);
        read.decode_all(&missing, effort.threads)?;
        read.claims = None;
        for need in &in_progress {
            let block = cache.wait(self.key(need), shared).filter(|block| need.has(block));
            block.iter().for_each(|block| read.copy(need, block.cells()));
            if !block.is_some_and(|block| block.is_valid()) {
                read.decode_all(std::slice::from_ref(need), 1)?;
            }
        }
        Ok(())
    }

    fn key(&self, need: &Need) -> Key {
        Key { file: self.handle.identity(), chunk: need.number }
    }
}

/// One call of [`TileFile::read_part`].
struct Read<'a> {
    file: &'a TileFile,
    /// Sorted by tile.
    placements: &'a [Placement],
    sink: &'a Sink,
    shared: bool,
    /// The chunks that go to the cache, if any do.
    claims: Option<Claims<'a>>,
}

impl Read<'_> {
    fn decode_all(&self, needs: &[Need], threads: usize) -> Result<()> {
        let decoded: u64 = needs.iter().map(|need| u64::from(need.chunk.original)).sum();
        let stored: u64 = needs.iter().map(|need| need.chunk.stored_bytes()).sum();
        process().cache.count(stored, decoded);
        let threads = if decoded < PARALLEL_DECODE_FROM { 1 } else { threads.max(1) };
        let work = if threads == 1 {
            u64::MAX
        } else {
            (decoded + WEIGHT * stored) / (threads * TASKS_PER_THREAD) as u64
        };
        let tasks = group(needs, work);
        if tasks.len() > 1 {
            let file = process().handles.file(&self.file.handle)?;
            for (start, length) in tasks.iter().filter_map(|task| extent(task)) {
                announce(&file, start, length);
            }
        }
        process().run(&tasks, threads, |task| self.decode_task(task))
    }

    fn decode_task(&self, task: &[Need]) -> Result<()> {
        thread_local! {
            static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let Some((start, length)) = extent(task) else { return Ok(()) };
        let length = usize::try_from(length)
            .map_err(|_| Error::new(ErrorKind::LimitExceeded, "chunks beyond the address space"))?;
        STORED.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let bytes = buffer.get_mut(..length).unwrap_or_default();
            process().handles.file(&self.file.handle)?.read_exact_at(bytes, start)?;
            for need in task {
                let from = (need.chunk.offset - start) as usize;
                let stored = bytes.get(from..from + need.chunk.stored_bytes() as usize);
                self.decode(need, stored.ok_or_else(|| bad_tile(need.chunk.offset, "chunks overlap"))?)?;
            }
            Ok(())
        })
    }

    fn decode(&self, need: &Need, stored: &[u8]) -> Result<()> {
        let Chunk { offset, metadata, original, .. } = need.chunk;
        let TileFile { cell, pipeline, .. } = self.file;
        pipeline.decode(stored, metadata as usize, original as usize, *cell, offset, |cells| {
            let key = self.file.key(need);
            if let Some(claims) = &self.claims
                && let Some(block) = claims.cache.copy_of(key, cells, *cell, self.shared)
            {
                self.copy(need, block.cells());
                if !block.is_valid() {
                    self.copy(need, cells);
                }
                claims.finish(key, block);
            } else {
                self.copy(need, cells);
            }
        })
    }

    fn copy(&self, need: &Need, cells: Cells<'_>) {
        for part in self.parts(need, cells) {
            // SAFETY: placements of one call never overlap in the output (see `Target`).
            unsafe { self.sink.put(&part) };
        }
    }

    /// Copies chunks that the cache holds.
    fn copy_all(&self, blocks: &[(Need, Block)], threads: usize) -> Result<()> {
        let threads = if self.sink.bytes() < PARALLEL_COPY_FROM { 1 } else { threads.max(1) };
        let tasks = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
        let tasks: Vec<_> = blocks.chunks(blocks.len().div_ceil(tasks).max(1)).collect();
        process().run(&tasks, threads, |task| {
            let mut parts = Vec::with_capacity(task.len());
            for (need, block) in *task {
                parts.extend(self.parts(need, block.cells()));
            }
            // SAFETY: placements of one call never overlap in the output (see `Target`).
            unsafe { self.sink.put_all(&mut parts) };
            Ok(())
        })
    }

    /// The selected parts of a chunk.
    fn parts<'a>(&'a self, need: &Need, cells: Cells<'a>) -> impl Iterator<Item = Part<'a>> {
        let cell = self.file.cell as u64;
        let low = need.chunk.start / cell;
        let high = low + u64::from(need.chunk.original) / cell;
        let placements = self.placements.get(need.first as usize..(need.first + need.count) as usize);
        let runs = placements.unwrap_or_default().iter().flat_map(move |placement| placement.runs(low, high));
        runs.map(move |run| Part { run, cells, low })
    }
}

/// First byte and number of bytes of the chunks of a task in the file.
fn extent(task: &[Need]) -> Option<(u64, u64)> {
    let (first, last) = task.first().zip(task.last())?;
    let start = first.chunk.offset;
    Some((start, last.chunk.offset + last.chunk.stored_bytes() - start))
}

/// Groups chunks that lie close together into tasks of about `work`, within [`TASK_BYTES`].
fn group(needs: &[Need], work: u64) -> Vec<&[Need]> {
    let (mut bytes, mut done) = (0, 0);
    needs
        .chunk_by(|a, b| {
            bytes += a.chunk.stored_bytes();
            done += u64::from(a.chunk.original) + WEIGHT * a.chunk.stored_bytes();
            let gap = b.chunk.offset.saturating_sub(a.chunk.offset + a.chunk.stored_bytes());
            let together = gap <= COALESCE_GAP && bytes + b.chunk.stored_bytes() <= TASK_BYTES && done < work;
            if !together {
                (bytes, done) = (0, 0);
            }
            together
        })
        .collect()
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, detail)
}

/// The chunks that this call decodes for the cache; dropping it releases the readers that wait for the rest.
struct Claims<'a> {
    cache: &'a Cache,
    open: Mutex<HashSet<Key>>,
}

impl Claims<'_> {
    fn finish(&self, key: Key, block: Block) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.cache.finish(key, Some(block));
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        for key in std::mem::take(self.open.get_mut().unwrap_or_else(PoisonError::into_inner)) {
            self.cache.finish(key, None);
        }
    }
}

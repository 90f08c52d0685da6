//! A tile file that is built from the input and damaged by the rest of it, read whole, in part and in
//! patches.
//!
//! No panic and no access outside the buffers (the sanitizer sees those); an undamaged file gives the cells
//! written.

use std::path::PathBuf;

use _core::tiledb::codec::Pipeline;
use _core::tiledb::layout::{Grid, Range};
use _core::tiledb::pool::process;
use _core::tiledb::reader::{Effort, TileFile};

const CHUNK_CELLS: usize = 24;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> usize {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        usize::from(first)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() % limit
    }
}

fn number(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

/// One chunk as TileDB writes it.
fn chunk(cells: &[u8], cell: usize, shuffled: bool, zstd: bool) -> Vec<u8> {
    let count = cells.len() / cell;
    let body: Vec<u8> = if shuffled {
        (0..cells.len()).map(|at| cells[at % count * cell + at / count]).collect()
    } else {
        cells.to_vec()
    };
    let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let parts = [number(1), number(cells.len())].concat();
    let (notes, stored): (Vec<usize>, Vec<u8>) = match (shuffled, zstd) {
        (false, false) => (vec![], body),
        (true, false) => (vec![1, cells.len()], body),
        (false, true) => {
            let packed = pack(&body);
            (vec![0, 1, cells.len(), packed.len()], packed)
        }
        (true, true) => {
            let (head, tail) = (pack(&parts), pack(&body));
            (vec![1, 1, 8, head.len(), cells.len(), tail.len()], [head, tail].concat())
        }
    };
    let notes: Vec<u8> = notes.into_iter().flat_map(number).collect();
    [&number(cells.len())[..], &number(stored.len()), &number(notes.len()), &notes, &stored].concat()
}

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    let mut input = Input(bytes);
    let dims = 1 + input.below(4);
    let shape: Vec<u64> = (0..dims).map(|_| 1 + input.below(9) as u64).collect();
    let extents: Vec<u64> = (0..dims).map(|_| 1 + input.below(6) as u64).collect();
    let (cell, shuffled, zstd) = (1 << input.below(4), input.below(2) == 1, input.below(2) == 1);
    let flat = input.below(3) == 0; // background: one value
    let names: Vec<&str> = [(shuffled, "byteshuffle"), (zstd, "zstd")]
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    let pipeline = Pipeline::from_names(&names).unwrap();
    let grid = || Grid::new(&shape, &extents).unwrap();
    let tile_bytes = grid().tile_cells() as usize * cell;
    // The value of a cell depends on its tile and its place in it, so that a wrong cell is recognised.
    let value = |tile: usize, at: usize| if flat { (at % cell) as u8 } else { (tile * 7 + at * 31) as u8 };
    let mut file = Vec::new();
    for tile in 0..grid().tiles() as usize {
        let cells: Vec<u8> = (0..tile_bytes).map(|at| value(tile, at)).collect();
        let chunks: Vec<_> = cells.chunks(CHUNK_CELLS * cell).collect();
        file.extend((chunks.len() as u64).to_le_bytes());
        chunks.iter().for_each(|cells| file.extend(chunk(cells, cell, shuffled, zstd)));
    }
    let (threads, keep) = (1 + input.below(2), input.below(2) == 1);
    let ranges: Vec<Range> = shape
        .iter()
        .map(|&size| {
            let (start, step) = (input.next() as u64 % size, 1 + input.next() as u64 % 3);
            Range { start, count: 1 + input.next() as u64 % ((size - start - 1) / step + 1), step }
        })
        .collect();
    let corner: Vec<i64> = shape.iter().map(|_| input.below(16) as i64 - 6).collect();
    let mut damaged = false;
    while input.0.len() >= 3 {
        let at = input.next() | input.next() << 8;
        let length = file.len();
        if let Some(byte) = file.get_mut(at % length) {
            let change = input.next() as u8;
            *byte ^= change;
            damaged |= change != 0;
        }
    }
    if !input.0.is_empty() {
        file.truncate(file.len() - 1);
        damaged = true;
    }
    let path: PathBuf = std::env::temp_dir().join(format!("voxtier-fuzz-tiles-{}", std::process::id()));
    std::fs::write(&path, &file).unwrap();
    process().cache.clear(); // another file has the same path, and perhaps the same modification time
    process().cache.set_budget(1 << 20);
    let reader = match TileFile::open(&path, grid(), cell as u32, pipeline) {
        Ok(reader) => reader,
        Err(refusal) => {
            assert!(damaged, "an undamaged file was refused: {refusal}");
            return;
        }
    };
    let effort = Effort { threads, keep, shared: false };
    let wanted: u64 = ranges.iter().map(|range| range.count).product();
    let mut out = vec![0xAA; wanted as usize * cell];
    for _ in 0..2 {
        let read = reader.read(&ranges, &mut out, effort);
        assert!(damaged || read.is_ok(), "an undamaged file was not read: {read:?}");
    }
    if !damaged {
        for (place, found) in out.chunks_exact(cell).enumerate() {
            let (mut rest, mut tile, mut at, mut tiles, mut cells) = (place as u64, 0, 0, 1, 1);
            for dim in (0..dims).rev() {
                let index = ranges[dim].start + rest % ranges[dim].count * ranges[dim].step;
                rest /= ranges[dim].count;
                tile += index / extents[dim] * tiles;
                at += index % extents[dim] * cells;
                tiles *= shape[dim].div_ceil(extents[dim]);
                cells *= extents[dim];
            }
            let held: Vec<u8> =
                (0..cell).map(|byte| value(tile as usize, at as usize * cell + byte)).collect();
            assert_eq!(found, held, "cell {place}");
        }
    }
    let mut patches = vec![0; 2 * 27_usize.pow(2) * cell * 3];
    let size: Vec<u64> = shape.iter().map(|_| 3).collect();
    let bytes = 3_usize.pow(dims as u32) * cell;
    if let Some(out) = patches.get_mut(..2 * bytes) {
        let starts: Vec<i64> = corner.iter().chain(&corner).copied().collect();
        let read = reader.read_patches(&starts, &size, out, effort);
        assert!(damaged || read.is_ok(), "patches of an undamaged file were not read: {read:?}");
        if !damaged {
            assert_eq!(out[..bytes], out[bytes..], "the same patch twice");
        }
    }
}

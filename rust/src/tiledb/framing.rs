//! Finds where each chunk lies, by hopping over the chunk headers of a file once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::base::error::{Error, ErrorKind, Result};

/// Bytes of a chunk's header: original, filtered and metadata length.
const CHUNK_HEADER: u64 = 12;
/// Largest chunk in bytes: bounds what one chunk may allocate. TileDB writes 64 KiB unless told otherwise.
pub const MAX_CHUNK: u32 = 16 << 20;
/// Filter metadata of the pipelines in [`super`] takes 0, 8, 16 or 24 bytes.
const MAX_METADATA: u32 = 24;
const WINDOW: usize = 64 << 10;

/// One chunk of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Absolute offset of the metadata; the filtered bytes follow it.
    pub offset: u64,
    /// Bytes of filter metadata.
    pub metadata: u32,
    /// Bytes of the cells as stored.
    pub filtered: u32,
    /// Bytes of cells after decoding; > 0, a multiple of the cell size.
    pub original: u32,
    /// Offset of its first cell within the decoded tile, in bytes.
    pub start: u64,
}

impl Chunk {
    /// Bytes to read: metadata and filtered bytes.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.metadata) + u64::from(self.filtered)
    }
}

/// All chunks of a file, by tile.
#[derive(Debug)]
pub struct ChunkIndex {
    chunks: Vec<Chunk>,
    /// `first[t]..first[t + 1]` are the chunks of tile `t`; one entry more than there are tiles.
    first: Vec<u32>,
}

impl ChunkIndex {
    /// Reads the chunk headers of `tiles` tiles of `tile_bytes` decoded bytes each, with cells of `cell`
    /// bytes.
    ///
    /// # Errors
    /// `bad_tile` where a tile has another length or the last tile does not end with the file: the chunks of
    /// an index always lie inside the file.
    pub fn scan(file: &File, size: u64, tiles: u64, tile_bytes: u64, cell: u32) -> Result<Self> {
        let mut window = Window::new(file, size);
        // A tile has a header of its own and one chunk at least: a false number of tiles allocates nothing.
        let plausible = size / (8 + CHUNK_HEADER);
        if tiles > plausible {
            return Err(bad_tile(
                size,
                format!("the schema says {tiles} tiles, too many for a file of {size} bytes"),
            ));
        }
        let mut index = Self { chunks: Vec::new(), first: vec![0] };
        let mut at = 0_u64;
        for _ in 0..tiles {
            at = index.scan_tile(&mut window, at, tile_bytes, cell)?;
        }
        if at != size {
            return Err(bad_tile(at, format!("the last tile ends here, the file at byte {size}")));
        }
        Ok(index)
    }

    fn scan_tile(&mut self, window: &mut Window<'_>, at: u64, tile_bytes: u64, cell: u32) -> Result<u64> {
        let count = window.u64(at)?;
        let mut at = at + 8;
        let mut start = 0_u64;
        for _ in 0..count {
            let original = window.u32(at)?;
            let filtered = window.u32(at + 4)?;
            let metadata = window.u32(at + 8)?;
            if original == 0 || original > MAX_CHUNK || !original.is_multiple_of(cell) {
                return Err(bad_tile(
                    at,
                    format!("a chunk of {original} bytes is no sequence of cells of {cell} bytes"),
                ));
            }
            if metadata > MAX_METADATA || filtered > MAX_CHUNK.saturating_mul(2) {
                return Err(bad_tile(
                    at,
                    format!("a chunk declares {filtered} filtered and {metadata} metadata bytes"),
                ));
            }
            let chunk = Chunk { offset: at + CHUNK_HEADER, metadata, filtered, original, start };
            start += u64::from(original);
            at = chunk.offset + chunk.stored_bytes();
            if start > tile_bytes || at > window.size {
                return Err(bad_tile(
                    at,
                    format!("a tile has more than {tile_bytes} bytes or reaches past the end of the file"),
                ));
            }
            self.chunks.push(chunk);
        }
        if start != tile_bytes {
            return Err(bad_tile(at, format!("a tile has {start} bytes, its extents say {tile_bytes}")));
        }
        let end = u32::try_from(self.chunks.len())
            .map_err(|_| Error::new(ErrorKind::LimitExceeded, "the fragment has more than 2^32 chunks"))?;
        self.first.push(end);
        Ok(at)
    }

    /// The number of a tile's first chunk, and the tile's chunks in order.
    pub fn tile(&self, tile: u64) -> Result<(u32, &[Chunk])> {
        let place = usize::try_from(tile).unwrap_or(usize::MAX);
        let range = self.first.get(place).zip(self.first.get(place.saturating_add(1)));
        let (&begin, &end) = range.ok_or_else(|| bad_tile(0, format!("there is no tile {tile}")))?;
        let chunks = self.chunks.get(begin as usize..end as usize);
        chunks.map(|found| (begin, found)).ok_or_else(|| bad_tile(0, format!("there is no tile {tile}")))
    }

    /// The chunk of a number, as [`ChunkIndex::tile`] counts.
    pub fn chunk(&self, number: u32) -> Result<&Chunk> {
        self.chunks.get(number as usize).ok_or_else(|| bad_tile(0, format!("there is no chunk {number}")))
    }

    /// Number of chunks in the file.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether the file has no chunk.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// An error about the file at an offset.
pub(super) fn bad_tile(at: u64, detail: impl Into<String>) -> Error {
    Error::at(ErrorKind::BadTile, at, detail)
}

/// Serves small reads from a buffer that moves forward through the file.
struct Window<'a> {
    file: &'a File,
    size: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a File, size: u64) -> Self {
        Self { file, size, start: 0, bytes: Vec::new() }
    }

    fn get<const N: usize>(&mut self, at: u64) -> Result<[u8; N]> {
        if at.checked_add(N as u64).is_none_or(|end| end > self.size) {
            return Err(bad_tile(at, format!("{N} bytes are missing: the file ends at byte {}", self.size)));
        }
        if self.cached(at, N).is_none() {
            // Headers of compressed tiles lie tens of KiB apart: read a little, not the voxels between them.
            let ahead = if at < self.start + 2 * WINDOW as u64 { WINDOW } else { 4 << 10 };
            let wanted = usize::try_from(self.size - at).unwrap_or(usize::MAX).min(ahead);
            self.bytes.resize(wanted, 0);
            self.file.read_exact_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let found = self.cached(at, N).and_then(|slice| <[u8; N]>::try_from(slice).ok());
        found.ok_or_else(|| bad_tile(at, "the file ends here"))
    }

    fn cached(&self, at: u64, count: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(count)?)
    }

    fn u32(&mut self, at: u64) -> Result<u32> {
        self.get::<4>(at).map(u32::from_le_bytes)
    }

    fn u64(&mut self, at: u64) -> Result<u64> {
        self.get::<8>(at).map(u64::from_le_bytes)
    }
}

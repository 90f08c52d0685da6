//! Reads the dense tiles of a TileDB array without TileDB: selections and patches, in parallel, through a
//! cache.
//!
//! # What we assume of TileDB's on-disk format
//!
//! The format is TileDB's own and may change with each of its releases. Everything that the core takes for
//! granted is listed here; `voxtier.volumes.tiledb.format` lists what the Python side reads beside it
//! (commits, schemas, headers of metadata). Both compare versions with [`FORMAT_VERSION`] and nothing else.
//!
//! **The array** is dense, of one attribute of fixed size (1, 2, 4 or 8 bytes a cell), with tile order and
//! cell order row-major, and has exactly one committed fragment that covers the whole domain. Shape, tile
//! extents and filters come from the schema, as TileDB reports it: the caller vouches for them.
//!
//! **The fragment's file** `a0.tdb` holds nothing but tiles, in row-major tile order. Tiles at the edge are
//! padded to full extents. All numbers are little-endian:
//!
//! ```text
//! a0.tdb = tile, tile, ...
//! tile   = u64 number of chunks, chunk, chunk, ...
//! chunk  = u32 original, u32 filtered, u32 metadata      lengths in bytes
//!          filter metadata, filtered bytes
//! ```
//!
//! **A chunk** holds consecutive cells of one tile: 64 KiB of them, or the whole tile where the schema sets
//! the chunk size to 0. `original` is their length before filtering. A chunk decodes without its neighbours.
//!
//! **Filters** run in the order of the schema when TileDB writes: an optional byte shuffle, then an optional
//! compressor (zstd: one frame; lz4: one raw block; gzip: one zlib stream). Their metadata are u32 numbers:
//!
//! | pipeline | metadata | filtered bytes |
//! |---|---|---|
//! | none | (empty) | cells |
//! | shuffle | 1, original | bytes of equal significance together |
//! | compressor | 0, 1, original, filtered | one compressed part |
//! | both | 1, 1, 8, head, original, tail | the shuffle's metadata compressed (`head` bytes), then the cells |
//!
//! A file that breaks one of these rules is refused with `bad_tile`, and TileDB reads the array instead. When
//! a new TileDB writes another layout, the tests that hold this reader against TileDB
//! (`tests/volumes/tiledb`) fail first.
//!
//! # The way of a read
//!
//! [`reader`] opens the file; [`framing`] finds its chunks by hopping over their headers once. For each read
//! [`layout`] says which tiles hold cells of the selection, [`plan`] which chunks, [`runs`] which stretches of
//! a chunk, and [`memory::cache`] which chunks are decoded already. [`codec`] decodes the others, [`output`]
//! copies or converts cells to their places, [`pool`] distributes the work among threads. Every byte of the
//! file is hostile.

pub mod codec;
pub mod framing;
pub mod layout;
pub mod memory;
pub mod output;
pub mod plan;
pub mod pool;
pub mod reader;
pub mod runs;

/// The version of TileDB's format that voxtier reads and writes without TileDB, as fragments name it
/// (`..._22`).
pub const FORMAT_VERSION: u32 = 22;

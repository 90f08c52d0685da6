//! Direct reader of the dense tiles that TileDB writes (format 22, one fragment, one attribute).
//!
//! ```text
//! a0.tdb = tile, tile, ...            in row-major tile order, edge tiles padded to full extents
//! tile   = u64 chunks, chunk, chunk   little-endian
//! chunk  = u32 original, u32 filtered, u32 metadata length, metadata, filtered bytes
//! ```
//!
//! A chunk holds at most 64 KiB of consecutive cells, or a whole tile, and decodes alone, so a read touches only
//! the chunks that hold cells it asked for: [`framing`] finds them, [`codec`] undoes their filters, [`layout`] and
//! [`runs`] say which cells go where, [`scatter`] puts them there, [`reader`] does it in parallel, [`cache`] keeps
//! what was decoded, as [`cells`].
//!
//! The caller vouches for shape, extents and filters (they come from TileDB's schema); every byte of the file
//! is hostile.

pub mod cache;
pub mod cells;
pub mod codec;
pub mod framing;
pub mod layout;
pub mod pool;
pub mod reader;
mod rows;
pub mod runs;
pub mod scatter;

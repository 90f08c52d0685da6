//! What every room of the core uses: errors, positional reads, threads over many files, small codecs.

pub(crate) mod closed_list;
pub mod error;
pub mod fork_lock;
pub mod gzip;
pub mod parallel_read;
pub mod planned;
pub mod source;
pub mod system;
pub(crate) mod varint;
pub mod window;

pub use system::{cpu, kernel};

//! A torch zip file (`.pt`) checked without torch and without unpickling: structure, pickle opcodes,
//! tensor bounds, and the CRC-32 of every record.
//!
//! `torch.save` writes a ZIP archive of STORED records. `torch.load` checks no CRC (pytorch#126952), and
//! with `mmap=True` it does not even compare a record's size with its tensor's, so a damaged file loads as
//! wrong numbers. [`verify_file`] names the damage; [`ParallelVerifier`] does it for a folder with several threads.
//!
//! A verdict is a [`State`], never an error: that a file could not be *read* ([`State::IoError`],
//! [`State::Unknown`]) must stay apart from evidence that it is *bad*, because evidence leads to
//! quarantine.

mod archive;
mod contents;
mod globals;
mod parallel_verify;
mod payload;
mod pickle;
mod verdict;
mod verify;

pub use globals::ALLOWED_GLOBALS;
pub use parallel_verify::{Next, ParallelVerifier};
pub use payload::Buffer;
pub use verdict::{Checks, Finding, Report, State, TensorSummary};
pub use verify::verify_file;

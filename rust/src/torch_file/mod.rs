//! Checks torch files (`.pt`) without torch and without unpickling: ZIP structure, pickle opcodes, tensor
//! bounds, and the CRC-32 of every record.
//!
//! `torch.save` writes a ZIP archive of STORED records. `torch.load` checks no CRC (pytorch#126952), and
//! with `mmap=True` it does not even compare a record's size with its tensor's, so a damaged file loads as
//! wrong numbers. [`verify_file`] finds the damage in one file, [`ParallelVerifier`] in many.
//!
//! A verdict is a [`State`], never an error. A file that could not be *read* ([`State::IoError`],
//! [`State::Unknown`]) is told apart from a file that is *damaged*, because damaged files are moved to
//! quarantine.
//!
//! [`verify_file`] works in this order: `archive` tells the form of the file and reads its structure, `pickle`
//! follows the opcodes without executing them, `contents` compares tensors with records, `payload` reads the
//! records once, for CRC-32 and digest, and shows them to `plausibility`.

mod archive;
mod contents;
mod globals;
mod parallel_verify;
mod payload;
mod pickle;
mod plausibility;
mod verdict;
mod verify;

pub use globals::{ALLOWED_GLOBALS, INERT_GLOBALS};
pub use parallel_verify::{Next, ParallelVerifier};
pub use verdict::{Checks, Finding, Report, State, TensorSummary};
pub use verify::verify_file;

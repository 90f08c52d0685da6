//! voxtier's core: everything that must be fast or must never be wrong.
//!
//! # Core concepts
//!
//! 1. A [`Source`](base::source::Source) is anything that can be read at an offset: a file, bytes in memory,
//!    a remote.
//! 2. Its [`Fingerprint`](base::source::Fingerprint) is the state of the bytes: what was learnt of other
//!    bytes is not used.
//! 3. A *frame* is one image of a file: one or more *fragments* (PS3.5 A.4), or a range of native pixels
//!    (PS3.5 8.1).
//! 4. A [`FrameTable`](frames::table::FrameTable) is everything needed to fetch any frame of one file.
//! 5. A [`Note`](frames::notes::Note) is an oddity of a file that is accepted and reported; anything else is
//!    refused.
//! 6. A table is *packed* ([`frames::packed`]) into some 16 bits a frame, for memory and for the database.
//! 7. The [`Lru`](frames::memory::lru::Lru) keeps packed tables within a budget of bytes; [`frames::priority`] says
//!    which files to load first.
//! 8. A [`TileFile`](tiledb::reader::TileFile) is a volume on disk: tiles of *chunks*, each decoded alone.
//! 9. A [`Report`](torch_file::Report) is the verdict on a prepared tensor's file, found without unpickling
//!    it.
//! 10. An [`Error`] has a kind from a closed list, a byte offset and a sentence; no input makes the core
//!     panic.
//!
//! # The rooms
//!
//! ```text
//!   python/      the bindings: the only folder that imports pyo3
//!     |
//!     |--------------------------------.---------------.-------------------.
//!     v                                v               v                   v
//!   frames/  tables: packed, cached,  training/       torch_file/         resample/
//!     |      ranked, indexed          batches         structure, CRC and  a NIfTI file to
//!     v                                v              pickle of .pt files the tensor of MONAI
//!   dicom/   a file to its table      tiledb/          |                   |
//!     |                               tiles to voxels  |                   |
//!     |                                |               |                   |
//!     v                                v               v                   v
//!   base/    errors, sources, windows, parallel reads, locks that survive a fork
//! ```
//!
//! A room names only rooms below it; `dicom` fills a table and names the files of `frames` that describe one
//! (`table`, `attributes`, `notes`). No two files name each other. `tests/tree/test_imports.py` checks both.
//!
//! # The way of a file through the core
//!
//! ```text
//!   path ── base::source ── dicom::part10 ── dicom::dataset ──┬── pixel_data::native ───┬── frames::table
//!           open, fstat     preamble, meta   elements up to   │   arithmetic            │   FrameTable
//!                           information      the pixels       └── …::encapsulated ──────┘        │
//!                                                                 offset tables, walk            │
//!                                                                                                v
//!   bytes of a frame ── dicom::read ── frames::memory::lru ──────── frames::packed ────────── a row of the index,
//!                       fstat, pread   budget of bytes      16 bits a frame           a record, memory
//! ```
//!
//! # Lint policy
//!
//! Every byte that comes from a file, a database or a network is hostile. clippy's `unwrap_used`,
//! `expect_used`, `panic` and `indexing_slicing` are errors: code reaches input through `.get(..)`, does
//! arithmetic on it with `checked_*`, and never allocates by a declared length alone. An `#[allow]` names the
//! invariant that makes it safe.

#![cfg_attr(test, allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

#[cfg(windows)]
compile_error!("voxtier does not run on Windows: files are read by pread, locked by flock. Use WSL 2.");

#[cfg(test)]
extern crate self as _core; // as the fuzz targets name the crate
#[cfg(test)]
#[path = "../fuzz/properties/mod.rs"]
mod properties;

pub mod base;
pub mod dicom;
pub mod frames;
#[cfg(feature = "server")]
pub mod gateway;
pub mod resample;
pub mod tiledb;
pub mod torch_file;
pub mod training;

#[cfg(feature = "python")]
mod python;

pub use base::error::{Error, ErrorKind, Result};

//! voxtier's core: everything that must be fast or must never be wrong.
//!
//! The core does not know that Python exists; only [`python`] imports pyo3, and every function there
//! has one shape: convert, release the GIL, call, wrap.
//!
//! # Lint policy
//!
//! Every byte that a file, a database or a network hands us is hostile. So the crate is built with
//! clippy's `unwrap_used`, `expect_used`, `panic` and `indexing_slicing` as errors: input is reached
//! through `.get(..)`, arithmetic on input is `checked_*` and declared lengths never drive allocation.
//! An `#[allow]` names the invariant that makes it safe.

#![cfg_attr(test, allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod names;

pub mod bulk;
pub mod cached_table;
pub mod copy_rows;
pub mod cpu;
pub mod dicom;
pub mod error;
pub mod fork_lock;
pub mod frame_cache;
pub mod frame_table;
pub mod index;
pub mod lru;
pub mod packed;
pub mod priority;
pub mod ptfile;
pub mod record;
pub mod replay;
pub mod source;
pub mod tiles;
pub mod top_n;
mod varint;
pub mod window;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, ErrorKind, Result};

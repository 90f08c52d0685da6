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

pub mod base;
pub mod dicom;
pub mod frames;
pub mod tiledb;
pub mod torch_file;

#[cfg(feature = "python")]
mod python;

pub use base::error::{Error, ErrorKind, Result};

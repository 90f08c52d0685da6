//! Batches of patches for a training loop: places drawn, tiles read and decoded, numbers converted, by threads
//! of this process, into memory that the caller owns.
//!
//! # The way of a batch
//!
//! ```text
//!   engine   the caller submits the orders of the next batches; threads take tasks, the oldest batch first
//!     |
//!     |-- places    where a patch begins: drawn as `voxtier.volumes` draws it, bit for bit (random)
//!     |-- subjects  the volumes of an item: its channels and its mask, each a tile file with a recipe
//!     |-- oblique   a turned, scaled, mirrored patch: the tiles that it touches, then one sampling pass
//!     |-- finish    samples (classes: labels), changes intensities (noise, blur, contrast, gamma, resolution), mirrors
//!     v
//!   the rows of the batch are full: the caller is woken
//! ```
//!
//! A patch is cut into tasks of a few chunks each, which all batches in flight queue together: no thread waits
//! for the end of a batch. What a batch holds depends on its orders alone, never on threads. Where the lesions of a
//! mask lie (`components`) is found out at ingest.

pub mod components;
pub mod engine;
pub mod finish;
pub mod intensity;
pub mod labels;
pub mod oblique;
pub mod places;
pub mod random;
pub mod scratch;
pub mod subjects;

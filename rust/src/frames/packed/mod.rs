//! The encoding of a [`Layout`](crate::frames::table::Layout) in bytes: a head, then sections padded to 8
//! bytes.
//!
//! All numbers are little-endian. Tables that leave memory (Postgres, pickles) have the full head of 32
//! bytes:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | form: see `Form` |
//! | 2 | u8 | flags |
//! | 3 | u8 | low bits of the Elias-Fano form, else 0 |
//! | 4 | u32 | CRC-32C of the whole table with this field 0 |
//! | 8, 12 | u32 | items, frames |
//! | 16 | u64 | offset of the first Item tag; native: of the first pixel byte |
//! | 24 | u64 | first byte after the last item; AFFINE: stride in bits |
//!
//! Tables in memory, most of which have one frame, have a short head of 6 to 16 bytes without checksum: form
//! and flags in one byte, then the other fields that the form needs as varints (`base::varint`).
//!
//! Contiguous item i has its payload at `[tag_i + 8, tag_(i+1))`. With `FLAG_MAP` a section of `frames + 1`
//! u32 follows: the first item of each frame, and the number of items.

mod bits;
mod compact;
mod decode;
mod encode;
mod form;
mod head;
mod look_up;
#[cfg(test)]
mod tests;

pub use decode::{decode, decode_from_memory};
pub use encode::{encode, encode_for_memory};
pub use look_up::Table;

//! The one compact encoding of a [`Layout`]: a head, then sections padded to 8; little endian throughout.
//!
//! What leaves memory (Postgres, pickles) has the full head of 32 bytes:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | form: see [`Form`] |
//! | 2 | u8 | flags |
//! | 3 | u8 | low bits of the Elias-Fano form, else 0 |
//! | 4 | u32 | CRC-32C of the whole table with this field 0 |
//! | 8, 12 | u32 | items, frames |
//! | 16 | u64 | offset of the first Item tag; native: of the first pixel byte |
//! | 24 | u64 | first byte after the last item; AFFINE: stride in bits |
//!
//! In memory, where most tables are of one frame and nobody else writes, the head is brief: form and flags
//! in one byte, then what the form needs of the other fields as varints (`varint.rs`), 6 to 16 bytes in all.
//!
//! Contiguous item i has its payload at `[tag_i + 8, tag_(i+1))`. With [`FLAG_MAP`] a section of
//! `frames + 1` u32 follows: the first item of each frame, and the number of items.

use crate::base::closed_list::closed_list;
use crate::base::error::{Error, ErrorKind};

mod bits;
mod compact;
mod decode;
mod encode;
mod head;
mod look_up;
#[cfg(test)]
mod tests;

pub use decode::{decode, decode_brief};
pub use encode::{encode, encode_brief};
pub use look_up::Table;

const VERSION: u8 = 1;
/// Bytes before the first section.
pub const HEADER: usize = 32;
/// Items between two absolute positions of the U32CKPT form.
const CHECKPOINT: usize = 256;
/// More items than any file that the parser accepts.
const MOST_ITEMS: u32 = crate::dicom::encapsulated::fragments::MOST_FRAGMENTS as u32;

/// Borders are stored as halves.
pub const FLAG_HALVED: u8 = 1;
/// Native pixels: no item headers.
pub const FLAG_NATIVE: u8 = 2;
/// All items belong to frame 0.
pub const FLAG_ONE_FRAME: u8 = 4;
/// A fragment map follows.
pub const FLAG_MAP: u8 = 8;
/// RAW lengths are u64.
pub const FLAG_WIDE: u8 = 64;

closed_list! {
    /// How item positions are written; the code in the table is the order here plus 1.
    pub enum Form {
        /// Equal strides, no section at all.
        Affine = "affine",
        /// Frames of reference with 64 items a block, for memory.
        For64 = "for64",
        /// Elias-Fano, for memory.
        EliasFano = "elias_fano",
        /// u64 tag, u32 (or u64) length for each item: gaps, overlaps, any order.
        Raw = "raw",
        /// u64 tag of every 256th item, u32 length of each: contiguous items, decodable in SQL.
        Checkpoints = "checkpoints",
    }
}

fn pad(table: &mut Vec<u8>) {
    table.resize(table.len().next_multiple_of(8), 0);
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the packed frame table is {what}"))
}

//! The forms of a packed table, its flags and limits: shared by encoder, decoder and look-up.

use crate::base::error::{Error, ErrorKind};
use crate::dicom::pixel_data::encapsulated::fragments::MOST_FRAGMENTS;

pub(super) const VERSION: u8 = 1;
/// Bytes of the full head.
pub(super) const HEADER: usize = 32;
/// Items between two absolute positions of [`Form::Checkpoints`].
pub(super) const CHECKPOINT: usize = 256;
/// Most items of a table: the parser accepts no file with more.
pub(super) const MOST_ITEMS: u32 = MOST_FRAGMENTS as u32;

/// Borders are stored divided by 2.
pub(super) const FLAG_HALVED: u8 = 1;
/// Native pixels: no item headers.
pub(super) const FLAG_NATIVE: u8 = 2;
/// All items belong to frame 0.
pub(super) const FLAG_ONE_FRAME: u8 = 4;
/// A fragment map follows.
pub(super) const FLAG_MAP: u8 = 8;
/// Lengths of [`Form::Raw`] are u64.
pub(super) const FLAG_WIDE: u8 = 64;

/// How item positions are written; the code in the table is the order here plus 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// Equal strides: no section.
    Affine,
    /// Frames of reference with 64 items a block, for memory.
    For64,
    /// Elias-Fano, for memory.
    EliasFano,
    /// u64 tag, u32 (or u64) length for each item: gaps, overlaps, any order.
    Raw,
    /// u64 tag of every 256th item, u32 length of each: contiguous items, decodable in SQL.
    Checkpoints,
}

impl Form {
    /// The form of that place in the order.
    pub fn from_code(code: u8) -> Option<Self> {
        const ALL: [Form; 5] = [Form::Affine, Form::For64, Form::EliasFano, Form::Raw, Form::Checkpoints];
        ALL.get(usize::from(code)).copied()
    }
}

/// Pads a table to a multiple of 8 bytes.
pub(super) fn pad(table: &mut Vec<u8>) {
    table.resize(table.len().next_multiple_of(8), 0);
}

/// An error that continues "the packed frame table ...".
pub(super) fn bad_table(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the packed frame table {what}: read the file's table again"))
}

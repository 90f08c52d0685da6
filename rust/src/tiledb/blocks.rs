//! Decoded chunks in memory of their own: what the cache keeps.

use std::sync::Arc;

use super::cells::Cells;
use super::runs::Run;
use super::scatter::Target;

/// The cells of a decoded chunk in memory of their own; cells of one value take none.
#[derive(Clone, Debug)]
pub enum Block {
    /// Cell after cell.
    Plain(Arc<AlignedBytes>),
    /// Cells of one value, as [`Cells::Constant`].
    Constant([u8; 8], usize),
}

impl Block {
    /// Copies cells of `cell` (1, 2, 4 or 8) bytes.
    pub fn copy_of(cells: Cells<'_>, cell: usize) -> Self {
        if let Cells::Constant(value, bytes) = cells {
            return Self::Constant(value, bytes);
        }
        let mut plain = AlignedBytes::zeroed(cells.len());
        let count = (cells.len() / cell) as u64;
        let all = Run { count, ..Run::ONE };
        // SAFETY: the only view of a buffer that this function owns.
        unsafe { Target::new(plain.bytes_mut(), cell).copy(&all, cells, 0) };
        Self::Plain(Arc::new(plain))
    }

    /// Bytes of memory that the cells take.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Plain(cells) => cells.bytes.capacity() as u64,
            Self::Constant(..) => 0,
        }
    }

    /// The cells, to copy from.
    pub fn cells(&self) -> Cells<'_> {
        match self {
            Self::Plain(cells) => Cells::Plain(cells.bytes()),
            Self::Constant(value, bytes) => Cells::Constant(*value, *bytes),
        }
    }
}

/// Bytes that begin on a cache line, so that copying a row touches as few lines as possible.
///
/// Aligned by hand: glibc's aligned allocation takes twice the memory when blocks are allocated and freed often.
#[derive(Debug)]
pub struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    count: usize,
}

const LINE: usize = 64;

impl AlignedBytes {
    /// `count` bytes, all 0.
    pub fn zeroed(count: usize) -> Self {
        let bytes = vec![0; count + LINE - 1];
        let start = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        Self { bytes, start, count }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.count).unwrap_or_default()
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.count).unwrap_or_default()
    }
}

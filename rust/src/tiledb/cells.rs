//! The forms in which the cells of a chunk are held: as decoding leaves them, and as they are kept.

use std::sync::Arc;

use super::runs::Run;
use super::scatter::Target;

/// The cells of a chunk in one of the forms in which decoding leaves them.
#[derive(Clone, Copy, Debug)]
pub enum Cells<'a> {
    /// Cell after cell.
    Plain(&'a [u8]),
    /// The first bytes of all cells, then all second bytes, and so on: what a byte shuffle makes.
    Planes(&'a [u8]),
    /// So many bytes of cells that all begin like this.
    Constant([u8; 8], usize),
}

/// A decoded chunk that is kept; background takes no memory.
#[derive(Clone, Debug)]
pub enum Block {
    /// Cell after cell.
    Plain(Arc<Lines>),
    /// So many bytes of cells that all begin like this.
    Constant([u8; 8], usize),
}

impl Block {
    /// Bytes of memory that the cells take.
    pub fn held(&self) -> u64 {
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

/// Bytes that begin on a cache line: rows of a block then cross no line that they need not cross. Aligned
/// by hand: among blocks that come and go, glibc's aligned allocation holds twice the memory.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    start: usize,
    count: usize,
}

const LINE: usize = 64;

impl Lines {
    /// So many bytes, all 0.
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

impl Cells<'_> {
    /// Bytes of cells.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) | Self::Planes(bytes) => bytes.len(),
            Self::Constant(_, bytes) => *bytes,
        }
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of all cells of `cell` (1, 2, 4 or 8) bytes, where they have but one.
    pub fn constant(&self, cell: usize) -> Option<[u8; 8]> {
        let mut value = [0; 8];
        match self {
            Self::Plain(bytes) => {
                value.get_mut(..cell)?.copy_from_slice(bytes.get(..cell)?);
                (bytes.get(cell..) == bytes.get(..bytes.len() - cell)).then_some(value)
            }
            Self::Planes(bytes) => {
                for (slot, plane) in value.iter_mut().zip(bytes.chunks_exact((bytes.len() / cell).max(1))) {
                    *slot = *plane.first()?;
                    if plane.get(1..) != plane.get(..plane.len() - 1) {
                        return None;
                    }
                }
                Some(value)
            }
            Self::Constant(value, _) => Some(*value),
        }
    }

    /// A copy to keep.
    pub fn to_block(self, cell: usize) -> Block {
        if let Self::Constant(value, bytes) = self {
            return Block::Constant(value, bytes);
        }
        let mut plain = Lines::zeroed(self.len());
        let count = (self.len() / cell) as u64;
        let all = Run { count, ..Run::ONE };
        // SAFETY: the only view of a buffer that this function owns.
        unsafe { Target::new(plain.bytes_mut(), cell).copy(&all, self, 0) };
        Block::Plain(Arc::new(plain))
    }
}

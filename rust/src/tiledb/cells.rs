//! The cells of a decoded chunk, in the form in which decoding leaves them.

/// The cells of a decoded chunk.
#[derive(Clone, Copy, Debug)]
pub enum Cells<'a> {
    /// Cell after cell.
    Plain(&'a [u8]),
    /// The first bytes of all cells, then all second bytes, and so on: what a byte shuffle makes.
    Planes(&'a [u8]),
    /// Cells of one value (its first `cell` bytes count), and their length in bytes.
    Constant([u8; 8], usize),
}

impl Cells<'_> {
    /// Length in bytes.
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

    /// The one value of all cells, for cells of `cell` (1, 2, 4 or 8) bytes; `None` where cells differ.
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
}

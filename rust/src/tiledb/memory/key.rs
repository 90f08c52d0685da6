//! Identity of a decoded chunk.

/// Identity of a chunk: the state of its file, and its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Digest of path, size, modification time and inode.
    pub file: u128,
    /// Number within the file's index.
    pub chunk: u32,
}

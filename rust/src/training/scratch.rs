//! Memory between reading and sampling, used again: new pages cost more than the sampling of them.

use std::sync::{Mutex, PoisonError};

use crate::tiledb::output::convert::Recipe;
use crate::tiledb::output::sink::Sink;

/// Pieces that wait for use at most.
const MOST: usize = 16;

/// The free pieces of one engine.
#[derive(Default)]
pub struct Pool {
    free: Mutex<Vec<Vec<u64>>>,
}

/// Memory whose contents are not defined before they are written.
pub struct Scratch {
    words: Vec<u64>,
    bytes: usize,
}

impl Pool {
    /// A piece of so many bytes.
    pub fn take(&self, bytes: usize) -> Scratch {
        let mut words = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let count = bytes.div_ceil(8);
        if words.len() < count {
            words.resize(count, 0);
        }
        Scratch { words, bytes }
    }

    /// Takes a piece back.
    pub fn give(&self, scratch: Scratch) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MOST {
            free.push(scratch.words);
        }
    }
}

impl Scratch {
    /// A piece that holds these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        // SAFETY: any eight bytes are a word.
        let (_, room, _) = unsafe { words.align_to_mut::<u8>() };
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self { words, bytes: bytes.len() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: words have no padding and no forbidden bytes; there are at least `bytes` bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes) }
    }

    /// The 32-bit floats.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: as above; words are aligned for floats.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes / 4) }
    }

    /// The piece as the output of reads; several threads may hold sinks of it, which write apart.
    pub fn sink(&self, recipe: Recipe) -> Sink {
        // SAFETY: nothing reads the piece before all of its sinks are gone: sampling is the last task of an item.
        let out =
            unsafe { std::slice::from_raw_parts_mut(self.words.as_ptr().cast_mut().cast(), self.bytes) };
        Sink::new(out, recipe)
    }
}

//! Owned bytes in twelve bytes: a boxed slice whose length takes 32 bits, in a heap of its own.
//!
//! Records live for hours and come from every thread. Between the buffers of a request, in the heap of the
//! process, each would hold back a page that is otherwise free: a third of the budget again. Hence they lie
//! in the heap of an allocator that nothing else here uses.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{self, NonNull};

use mimalloc::MiMalloc;

/// As `Box<[u8]>`, below 4 GiB. Packed, so that a slot has no gaps: its fields are copied, never borrowed.
#[repr(C, packed(4))]
pub struct Bytes {
    start: NonNull<u8>,
    length: u32,
}

// SAFETY: it owns its bytes, as the box does that it was made of.
unsafe impl Send for Bytes {}
// SAFETY: a shared reference gives shared bytes, and nothing else.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// The parts, one after another; `None` from 4 GiB on.
    pub fn concat(parts: [&[u8]; 3]) -> Option<Self> {
        let length =
            parts.iter().try_fold(0_u32, |sum, part| sum.checked_add(u32::try_from(part.len()).ok()?))?;
        let Some(layout) = layout(length) else { return Some(Self::default()) };
        // SAFETY: the layout is not of size 0.
        let Some(start) = NonNull::new(unsafe { MiMalloc.alloc(layout) }) else {
            std::alloc::handle_alloc_error(layout);
        };
        let mut at = start.as_ptr();
        for part in parts {
            // SAFETY: the parts fit one after another into what was allocated, which is no part of them.
            at = unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at.add(part.len())
            };
        }
        Some(Self { start, length })
    }

    /// Number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated and written, which live as long as `self`; of none, any pointer
        // that is not null will do.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self { start: NonNull::dangling(), length: 0 }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(layout) = layout(self.length) {
            // SAFETY: allocated by `concat` with this layout, and freed once.
            unsafe { MiMalloc.dealloc(self.start.as_ptr(), layout) };
        }
    }
}

/// `None` for no bytes.
fn layout(length: u32) -> Option<Layout> {
    Layout::array::<u8>(length as usize).ok().filter(|layout| layout.size() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_it_was_given_in_twelve_bytes() {
        assert_eq!(size_of::<Bytes>(), 12);
        for (parts, whole) in [([b"".as_slice(), b"", b""], b"".as_slice()), ([b"ab", b"", b"cde"], b"abcde")]
        {
            let bytes = Bytes::concat(parts).unwrap();
            assert_eq!(
                (bytes.as_slice(), bytes.len(), bytes.is_empty()),
                (whole, whole.len(), whole.is_empty())
            );
        }
        assert!(Bytes::default().as_slice().is_empty());
    }
}

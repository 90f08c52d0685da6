//! A boxed slice in twelve bytes: its length takes 32 bits. It lies in a heap of its own.
//!
//! Records live for hours and are allocated by every thread. In the heap of the process, among the
//! short-lived buffers of requests, each would keep a page from being freed: a third of the budget on top.
//! Nothing else uses this heap.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{self, NonNull};

use libmimalloc_sys::{mi_free, mi_good_size, mi_malloc};

/// As `Box<[u8]>`, below 4 GiB. Packed, so that slots have no gaps; its fields are copied, never borrowed.
#[repr(C, packed(4))]
pub struct Bytes {
    start: NonNull<u8>,
    length: u32,
}

// SAFETY: it owns its bytes, as a box does.
unsafe impl Send for Bytes {}
// SAFETY: a shared reference gives shared bytes only.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Copies the parts, one after another; `None` from 4 GiB on.
    pub fn concat(parts: [&[u8]; 3]) -> Option<Self> {
        let length =
            parts.iter().try_fold(0_u32, |sum, part| sum.checked_add(u32::try_from(part.len()).ok()?))?;
        if length == 0 {
            return Some(Self::default());
        }
        // SAFETY: any size may be asked for.
        let Some(start) = NonNull::new(unsafe { mi_malloc(length as usize) }.cast::<u8>()) else {
            handle_alloc_error(Layout::array::<u8>(length as usize).ok()?);
        };
        let mut at = start.as_ptr();
        for part in parts {
            // SAFETY: the allocation has room for all parts, and none of them lies in it.
            at = unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at.add(part.len())
            };
        }
        Some(Self { start, length })
    }

    /// The bytes that the heap takes for an allocation of `length`: its size classes are 6 to 25 % apart.
    #[inline]
    pub fn heap_size(length: usize) -> u64 {
        // SAFETY: computes from its argument alone.
        unsafe { mi_good_size(length) as u64 }
    }

    /// Number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `length` bytes were allocated and written, and live as long as `self`; for none, any
        // pointer that is not null is valid.
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
        if !self.is_empty() {
            // SAFETY: allocated by `concat`, and freed once.
            unsafe { mi_free(self.start.as_ptr().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concatenates_parts_in_twelve_bytes() {
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

    #[test]
    fn heap_size_is_the_usable_size_of_an_allocation() {
        // For larger blocks the heap may reserve more address space than it touches.
        for length in (1..2_000).chain([4_095, 14_000, 14_400, 70_000, 500_000]) {
            let bytes = Bytes::concat([&vec![1; length], b"", b""]).unwrap();
            // SAFETY: a block of that heap, not freed yet.
            let usable = unsafe { libmimalloc_sys::mi_usable_size(bytes.start.as_ptr().cast()) };
            assert_eq!(Bytes::heap_size(length), usable as u64, "{length}");
        }
    }
}

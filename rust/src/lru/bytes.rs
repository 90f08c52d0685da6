//! Owned bytes in twelve bytes: a boxed slice whose length takes 32 bits.

use std::ptr::{self, NonNull};

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
    /// `None` from 4 GiB on.
    pub fn new(bytes: Box<[u8]>) -> Option<Self> {
        let length = u32::try_from(bytes.len()).ok()?;
        let start = NonNull::from(Box::leak(bytes)).cast();
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
        // SAFETY: start and length are those of the box that `new` leaked, which lives as long as `self`.
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
        // SAFETY: as in `as_slice`; of no bytes at all, a box is a dangling pointer and frees nothing.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len())) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_it_was_given_in_twelve_bytes() {
        assert_eq!(size_of::<Bytes>(), 12);
        for length in [0, 1, 40] {
            let bytes = Bytes::new(vec![7; length].into_boxed_slice()).unwrap();
            assert_eq!((bytes.as_slice(), bytes.is_empty()), (vec![7; length].as_slice(), length == 0));
        }
        assert!(Bytes::default().as_slice().is_empty());
    }
}

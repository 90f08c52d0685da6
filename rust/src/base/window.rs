//! A moving view on a source through which headers are parsed, and its page-aligned buffer.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Access, Source};

/// Bytes of the first read of a file: enough for the header of a usual CT slice (4.3 KB).
pub const FIRST_READ: usize = 8 * 1024;
const PAGE: usize = 4096;
/// Bytes of the second read, where it goes on without a jump; later ones take [`LARGEST_STEP`].
const SEQUENTIAL_STEP: usize = 64 * 1024;
const LARGEST_STEP: usize = 256 * 1024;

/// A page-aligned buffer, reused from file to file.
///
/// On some processors reads into a buffer that begins a few bytes into a page, as large `Vec`s do, are
/// several times slower.
#[derive(Default)]
pub struct Buffer {
    pages: Vec<Page>,
    /// Whether the first bytes of the file before this one were in the page cache.
    last_was_resident: bool,
}

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; PAGE]); // read through the flat view only

impl Buffer {
    /// Grows to at least `length` bytes and returns all of them, aligned to a page.
    pub fn at_least(&mut self, length: usize) -> &mut [u8] {
        let pages = length.div_ceil(PAGE);
        if self.pages.len() < pages {
            self.pages.resize(pages, Page([0; PAGE]));
        }
        // SAFETY: a `Page` is exactly `PAGE` initialised bytes without padding, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.pages.len() * PAGE) }
    }

    /// All bytes of the buffer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as above, with a shared borrow.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.pages.len() * PAGE) }
    }
}

/// A moving view on a source, for parsers that go forward with jumps.
pub struct Window<'s> {
    source: &'s dyn Source,
    memory: Option<&'s [u8]>,
    buffer: &'s mut Buffer,
    size: u64,
    start: u64,
    length: usize,
    step: usize,
    reads: u32,
}

impl<'s> Window<'s> {
    /// A window that has read nothing yet.
    pub fn new(source: &'s dyn Source, buffer: &'s mut Buffer) -> Self {
        let size = source.size();
        Self {
            source,
            memory: source.memory(),
            buffer,
            size,
            start: 0,
            length: 0,
            step: FIRST_READ,
            reads: 0,
        }
    }

    /// The source.
    pub fn source(&self) -> &'s dyn Source {
        self.source
    }

    /// Size of the source in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of reads so far.
    pub fn reads(&self) -> u32 {
        self.reads
    }

    /// Returns up to `length` bytes at `offset`; fewer only where the source ends.
    #[inline]
    pub fn peek(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        if let Some(memory) = self.memory {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(memory.len());
            let end = start.saturating_add(length).min(memory.len());
            return Ok(memory.get(start..end).unwrap_or_default());
        }
        let end = offset.saturating_add(length as u64).min(self.size);
        if offset < self.start || end > self.start + self.length as u64 {
            self.refill(offset, length)?;
        }
        let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.length);
        let to = from.saturating_add(length).min(self.length);
        Ok(self.buffer.bytes().get(from..to).unwrap_or_default())
    }

    /// Returns the bytes from `offset` on that need no further read; may be empty.
    #[inline]
    pub fn at_hand(&self, offset: u64) -> &[u8] {
        let (bytes, start) = match self.memory {
            Some(memory) => (memory, 0),
            None => (self.buffer.bytes().get(..self.length).unwrap_or_default(), self.start),
        };
        let within = offset.checked_sub(start).and_then(|within| usize::try_from(within).ok());
        within.and_then(|within| bytes.get(within..)).unwrap_or_default()
    }

    /// Returns exactly `length` bytes at `offset`, or `None` where the source ends before.
    #[inline]
    pub fn exact(&mut self, offset: u64, length: usize) -> Result<Option<&[u8]>> {
        Ok(Some(self.peek(offset, length)?).filter(|bytes| bytes.len() == length))
    }

    /// Returns exactly `N` bytes at `offset`, or `None` where the source ends before.
    #[inline]
    pub fn array<const N: usize>(&mut self, offset: u64) -> Result<Option<[u8; N]>> {
        Ok(self.peek(offset, N)?.try_into().ok())
    }

    fn refill(&mut self, offset: u64, length: usize) -> Result<()> {
        if offset >= self.size {
            self.length = 0;
            self.start = offset;
            return Ok(());
        }
        let window_end = self.start + self.length as u64;
        let goes_on =
            self.length > 0 && offset <= window_end && window_end < offset.saturating_add(PAGE as u64);
        self.step = match (goes_on, self.step) {
            (true, FIRST_READ) => SEQUENTIAL_STEP,
            (true, _) => LARGEST_STEP,
            (false, _) => FIRST_READ,
        };
        let start = offset & !(PAGE as u64 - 1);
        let within = usize::try_from(offset - start).unwrap_or(0);
        let wanted = self.step.max(within.saturating_add(length));
        let wanted = wanted.min(usize::try_from(self.size - start).unwrap_or(usize::MAX));
        self.length = 0;
        self.reads += 1;
        let count = if self.reads == 1 {
            self.first_read(start, wanted)?
        } else {
            let target = self.buffer.at_least(wanted).get_mut(..wanted).unwrap_or_default();
            self.source.read_at(start, target)?
        };
        if count < wanted {
            self.source.check_unchanged()?;
            return Err(Error::at(
                ErrorKind::IoError,
                start + count as u64,
                "the source ended before its declared size",
            ));
        }
        self.start = start;
        self.length = count;
        Ok(())
    }

    /// Reads a file's first bytes, with advice to the kernel only where it helps.
    ///
    /// Without advice the kernel reads far ahead, which costs time on slow storage; for a file in the page
    /// cache the advice is a wasted system call. The guess is that this file is like the one before.
    fn first_read(&mut self, start: u64, wanted: usize) -> Result<usize> {
        let expected = self.buffer.last_was_resident;
        if !expected {
            self.source.advise(Access::Random);
        }
        let target = self.buffer.at_least(wanted).get_mut(..wanted).unwrap_or_default();
        let resident = self.source.read_resident(start, target);
        let count = if resident {
            wanted
        } else {
            if expected {
                self.source.advise(Access::Random);
            }
            self.source.read_at(start, target)?
        };
        self.buffer.last_was_resident = resident;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::base::source::FileSource;

    #[test]
    fn window_shows_the_same_bytes_as_memory_from_every_offset() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let path = std::env::temp_dir().join(format!("voxtier-window-{}", std::process::id()));
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let file = FileSource::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut buffer = Buffer::default();
        let mut window = Window::new(&file, &mut buffer);
        for offset in [0, 8000, 8190, 8192, 70_000, 199_990, 3, 150_000, 150_100, 200_000, 999_999] {
            let end = (offset + 40).min(bytes.len());
            assert_eq!(window.peek(offset as u64, 40).unwrap(), bytes.get(offset..end).unwrap_or_default());
        }
        for offset in (0..190_000).step_by(37) {
            assert_eq!(window.peek(offset as u64, 12).unwrap(), &bytes[offset..offset + 12]);
        }
    }
}

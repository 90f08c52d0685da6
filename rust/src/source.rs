//! Positional reads: files, bytes in memory and ranged readers behind one trait, and the aligned window
//! through which headers are parsed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Advice, FileType, Mode, OFlags};

use crate::error::{Error, ErrorKind, Result};

/// Bytes of the first read of a file: holds the whole header of a usual CT slice (4.3 KB) in one call.
pub const FIRST_READ: usize = 8 * 1024;
const PAGE: usize = 4096;
/// Step of the window while a header is read on without a jump.
const SEQUENTIAL_STEP: usize = 64 * 1024;
const LARGEST_STEP: usize = 256 * 1024;

/// How a file is about to be read; passed on to the kernel where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Scattered small reads: no read-ahead.
    Random,
    /// One pass: as much read-ahead as the kernel likes.
    Sequential,
}

/// State of the bytes that a table describes; a mismatch makes the table worthless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Size in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970, where the source has one.
    pub mtime_ns: Option<i64>,
}

/// Anything that can be read at an offset.
pub trait Source {
    /// Size and modification time, taken when the source was opened.
    fn fingerprint(&self) -> Fingerprint;

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the source.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// The whole source, where it lies in memory anyway.
    fn memory(&self) -> Option<&[u8]> {
        None
    }

    /// Tells the kernel how the source is about to be read.
    fn advise(&self, _access: Access) {}

    /// Fills `buffer` if that needs no waiting for storage; `false` says that it does, or might.
    fn read_resident(&self, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// The source for several threads, and how many readers it has been given; `None` for one.
    fn shared(&self) -> Option<(&(dyn Source + Sync), usize)> {
        None
    }

    /// The same file opened once more, for a thread of its own: threads that share one descriptor contend for
    /// its reference count, which costs as much as the small reads themselves.
    fn reopened(&self) -> Option<FileSource> {
        None
    }

    /// Fails with `changed_during_read` when the source is no longer what [`Source::fingerprint`] said.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        self.fingerprint().size
    }
}

/// Bytes in memory.
pub struct Bytes<'a>(pub &'a [u8]);

impl Source for Bytes<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { size: self.0.len() as u64, mtime_ns: None }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|start| self.0.get(start..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn memory(&self) -> Option<&[u8]> {
        Some(self.0)
    }
}

/// A regular file, read by `pread`: never mapped, because a file of others may shrink under a map.
pub struct FileSource<Fd: AsFd = OwnedFd> {
    fd: Fd,
    fingerprint: Fingerprint,
    readers: usize,
}

impl FileSource<OwnedFd> {
    /// Opens a regular file; a FIFO, device or folder is refused without waiting on it.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(os_error)?;
        Self::new(fd)
    }
}

impl<Fd: AsFd> FileSource<Fd> {
    /// Wraps an open descriptor of a regular file.
    pub fn new(fd: Fd) -> Result<Self> {
        let fingerprint = fingerprint_of(fd.as_fd())?;
        Ok(Self { fd, fingerprint, readers: 1 })
    }

    /// Lets long walks use this many threads: right where one file is waited for, not where many are read.
    pub fn with_readers(mut self, readers: usize) -> Self {
        self.readers = readers;
        self
    }

    /// The open descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<Fd: AsFd + Sync> Source for FileSource<Fd> {
    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let position = offset.saturating_add(filled as u64);
            match rustix::io::pread(&self.fd, rest, position) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let mut error = os_error(errno);
                    error.offset = Some(position);
                    return Err(error);
                }
            }
        }
        Ok(filled)
    }

    fn advise(&self, access: Access) {
        let advice = match access {
            Access::Random => Advice::Random,
            Access::Sequential => Advice::Sequential,
        };
        // Advice is only advice: file systems without it read just as well.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, advice);
    }

    fn read_resident(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let wanted = buffer.len();
        let mut buffers = [rustix::io::IoSliceMut::new(buffer)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(&self.fd, &mut buffers, offset, flags).is_ok_and(|count| count == wanted)
    }

    fn shared(&self) -> Option<(&(dyn Source + Sync), usize)> {
        (self.readers > 1).then_some((self, self.readers))
    }

    fn reopened(&self) -> Option<FileSource> {
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(FileSource { fd, fingerprint: self.fingerprint, readers: 1 })
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = fingerprint_of(self.fd.as_fd())?;
        if now == self.fingerprint {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ChangedDuringRead,
            format!(
                "{} bytes became {} bytes, or the file was written again",
                self.fingerprint.size, now.size
            ),
        ))
    }
}

/// Size and modification time of the file at a path, without opening it; refuses all but regular files.
pub fn fingerprint_at(path: &Path) -> Result<Fingerprint> {
    fingerprint_from(&rustix::fs::stat(path).map_err(os_error)?)
}

fn fingerprint_of(fd: BorrowedFd<'_>) -> Result<Fingerprint> {
    fingerprint_from(&rustix::fs::fstat(fd).map_err(os_error)?)
}

fn fingerprint_from(stat: &rustix::fs::Stat) -> Result<Fingerprint> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::new(ErrorKind::IoError, "not a regular file"));
    }
    // libc declares these fields with different widths on different machines.
    #[allow(clippy::unnecessary_cast)]
    let mtime_ns =
        (stat.st_mtime as i64).saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64);
    Ok(Fingerprint { size: u64::try_from(stat.st_size).unwrap_or(0), mtime_ns: Some(mtime_ns) })
}

fn os_error(errno: rustix::io::Errno) -> Error {
    std::io::Error::from_raw_os_error(errno.raw_os_error()).into()
}

/// A `pread`-like callable over an object store or any other remote bytes.
pub struct RangedSource<F> {
    read: F,
    size: u64,
}

impl<F: Fn(u64, usize) -> Result<Vec<u8>>> RangedSource<F> {
    /// `read(offset, length)` returns exactly `length` bytes, fewer only at the end.
    pub fn new(read: F, size: u64) -> Self {
        Self { read, size }
    }
}

impl<F: Fn(u64, usize) -> Result<Vec<u8>>> Source for RangedSource<F> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { size: self.size, mtime_ns: None }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let length =
            buffer.len().min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(0);
        }
        let bytes = (self.read)(offset, length)?;
        match buffer.get_mut(..bytes.len()) {
            Some(to) if bytes.len() == length => to.copy_from_slice(&bytes),
            _ => {
                let detail = format!("the reader returned {} of {length} bytes", bytes.len());
                return Err(Error::at(ErrorKind::IoError, offset, detail));
            }
        }
        Ok(length)
    }
}

/// Reads exactly `length` bytes at `offset`, or fails: what is returned was read, never left over.
pub fn read_exact(source: &dyn Source, offset: u64, length: usize) -> Result<Vec<u8>> {
    let end = offset.checked_add(length as u64).filter(|&end| end <= source.size());
    if end.is_none() {
        return Err(Error::at(ErrorKind::IoError, offset, format!("{length} bytes reach past the end")));
    }
    if let Some(bytes) =
        source.memory().and_then(|all| all.get(usize::try_from(offset).ok()?..)?.get(..length))
    {
        return Ok(bytes.to_vec());
    }
    let mut bytes = vec![0; length];
    let count = source.read_at(offset, &mut bytes)?;
    if count == length {
        return Ok(bytes);
    }
    source.check_unchanged()?;
    Err(Error::at(ErrorKind::IoError, offset, format!("only {count} of {length} bytes could be read")))
}

/// Exactly `N` bytes at `offset`, or `None` where the source ends before.
pub fn read_array<const N: usize>(source: &dyn Source, offset: u64) -> Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    let end = offset.checked_add(N as u64);
    if end.is_none_or(|end| end > source.size()) || source.read_at(offset, &mut bytes)? < N {
        return Ok(None);
    }
    Ok(Some(bytes))
}

/// A page-aligned buffer, kept from file to file. Reads into a buffer that begins a few bytes into a page
/// are several times slower on some processors, and large `Vec`s begin there.
#[derive(Default)]
pub struct Buffer {
    pages: Vec<Page>,
    /// Whether the first bytes of the last file that was read into here lay in the page cache.
    last_was_resident: bool,
}

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; PAGE]); // read through the flat view only

impl Buffer {
    /// At least `length` bytes, aligned to a page.
    pub fn at_least(&mut self, length: usize) -> &mut [u8] {
        let pages = length.div_ceil(PAGE);
        if self.pages.len() < pages {
            self.pages.resize(pages, Page([0; PAGE]));
        }
        // SAFETY: a `Page` is exactly `PAGE` initialised bytes without padding, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.pages.len() * PAGE) }
    }

    /// All bytes that were ever asked for.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as above, with a shared borrow.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.pages.len() * PAGE) }
    }
}

/// A moving, cached view on a source, for parsers that go forward with jumps.
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

    /// The source behind.
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

    /// Up to `length` bytes at `offset`; fewer only where the source ends.
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

    /// What is at hand from `offset` on without another read; may be empty.
    #[inline]
    pub fn at_hand(&self, offset: u64) -> &[u8] {
        let (bytes, start) = match self.memory {
            Some(memory) => (memory, 0),
            None => (self.buffer.bytes().get(..self.length).unwrap_or_default(), self.start),
        };
        let within = offset.checked_sub(start).and_then(|within| usize::try_from(within).ok());
        within.and_then(|within| bytes.get(within..)).unwrap_or_default()
    }

    /// Exactly `length` bytes at `offset`, or `None` where the source ends before.
    #[inline]
    pub fn exact(&mut self, offset: u64, length: usize) -> Result<Option<&[u8]>> {
        Ok(Some(self.peek(offset, length)?).filter(|bytes| bytes.len() == length))
    }

    /// Exactly `N` bytes at `offset`, or `None` where the source ends before.
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
                "the source ended before its size",
            ));
        }
        self.start = start;
        self.length = count;
        Ok(())
    }

    /// The first read of a file. Without advice the kernel reads far ahead of it, which slow storage feels;
    /// in the page cache the advice is a system call for nothing. The thread's file before this one tells.
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

    #[test]
    fn a_reader_that_returns_too_little_is_an_error() {
        let source = RangedSource::new(|_, length| Ok(vec![0; length / 2]), 100);
        assert_eq!(source.read_at(0, &mut [0; 10]).unwrap_err().kind, ErrorKind::IoError);
    }

    #[test]
    fn a_folder_is_refused() {
        assert_eq!(FileSource::open(Path::new("/")).err().unwrap().kind, ErrorKind::IoError);
    }
}

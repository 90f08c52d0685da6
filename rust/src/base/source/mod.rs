//! Reads at an offset, from files, bytes in memory and ranged readers alike.

mod fingerprint;

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::IoSliceMut;

pub use fingerprint::{Etag, Fingerprint};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::kernel::{self, Reads};

/// How a file is about to be read: advice to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Scattered small reads: no read-ahead.
    Random,
    /// One pass from front to back: much read-ahead.
    Sequential,
}

/// Anything that can be read at an offset.
pub trait Source {
    /// Its state, taken when the source was opened.
    fn fingerprint(&self) -> Fingerprint;

    /// Reads up to `buffer.len()` bytes at `offset` and returns their number; fewer only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// As [`Source::read_at`], into buffers that follow one another in the source.
    fn read_into(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut filled = 0;
        for buffer in buffers {
            let count = self.read_at(offset.saturating_add(filled as u64), buffer)?;
            filled += count;
            if count < buffer.len() {
                break;
            }
        }
        Ok(filled)
    }

    /// All bytes, where the source lies in memory.
    fn memory(&self) -> Option<&[u8]> {
        None
    }

    /// Tells the kernel how the source is about to be read.
    fn advise(&self, _access: Access) {}

    /// Fills `buffer` unless that may wait for storage; `false` where it may.
    fn read_resident(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_resident_into(offset, &mut [IoSliceMut::new(buffer)])
    }

    /// As [`Source::read_resident`], into buffers that follow one another in the source.
    fn read_resident_into(&self, _offset: u64, _buffers: &mut [IoSliceMut<'_>]) -> bool {
        false
    }

    /// The source for several threads and their number; `None` where one thread reads it.
    fn shared(&self) -> Option<(&(dyn Source + Sync), usize)> {
        None
    }

    /// Opens the same file once more, for another thread: threads that share a descriptor contend for its
    /// reference count, which costs as much as the small reads themselves.
    fn reopened(&self) -> Option<FileSource> {
        None
    }

    /// Fails with `changed_during_read` when the source no longer has its [`Source::fingerprint`].
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// The same source in its present state, where that still has the size and the modification time of
    /// [`Source::fingerprint`]: its rights, name or links changed, or its time was set back.
    fn renewed(&self) -> Option<Box<dyn Source + '_>> {
        None
    }

    /// The source as one whose reads are requests to a remote machine, where it is.
    fn remote(&self) -> Option<&dyn Remote> {
        None
    }

    /// Size in bytes.
    fn size(&self) -> u64 {
        self.fingerprint().size
    }
}

/// Bytes of an object, half-open: `[start, end)`.
pub type Range = (u64, u64);

/// What a source must know beforehand to make few requests.
pub trait Remote {
    /// Fetches what ranges lack, at the same time: they are about to be read.
    ///
    /// # Errors
    /// Those of a request.
    fn prefetch(&self, ranges: &[Range]) -> Result<()>;

    /// As [`Remote::prefetch`]. Where something has to be fetched, `beside` is too, if that takes no longer: it will
    /// be read next.
    ///
    /// # Errors
    /// Those of a request.
    fn prefetch_beside(&self, ranges: &[Range], beside: Range) -> Result<()>;

    /// Plans for reads of about `items` headers, in their order, from `from` to the end.
    fn plan_walk(&self, from: u64, items: u64);
}

/// Bytes in memory.
pub struct Bytes<'a>(pub &'a [u8]);

impl Source for Bytes<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_size(self.0.len() as u64)
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

/// A regular file, read by `pread`. Never mapped: reading a map of a file that shrank kills the process.
pub struct FileSource<Fd: AsFd = OwnedFd> {
    fd: Fd,
    fingerprint: Fingerprint,
    readers: usize,
}

impl FileSource<OwnedFd> {
    /// Opens a regular file; a FIFO, device or folder is refused without waiting on it.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Self::new(fd)
    }
}

impl<Fd: AsFd> FileSource<Fd> {
    /// Wraps an open descriptor of a regular file.
    pub fn new(fd: Fd) -> Result<Self> {
        let fingerprint = Fingerprint::of(fd.as_fd())?;
        Ok(Self { fd, fingerprint, readers: 1 })
    }

    /// Lets long walks use this many threads: for one file, not where many files are read in parallel.
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
            match some_bytes(position, || rustix::io::pread(&self.fd, &mut *rest, position))? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn read_into(&self, offset: u64, mut buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut filled = 0;
        IoSliceMut::advance_slices(&mut buffers, 0); // past empty ones
        while !buffers.is_empty() {
            let position = offset.saturating_add(filled as u64);
            match some_bytes(position, || rustix::io::preadv(&self.fd, buffers, position))? {
                0 => break,
                count => {
                    filled += count;
                    IoSliceMut::advance_slices(&mut buffers, count);
                }
            }
        }
        Ok(filled)
    }

    fn advise(&self, access: Access) {
        let reads = match access {
            Access::Random => Reads::Ranges,
            Access::Sequential => Reads::InOrder,
        };
        kernel::expect_reads(&self.fd, 0, None, reads);
    }

    fn read_resident_into(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> bool {
        kernel::read_resident(&self.fd, offset, buffers) == Some(length_of(buffers))
    }

    fn shared(&self) -> Option<(&(dyn Source + Sync), usize)> {
        (self.readers > 1).then_some((self, self.readers))
    }

    fn reopened(&self) -> Option<FileSource> {
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(FileSource { fd, fingerprint: self.fingerprint, readers: 1 })
    }

    fn renewed(&self) -> Option<Box<dyn Source + '_>> {
        let fingerprint = Fingerprint::of(self.fd.as_fd()).ok()?;
        let renewed = FileSource { fd: self.fd.as_fd(), fingerprint, readers: self.readers };
        fingerprint
            .agrees_in_content_with(&self.fingerprint)
            .then(|| Box::new(renewed) as Box<dyn Source + '_>)
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = Fingerprint::of(self.fd.as_fd())?;
        if now == self.fingerprint {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ChangedDuringRead,
            format!(
                "the file had {} bytes, now {}, or was written again: read its table again",
                self.fingerprint.size, now.size
            ),
        ))
    }
}

/// What a read at `position` returns, whatever signals come.
fn some_bytes(position: u64, mut read: impl FnMut() -> rustix::io::Result<usize>) -> Result<usize> {
    loop {
        match read() {
            Ok(count) => return Ok(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let mut error = Error::from(errno);
                error.offset = Some(position);
                return Err(error);
            }
        }
    }
}

/// Whether the byte at an offset lies in the page cache. Never waits: network file systems, whose `fstat` may,
/// do not know this question.
pub fn is_resident(fd: BorrowedFd<'_>, offset: u64) -> bool {
    kernel::read_resident(fd, offset, &mut [IoSliceMut::new(&mut [0])]).is_some()
}

/// Whether a name is an address as `s3://bucket/key`: a scheme (RFC 3986, 3.1) of two letters or more, `://`.
pub fn is_address(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    name.split_once("://").is_some_and(|(scheme, _)| {
        scheme.len() > 1
            && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(is_part)
    })
}

/// A source of which only the bytes in the page cache can be read, for a thread that must not wait.
pub struct Resident<'a> {
    source: &'a dyn Source,
    lacks_bytes: Cell<bool>,
}

impl<'a> Resident<'a> {
    /// The bytes of a source that can be had at once.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, lacks_bytes: Cell::new(false) }
    }

    /// Whether a read failed because its bytes must come from storage.
    pub fn lacks_bytes(&self) -> bool {
        self.lacks_bytes.get()
    }
}

impl Source for Resident<'_> {
    fn fingerprint(&self) -> Fingerprint {
        self.source.fingerprint()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_into(offset, &mut [IoSliceMut::new(buffer)])
    }

    fn read_into(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        if self.source.read_resident_into(offset, buffers) {
            return Ok(length_of(buffers));
        }
        self.lacks_bytes.set(true);
        Err(Error::at(ErrorKind::IoError, offset, "not in the page cache"))
    }

    fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged()
    }
}

/// Reads exactly `length` bytes at `offset`, or fails.
pub fn read_exact(source: &dyn Source, offset: u64, length: usize) -> Result<Vec<u8>> {
    check_within(source, offset, length)?;
    if let Some(bytes) =
        source.memory().and_then(|all| all.get(usize::try_from(offset).ok()?..)?.get(..length))
    {
        return Ok(bytes.to_vec());
    }
    let mut bytes = vec![0; length];
    let count = source.read_at(offset, &mut bytes)?;
    check_whole(source, offset, length, count)?;
    Ok(bytes)
}

/// Fills buffers that follow one another from `offset` on, or fails.
///
/// # Errors
/// As [`read_exact`].
pub fn read_exact_into(source: &dyn Source, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
    let length = length_of(buffers);
    check_within(source, offset, length)?;
    let count = source.read_into(offset, buffers)?;
    check_whole(source, offset, length, count)
}

fn length_of(buffers: &[IoSliceMut<'_>]) -> usize {
    buffers.iter().map(|buffer| buffer.len()).sum()
}

fn check_within(source: &dyn Source, offset: u64, length: usize) -> Result<()> {
    if offset.checked_add(length as u64).is_some_and(|end| end <= source.size()) {
        return Ok(());
    }
    let detail = format!("{length} bytes reach past the end of {} bytes", source.size());
    Err(Error::at(ErrorKind::IoError, offset, detail))
}

fn check_whole(source: &dyn Source, offset: u64, length: usize, count: usize) -> Result<()> {
    if count == length {
        return Ok(());
    }
    source.check_unchanged()?;
    Err(Error::at(ErrorKind::IoError, offset, format!("only {count} of {length} bytes could be read")))
}

/// Position of the first byte from `offset` on that is not zero, or `None` where zeros reach the end.
pub fn first_not_zero(source: &dyn Source, offset: u64) -> Result<Option<u64>> {
    const STEP: usize = 64 * 1024;
    let mut position = offset;
    let mut bytes = vec![0; 512]; // trailing padding is short: the larger steps are for what is none
    while position < source.size() {
        let count = source.read_at(position, &mut bytes)?;
        if let Some(found) = bytes.iter().take(count).position(|&byte| byte != 0) {
            return Ok(Some(position + found as u64));
        }
        if count == 0 {
            break;
        }
        position += count as u64;
        bytes.resize(STEP, 0);
    }
    Ok(None)
}

/// Reads exactly `N` bytes at `offset`; `None` where the source ends before.
pub fn read_array<const N: usize>(source: &dyn Source, offset: u64) -> Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    let end = offset.checked_add(N as u64);
    if end.is_none_or(|end| end > source.size()) || source.read_at(offset, &mut bytes)? < N {
        return Ok(None);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_begin_with_a_scheme() {
        for address in ["s3://b/a.dcm", "HTTPS://h/a", "abfs+x.y-z://c", "gs://"] {
            assert!(is_address(address), "{address}");
        }
        for path in
            ["", "/s3://a", "a/b://c", "c://a", "://a", "3s://a", "s3:/a", "s3:a", "ü3://a", "a/s3://b"]
        {
            assert!(!is_address(path), "{path}");
        }
    }

    #[test]
    fn a_folder_is_refused() {
        assert_eq!(FileSource::open(Path::new("/")).err().unwrap().kind, ErrorKind::IoError);
    }
}

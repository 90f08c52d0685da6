//! Calls that only Linux has, and what stands for them on other systems (macOS).
//!
//! Each makes something faster, and none decides what is read: elsewhere advice is left out, no byte counts as
//! resident, so that each read is one that may wait, and a file is copied into its socket.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::IoSliceMut;
use rustix::net::SendFlags;

/// Bytes follow at once: the kernel sends both in one packet.
pub const MORE: SendFlags = {
    #[cfg(target_os = "linux")]
    let flags = SendFlags::MORE;
    #[cfg(not(target_os = "linux"))]
    let flags = SendFlags::empty();
    flags
};

/// What will be read of a file.
#[derive(Clone, Copy, Debug)]
pub enum Reads {
    /// Ranges here and there: nothing around them.
    Ranges,
    /// All of it in its order.
    InOrder,
    /// This range, next.
    Soon,
}

/// Tells the kernel what will be read of `length` bytes from `start` on; `None` is up to the end. File systems
/// that take no advice are read all the same.
pub fn expect_reads(fd: impl AsFd, start: u64, length: Option<NonZeroU64>, reads: Reads) {
    #[cfg(target_os = "linux")]
    {
        let advice = match reads {
            Reads::Ranges => rustix::fs::Advice::Random,
            Reads::InOrder => rustix::fs::Advice::Sequential,
            Reads::Soon => rustix::fs::Advice::WillNeed,
        };
        let _ = rustix::fs::fadvise(fd, start, length, advice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (fd, start, length, reads);
}

/// Reads what the page cache holds, and never waits for a disk: the bytes read, `None` where that is not known.
pub fn read_resident(fd: impl AsFd, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Option<usize> {
    #[cfg(target_os = "linux")]
    return rustix::io::preadv2(fd, buffers, offset, rustix::io::ReadWriteFlags::NOWAIT).ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (fd, offset, buffers);
        None
    }
}

/// Sends at most `length` bytes of a file and moves `offset` behind them; 0 where the file ends.
///
/// # Errors
/// Those of the socket, `WouldBlock` among them, and of the file.
pub fn send_file(
    socket: impl AsFd,
    file: BorrowedFd<'_>,
    offset: &mut u64,
    length: usize,
) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::fs::sendfile(socket, file, Some(offset), length)?);
    #[cfg(not(target_os = "linux"))]
    copy_file(socket, file, offset, length)
}

/// As [`send_file`], through memory.
#[cfg(any(test, not(target_os = "linux")))]
fn copy_file(socket: impl AsFd, file: BorrowedFd<'_>, offset: &mut u64, length: usize) -> io::Result<usize> {
    let mut block = vec![0; length.min(64 << 10)];
    let read = rustix::io::pread(file, &mut block, *offset)?;
    let sent = rustix::net::send(socket, block.get(..read).unwrap_or_default(), SendFlags::empty())?;
    *offset += sent as u64;
    Ok(sent)
}

/// What pages of memory are for.
#[derive(Clone, Copy, Debug)]
pub enum Pages {
    /// Filled from end to end next: pages of 2 MiB where there are.
    Large,
    /// Used in parts: small ones, or one part brings in its neighbours.
    Small,
    /// For this process alone: a forked child has no such pages.
    NotForChildren,
    /// Written next: they are brought in by one call, not by a fault for each.
    Wanted,
    /// Unused: they go back to the system, and are zero when they are read again.
    Unused,
}

/// Tells the kernel what pages are for; whether it has done so.
///
/// # Safety
/// The pages belong to the caller; what is [`Pages::Unused`] holds nothing that anybody reads.
pub unsafe fn advise_pages(start: *mut u8, bytes: usize, pages: Pages) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::Advice;
        let advice = match pages {
            Pages::Large => Advice::LinuxHugepage,
            Pages::Small => Advice::LinuxNoHugepage,
            Pages::NotForChildren => Advice::LinuxDontFork,
            Pages::Wanted => Advice::LinuxPopulateWrite,
            Pages::Unused => Advice::LinuxDontNeed,
        };
        // SAFETY: as the caller promises.
        unsafe { rustix::mm::madvise(start.cast(), bytes, advice) }.is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (start, bytes, pages);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_that_is_copied_arrives_as_one_that_the_kernel_sends() {
        let path = std::env::temp_dir().join(format!("voxtier-kernel-{}", std::process::id()));
        let content: Vec<u8> = (0..150_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file =
            std::fs::File::options().create(true).truncate(true).write(true).read(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&content).unwrap();
        file.rewind().unwrap();
        type Send = fn(&UnixStream, BorrowedFd<'_>, &mut u64, usize) -> io::Result<usize>;
        let both: [Send; 2] = [|a, b, c, d| send_file(a, b, c, d), |a, b, c, d| copy_file(a, b, c, d)];
        for send in both {
            let (socket, mut client) = UnixStream::pair().unwrap();
            let received = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                client.read_to_end(&mut bytes).map(|_| bytes)
            });
            let mut offset = 1000;
            while offset < 500_000 {
                let left = (500_000 - offset) as usize;
                assert!(send(&socket, file.as_fd(), &mut offset, left).unwrap() > 0);
            }
            assert_eq!(offset, 500_000);
            offset = content.len() as u64;
            assert_eq!(send(&socket, file.as_fd(), &mut offset, 9).unwrap(), 0);
            drop(socket);
            assert!(received.join().unwrap().unwrap() == content[1000..500_000]);
        }
    }

    #[test]
    fn what_was_just_written_is_resident_or_unknown() {
        let path = std::env::temp_dir().join(format!("voxtier-resident-{}", std::process::id()));
        std::fs::write(&path, b"0123456789").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (mut first, mut second) = ([0; 3], [0; 4]);
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        if let Some(count) = read_resident(&file, 2, &mut buffers) {
            assert_eq!((count, &first, &second), (7, b"234", b"5678"));
        }
    }
}

//! Making the shared memory, and joining that of another process of the same user.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create, open,
};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::Node;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::kernel::{Pages, advise_pages};

/// Makes memory of at most `budget` bytes; it goes when the last process that has it ends.
///
/// # Errors
/// `invalid_argument` for a budget that has no room for chunks, `io_error` where the system refuses.
pub fn make(budget: u64) -> Result<&'static Node> {
    let slabs = Node::slabs_within(budget);
    if slabs == 0 {
        let detail = format!("{budget} bytes have no room for a shared cache");
        return Err(Error::new(ErrorKind::InvalidArgument, detail));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("voxtier-tiles", flags).map_err(std::io::Error::from)?;
    let bytes = Node::bytes_of(slabs);
    ftruncate(&file, bytes as u64).map_err(std::io::Error::from)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(std::io::Error::from)?;
    let tables = Node::bytes_of_tables(slabs) as u64;
    fallocate(&file, FallocateFlags::empty(), 0, tables).map_err(std::io::Error::from)?;
    attach(file, bytes, true)
}

/// Joins the memory behind a descriptor of another process (`/proc/PID/fd/N`).
///
/// # Errors
/// `io_error` where it cannot be opened, `invalid_argument` for what is no such memory.
pub fn join(path: &Path) -> Result<&'static Node> {
    let file = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(std::io::Error::from)?;
    let is_sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let bytes = fstat(&file).map_err(std::io::Error::from)?.st_size;
    let bytes = usize::try_from(bytes).ok().filter(|bytes| is_sealed && *bytes >= Node::bytes_of(1));
    attach(file, bytes.ok_or_else(foreign)?, false)
}

fn attach(file: OwnedFd, bytes: usize, is_new: bool) -> Result<&'static Node> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new map at an address of the system's choice, which is never unmapped.
    let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) };
    let start = start.map_err(std::io::Error::from)?;
    // A forked child joins by itself. SAFETY: advice on the new map.
    let _ = unsafe { advise_pages(start.cast(), bytes, Pages::NotForChildren) };
    // SAFETY: as above.
    let node = unsafe { Node::over(file, start.cast(), bytes, is_new) };
    node.map(|node| &*Box::leak(Box::new(node))).ok_or_else(foreign)
}

fn foreign() -> Error {
    Error::new(ErrorKind::InvalidArgument, "this is no cache of this version of voxtier")
}

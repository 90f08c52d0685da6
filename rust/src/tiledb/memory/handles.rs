//! Open descriptors of tile files: a bounded number, however many volumes a training reads.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::kernel::{Reads, expect_reads};

/// Descriptors that are kept open at most.
const MOST_OPEN: usize = 256;

/// A file that was opened once, and can be closed and opened again while it stays the same.
pub struct Handle {
    path: PathBuf,
    identity: u128,
    file: Mutex<Option<Arc<File>>>,
}

/// The handles of one process that have a descriptor, oldest first.
#[derive(Default)]
pub struct Handles {
    open: Mutex<VecDeque<Weak<Handle>>>,
}

impl Handles {
    /// Opens a file.
    ///
    /// # Errors
    /// `io_error`.
    pub fn open(&self, path: &Path) -> Result<(Arc<Handle>, Metadata)> {
        let file = File::open(path)?;
        let state = file.metadata()?;
        let handle = Arc::new(Handle {
            path: path.to_owned(),
            identity: identity(path, &state),
            file: Mutex::new(Some(Arc::new(file))),
        });
        self.count(&handle);
        Ok((handle, state))
    }

    /// The descriptor of a handle.
    ///
    /// # Errors
    /// `io_error`, and `changed_during_read` when another file has taken the place of the first one.
    pub fn file(&self, handle: &Arc<Handle>) -> Result<Arc<File>> {
        let mut slot = handle.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = File::open(&handle.path)?;
        if identity(&handle.path, &file.metadata()?) != handle.identity {
            let detail = "the tiles of this volume were written again since it was opened: open it anew";
            return Err(Error::new(ErrorKind::ChangedDuringRead, detail));
        }
        expect_ranges(&file);
        let file = Arc::new(file);
        *slot = Some(Arc::clone(&file));
        drop(slot);
        self.count(handle);
        Ok(file)
    }

    fn count(&self, handle: &Arc<Handle>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(handle));
        let mut surplus = Vec::new();
        while open.len() > MOST_OPEN {
            surplus.extend(open.pop_front().and_then(|oldest| oldest.upgrade()));
        }
        drop(open);
        for oldest in surplus {
            *oldest.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Handle {
    /// Digest of path, size, inode, device and modification time.
    pub fn identity(&self) -> u128 {
        self.identity
    }
}

/// Tells the kernel to read nothing around what is asked for: with its read-ahead (up to megabytes) a patch
/// of a cohort that memory does not hold costs the whole file.
pub fn expect_ranges(file: &File) {
    expect_reads(file, 0, None, Reads::Ranges);
}

/// Tells the kernel which bytes are read next, so that ranges of one read are on their way together.
pub fn announce(file: &File, start: u64, length: u64) {
    expect_reads(file, start, NonZeroU64::new(length), Reads::Soon);
}

fn identity(path: &Path, state: &Metadata) -> u128 {
    let mut digest = Blake2b::<U16>::new();
    digest.update(path.as_os_str().as_encoded_bytes());
    for number in [state.len(), state.ino(), state.dev(), state.mtime() as u64, state.mtime_nsec() as u64] {
        digest.update(number.to_le_bytes());
    }
    u128::from_le_bytes(digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_bounded_number_stays_open_and_a_replaced_file_is_refused() {
        let folder = std::env::temp_dir().join(format!("voxtier-handles-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let handles = Handles::default();
        let all: Vec<_> = (0..MOST_OPEN + 20)
            .map(|n| {
                let path = folder.join(n.to_string());
                File::create(&path).unwrap().write_all(&[1; 9]).unwrap();
                handles.open(&path).unwrap().0
            })
            .collect();
        let open = all.iter().filter(|handle| handle.file.lock().unwrap().is_some()).count();
        assert_eq!(open, MOST_OPEN);
        assert_eq!(handles.file(&all[0]).unwrap().metadata().unwrap().len(), 9);
        std::fs::write(folder.join("19"), [2; 10]).unwrap();
        assert_eq!(handles.file(&all[19]).unwrap_err().kind, ErrorKind::ChangedDuringRead);
        std::fs::remove_file(folder.join("18")).unwrap();
        assert_eq!(handles.file(&all[18]).unwrap_err().kind, ErrorKind::IoError);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

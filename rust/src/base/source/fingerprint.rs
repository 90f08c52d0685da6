//! The state of a file: what is compared to tell whether a table still describes it.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::path::Path;

use arrayvec::ArrayString;
use rustix::fs::{FileType, Stat};

use crate::base::error::{Error, ErrorKind, Result};

/// Entity tag of an object, without quotes: one that is longer is none.
pub type Etag = ArrayString<64>;

/// State of the bytes that a table describes; after a mismatch the table must not be used.
///
/// Size and modification time alone are not enough: `cp -p`, `rsync -t` and `touch -r` set the time back, and
/// some clocks are coarse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Size in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970, where the source has one.
    pub mtime_ns: Option<i64>,
    /// Time of the last change of content, name or rights, which nobody sets back; ns since 1970.
    pub ctime_ns: Option<i64>,
    /// Number of the file in its file system, where a file keeps it for life.
    pub inode: Option<u64>,
    /// Entity tag of an object, which changes with its bytes (RFC 9110, 8.8.3).
    pub etag: Option<Etag>,
}

impl Fingerprint {
    /// The state of what has nothing but a size: bytes in memory.
    pub fn of_size(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// Whether both may be the same state: nothing that both have differs.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.agrees_in_content_with(other)
            && agree(self.ctime_ns, other.ctime_ns)
            && agree(self.inode, other.inode)
    }

    /// Whether size, entity tag and modification time agree: then the file may have been renamed, linked,
    /// restored, or had its rights changed - or it holds other bytes, and its time was set back.
    pub fn agrees_in_content_with(&self, other: &Self) -> bool {
        self.size == other.size
            && agree(self.mtime_ns, other.mtime_ns)
            && agree(self.etag, other.etag)
            && agree(self.tells(), other.tells())
    }

    /// Whether an entity tag tells one state from another, or a time; `None` where nothing but a size is known. A tag
    /// and a time cannot be compared: a server that gave the one and now gives the other may have another object.
    fn tells(&self) -> Option<bool> {
        self.etag.map(|_| true).or(self.mtime_ns.map(|_| false))
    }

    /// Whether this state has everything that `now` has: then the file need not be read again.
    pub fn covers(&self, now: &Self) -> bool {
        self.size == now.size
            && covers(self.mtime_ns, now.mtime_ns)
            && covers(self.ctime_ns, now.ctime_ns)
            && covers(self.inode, now.inode)
            && covers(self.etag, now.etag)
    }

    /// State of the regular file at a path, without opening it.
    ///
    /// # Errors
    /// `io_error`, for what is no regular file too.
    pub fn at(path: &Path) -> Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Self::from_stat(&stat, || rustix::fs::statfs(path))
    }

    /// State of an open regular file.
    ///
    /// # Errors
    /// As [`Fingerprint::at`].
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Self::from_stat(&stat, || rustix::fs::fstatfs(fd))
    }

    fn from_stat(
        stat: &Stat,
        file_system: impl Fn() -> rustix::io::Result<rustix::fs::StatFs>,
    ) -> Result<Self> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(ErrorKind::IoError, "not a regular file"));
        }
        // libc declares these fields with different widths on different machines.
        #[allow(clippy::unnecessary_cast)]
        let ns = |seconds, rest| (seconds as i64).saturating_mul(1_000_000_000).saturating_add(rest as i64);
        #[allow(clippy::unnecessary_cast)]
        let (device, inode) = (stat.st_dev as u64, stat.st_ino as u64);
        Ok(Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: Some(ns(stat.st_mtime, stat.st_mtime_nsec)),
            ctime_ns: Some(ns(stat.st_ctime, stat.st_ctime_nsec)),
            inode: (inode != 0 && has_lasting_inodes(device, file_system)).then_some(inode),
            etag: None,
        })
    }
}

fn agree<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

fn covers<T: PartialEq>(then: Option<T>, now: Option<T>) -> bool {
    now.is_none() || then == now
}

/// Whether files keep their numbers: some file systems number a file anew whenever it is looked up, or at each
/// mount, and an index would be read anew for nothing. The kernel is asked once a device and thread.
fn has_lasting_inodes(device: u64, file_system: impl Fn() -> rustix::io::Result<rustix::fs::StatFs>) -> bool {
    thread_local! {
        static LAST: Cell<Option<(u64, bool)>> = const { Cell::new(None) };
    }
    match LAST.get() {
        Some((last, has)) if last == device => has,
        _ => {
            #[allow(clippy::unnecessary_cast)] // of another width on other machines
            let has = file_system().is_ok_and(|found| !RENUMBERING.contains(&(found.f_type as u32)));
            LAST.set(Some((device, has)));
            has
        }
    }
}

/// `f_type` of FUSE, 9P, SMB, CIFS, SMB 2, FAT, exFAT and VirtualBox folders (statfs(2)).
const RENUMBERING: [u32; 8] =
    [0x6573_5546, 0x0102_1997, 0x0000_517B, 0xFF53_4D42, 0xFE53_4D42, 0x0000_4D44, 0x2011_BAB0, 0x786F_4256];

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Fingerprint =
        Fingerprint { size: 9, mtime_ns: Some(1), ctime_ns: Some(2), inode: Some(3), etag: None };

    #[test]
    fn states_are_compared_by_what_both_have() {
        for other in [
            Fingerprint::of_size(9),
            Fingerprint { ctime_ns: None, ..FULL },
            Fingerprint { inode: None, ..FULL },
            FULL,
        ] {
            assert!(FULL.agrees_with(&other) && other.agrees_with(&FULL));
            assert!(FULL.covers(&other));
            assert_eq!(other.covers(&FULL), other == FULL);
        }
        for other in [
            Fingerprint { size: 8, ..FULL },
            Fingerprint { mtime_ns: Some(0), ..FULL },
            Fingerprint { ctime_ns: Some(0), ..FULL },
            Fingerprint { inode: Some(0), ..FULL },
        ] {
            assert!(!FULL.agrees_with(&other) && !FULL.covers(&other));
        }
        assert!(FULL.agrees_in_content_with(&Fingerprint { ctime_ns: Some(0), inode: Some(0), ..FULL }));
    }

    #[test]
    fn objects_are_compared_by_their_entity_tags() {
        let object = |etag: &str| Fingerprint { etag: Etag::from(etag).ok(), ..Fingerprint::of_size(9) };
        let (one, other) = (object("a"), object("b"));
        assert!(one.agrees_with(&one) && one.covers(&one));
        assert!(!one.agrees_with(&other) && !one.covers(&other) && !one.agrees_in_content_with(&other));
        // A row of a size alone does not tell that nothing changed.
        assert!(!Fingerprint::of_size(9).covers(&one) && one.agrees_with(&Fingerprint::of_size(9)));
        // A server that gave a time, and gives a tag now, or the other way.
        let timed = Fingerprint { mtime_ns: Some(1), ..Fingerprint::of_size(9) };
        assert!(!one.agrees_with(&timed) && !timed.agrees_with(&one));
        assert!(!one.covers(&timed) && !timed.covers(&one) && !one.agrees_in_content_with(&timed));
        assert!(one.agrees_with(&Fingerprint { mtime_ns: Some(1), ..one }));
    }

    #[test]
    fn path_and_descriptor_give_one_state_and_links_change_it() {
        let folder = std::env::temp_dir().join(format!("voxtier-state-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, link) = (folder.join("a"), folder.join("b"));
        std::fs::write(&path, b"abc").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let before = Fingerprint::at(&path).unwrap();
        assert_eq!(before, Fingerprint::of(std::os::fd::AsFd::as_fd(&file)).unwrap());
        assert!(before.size == 3 && before.mtime_ns.is_some() && before.ctime_ns.is_some());
        // A change within one tick of a coarse clock has the same time.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::hard_link(&path, &link).unwrap();
        let after = Fingerprint::at(&link).unwrap();
        assert!(before.agrees_in_content_with(&after) && !before.agrees_with(&after));
        assert_eq!(before.inode, after.inode);
        assert!(Fingerprint::at(&folder).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

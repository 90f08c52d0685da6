//! Open files of one worker: descriptors that stay open, and the UIDs that their files hold.

pub mod catalogue;
pub mod objects;

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use rustix::fs::{Mode, OFlags};
use tokio::time::Instant;

use self::catalogue::digest;
use self::objects::{Object, Served};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{FileSource, Fingerprint, Source, is_address};
use crate::base::window::Buffer;
use crate::dicom::{self, Begin};
use crate::frames::table::{Status, Verify};
use crate::gateway::jobs::Jobs;

/// Time for which a path is taken to name the file that it named last.
const RECHECK: Duration = Duration::from_secs(1);
/// Time for which an object that nobody reads counts as unchanged: what a browser keeps is compared with it.
const RECHECK_OBJECT: Duration = Duration::from_secs(10);

/// An open DICOM file and what it says of itself.
pub struct Opened {
    /// The file, or the object.
    pub source: Served,
    /// Digests of its UIDs: see [`uid`].
    pub study: u128,
    /// Of the series.
    pub series: u128,
    /// Of the SOP Instance.
    pub instance: u128,
    /// Its Series Instance UID.
    pub series_uid: String,
    /// Its SOP Instance UID.
    pub instance_uid: String,
    /// Its transfer syntax.
    pub transfer_syntax: String,
    /// What the file lacks at its begin.
    pub begin: Begin,
    /// Whether the file ends before its frames do.
    pub is_cut: bool,
    /// Device and inode of a file.
    inode: Option<(u64, u64)>,
}

/// An instance of a study or series, as the index says.
#[derive(Clone, Debug)]
pub struct Member {
    /// The paths of its copies, the best first.
    pub paths: Vec<String>,
    /// Its SOP Instance UID.
    pub uid: String,
    /// Its study and series: see [`uid`]; `None` where any series will do.
    pub place: (u128, Option<u128>),
    /// Files behind links that the request may see, by their own names and instances; `None` where it may see all.
    pub shown: Option<Arc<HashSet<(String, String)>>>,
}

/// A number for a UID of a file.
pub fn uid(uid: &str) -> u128 {
    digest("", uid)
}

/// Files, folders and prefixes of stores below which files and objects may be opened, whatever the index says.
pub struct Roots {
    folders: Vec<PathBuf>,
    jobs: Arc<Jobs>,
}

impl Roots {
    /// Folders that exist; an empty list allows every path.
    pub fn new(folders: Vec<PathBuf>, jobs: Arc<Jobs>) -> Self {
        Self { folders, jobs }
    }

    /// Whether a path or an address lies below a root by its letters.
    pub fn hold(&self, name: &str) -> bool {
        let is_below = |root: &PathBuf| {
            let rest = root.to_str().and_then(|root| name.strip_prefix(root.trim_end_matches('/')));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.folders.is_empty() || self.folders.iter().any(is_below)
    }

    /// Opens an object that is a root, or lies below a prefix. Keys have no `..`: no client asks for them.
    fn open_object(&self, address: &str) -> Result<Object> {
        if !self.hold(address) {
            return Err(Error::not_there("the object lies outside of the prefixes that are served"));
        }
        Object::open(&self.jobs, address)
    }

    /// Opens a file below a root. A link that leads out of the root is refused.
    fn open(&self, path: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let full = Path::new(path);
        if self.folders.is_empty() {
            return Ok(rustix::fs::open(full, flags, Mode::empty()).map_err(std::io::Error::from)?);
        }
        let mut failure = Error::not_there("the file lies outside of the folders that are served");
        // What a link of one root leads to may be another.
        for root in self.folders.iter().filter(|root| full.starts_with(root)) {
            let opened = if root == full {
                rustix::fs::open(full, flags, Mode::empty())
                    .map_err(|error| std::io::Error::from(error).into())
            } else {
                open_below(root, full, flags)
            };
            match opened {
                Ok(file) => return Ok(file),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

#[cfg(target_os = "linux")]
fn open_below(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let folder = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let below =
        path.strip_prefix(root).map_err(|_| Error::new(ErrorKind::IoError, "no path below its root"))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = folder.and_then(|folder| rustix::fs::openat2(folder, below, flags, Mode::empty(), resolve));
    match opened {
        Err(rustix::io::Errno::XDEV) => {
            Err(Error::not_there("a link leads out of the folders that are served"))
        }
        Err(rustix::io::Errno::NOSYS) => open_resolved(root, path, flags),
        other => Ok(other.map_err(std::io::Error::from)?),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_below(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_resolved(root, path, flags)
}

/// Where the kernel cannot hold a path below a root in one step: its links are resolved before.
fn open_resolved(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolved = path.canonicalize()?;
    if !resolved.starts_with(root.canonicalize()?) {
        return Err(Error::not_there("a link leads out of the folders that are served"));
    }
    Ok(rustix::fs::open(&resolved, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(std::io::Error::from)?)
}

/// The open files of a worker, which one thread uses.
pub struct Files {
    open: RefCell<HashMap<Box<str>, Entry>>,
    cap: usize,
    roots: Arc<Roots>,
}

struct Entry {
    file: Arc<Opened>,
    checked: Instant,
    used: Instant,
}

impl Files {
    /// Keeps at most `cap` files open.
    pub fn new(roots: Arc<Roots>, cap: usize) -> Self {
        Self { open: RefCell::default(), cap, roots }
    }

    /// The file that a path names now, open.
    ///
    /// # Errors
    /// `io_error` where it cannot be opened; those of [`dicom::read_table`] where it is no DICOM file.
    pub async fn take(&self, path: &str) -> Result<Arc<Opened>> {
        let now = Instant::now();
        let known = self.open.borrow_mut().get_mut(path).map(|entry| {
            entry.used = now;
            let recheck = if entry.file.inode.is_some() { RECHECK } else { RECHECK_OBJECT };
            (entry.file.clone(), now.duration_since(entry.checked) < recheck)
        });
        match known {
            Some((file, true)) => Ok(file),
            known => Box::pin(self.take_anew(path, known.map(|(file, _)| file), now)).await,
        }
    }

    /// Holds an open file against what its path names now, or opens it.
    async fn take_anew(&self, path: &str, known: Option<Arc<Opened>>, now: Instant) -> Result<Arc<Opened>> {
        match known {
            Some(file) if file.inode.is_some() => {
                let name = PathBuf::from(path);
                let held = blocking(move || {
                    let stat = rustix::fs::stat(&name).map_err(std::io::Error::from)?;
                    Ok((inode_of(&stat), Fingerprint::at(&name)?))
                });
                // A file that was written anew where it is may hold another instance.
                let is_same =
                    |(inode, state)| Some(inode) == file.inode && file.source.fingerprint() == state;
                if held.await.is_ok_and(is_same) {
                    if let Some(entry) = self.open.borrow_mut().get_mut(path) {
                        entry.checked = now;
                    }
                    return Ok(file);
                }
                self.forget(path);
            }
            // An object is read in its state or not at all; now and then it is asked whether it has another.
            Some(_) => self.forget(path),
            None => {}
        }
        let (roots, name) = (self.roots.clone(), path.to_owned());
        let file = Arc::new(blocking(move || open(&roots, &name)).await?);
        let mut files = self.open.borrow_mut();
        files.insert(path.into(), Entry { file: file.clone(), checked: now, used: now });
        if files.len() > self.cap
            && let Some(oldest) =
                files.iter().min_by_key(|(_, entry)| entry.used).map(|(path, _)| path.clone())
        {
            files.remove(&oldest);
        }
        Ok(file)
    }

    /// Closes a file as soon as no request uses it.
    pub fn forget(&self, path: &str) {
        self.open.borrow_mut().remove(path);
    }
}

/// Opens a DICOM file and reads its UIDs.
///
/// # Errors
/// As [`Files::take`].
pub fn open(roots: &Roots, path: &str) -> Result<Opened> {
    let (source, inode) = if is_address(path) {
        (Served::Object(roots.open_object(path)?), None)
    } else {
        let file = FileSource::new(roots.open(path)?)?;
        let stat = rustix::fs::fstat(file.fd()).map_err(std::io::Error::from)?;
        (Served::File(file), Some(inode_of(&stat)))
    };
    let (table, begin) = match &source {
        Served::File(file) => {
            let mut uids = None;
            let read = dicom::read_table_or_uids(file, Verify::None, &mut Buffer::default(), &mut uids);
            // Its frames are refused when they are asked for.
            let table = read.or_else(|error| uids.ok_or(error))?;
            let begin = dicom::missing_begin(file, &mut Buffer::default(), &table)?;
            (table, begin)
        }
        // Of an object, one request brings this much.
        Served::Object(_) => source.read(|source| -> Result<_> {
            let table = dicom::read_identity(source, &mut Buffer::default())?;
            let begin = dicom::missing_begin(source, &mut Buffer::default(), &table)?;
            Ok((table, begin))
        })?,
    };
    source.check_unchanged()?;
    let [study, series, instance] = [
        table.image.study_instance_uid.as_str(),
        table.image.series_instance_uid.as_str(),
        table.image.sop_instance_uid.as_str(),
    ]
    .map(uid);
    Ok(Opened {
        source,
        study,
        series,
        instance,
        series_uid: table.image.series_instance_uid.to_string(),
        instance_uid: table.image.sop_instance_uid.to_string(),
        transfer_syntax: table.transfer_syntax_uid.to_string(),
        begin,
        is_cut: table.status == Status::Truncated,
        inode,
    })
}

/// What no file can be called, and no rule of access names: nobody is shown what has this name.
const NO_NAME: &str = "\0";

impl Opened {
    /// The name of the file itself, links resolved, where that is not its path. As it is now: folders are moved, and
    /// links set anew, while the file stays open. `None` for objects.
    pub fn own_name(&self, path: &str) -> Option<String> {
        let Served::File(file) = &self.source else { return None };
        let number = file.fd().as_raw_fd();
        // On another system than Linux, the name that the path leads to now.
        let name =
            std::fs::read_link(format!("/proc/self/fd/{number}")).or_else(|_| Path::new(path).canonicalize());
        let name = name.ok().and_then(|name| name.into_os_string().into_string().ok());
        let Some(mut name) = name else { return Some(NO_NAME.to_owned()) };
        let is_gone = || rustix::fs::fstat(file.fd()).is_ok_and(|stat| stat.st_nlink == 0);
        if let Some(length) = name.strip_suffix(" (deleted)").map(str::len)
            && is_gone()
        {
            name.truncate(length); // replaced since it was opened
        }
        (name != path).then_some(name)
    }
}

/// The name that a path leads to, where that is another one; where nobody can tell, it cannot be opened either.
pub fn led_to(path: &str) -> Option<String> {
    let name = if is_address(path) { None } else { Path::new(path).canonicalize().ok() }?;
    let name = name.into_os_string().into_string().unwrap_or_else(|_| NO_NAME.to_owned());
    (name != path).then_some(name)
}

impl Member {
    /// Opens the first copy that still holds the instance that the index says, in the study and series that were asked
    /// for, and that `read` can read.
    ///
    /// # Errors
    /// As [`Files::take`] and `read`; `changed_during_read` where a file holds another instance now. Of several, that of
    /// a copy that could not be looked at, as it may be good.
    pub fn read<R>(&self, roots: &Roots, mut read: impl FnMut(Opened) -> Result<R>) -> Result<R> {
        let mut failure = Error::new(ErrorKind::IoError, "the index names no file");
        for (number, path) in self.paths.iter().enumerate() {
            match open(roots, path)
                .and_then(|file| self.check(path, &file).map(|()| file))
                .and_then(&mut read)
            {
                Ok(read) => return Ok(read),
                Err(error) if number == 0 || is_out_of_reach(&error) => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// Checks that a file holds the instance, in the study and series that were asked for, and may be seen.
    ///
    /// # Errors
    /// `changed_during_read` where it holds another one now; `io_error` as of a file that is gone where a link leads to
    /// what may not be seen.
    pub fn check(&self, path: &str, file: &Opened) -> Result<()> {
        if let Some(shown) = &self.shown
            && let Some(own_name) = file.own_name(path)
            && !shown.contains(&(own_name, self.uid.clone()))
        {
            return Err(Error::not_there("a link leads to what the request may not see"));
        }
        let (study, series) = self.place;
        if file.instance == uid(&self.uid)
            && file.study == study
            && series.is_none_or(|each| file.series == each)
        {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ChangedDuringRead, "the file holds another instance now"))
    }
}

/// Whether nothing is known of a file: it could not be looked at, though it may be there.
pub fn is_out_of_reach(error: &Error) -> bool {
    error.kind == ErrorKind::IoError && !error.is_gone()
}

// libc declares these fields with different widths on different machines.
#[allow(clippy::unnecessary_cast)]
fn inode_of(stat: &rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Runs work that may wait for a disk on another thread.
///
/// # Errors
/// Those of `work`; `io_error` when the gateway stops meanwhile.
pub async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::IoError, "the gateway is stopping")))
}

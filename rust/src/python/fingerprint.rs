//! The state of a file or object as Python has it.

use crate::base::source::{Etag, Fingerprint};

/// Size, mtime_ns, ctime_ns, inode, etag; None for what there is not.
pub(super) type State = (u64, Option<i64>, Option<i64>, Option<u64>, Option<String>);

pub(super) fn state_of(Fingerprint { size, mtime_ns, ctime_ns, inode, etag }: Fingerprint) -> State {
    (size, mtime_ns, ctime_ns, inode, etag.map(|etag| etag.to_string()))
}

pub(super) fn fingerprint_of((size, mtime_ns, ctime_ns, inode, etag): State) -> Fingerprint {
    let etag = etag.and_then(|etag| Etag::from(&etag).ok());
    Fingerprint { size, mtime_ns, ctime_ns, inode, etag }
}

//! Memory that processes share needs Linux: sealed, without a name, joined by `/proc`. Elsewhere each has its own.

use std::path::Path;

use super::Node;
use crate::base::error::{Error, ErrorKind, Result};

/// Makes no memory.
///
/// # Errors
/// `io_error`, always.
pub fn make(_budget: u64) -> Result<&'static Node> {
    Err(refusal())
}

/// Joins no memory.
///
/// # Errors
/// `io_error`, always.
pub fn join(_path: &Path) -> Result<&'static Node> {
    Err(refusal())
}

fn refusal() -> Error {
    Error::new(ErrorKind::IoError, "only on Linux do processes share the memory of tiles")
}

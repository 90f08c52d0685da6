//! What a caller chooses: where long values go, and who takes the text.

use crate::base::error::Result;

/// Most bytes of JSON that are written by default.
pub const MOST_BYTES: usize = 1 << 30;

/// What is written beside the attributes, and what is not.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Where long values are replaced by a URI. Without it they are inline, and pixels are left out.
    pub bulk_data: Option<BulkData<'a>>,
    /// Whether (0008,3002) Available Transfer Syntax UID names the transfer syntax of the file.
    pub with_transfer_syntax: bool,
    /// Last attribute of the data set that is written: the walk ends behind it.
    pub last_tag: Option<u32>,
    /// Largest JSON text in bytes; more is refused with `limit_exceeded`.
    pub most_bytes: usize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { bulk_data: None, with_transfer_syntax: false, last_tag: None, most_bytes: MOST_BYTES }
    }
}

/// The URIs of values (PS3.18 F.2.6): `uri`, then `/` and the tag, before it the tag of each sequence around it
/// and the number of the Item, counted from 1. Pixels always have one.
#[derive(Clone, Copy, Debug)]
pub struct BulkData<'a> {
    /// Beginning of the URI.
    pub uri: &'a str,
    /// Most bytes of a value that is inline, of those VRs that may have a URI.
    pub inline_limit: u32,
}

/// Takes JSON text in pieces.
pub type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<()>;

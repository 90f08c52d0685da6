//! All files of a series or study as one multipart body, opened one after another while it is sent.

use std::sync::Arc;

use super::parts::{FileParts, Step, whole_file};
use crate::base::error::Result;
use crate::gateway::files::{Member, Roots, blocking};

/// A body of parts, each a whole file; its length is not known before.
pub struct FileSequence {
    roots: Arc<Roots>,
    files: std::vec::IntoIter<Member>,
    boundary: String,
    first: Option<FileParts>,
}

impl FileSequence {
    /// A body of these files, the first of which is open.
    ///
    /// # Errors
    /// As [`FileSequence::next_parts`]: nothing was sent yet, so that it can be a status.
    pub async fn begin(roots: Arc<Roots>, files: Vec<Member>, boundary: String) -> Result<Self> {
        let mut body = Self { roots, files: files.into_iter(), boundary, first: None };
        body.first = body.next_parts().await?;
        Ok(body)
    }

    /// The next file with what stands before and behind it; `None` at the end.
    ///
    /// # Errors
    /// A file cannot be opened, or holds another instance now: the client must see a body that is too short.
    pub async fn next_parts(&mut self) -> Result<Option<FileParts>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(member) = self.files.next() else { return Ok(None) };
        let roots = self.roots.clone();
        let file = Arc::new(blocking(move || member.read(&roots, Ok)).await?);
        let Self { boundary, .. } = self;
        let syntax = &file.transfer_syntax;
        let head =
            format!("--{boundary}\r\nContent-Type: application/dicom;transfer-syntax={syntax}\r\n\r\n");
        let tail = if self.files.len() == 0 { format!("\r\n--{boundary}--\r\n") } else { "\r\n".to_owned() };
        let mut steps = vec![Step::Bytes(head.into_bytes())];
        steps.extend(whole_file(&file));
        steps.push(Step::Bytes(tail.into_bytes()));
        Ok(Some(FileParts::new(file, steps)))
    }
}

//! Deflated data sets (PS3.5 A.5): everything after the File Meta Information is one raw deflate stream.

use flate2::{Decompress, FlushDecompress, Status};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Fingerprint, Source};
use crate::base::window::{Buffer, Window};

/// Inflated bytes that are kept for the parser; headers are far shorter.
const MOST_KEPT: usize = 64 << 20;
/// Largest inflated data set in bytes: a megabyte may inflate to a gigabyte.
pub const MOST_INFLATED: u64 = 1 << 30;
const CHUNK: usize = 64 << 10;

/// An inflated data set: its first bytes in memory, and its size.
pub struct Inflated {
    head: Vec<u8>,
    size: u64,
}

impl Source for Inflated {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_size(self.size)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let wanted =
            usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.head.get(start..).and_then(|rest| rest.get(..wanted));
        match (bytes, buffer.get_mut(..wanted)) {
            (Some(from), Some(to)) => to.copy_from_slice(from),
            _ => {
                let detail =
                    format!("the header of a deflated data set must end within its first {MOST_KEPT} bytes");
                return Err(Error::at(ErrorKind::LimitExceeded, offset, detail));
            }
        }
        Ok(wanted)
    }
}

/// Inflates from `start` on; keeps the first bytes and counts the rest.
pub fn inflate(source: &dyn Source, start: u64) -> Result<Inflated> {
    let mut head = Vec::new();
    let mut size = 0_u64;
    stream(source, start, |bytes| {
        let room = MOST_KEPT.saturating_sub(head.len()).min(bytes.len());
        head.extend_from_slice(bytes.get(..room).unwrap_or_default());
        size += bytes.len() as u64;
        if size > MOST_INFLATED {
            let detail =
                format!("the data set inflates to more than {MOST_INFLATED} bytes, the limit of this parser");
            return Err(Error::at(ErrorKind::LimitExceeded, start, detail));
        }
        Ok(true)
    })?;
    Ok(Inflated { head, size })
}

/// Inflates the bytes `[from, to)` as a stream; keeps nothing before or after them.
pub fn inflated_range(source: &dyn Source, start: u64, from: u64, to: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut position = 0_u64;
    stream(source, start, |bytes| {
        let end = position + bytes.len() as u64;
        let within = |limit: u64| usize::try_from(limit.clamp(position, end) - position).unwrap_or(0);
        out.extend_from_slice(bytes.get(within(from)..within(to)).unwrap_or_default());
        position = end;
        Ok(position < to)
    })?;
    if position < to {
        return Err(Error::at(
            ErrorKind::TruncatedFrame,
            position,
            "the inflated data set ends inside the frame",
        ));
    }
    Ok(out)
}

/// Passes inflated chunks to `take` until it returns false or the stream ends.
fn stream(source: &dyn Source, start: u64, mut take: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
    let mut buffer = Buffer::default();
    let mut window = Window::new(source, &mut buffer);
    let mut inflater = Decompress::new(false);
    let mut chunk = vec![0; CHUNK];
    loop {
        let position = start + inflater.total_in();
        let produced = inflater.total_out();
        let input = window.peek(position, CHUNK)?;
        let is_last = input.is_empty();
        let status = inflater.decompress(input, &mut chunk, FlushDecompress::None);
        let count = usize::try_from(inflater.total_out() - produced).unwrap_or(0);
        let stalled = count == 0 && start + inflater.total_in() == position;
        match status {
            Ok(Status::StreamEnd) => {
                take(chunk.get(..count).unwrap_or_default())?;
                return Ok(());
            }
            Ok(_) if !(stalled && is_last) => {
                if !take(chunk.get(..count).unwrap_or_default())? {
                    return Ok(());
                }
            }
            _ => {
                let detail = "the deflated data set is damaged or cut: copy the file again";
                return Err(Error::at(ErrorKind::BadDeflate, start + inflater.total_in(), detail));
            }
        }
    }
}

//! From a chunk's stored bytes back to its cells.

use std::cell::RefCell;
use std::io::Read;

use super::cells::Cells;
use super::framing::bad;
use crate::base::error::{Error, ErrorKind, Result};

/// The compressor of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// Stored as it is.
    None,
    /// One zstd frame.
    Zstd,
    /// One raw lz4 block.
    Lz4,
    /// One zlib stream (TileDB's name for it is gzip).
    Gzip,
}

/// A filter pipeline that can be undone: an optional byte shuffle, then an optional compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Bytes of equal significance lie together before compression.
    pub shuffled: bool,
    /// The compressor that comes last.
    pub compressor: Compressor,
}

impl Pipeline {
    /// The pipeline of some filter names, in order of writing; None for one that is not read here.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Option<Self> {
        let mut names = names.iter().map(AsRef::as_ref).peekable();
        let shuffled = names.next_if(|name| *name == "byteshuffle").is_some();
        let compressor = match names.next() {
            None => Compressor::None,
            Some("zstd") => Compressor::Zstd,
            Some("lz4") => Compressor::Lz4,
            Some("gzip") => Compressor::Gzip,
            Some(_) => return None,
        };
        names.next().is_none().then_some(Self { shuffled, compressor })
    }

    /// Decodes one chunk of `original` bytes and gives its cells to `take`.
    ///
    /// `at` is the chunk's offset, for messages.
    pub fn decode<T>(
        self,
        stored: &[u8],
        metadata: usize,
        original: usize,
        cell: usize,
        at: u64,
        take: impl FnOnce(Cells<'_>) -> T,
    ) -> Result<T> {
        let brief = stored.len() <= BRIEF && self.compressor != Compressor::None;
        if brief && let Some(value) = self.seen_constant(stored, metadata, original, cell) {
            return Ok(take(Cells::Constant(value, original)));
        }
        let (notes, body) =
            stored.split_at_checked(metadata).ok_or_else(|| bad(at, "metadata past the chunk"))?;
        if self.compressor == Compressor::None {
            let wanted: &[u32] = if self.shuffled { &[1, length(original)?] } else { &[] };
            expect(notes, wanted, at)?;
            same_length(body, original, at)?;
            return Ok(take(self.form(body)));
        }
        let body = if self.shuffled {
            self.after_shuffle_header(notes, body, original, at)?
        } else {
            expect(notes, &[0, 1, length(original)?, length(body.len())?], at)?;
            body
        };
        with_scratch(original, |bytes| {
            self.decompress(body, bytes, at)?;
            let cells = self.form(bytes);
            match cells.constant(cell).filter(|_| brief) {
                Some(value) => {
                    self.note_constant(stored, metadata, original, cell, value);
                    Ok(take(Cells::Constant(value, original)))
                }
                None => Ok(take(cells)),
            }
        })
    }

    fn form(self, bytes: &[u8]) -> Cells<'_> {
        if self.shuffled { Cells::Planes(bytes) } else { Cells::Plain(bytes) }
    }

    /// The compressed cells that follow the shuffle's own small header.
    fn after_shuffle_header<'a>(
        self,
        notes: &[u8],
        body: &'a [u8],
        expected: usize,
        at: u64,
    ) -> Result<&'a [u8]> {
        let mut sizes = [0_u32; 6];
        for (slot, bytes) in sizes.iter_mut().zip(notes.chunks_exact(4)) {
            *slot = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        let ([1, 1, 8, head, original, tail], 24) = (sizes, notes.len()) else {
            return Err(bad(
                at,
                format!("filter metadata {notes:?} is not that of a shuffled, compressed chunk"),
            ));
        };
        if u64::from(head) + u64::from(tail) != body.len() as u64 || original as usize != expected {
            return Err(bad(at, format!("parts of {head} and {tail} bytes in a chunk of {}", body.len())));
        }
        let (head, tail) =
            body.split_at_checked(head as usize).ok_or_else(|| bad(at, "shuffle header past the chunk"))?;
        let mut parts = [0_u8; 8];
        self.decompress(head, &mut parts, at)?;
        expect(&parts, &[1, original], at)?;
        Ok(tail)
    }

    fn seen_constant(self, stored: &[u8], metadata: usize, original: usize, cell: usize) -> Option<[u8; 8]> {
        CONSTANTS.with_borrow(|seen| {
            let same = |one: &&Seen| one.stored == stored && one.place == (self, metadata, original, cell);
            seen.iter().find(same).map(|one| one.value)
        })
    }

    fn note_constant(self, stored: &[u8], metadata: usize, original: usize, cell: usize, value: [u8; 8]) {
        CONSTANTS.with_borrow_mut(|seen| {
            seen.truncate(MOST_CONSTANTS - 1);
            seen.insert(0, Seen { stored: stored.to_vec(), place: (self, metadata, original, cell), value });
        });
    }

    fn decompress(self, body: &[u8], out: &mut [u8], at: u64) -> Result<()> {
        let written = match self.compressor {
            Compressor::None => return Err(bad(at, "nothing is compressed here")),
            Compressor::Zstd => ZSTD.with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = Some(zstd::bulk::Decompressor::new()?);
                }
                slot.as_mut().map_or(Ok(0), |decoder| decoder.decompress_to_buffer(body, &mut out[..]))
            }),
            Compressor::Lz4 => lz4_flex::block::decompress_into(body, out).map_err(std::io::Error::other),
            Compressor::Gzip => {
                let mut decoder = flate2::read::ZlibDecoder::new(body);
                decoder.read_exact(out).map(|()| out.len())
            }
        };
        match written {
            Ok(count) if count == out.len() => Ok(()),
            Ok(count) => {
                Err(bad(at, format!("the chunk decodes to {count} bytes, its header says {}", out.len())))
            }
            Err(error) => Err(bad(at, format!("the chunk does not decode: {error}"))),
        }
    }
}

/// Chunks of no more stored bytes may be background: the cells of one value.
const BRIEF: usize = 128;
/// Backgrounds that a thread remembers.
const MOST_CONSTANTS: usize = 4;

/// A brief chunk that was decoded to cells of one value. The same bytes decode to the same cells.
struct Seen {
    stored: Vec<u8>,
    place: (Pipeline, usize, usize, usize),
    value: [u8; 8],
}

thread_local! {
    static CONSTANTS: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) };
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on this thread's scratch buffer; `count` is at most [`super::framing::MAX_CHUNK`].
fn with_scratch<T>(count: usize, work: impl FnOnce(&mut [u8]) -> Result<T>) -> Result<T> {
    SCRATCH.with_borrow_mut(|buffer| {
        if buffer.len() < count {
            buffer.resize(count, 0);
        }
        let part = buffer.get_mut(..count);
        part.map_or_else(|| Err(Error::new(ErrorKind::LimitExceeded, "no scratch memory")), work)
    })
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::new(ErrorKind::LimitExceeded, "a chunk of 4 GiB"))
}

fn expect(notes: &[u8], wanted: &[u32], at: u64) -> Result<()> {
    let same = notes.len() == wanted.len() * 4
        && notes.chunks_exact(4).zip(wanted).all(|(bytes, number)| bytes == number.to_le_bytes());
    if same {
        Ok(())
    } else {
        Err(bad(at, format!("filter metadata {notes:?}, wanted the numbers {wanted:?}")))
    }
}

fn same_length(body: &[u8], original: usize, at: u64) -> Result<()> {
    if body.len() == original {
        return Ok(());
    }
    Err(bad(at, format!("a chunk of {} bytes, its header says {original}", body.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_pipelines_or_to_none() {
        let zstd = Pipeline { shuffled: true, compressor: Compressor::Zstd };
        assert_eq!(Pipeline::from_names(&["byteshuffle", "zstd"]), Some(zstd));
        assert_eq!(Pipeline::from_names(&["zstd", "byteshuffle"]), None);
        assert_eq!(Pipeline::from_names(&["delta"]), None);
        assert_eq!(
            Pipeline::from_names::<&str>(&[]),
            Some(Pipeline { shuffled: false, compressor: Compressor::None })
        );
    }
}

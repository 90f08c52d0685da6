//! Decodes one chunk: undoes its filters and returns its cells.

use std::cell::RefCell;
use std::io::Read;

use super::framing::bad_tile;
use crate::base::error::{Error, ErrorKind, Result};

/// The cells of a decoded chunk.
#[derive(Clone, Copy, Debug)]
pub enum Cells<'a> {
    /// Cell after cell.
    Plain(&'a [u8]),
    /// The first bytes of all cells, then all second bytes, and so on: what a byte shuffle makes.
    Planes(&'a [u8]),
    /// Cells of one value (its first `cell` bytes count), and their length in bytes.
    Constant([u8; 8], usize),
}

impl Cells<'_> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) | Self::Planes(bytes) => bytes.len(),
            Self::Constant(_, bytes) => *bytes,
        }
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one value of all cells, for cells of `cell` (1, 2, 4 or 8) bytes; `None` where cells differ.
    pub fn constant(&self, cell: usize) -> Option<[u8; 8]> {
        let mut value = [0; 8];
        match self {
            Self::Plain(bytes) => {
                value.get_mut(..cell)?.copy_from_slice(bytes.get(..cell)?);
                (bytes.get(cell..) == bytes.get(..bytes.len() - cell)).then_some(value)
            }
            Self::Planes(bytes) => {
                for (slot, plane) in value.iter_mut().zip(bytes.chunks_exact((bytes.len() / cell).max(1))) {
                    *slot = *plane.first()?;
                    if plane.get(1..) != plane.get(..plane.len() - 1) {
                        return None;
                    }
                }
                Some(value)
            }
            Self::Constant(value, _) => Some(*value),
        }
    }
}

/// The compressor of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// No compression.
    None,
    /// One zstd frame.
    Zstd,
    /// One raw lz4 block.
    Lz4,
    /// One zlib stream (TileDB's name for it is gzip).
    Gzip,
}

/// The filters of an attribute: an optional byte shuffle, then an optional compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Whether bytes of equal significance were put together before compression.
    pub shuffled: bool,
    /// The last filter.
    pub compressor: Compressor,
}

impl Pipeline {
    /// The pipeline of these filter names, in order of writing; `None` for one that this module cannot undo.
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

    /// Decodes one chunk and passes its cells to `take`.
    ///
    /// `stored` is `metadata` bytes of filter metadata and the filtered bytes; `original` is the length in
    /// bytes of the cells, `cell` that of one cell; `at` is the chunk's offset in the file, for error
    /// messages.
    ///
    /// # Errors
    /// `bad_tile` when metadata, lengths or compressed bytes contradict each other.
    pub fn decode<T>(
        self,
        stored: &[u8],
        metadata: usize,
        original: usize,
        cell: usize,
        at: u64,
        take: impl FnOnce(Cells<'_>) -> T,
    ) -> Result<T> {
        let is_short = stored.len() <= SHORT && self.compressor != Compressor::None;
        if is_short && let Some(value) = self.cached_constant(stored, metadata, original, cell) {
            return Ok(take(Cells::Constant(value, original)));
        }
        let (filter_metadata, body) = stored
            .split_at_checked(metadata)
            .ok_or_else(|| bad_tile(at, "filter metadata reaches past the end of its chunk"))?;
        if self.compressor == Compressor::None {
            let wanted: &[u32] = if self.shuffled { &[1, length(original)?] } else { &[] };
            expect(filter_metadata, wanted, at)?;
            same_length(body, original, at)?;
            return Ok(take(self.form(body)));
        }
        let body = if self.shuffled {
            self.after_shuffle_header(filter_metadata, body, original, at)?
        } else {
            expect(filter_metadata, &[0, 1, length(original)?, length(body.len())?], at)?;
            body
        };
        with_scratch(original, |bytes| {
            self.decompress(body, bytes, at)?;
            let cells = self.form(bytes);
            match cells.constant(cell).filter(|_| is_short) {
                Some(value) => {
                    self.cache_constant(stored, metadata, original, cell, value);
                    Ok(take(Cells::Constant(value, original)))
                }
                None => Ok(take(cells)),
            }
        })
    }

    fn form(self, bytes: &[u8]) -> Cells<'_> {
        if self.shuffled { Cells::Planes(bytes) } else { Cells::Plain(bytes) }
    }

    /// Checks the compressed metadata of the shuffle and returns the compressed cells after it.
    fn after_shuffle_header<'a>(
        self,
        filter_metadata: &[u8],
        body: &'a [u8],
        expected: usize,
        at: u64,
    ) -> Result<&'a [u8]> {
        let mut sizes = [0_u32; 6];
        for (slot, bytes) in sizes.iter_mut().zip(filter_metadata.chunks_exact(4)) {
            *slot = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        let ([1, 1, 8, head, original, tail], 24) = (sizes, filter_metadata.len()) else {
            return Err(bad_tile(
                at,
                format!("filter metadata {filter_metadata:?} does not describe a shuffled, compressed chunk"),
            ));
        };
        if u64::from(head) + u64::from(tail) != body.len() as u64 || original as usize != expected {
            return Err(bad_tile(
                at,
                format!("parts of {head} and {tail} bytes do not fill a chunk of {} bytes", body.len()),
            ));
        }
        let (head, tail) = body
            .split_at_checked(head as usize)
            .ok_or_else(|| bad_tile(at, "the shuffle header reaches past the end of its chunk"))?;
        let mut parts = [0_u8; 8];
        self.decompress(head, &mut parts, at)?;
        expect(&parts, &[1, original], at)?;
        Ok(tail)
    }

    fn cached_constant(
        self,
        stored: &[u8],
        metadata: usize,
        original: usize,
        cell: usize,
    ) -> Option<[u8; 8]> {
        CONSTANTS.with_borrow(|seen| {
            let same = |one: &&ConstantChunk| {
                one.stored == stored && one.context == (self, metadata, original, cell)
            };
            seen.iter().find(same).map(|one| one.value)
        })
    }

    fn cache_constant(self, stored: &[u8], metadata: usize, original: usize, cell: usize, value: [u8; 8]) {
        CONSTANTS.with_borrow_mut(|seen| {
            seen.truncate(MOST_CONSTANTS - 1);
            seen.insert(
                0,
                ConstantChunk { stored: stored.to_vec(), context: (self, metadata, original, cell), value },
            );
        });
    }

    fn decompress(self, body: &[u8], out: &mut [u8], at: u64) -> Result<()> {
        let written = match self.compressor {
            Compressor::None => return Err(bad_tile(at, "the pipeline has no compressor")),
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
            Ok(count) => Err(bad_tile(
                at,
                format!("the chunk decodes to {count} bytes, its header says {}", out.len()),
            )),
            Err(error) => Err(bad_tile(at, format!("the chunk does not decode: {error}"))),
        }
    }
}

/// Only chunks of at most this many stored bytes are checked for cells of one value (background).
const SHORT: usize = 128;
/// Constant chunks that a thread remembers.
const MOST_CONSTANTS: usize = 4;

/// A short chunk whose cells all have one value: the same stored bytes need not be decoded again.
struct ConstantChunk {
    stored: Vec<u8>,
    /// Pipeline, bytes of metadata, bytes of cells, bytes of one cell.
    context: (Pipeline, usize, usize, usize),
    value: [u8; 8],
}

thread_local! {
    static CONSTANTS: RefCell<Vec<ConstantChunk>> = const { RefCell::new(Vec::new()) };
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
        part.map_or_else(
            || {
                Err(Error::new(
                    ErrorKind::LimitExceeded,
                    format!("a chunk of {count} bytes exceeds the scratch memory"),
                ))
            },
            work,
        )
    })
}

fn length(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, format!("a chunk of {bytes} bytes: at most 4 GiB can be read"))
    })
}

fn expect(filter_metadata: &[u8], wanted: &[u32], at: u64) -> Result<()> {
    let same = filter_metadata.len() == wanted.len() * 4
        && filter_metadata.chunks_exact(4).zip(wanted).all(|(bytes, number)| bytes == number.to_le_bytes());
    if same {
        Ok(())
    } else {
        Err(bad_tile(at, format!("filter metadata is {filter_metadata:?}, must be the numbers {wanted:?}")))
    }
}

fn same_length(body: &[u8], original: usize, at: u64) -> Result<()> {
    if body.len() == original {
        return Ok(());
    }
    Err(bad_tile(at, format!("the chunk has {} bytes, its header says {original}", body.len())))
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

//! From a chunk's stored bytes back to its cells.

use std::cell::RefCell;
use std::io::Read;

use super::framing::bad;
use crate::error::{Error, ErrorKind, Result};

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

    /// Decodes one chunk into `out`, which is exactly as long as the chunk's header promises.
    ///
    /// `at` is the chunk's offset, for messages.
    pub fn decode(self, stored: &[u8], metadata: usize, cell: usize, at: u64, out: &mut [u8]) -> Result<()> {
        let (notes, body) =
            stored.split_at_checked(metadata).ok_or_else(|| bad(at, "metadata past the chunk"))?;
        match (self.shuffled, self.compressor) {
            (false, Compressor::None) => copy(body, out, at),
            (true, Compressor::None) => {
                expect(notes, &[1, length(out)?], at)?;
                same_length(body, out, at)?;
                unshuffle(body, cell, out);
                Ok(())
            }
            (false, _) => {
                let compressed = length(body)?;
                expect(notes, &[0, 1, length(out)?, compressed], at)?;
                self.decompress(body, out, at)
            }
            (true, _) => self.decode_shuffled(notes, body, cell, at, out),
        }
    }

    fn decode_shuffled(self, notes: &[u8], body: &[u8], cell: usize, at: u64, out: &mut [u8]) -> Result<()> {
        let sizes: Vec<u32> =
            notes.chunks_exact(4).filter_map(|b| b.try_into().ok().map(u32::from_le_bytes)).collect();
        let &[1, 1, 8, head, original, tail] = sizes.as_slice() else {
            return Err(bad(
                at,
                format!("filter metadata {sizes:?} is not that of a shuffled, compressed chunk"),
            ));
        };
        if u64::from(head) + u64::from(tail) != body.len() as u64 || original as usize != out.len() {
            return Err(bad(at, format!("parts of {head} and {tail} bytes in a chunk of {}", body.len())));
        }
        let (head, tail) =
            body.split_at_checked(head as usize).ok_or_else(|| bad(at, "shuffle header past the chunk"))?;
        let mut parts = [0_u8; 8];
        self.decompress(head, &mut parts, at)?;
        expect(&parts, &[1, original], at)?;
        with_scratch(out.len(), |shuffled| {
            self.decompress(tail, shuffled, at)?;
            unshuffle(shuffled, cell, out);
            Ok(())
        })
    }

    fn decompress(self, body: &[u8], out: &mut [u8], at: u64) -> Result<()> {
        let written = match self.compressor {
            Compressor::None => return copy(body, out, at),
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

thread_local! {
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

fn length(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| Error::new(ErrorKind::LimitExceeded, "a chunk of 4 GiB"))
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

fn same_length(body: &[u8], out: &[u8], at: u64) -> Result<()> {
    if body.len() == out.len() {
        return Ok(());
    }
    Err(bad(at, format!("a chunk of {} bytes, its header says {}", body.len(), out.len())))
}

fn copy(body: &[u8], out: &mut [u8], at: u64) -> Result<()> {
    same_length(body, out, at)?;
    out.copy_from_slice(body);
    Ok(())
}

/// Puts the bytes of equal significance, which lie together in `planes`, back into cells.
///
/// Both have one length; bytes past the last whole cell stay where they are.
pub fn unshuffle(planes: &[u8], cell: usize, out: &mut [u8]) {
    let cells = out.len() / cell.max(1);
    let mut parts = planes.chunks_exact(cells.max(1));
    match cell {
        2 => {
            if let (Some(a), Some(b)) = (parts.next(), parts.next()) {
                interleave_2(a, b, out);
            }
        }
        4 => {
            if let (Some(a), Some(b), Some(c), Some(d)) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            {
                interleave_4([a, b, c, d], out);
            }
        }
        _ => {
            for (significance, plane) in parts.take(cell).enumerate() {
                for (target, &byte) in out.iter_mut().skip(significance).step_by(cell.max(1)).zip(plane) {
                    *target = byte;
                }
            }
        }
    }
    let whole = cells * cell.max(1);
    if let (Some(rest), Some(target)) = (planes.get(whole..), out.get_mut(whole..)) {
        target.copy_from_slice(rest);
    }
}

fn interleave_2(a: &[u8], b: &[u8], out: &mut [u8]) {
    for ((pair, &a), &b) in out.chunks_exact_mut(2).zip(a).zip(b) {
        pair.copy_from_slice(&[a, b]);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn interleave_4(planes: [&[u8]; 4], out: &mut [u8]) {
    interleave_4_rest(planes, out);
}

// The compiler finds this form for two planes by itself (37 GB/s), for four it does not (12 instead of 45).
#[cfg(target_arch = "x86_64")]
fn interleave_4([a, b, c, d]: [&[u8]; 4], out: &mut [u8]) {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpacklo_epi8,
        _mm_unpacklo_epi16,
    };
    let (blocks, rest) = out.as_chunks_mut::<64>();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let ((c, c_rest), (d, d_rest)) = (c.as_chunks::<16>(), d.as_chunks::<16>());
    for ((((block, a), b), c), d) in blocks.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        // SAFETY: SSE2 is part of x86_64; each load has 16 bytes and the four stores fill the 64 of the block.
        unsafe {
            let [a, b, c, d] = [a, b, c, d].map(|plane| _mm_loadu_si128(plane.as_ptr().cast()));
            let (ab_low, ab_high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
            let place = block.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(place, _mm_unpacklo_epi16(ab_low, cd_low));
            _mm_storeu_si128(place.add(1), _mm_unpackhi_epi16(ab_low, cd_low));
            _mm_storeu_si128(place.add(2), _mm_unpacklo_epi16(ab_high, cd_high));
            _mm_storeu_si128(place.add(3), _mm_unpackhi_epi16(ab_high, cd_high));
        }
    }
    interleave_4_rest([a_rest, b_rest, c_rest, d_rest], rest);
}

fn interleave_4_rest([a, b, c, d]: [&[u8]; 4], out: &mut [u8]) {
    for ((((quad, &a), &b), &c), &d) in out.chunks_exact_mut(4).zip(a).zip(b).zip(c).zip(d) {
        quad.copy_from_slice(&[a, b, c, d]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshuffle_is_the_inverse_of_the_definition() {
        for cell in [1, 2, 4, 8] {
            for cells in [0, 1, 15, 16, 17, 100] {
                let plain: Vec<u8> = (0..cell * cells).map(|n| (n * 37 % 251) as u8).collect();
                let planes: Vec<u8> = (0..cell)
                    .flat_map(|s| (0..cells).map(move |c| c * cell + s))
                    .map(|at| plain[at])
                    .collect();
                let mut out = vec![0; plain.len()];
                unshuffle(&planes, cell, &mut out);
                assert_eq!(out, plain, "{cell} bytes, {cells} cells");
            }
        }
    }

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

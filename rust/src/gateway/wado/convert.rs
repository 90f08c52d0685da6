//! Frames that are not sent as the file holds them: inflated, of several runs, moved to bit 0, from big to little
//! endian.

use std::sync::Arc;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Source;
use crate::dicom::read::FrameBytes;
use crate::frames::memory::cache::read_frames;
use crate::frames::memory::cached::Selected;
use crate::frames::table::{FrameTable, Layout};
use crate::gateway::files::{Opened, blocking};

/// Reads frames, counted from 0, in the form in which they are sent.
///
/// # Errors
/// As [`read_frames`]; `truncated_frame` where the file ends in the middle of a word that holds a frame's last byte.
pub async fn convert(
    file: &Arc<Opened>,
    mut selected: Selected,
    frames: &[u32],
    is_big_endian: bool,
) -> Result<Vec<Vec<u8>>> {
    let (file, frames) = (file.clone(), frames.to_vec());
    blocking(move || {
        let width = usize::from(selected.table.image.bits_allocated / 8);
        let is_in_words = is_big_endian && width <= 1 && has_words(&file.source, &selected.table)?;
        let lengths = if is_in_words { widen(&mut selected.table, file.source.size())? } else { Vec::new() };
        let mut read = file.source.read_now(|source| read_frames(source, &selected.table))?;
        for (frame, length) in read.iter_mut().zip(lengths) {
            let mut words = Vec::from(std::mem::take(frame));
            words.chunks_exact_mut(2).for_each(<[u8]>::reverse);
            words.truncate(length);
            *frame = FrameBytes::from(words);
        }
        selected.align(&frames, &mut read);
        let mut read: Vec<Vec<u8>> = read.into_iter().map(Vec::from).collect();
        if is_big_endian && width > 1 {
            read.iter_mut().for_each(|bytes| bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse));
        }
        Ok(read)
    })
    .await
}

/// Whether pixels are OW: words of 16 bits, which in big endian hold the second of two bytes first (PS3.5 7.3 and
/// annex A.3), however few bits a sample has.
fn has_words(source: &dyn Source, table: &FrameTable) -> Result<bool> {
    let Some(tag) = table.pixel_data_pos else { return Ok(false) };
    let mut vr = [0; 2];
    Ok(source.read_at(tag + 4, &mut vr)? == 2 && &vr == b"OW")
}

/// Makes the range of a frame reach over its last word too, and returns the lengths that the frames have. None
/// begins within a word: such a table is refused.
fn widen(table: &mut FrameTable, size: u64) -> Result<Vec<usize>> {
    let Layout::Items(items) = &mut table.layout else { return Ok(Vec::new()) };
    let lengths = items.lengths.iter().map(|&length| length as usize).collect();
    for (start, length) in items.offsets.iter().zip(&mut items.lengths) {
        *length = length.next_multiple_of(2);
        if start.saturating_add(*length) > size {
            let detail = "the file ends in the middle of the word that holds the last byte of a frame";
            return Err(Error::at(ErrorKind::TruncatedFrame, size, detail));
        }
    }
    Ok(lengths)
}

//! Which fragments make which frame where no table says so: rules in their order, then refusal.

use super::fragments::{Ending, Fragments};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Source, read_array};
use crate::dicom::part10;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Items, Method};

/// Fragment indices `[first, end)` of one frame.
pub type FragmentRange = (u32, u32);

/// Groups fragments without a table: one frame, one fragment for each frame, or by the markers of the codec.
pub fn group(
    source: &dyn Source,
    fragments: &Fragments,
    frames: u32,
    transfer_syntax_uid: &str,
    notes: &mut Notes,
) -> Result<(Vec<FragmentRange>, Method)> {
    let count = u32::try_from(fragments.len()).unwrap_or(u32::MAX);
    if frames == 1 {
        return Ok((vec![(0, count)], Method::SingleFrame));
    }
    let used = without_trailing_empty(fragments, frames);
    if used < count {
        notes.add(Note::trailing_empty_fragment);
    }
    if used == frames {
        check_one_each(source, fragments, frames, transfer_syntax_uid)?;
        return Ok(((0..frames).map(|index| (index, index + 1)).collect(), Method::OneFragmentPerFrame));
    }
    if used > frames && !part10::has_no_markers(transfer_syntax_uid) {
        if let Some(ranges) = by_markers(fragments, used, frames, |i| starts_image(source, fragments, i))? {
            return Ok((ranges, Method::StartMarkers));
        }
        if let Some(ranges) = by_end_markers(source, fragments, used, frames)? {
            return Ok((ranges, Method::EndMarkers));
        }
    }
    Err(refusal(fragments, frames))
}

/// As many fragments as frames are one each, since no fragment holds two frames (PS3.5 A.4). That argument
/// needs all of them: where the walk did not end at the delimiter, each must begin an image if the first does.
fn check_one_each(
    source: &dyn Source,
    fragments: &Fragments,
    frames: u32,
    transfer_syntax_uid: &str,
) -> Result<()> {
    let trusted = fragments.ending == Ending::Delimiter || part10::has_no_markers(transfer_syntax_uid);
    if trusted || !starts_image(source, fragments, 0)? {
        return Ok(());
    }
    for index in 1..frames as usize {
        let is_empty = fragments.payload(index).is_none_or(|(_, length)| length == 0);
        if !is_empty && !starts_image(source, fragments, index)? {
            return Err(refusal(fragments, frames));
        }
    }
    Ok(())
}

/// Whether fragments may be missing after the last one although the file goes on: something else than an
/// Item or the delimiter stands there, and the last fragment does not end an image.
pub fn may_lack_fragments(source: &dyn Source, fragments: &Fragments, method: Method) -> Result<bool> {
    let knows_lengths = matches!(method, Method::OneFragmentPerFrame | Method::Eot | Method::Tiff);
    let last = fragments.lengths.iter().rposition(|&length| length > 0);
    Ok(match last {
        Some(last) if fragments.ending == Ending::Astray && !knows_lengths => {
            !ends_image(source, fragments, last)?
        }
        _ => false,
    })
}

/// The number of fragments without the empty ones at the end, never fewer than `frames` (fo-dicom GH-1586).
fn without_trailing_empty(fragments: &Fragments, frames: u32) -> u32 {
    let is_empty = |length: &u32| *length == 0 && fragments.ending != Ending::Cut;
    let empty = fragments.lengths.iter().rev().take_while(|length| is_empty(length)).count();
    let count = fragments.len();
    u32::try_from(count.saturating_sub(empty).max(count.min(frames as usize))).unwrap_or(u32::MAX)
}

/// Frames begin at the fragments that `begins` names; accepted only if there are `frames` of them and the
/// first fragment is one.
fn by_markers(
    fragments: &Fragments,
    used: u32,
    frames: u32,
    mut begins: impl FnMut(usize) -> Result<bool>,
) -> Result<Option<Vec<FragmentRange>>> {
    debug_assert!(used as usize <= fragments.len());
    let mut starts = Vec::new();
    for index in 0..used {
        if begins(index as usize)? {
            starts.push(index);
        }
        let missing_first = starts.first() != Some(&0);
        if missing_first || starts.len() > frames as usize {
            return Ok(None);
        }
    }
    if starts.len() != frames as usize {
        return Ok(None);
    }
    let ends = starts.iter().skip(1).copied().chain([used]);
    Ok(Some(starts.iter().copied().zip(ends).collect()))
}

/// Frames end at the fragments that hold FFD9 in their last bytes; the last one that is not empty must.
fn by_end_markers(
    source: &dyn Source,
    fragments: &Fragments,
    used: u32,
    frames: u32,
) -> Result<Option<Vec<FragmentRange>>> {
    let mut previous_ends = true;
    let ranges = by_markers(fragments, used, frames, |index| {
        let begins = previous_ends;
        previous_ends = match fragments.payload(index) {
            // An empty fragment neither begins nor ends a frame.
            Some((_, 0)) => previous_ends && !begins,
            _ => ends_image(source, fragments, index)?,
        };
        Ok(begins)
    })?;
    Ok(ranges.filter(|_| previous_ends))
}

/// JPEG SOI, JPEG 2000 SOC, JPEG XL codestream, JP2 signature box, JPEG XL signature box.
fn starts_image(source: &dyn Source, fragments: &Fragments, index: usize) -> Result<bool> {
    let Some((position, length)) = fragments.payload(index) else { return Ok(false) };
    let codestream = [[0xFF, 0xD8], [0xFF, 0x4F], [0xFF, 0x0A]];
    if length >= 2 && read_array::<2>(source, position)?.is_some_and(|start| codestream.contains(&start)) {
        return Ok(true);
    }
    let boxes = [*b"\0\0\0\x0CjP  ", *b"\0\0\0\x0CJXL "];
    Ok(length >= 8 && read_array::<8>(source, position)?.is_some_and(|start| boxes.contains(&start)))
}

fn ends_image(source: &dyn Source, fragments: &Fragments, index: usize) -> Result<bool> {
    let Some((position, length)) = fragments.payload(index) else { return Ok(false) };
    let tail = usize::try_from(length.min(10)).unwrap_or(10);
    let mut bytes = [0; 10];
    let Some(bytes) = bytes.get_mut(..tail) else { return Ok(false) };
    let count = source.read_at(position + u64::from(length) - tail as u64, bytes)?;
    Ok(count == tail && bytes.windows(2).any(|pair| pair == [0xFF, 0xD9]))
}

fn refusal(fragments: &Fragments, frames: u32) -> Error {
    let count = fragments.len();
    let place = fragments.tags.first().copied().unwrap_or(0);
    let shown = fragments.lengths.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", ");
    let more = if count > 8 { ", ..." } else { "" };
    let detail = format!("{frames} frames are declared, {count} fragments found (lengths {shown}{more})");
    if count < frames as usize {
        Error::at(ErrorKind::FewerFragmentsThanFrames, place, detail)
    } else {
        Error::at(ErrorKind::AmbiguousFragments, place, detail + " and nothing says which belong together")
    }
}

/// Lays the fragments out in frame order. Empty fragments vanish from frames that hold others; a frame of
/// one empty fragment stays, and a frame that is lost becomes one. Returns the first frame that is cut, too.
pub fn lay_out(fragments: &Fragments, ranges: &[FragmentRange], may_lack: bool) -> (Items, Option<u32>) {
    let count = u32::try_from(fragments.len()).unwrap_or(u32::MAX);
    let is_lost = |&(start, _): &FragmentRange| start >= count;
    let last_is_cut = fragments.ending == Ending::Cut || may_lack || ranges.iter().any(is_lost);
    let mut items = Items::default();
    let mut first = Vec::with_capacity(ranges.len() + 1);
    let mut cut = None;
    let last = fragments.len().saturating_sub(1);
    for (frame, &(start, end)) in ranges.iter().enumerate() {
        first.push(items.offsets.len() as u32);
        let all = || (start as usize..end as usize).filter_map(|index| fragments.payload(index));
        let only_empty = all().all(|(_, length)| length == 0);
        let kept = all().enumerate().filter(|&(nth, (_, length))| length > 0 || (only_empty && nth == 0));
        for (_, (offset, length)) in kept {
            items.offsets.push(offset);
            items.lengths.push(u64::from(length));
        }
        if is_lost(&(start, end)) {
            items.offsets.push(fragments.end);
            items.lengths.push(0);
        }
        if is_lost(&(start, end)) || (last_is_cut && (start as usize..end as usize).contains(&last)) {
            cut = cut.or(u32::try_from(frame).ok());
        }
    }
    first.push(items.offsets.len() as u32);
    let one_each = first.iter().zip(0_u32..).all(|(&first, index)| first == index);
    items.frame_first = if one_each { None } else { Some(first) };
    (items, cut)
}

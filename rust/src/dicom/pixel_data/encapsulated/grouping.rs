//! Which fragments make which frame where no table says so: rules in their order, then refusal.

use arrayvec::ArrayVec;

use super::fragments::{Ending, Fragments};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Source;
use crate::dicom::part10;
use crate::frames::notes::{Note, Notes};
use crate::frames::table::{Items, Method};

const RLE_LOSSLESS: &str = "1.2.840.10008.1.2.5";

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
        check_one_image(fragments)?;
        return Ok((vec![(0, count)], Method::SingleFrame));
    }
    let used = without_trailing_empty(fragments, frames);
    if used < count {
        notes.add(Note::trailing_empty_fragment);
    }
    if used == frames {
        check_one_each(fragments, frames, transfer_syntax_uid)?;
        return Ok(((0..frames).map(|index| (index, index + 1)).collect(), Method::OneFragmentPerFrame));
    }
    if used > frames && !part10::has_no_markers(transfer_syntax_uid) {
        if let Some(ranges) = by_markers(fragments, used, frames, |i| Ok(fragments.begins_image(i)))? {
            return Ok((ranges, Method::StartMarkers));
        }
        if let Some(ranges) = by_end_markers(source, fragments, used, frames)? {
            return Ok((ranges, Method::EndMarkers));
        }
    }
    Err(refusal(fragments, frames))
}

/// A frame may lie in many fragments (PS3.5 A.4), but not in several that each begin an image.
fn check_one_image(fragments: &Fragments) -> Result<()> {
    let all = (0, u32::try_from(fragments.len()).unwrap_or(u32::MAX));
    match begins_another(fragments, all) {
        None => Ok(()),
        Some(_) => Err(refusal(fragments, 1)),
    }
}

/// The first fragment of a frame, but for its first, that begins an image of its own.
fn begins_another(fragments: &Fragments, (start, end): FragmentRange) -> Option<usize> {
    (start as usize + 1..(end as usize).min(fragments.len())).find(|&index| fragments.begins_image(index))
}

/// As many fragments as frames are one each, since no fragment holds two frames (PS3.5 A.4). That argument
/// needs all of them: where the walk did not end at the delimiter, each must begin an image if the first does.
fn check_one_each(fragments: &Fragments, frames: u32, transfer_syntax_uid: &str) -> Result<()> {
    let trusted = fragments.ending == Ending::Delimiter || part10::has_no_markers(transfer_syntax_uid);
    if trusted || !fragments.begins_image(0) {
        return Ok(());
    }
    for index in 1..frames as usize {
        let is_empty = fragments.payload(index).is_none_or(|(_, length)| length == 0);
        if !is_empty && !fragments.begins_image(index) {
            return Err(refusal(fragments, frames));
        }
    }
    Ok(())
}

/// Refuses frames that cannot be images: empty ones, those that do not begin as others do, and those that hold
/// the beginning of another (which end markers may have told to belong to one). Frames from `cut` on are lost.
pub fn check_frames(
    fragments: &Fragments,
    ranges: &[FragmentRange],
    method: Method,
    cut: Option<u32>,
    transfer_syntax_uid: &str,
) -> Result<()> {
    let whole = cut.map_or(ranges.len(), |cut| cut as usize);
    let firsts = || {
        ranges.iter().take(whole).map(|&(start, end)| {
            (start as usize..end as usize)
                .find(|&index| fragments.payload(index).is_some_and(|(_, length)| length > 0))
        })
    };
    let place = |frame: usize| {
        let first = ranges.get(frame).map_or(0, |&(start, _)| start as usize);
        fragments.tags.get(first).copied().unwrap_or(fragments.end)
    };
    if let Some(frame) = firsts().position(|first| first.is_none()) {
        let detail = format!("frame {frame} (from 0) has no bytes");
        return Err(Error::at(ErrorKind::NotAFrame, place(frame), detail));
    }
    let may_hold_starts = method == Method::EndMarkers;
    for (frame, &range) in ranges.iter().take(whole).enumerate().filter(|_| !may_hold_starts) {
        if let Some(index) = begins_another(fragments, range) {
            let detail = format!("fragment {index} (from 0) begins an image within frame {frame} (from 0)");
            return Err(Error::at(ErrorKind::NotAFrame, place(frame), detail));
        }
    }
    if (part10::has_no_markers(transfer_syntax_uid) && transfer_syntax_uid != RLE_LOSSLESS)
        || !firsts().flatten().any(|first| fragments.begins_image(first))
    {
        return Ok(());
    }
    match firsts().position(|first| first.is_some_and(|first| !fragments.begins_image(first))) {
        None => Ok(()),
        Some(frame) => {
            let detail = format!("frame {frame} (from 0) does not begin as an image does, and others do");
            Err(Error::at(ErrorKind::NotAFrame, place(frame), detail))
        }
    }
}

/// Whether the last frame may lack its end although the file does not end within a fragment: no delimiter says
/// that it is the last one, and its last fragment does not end an image. Where each frame is one fragment whose
/// length is right, and the codec has no marker to tell, it is whole (`is_proven`); where the walk went astray
/// that length is in doubt.
pub fn may_lack_end(source: &dyn Source, fragments: &Fragments, is_proven: bool) -> Result<bool> {
    let in_doubt = match fragments.ending {
        Ending::Astray => true,
        Ending::EndOfFile => !is_proven,
        _ => false,
    };
    let last = fragments.lengths.iter().rposition(|&length| length > 0);
    match last {
        Some(last) if in_doubt => Ok(!ends_with_marker(source, fragments, last)?),
        _ => Ok(false),
    }
}

/// Whether a payload ends with FFD9, but for zeros behind it.
fn ends_with_marker(source: &dyn Source, fragments: &Fragments, index: usize) -> Result<bool> {
    let bytes = tail(source, fragments, index)?;
    let padding = bytes.iter().rev().take_while(|&&byte| byte == 0).count();
    Ok(bytes.get(..bytes.len() - padding).is_some_and(|bytes| bytes.ends_with(&[0xFF, 0xD9])))
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

fn ends_image(source: &dyn Source, fragments: &Fragments, index: usize) -> Result<bool> {
    Ok(tail(source, fragments, index)?.windows(2).any(|pair| pair == [0xFF, 0xD9]))
}

/// Up to ten bytes at the end of a payload.
fn tail(source: &dyn Source, fragments: &Fragments, index: usize) -> Result<ArrayVec<u8, 10>> {
    let mut bytes = ArrayVec::from([0; 10]);
    let Some((position, length)) = fragments.payload(index) else { return Ok(ArrayVec::new()) };
    bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    let from = position + u64::from(length) - bytes.len() as u64;
    let count = source.read_at(from, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
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
    // Empty fragments at the end belong to no frame: the last that does may be an earlier one.
    let last = ranges.iter().map(|&(_, end)| end as usize).max().unwrap_or(0).saturating_sub(1);
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

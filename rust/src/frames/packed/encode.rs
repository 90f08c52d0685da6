//! Encodes a layout in the smallest form that can hold it.

use crate::frames::table::{ItemsView, Layout, LayoutView, Native};

use super::compact;
use super::form::{CHECKPOINT, FLAG_MAP, FLAG_NATIVE, FLAG_ONE_FRAME, FLAG_WIDE, Form, pad};
use super::head::Head;

/// Encodes a layout in the smallest form that SQL can decode; no bytes for [`Layout::Empty`].
pub fn encode(layout: &Layout) -> Vec<u8> {
    parts(layout.view(), false).map_or_else(Vec::new, |(head, sections)| head.write_full(&sections))
}

/// Encodes a layout in the smallest form for memory into `table`, which is cleared first.
pub fn encode_for_memory(layout: LayoutView<'_>, table: &mut Vec<u8>) {
    table.clear();
    if let Some((head, sections)) = parts(layout, true) {
        head.write_short(table);
        table.extend(sections);
    }
}

/// The head and the sections of a layout; with `compact`, in the forms for memory too.
pub(super) fn parts(layout: LayoutView<'_>, compact: bool) -> Option<(Head, Vec<u8>)> {
    match layout {
        LayoutView::Empty => None,
        LayoutView::Native(Native { base, frame_bits: end, frames }) => {
            let head =
                Head { form: Form::Affine, flags: FLAG_NATIVE, low: 0, items: frames, frames, base, end };
            Some((head, Vec::new()))
        }
        LayoutView::Items(items) => Some(parts_of_items(items, compact)),
    }
}

fn parts_of_items(items: ItemsView<'_>, compact: bool) -> (Head, Vec<u8>) {
    let frames = items.frames() as u32;
    let base = items.offsets.first().map_or(0, |first| first - 8);
    let ends =
        || items.offsets.iter().zip(items.lengths).map(|(offset, length)| offset.saturating_add(*length));
    let end = ends().next_back().unwrap_or(base);
    let contiguous =
        ends().zip(items.offsets.iter().skip(1)).all(|(end, &next)| end.checked_add(8) == Some(next));
    let narrow = items.lengths.iter().all(|&length| length <= u64::from(u32::MAX));
    let length = items.lengths.first().copied().unwrap_or(0);
    let map_flag = match items.frame_first {
        None => 0,
        Some(_) if frames == 1 => FLAG_ONE_FRAME,
        Some(_) => FLAG_MAP,
    };
    let count = items.offsets.len() as u32;
    let mut head = Head { form: Form::Affine, flags: map_flag, low: 0, items: count, frames, base, end };
    let mut sections = Vec::new();
    if contiguous && items.lengths.iter().all(|&other| other == length) {
        head.end = (length + 8).saturating_mul(8);
    } else if let Some(found) = (compact && contiguous).then(|| compact::encode(items, base, end)).flatten() {
        head = Head { form: found.form, flags: found.flags | map_flag, low: found.low, ..head };
        sections = found.sections;
    } else if contiguous && narrow {
        head.form = Form::Checkpoints;
        for offset in items.offsets.iter().step_by(CHECKPOINT) {
            sections.extend((offset - 8).to_le_bytes());
        }
        push_lengths(&mut sections, items.lengths, false);
    } else {
        head.form = Form::Raw;
        head.flags |= if narrow { 0 } else { FLAG_WIDE };
        for offset in items.offsets {
            sections.extend((offset - 8).to_le_bytes());
        }
        push_lengths(&mut sections, items.lengths, !narrow);
    }
    if let Some(first) = items.frame_first.filter(|_| map_flag == FLAG_MAP) {
        first.iter().for_each(|index| sections.extend(index.to_le_bytes()));
        pad(&mut sections);
    }
    (head, sections)
}

fn push_lengths(table: &mut Vec<u8>, lengths: &[u64], wide: bool) {
    for &length in lengths {
        if wide { table.extend(length.to_le_bytes()) } else { table.extend((length as u32).to_le_bytes()) }
    }
    pad(table);
}

//! The one compact encoding of a [`Layout`]: a head, then sections padded to 8; little endian throughout.
//!
//! What leaves memory (Postgres, pickles) has the full head of 32 bytes:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | form: see [`Form`] |
//! | 2 | u8 | flags |
//! | 3 | u8 | low bits of the Elias-Fano form, else 0 |
//! | 4 | u32 | CRC-32C of the whole table with this field 0 |
//! | 8, 12 | u32 | items, frames |
//! | 16 | u64 | offset of the first Item tag; native: of the first pixel byte |
//! | 24 | u64 | first byte after the last item; AFFINE: stride in bits |
//!
//! In memory, where most tables are of one frame and nobody else writes, the head is brief: form and flags
//! in one byte, then what the form needs of the other fields as varints (`varint.rs`), 6 to 16 bytes in all.
//!
//! Contiguous item i has its payload at `[tag_i + 8, tag_(i+1))`. With [`FLAG_MAP`] a section of
//! `frames + 1` u32 follows: the first item of each frame, and the number of items.

use crate::error::{Error, ErrorKind, Result};
use crate::frame_table::{Items, ItemsView, Layout, LayoutView, Native};
use crate::names::closed_list;

use compact::Borders;
use head::Head;

mod bits;
mod compact;
mod head;
mod look_up;

pub use look_up::Table;

const VERSION: u8 = 1;
/// Bytes before the first section.
pub const HEADER: usize = 32;
/// Items between two absolute positions of the U32CKPT form.
const CHECKPOINT: usize = 256;
/// More items than any file that the parser accepts.
const MOST_ITEMS: u32 = crate::dicom::fragments::MOST_FRAGMENTS as u32;

/// Borders are stored as halves.
pub const FLAG_HALVED: u8 = 1;
/// Native pixels: no item headers.
pub const FLAG_NATIVE: u8 = 2;
/// All items belong to frame 0.
pub const FLAG_ONE_FRAME: u8 = 4;
/// A fragment map follows.
pub const FLAG_MAP: u8 = 8;
/// RAW lengths are u64.
pub const FLAG_WIDE: u8 = 64;

closed_list! {
    /// How item positions are written; the code in the table is the order here plus 1.
    pub enum Form {
        /// Equal strides, no section at all.
        Affine = "affine",
        /// Frames of reference with 64 items a block, for memory.
        For64 = "for64",
        /// Elias-Fano, for memory.
        EliasFano = "elias_fano",
        /// u64 tag, u32 (or u64) length for each item: gaps, overlaps, any order.
        Raw = "raw",
        /// u64 tag of every 256th item, u32 length of each: contiguous items, decodable in SQL.
        Checkpoints = "checkpoints",
    }
}

/// Encodes a layout in the smallest form that SQL can decode; empty for [`Layout::Empty`].
pub fn encode(layout: &Layout) -> Vec<u8> {
    coded(layout.view(), false).map_or_else(Vec::new, |(head, sections)| head.sealed(&sections))
}

/// Encodes a layout in the smallest form, for memory, into `table`, which is cleared before.
pub fn encode_brief(layout: LayoutView<'_>, table: &mut Vec<u8>) {
    table.clear();
    if let Some((head, sections)) = coded(layout, true) {
        head.write_brief(table);
        table.extend(sections);
    }
}

fn coded(layout: LayoutView<'_>, compact: bool) -> Option<(Head, Vec<u8>)> {
    match layout {
        LayoutView::Empty => None,
        LayoutView::Native(Native { base, frame_bits: end, frames }) => {
            let head =
                Head { form: Form::Affine, flags: FLAG_NATIVE, low: 0, items: frames, frames, base, end };
            Some((head, Vec::new()))
        }
        LayoutView::Items(items) => Some(coded_items(items, compact)),
    }
}

fn coded_items(items: ItemsView<'_>, compact: bool) -> (Head, Vec<u8>) {
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
    } else if let Some(coded) = (compact && contiguous).then(|| compact::encode(items, base, end)).flatten() {
        head = Head { form: coded.form, flags: coded.flags | map_flag, low: coded.low, ..head };
        sections = coded.sections;
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

fn pad(table: &mut Vec<u8>) {
    table.resize(table.len().next_multiple_of(8), 0);
}

/// Decodes a table that [`encode`] wrote and checks it: version, checksum, exact length, order, and that all
/// lies below `limit`.
///
/// # Errors
/// `bad_table` for anything that [`encode`] would not have written.
pub fn decode(table: &[u8], limit: u64) -> Result<Layout> {
    if table.is_empty() {
        return Ok(Layout::Empty);
    }
    let (head, sections) = Head::unsealed(table)?;
    layout_of(head, sections, limit)
}

/// Decodes a table that [`encode_brief`] wrote.
///
/// # Errors
/// `bad_table` for anything that [`encode_brief`] would not have written, but for damage within its limits:
/// there is no checksum.
pub fn decode_brief(table: &[u8]) -> Result<Layout> {
    if table.is_empty() {
        return Ok(Layout::Empty);
    }
    let (head, sections) = Head::read_brief(table).ok_or_else(|| bad("shorter than its head"))?;
    layout_of(head, sections, u64::MAX)
}

fn layout_of(head: Head, sections: &[u8], limit: u64) -> Result<Layout> {
    let Head { form, flags, low, items, frames, base, end } = head;
    if flags & FLAG_NATIVE != 0 {
        return native_of(head, sections, limit);
    }
    if items > MOST_ITEMS {
        return Err(bad("of too many items"));
    }
    let mut sections = Sections { rest: sections };
    let (offsets, lengths) = match form {
        Form::Affine => affine(items as usize, base, end)?,
        Form::Checkpoints => checkpoints(&mut sections, items as usize, end)?,
        Form::Raw => raw(&mut sections, items as usize, flags & FLAG_WIDE != 0)?,
        Form::For64 | Form::EliasFano => {
            compact_positions(&mut sections, form, flags, low, items as usize, base, end)?
        }
    };
    let own_flag = match form {
        Form::Raw => FLAG_WIDE,
        Form::For64 | Form::EliasFano => FLAG_HALVED,
        Form::Affine | Form::Checkpoints => 0,
    };
    let frame_first = match flags & !own_flag {
        0 if items == frames => None,
        FLAG_ONE_FRAME if frames == 1 => Some(vec![0, items]),
        FLAG_MAP => Some(fragment_map(&mut sections, frames, items)?),
        _ => return Err(bad("of inconsistent flags or counts")),
    };
    let inside = offsets
        .iter()
        .zip(&lengths)
        .all(|(&offset, &length)| offset.checked_add(length).is_some_and(|end| end <= limit));
    if !sections.rest.is_empty() || !inside {
        return Err(bad("longer than its sections, or beyond the end of the file"));
    }
    Ok(Layout::Items(Items { offsets, lengths, frame_first }))
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the packed frame table is {what}"))
}

fn native_of(head: Head, sections: &[u8], limit: u64) -> Result<Layout> {
    let Head { form, flags, items, frames, base, end: frame_bits, .. } = head;
    let consistent = form == Form::Affine && flags == FLAG_NATIVE && items == frames && sections.is_empty();
    if !consistent || frame_bits == 0 || frames == 0 {
        return Err(bad("not what native frames are written as"));
    }
    // Frames of a cut file may reach past its end (they are marked), their beginning may not.
    if base > limit {
        return Err(bad("beyond the end of the file"));
    }
    Ok(Layout::Native(Native { base, frame_bits, frames }))
}

/// The sections after the header, taken one by one.
struct Sections<'a> {
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (section, rest) =
            self.rest.split_at_checked(length).ok_or_else(|| bad("shorter than its sections"))?;
        self.rest = rest;
        Ok(section)
    }

    fn longs(&mut self, count: usize) -> Result<impl Iterator<Item = u64> + use<'a>> {
        Ok(self.take(count * 8)?.as_chunks().0.iter().map(|chunk| u64::from_le_bytes(*chunk)))
    }

    /// u32 values and the padding after them.
    fn words(&mut self, count: usize) -> Result<impl Iterator<Item = u32> + use<'a>> {
        let section = self.take((count * 4).next_multiple_of(8))?;
        Ok(section.as_chunks().0.iter().take(count).map(|chunk| u32::from_le_bytes(*chunk)))
    }
}

type Positions = (Vec<u64>, Vec<u64>);

fn affine(count: usize, base: u64, stride_bits: u64) -> Result<Positions> {
    let stride = stride_bits / 8;
    let length = stride
        .checked_sub(8)
        .filter(|_| stride_bits.is_multiple_of(8))
        .ok_or_else(|| bad("of a bad stride"))?;
    let last = stride.checked_mul(count as u64).and_then(|span| span.checked_add(base));
    last.ok_or_else(|| bad("beyond 64 bits"))?;
    let offsets = (0..count as u64).map(|index| base + index * stride + 8).collect();
    Ok((offsets, vec![length; count]))
}

fn compact_positions(
    sections: &mut Sections<'_>,
    form: Form,
    flags: u8,
    low: u8,
    items: usize,
    base: u64,
    end: u64,
) -> Result<Positions> {
    let unit = if flags & FLAG_HALVED != 0 { 2 } else { 1 };
    let span = end.checked_sub(base).filter(|span| span.is_multiple_of(unit));
    let span = span.ok_or_else(|| bad("of an end that does not fit its start"))? / unit;
    let cut = match form {
        Form::EliasFano => Borders::elias_fano(sections.rest, items, span, low),
        _ if unit == 2 => Borders::for64(sections.rest, items),
        _ => None,
    };
    let (borders, rest) = cut.ok_or_else(|| bad("shorter than its sections"))?;
    sections.rest = rest;
    let borders = borders.all(items, span)?;
    let (mut offsets, mut lengths) = (Vec::with_capacity(items), Vec::with_capacity(items));
    for (start, next) in borders.iter().zip(borders.iter().skip(1)) {
        // Below `end`, which is a u64.
        offsets.push(base + start * unit + 8);
        lengths.push(((next - start) * unit).checked_sub(8).ok_or_else(|| bad("of items below 8 bytes"))?);
    }
    Ok((offsets, lengths))
}

fn checkpoints(sections: &mut Sections<'_>, count: usize, end: u64) -> Result<Positions> {
    let starts: Vec<u64> = sections.longs(count.div_ceil(CHECKPOINT))?.collect();
    let lengths: Vec<u64> = sections.words(count)?.map(u64::from).collect();
    let mut position = starts.first().copied().unwrap_or(end);
    let mut offsets = Vec::with_capacity(count);
    let mut starts = starts.into_iter();
    for block in lengths.chunks(CHECKPOINT) {
        if starts.next() != Some(position) {
            return Err(bad("of checkpoints that disagree with its lengths"));
        }
        for length in block {
            let payload = position.checked_add(8).ok_or_else(|| bad("beyond 64 bits"))?;
            offsets.push(payload);
            position = payload.checked_add(*length).ok_or_else(|| bad("beyond 64 bits"))?;
        }
    }
    if position != end {
        return Err(bad("of lengths that do not add up"));
    }
    Ok((offsets, lengths))
}

fn raw(sections: &mut Sections<'_>, count: usize, wide: bool) -> Result<Positions> {
    let tags: Vec<u64> = sections.longs(count)?.collect();
    let lengths =
        if wide { sections.longs(count)?.collect() } else { sections.words(count)?.map(u64::from).collect() };
    let offsets = tags.into_iter().map(|tag| tag.checked_add(8)).collect::<Option<Vec<u64>>>();
    Ok((offsets.ok_or_else(|| bad("beyond 64 bits"))?, lengths))
}

fn fragment_map(sections: &mut Sections<'_>, frames: u32, items: u32) -> Result<Vec<u32>> {
    let count = (frames as usize).checked_add(1).ok_or_else(|| bad("of too many frames"))?;
    let first: Vec<u32> = sections.words(count)?.collect();
    let ascending = first.iter().zip(first.iter().skip(1)).all(|(a, b)| a < b);
    if !ascending || first.first() != Some(&0) || first.last() != Some(&items) {
        return Err(bad("of a fragment map that does not ascend"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode_brief(layout: &Layout) -> Vec<u8> {
        let mut table = vec![9; 3];
        super::encode_brief(layout.view(), &mut table);
        table
    }

    /// The forms of memory under the full head, as a snapshot may have them.
    fn encode_compact(layout: &Layout) -> Vec<u8> {
        let (head, sections) = coded(layout.view(), true).unwrap();
        head.sealed(&sections)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn native_golden() {
        let layout = Layout::Native(Native { base: 1352, frame_bits: 524_288 * 8, frames: 3 });
        let golden = "010102009e843e55030000000300000048050000000000000000400000000000";
        assert_eq!(hex(&encode(&layout)), golden);
    }

    #[test]
    fn elias_fano_golden() {
        let offsets = vec![1008, 1116, 1324, 1338];
        let lengths = vec![100, 200, 6, 86];
        let layout = Layout::Items(Items { offsets, lengths, frame_first: None });
        let golden = "01030105554cdc240400000004000000e8030000000000009005000000000000\
                      00000000000000004505000000000000c0fa420100000000";
        let sealed = encode_compact(&layout);
        assert_eq!(hex(&sealed), golden);
        assert_eq!(decode(&sealed, 1424).unwrap(), layout);
        assert!(decode(&sealed, 1423).is_err());
        assert_eq!(hex(&encode_brief(&layout)), format!("210504e807900b{}", &golden[64..]));
    }

    #[test]
    fn one_frame_takes_less_than_ten_bytes_of_memory() {
        let native = Layout::Native(Native { base: 1352, frame_bits: 524_288 * 8, frames: 1 });
        assert_eq!(hex(&encode_brief(&native)), "0201c80a80808002");
        let items = Items { offsets: vec![2006], lengths: vec![300_000], frame_first: None };
        assert_eq!(hex(&encode_brief(&Layout::Items(items))), "0001ce0fc0be9201");
        assert_eq!(hex(&encode_brief(&Layout::Empty)), "");
    }

    /// Every form: even and odd lengths, equal and wild ones, small and large tables, with and without a map.
    fn examples() -> Vec<Layout> {
        let mut examples = Vec::new();
        for (count, base, step, spread) in [
            (3, 1000, 100, 100),
            (70, 20, 8, 1),
            (600, 1 << 33, 2000, 7),
            (9, 8, 70_000, 1 << 25),
            (300, 90, 3, 977),
        ] {
            for frame_first in [None, Some(vec![0, count as u32]), Some(vec![0, 1, count as u32])] {
                let lengths: Vec<u64> = (0..count).map(|i| step + i * i * 7919 % spread * 2).collect();
                let mut position = base;
                let offsets = lengths.iter().map(|length| {
                    position += 8 + length;
                    position - length
                });
                examples.push(Layout::Items(Items { offsets: offsets.collect(), lengths, frame_first }));
            }
        }
        examples
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let forms: std::collections::BTreeSet<u8> =
            examples().iter().flat_map(|layout| [encode(layout)[1], encode_compact(layout)[1]]).collect();
        assert_eq!(forms, [1, 2, 3, 5].into());
        for layout in examples() {
            for table in
                [encode(&layout), encode_compact(&layout)].into_iter().filter(|table| table.len() < 300)
            {
                any_damage_is_refused(&table);
            }
        }
        let gap = Items { offsets: vec![1008, 1124], lengths: vec![100, 7], frame_first: None };
        any_damage_is_refused(&encode_compact(&Layout::Items(gap)));
    }

    fn any_damage_is_refused(table: &[u8]) {
        for bit in 0..table.len() * 8 {
            let mut damaged = table.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, u64::MAX).unwrap_err().kind, ErrorKind::BadTable);
        }
        for length in 1..table.len() {
            assert_eq!(decode(&table[..length], u64::MAX).unwrap_err().kind, ErrorKind::BadTable);
        }
    }

    #[test]
    fn beyond_the_file_is_refused() {
        let items = Items { offsets: vec![8, 116], lengths: vec![100, 200], frame_first: None };
        let table = encode(&Layout::Items(items));
        assert!(decode(&table, 316).is_ok());
        assert_eq!(decode(&table, 315).unwrap_err().kind, ErrorKind::BadTable);
    }

    fn look_up_agrees(view: Table<'_>, layout: &Layout) {
        let whole = crate::frame_table::FrameTable {
            offsets_in: crate::frame_table::OffsetsIn::Inflated,
            layout: layout.clone(),
            ..Default::default()
        };
        assert_eq!(view.frames(), whole.frames());
        for frame in 0..=whole.frames() {
            assert!(view.ranges(frame, u64::MAX).eq(whole.ranges(frame)), "frame {frame}");
        }
    }

    #[test]
    fn every_form_is_looked_up_as_it_is_decoded() {
        let native = Layout::Native(Native { base: 77, frame_bits: 1001, frames: 40 });
        for layout in examples().into_iter().chain([native]) {
            comes_back(&layout);
        }
    }

    fn comes_back(layout: &Layout) {
        for table in [encode(layout), encode_compact(layout)] {
            assert_eq!(&decode(&table, u64::MAX).unwrap(), layout);
            let (head, sections) = Head::unsealed(&table).unwrap();
            look_up_agrees(Table::new(head, sections).unwrap(), layout);
        }
        let brief = encode_brief(layout);
        assert_eq!(&decode_brief(&brief).unwrap(), layout);
        look_up_agrees(Table::trusted(&brief).unwrap(), layout);
    }

    proptest! {
        #[test]
        fn items_come_back(
            base in 8_u64..1 << 40,
            lengths in prop::collection::vec((0_u64..5000, 0_u64..3), 1..700),
            wide in any::<bool>(),
            cuts in prop::collection::btree_set(1_u32..700, 0..20),
        ) {
            let mut offsets = Vec::new();
            let mut position = base;
            for (length, gap) in &lengths {
                position += 8 + gap / 2 * 40;
                offsets.push(position);
                position += length;
            }
            let mut lengths: Vec<u64> = lengths.into_iter().map(|(length, _)| length).collect();
            if wide { *lengths.last_mut().unwrap() += 1 << 33; }
            let count = lengths.len() as u32;
            let first: Vec<u32> = [0].into_iter().chain(cuts.into_iter().filter(|&cut| cut < count)).chain([count]).collect();
            let identity = first.len() == lengths.len() + 1;
            let frame_first = (!identity).then_some(first);
            let layout = Layout::Items(Items { offsets, lengths, frame_first });
            comes_back(&layout);
        }

        #[test]
        fn any_bytes_are_refused_or_decoded(mut table in prop::collection::vec(any::<u8>(), 0..400), form in 1_u8..6) {
            if table.len() >= HEADER {
                let (flags, low) = (table[2] & 0x4F, if form == 3 { table[3] % 9 } else { 0 });
                table[..4].copy_from_slice(&[VERSION, form, flags, low]);
                let crc = head::crc_without_field(&table).to_le_bytes();
                table[4..8].copy_from_slice(&crc);
            }
            let view = Head::unsealed(&table).ok().and_then(|(head, sections)| Table::new(head, sections));
            agree_or_answer_anything(view, decode(&table, 1 << 32));
        }

        #[test]
        fn any_bytes_in_memory_are_refused_or_decoded(table in prop::collection::vec(any::<u8>(), 0..400), form in 0_u8..5) {
            let mut brief = vec![form << 4 | table.first().map_or(0, |byte| byte & 0x8F)];
            brief.extend(table);
            // A table without sections may have millions of items: right, but slow to walk here.
            if Head::read_brief(&brief).is_none_or(|(head, _)| head.items < 10_000) {
                agree_or_answer_anything(Table::trusted(&brief), decode_brief(&brief));
            }
        }
    }

    fn agree_or_answer_anything(view: Option<Table<'_>>, layout: Result<Layout>) {
        match (view, layout) {
            (Some(view), Ok(layout)) if layout != Layout::Empty => look_up_agrees(view, &layout),
            (Some(view), _) => (0..view.frames().min(99)).for_each(|frame| {
                view.ranges(frame, 1 << 32).take(99).for_each(drop);
            }),
            (None, layout) => assert!(matches!(layout, Ok(Layout::Empty) | Err(_))),
        }
    }
}

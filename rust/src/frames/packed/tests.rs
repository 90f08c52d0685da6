//! Golden tables, damage, and every form compared with the layout that it encodes.

use proptest::prelude::*;

use super::encode::parts;
use super::form::{HEADER, VERSION};
use super::head::Head;
use super::*;
use crate::base::error::{ErrorKind, Result};
use crate::frames::table::{Items, Layout, Native};

fn encode_for_memory(layout: &Layout) -> Vec<u8> {
    let mut table = vec![9; 3];
    super::encode_for_memory(layout.view(), &mut table);
    table
}

/// The compact forms with the full head, as a snapshot may have them.
fn encode_compact(layout: &Layout) -> Vec<u8> {
    let (head, sections) = parts(layout.view(), true).unwrap();
    head.write_full(&sections)
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
    assert_eq!(hex(&encode_for_memory(&layout)), format!("210504e807900b{}", &golden[64..]));
}

#[test]
fn one_frame_takes_less_than_ten_bytes_of_memory() {
    let native = Layout::Native(Native { base: 1352, frame_bits: 524_288 * 8, frames: 1 });
    assert_eq!(hex(&encode_for_memory(&native)), "0201c80a80808002");
    let items = Items { offsets: vec![2006], lengths: vec![300_000], frame_first: None };
    assert_eq!(hex(&encode_for_memory(&Layout::Items(items))), "0001ce0fc0be9201");
    assert_eq!(hex(&encode_for_memory(&Layout::Empty)), "");
}

/// Layouts of every form: even and odd lengths, equal and very different ones, few and many items, with and
/// without a map.
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
        for table in [encode(&layout), encode_compact(&layout)].into_iter().filter(|table| table.len() < 300)
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
    let whole = crate::frames::table::FrameTable {
        offsets_in: crate::frames::table::OffsetsIn::Inflated,
        layout: layout.clone(),
        ..Default::default()
    };
    assert_eq!(view.frames(), whole.frames());
    for frame in 0..=whole.frames() {
        assert!(view.ranges(frame, u64::MAX).eq(whole.ranges(frame)), "frame {frame}");
    }
}

#[test]
fn look_up_agrees_with_decoding_for_every_form() {
    let native = Layout::Native(Native { base: 77, frame_bits: 1001, frames: 40 });
    for layout in examples().into_iter().chain([native]) {
        comes_back(&layout);
    }
}

fn comes_back(layout: &Layout) {
    for table in [encode(layout), encode_compact(layout)] {
        assert_eq!(&decode(&table, u64::MAX).unwrap(), layout);
        let (head, sections) = Head::read_full(&table).unwrap();
        look_up_agrees(Table::new(head, sections).unwrap(), layout);
    }
    let short = encode_for_memory(layout);
    assert_eq!(&decode_from_memory(&short).unwrap(), layout);
    look_up_agrees(Table::from_memory(&short).unwrap(), layout);
}

proptest! {
    #[test]
    fn any_items_are_decoded_to_themselves(
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
            let crc = head::checksum(&table).to_le_bytes();
            table[4..8].copy_from_slice(&crc);
        }
        let view = Head::read_full(&table).ok().and_then(|(head, sections)| Table::new(head, sections));
        agree_or_answer_anything(view, decode(&table, 1 << 32));
    }

    #[test]
    fn any_bytes_in_memory_are_refused_or_decoded(table in prop::collection::vec(any::<u8>(), 0..400), form in 0_u8..5) {
        let mut short = vec![form << 4 | table.first().map_or(0, |byte| byte & 0x8F)];
        short.extend(table);
        // A table without sections may have millions of items: valid, but too slow to walk here.
        if Head::read_short(&short).is_none_or(|(head, _)| head.items < 10_000) {
            agree_or_answer_anything(Table::from_memory(&short), decode_from_memory(&short));
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

//! Any bytes as a packed table with a right checksum: refused, or decoded and looked up with the same result.

use _core::frames::packed::{self, Table};
use _core::frames::table::{FrameTable, Layout};

const LIMIT: u64 = 1 << 40;
const CRC_AT: usize = 4;
const ITEMS_AT: usize = 8;
const MOST_ITEMS: u32 = 1 << 16; // a table without sections may have millions: valid, but too slow to walk here

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    ask(bytes, &[]);
    let mut table = bytes.to_vec();
    if let Some(field) = table.get_mut(CRC_AT..CRC_AT + 4) {
        field.fill(0);
        let crc = crc32c::crc32c(&table);
        table[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let items = table
        .get(ITEMS_AT..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if items > MOST_ITEMS {
        return;
    }
    let Ok(layout) = packed::decode(&table, LIMIT) else { return };
    let frames = ranges_of(&layout);
    assert!(frames.iter().flatten().all(|(start, end)| start <= end && *end <= LIMIT));
    assert_eq!(packed::decode(&packed::encode(&layout), LIMIT).as_ref(), Ok(&layout));
    let mut short = Vec::new();
    packed::encode_for_memory(layout.view(), &mut short);
    assert_eq!(packed::decode_from_memory(&short).as_ref(), Ok(&layout));
    ask(&short, &frames);
}

fn ranges_of(layout: &Layout) -> Vec<Vec<(u64, u64)>> {
    let mut table = FrameTable { layout: layout.clone(), ..FrameTable::default() };
    table.fingerprint.size = LIMIT;
    (0..table.frames().min(1000)).map(|index| table.ranges(index).collect()).collect()
}

/// Look-ups agree with decoding; on bytes that nobody validated, they return anything but do not panic.
fn ask(table: &[u8], expected: &[Vec<(u64, u64)>]) {
    let Some(view) = Table::from_memory(table) else { return assert!(expected.is_empty()) };
    for (index, ranges) in expected.iter().enumerate() {
        assert_eq!(&view.ranges(index, LIMIT).collect::<Vec<_>>(), ranges);
    }
    for index in [0, 1, 255, 256, 257, usize::MAX] {
        view.ranges(index, LIMIT).take(1000).for_each(drop);
    }
}

//! What is kept of a header comes back as it was, or is refused: never another one.

use proptest::prelude::*;

use super::*;
use crate::base::source::{Etag, Fingerprint};
use crate::frames::attributes::Uid;

fn crc_renewed(mut stored: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&stored[5..]);
    stored[1..5].copy_from_slice(&crc.to_le_bytes());
    stored
}

fn positions(tile: [u64; 2]) -> impl Strategy<Value = Vec<Position>> {
    let place = move |axis: usize| {
        prop_oneof![
            4 => (0..40_u64).prop_map(move |number| Some((number * tile[axis]) as i64)),
            1 => any::<i64>().prop_map(Some),
            1 => Just(None),
        ]
    };
    let z = prop_oneof![Just(None), Just(Some(0.001)), (-1e9..1e9_f64).prop_map(|z| Some(z + 0.0))];
    let path = prop_oneof![Just(None), (0..3_u32).prop_map(Some)];
    let one = (place(0), place(1), z, path);
    let one = one.prop_map(|(column, row, z, path)| Position { column, row, z, path });
    prop::collection::vec(one, 0..200)
}

prop_compose! {
    fn header()(tile in [1..600_u64, 1..600_u64])(
        tile in Just(tile),
        positions in positions(tile),
        total in [any::<u32>(), any::<u32>()],
        numbers in [any::<u64>(), any::<u64>(), any::<u64>()],
        spacing in prop::option::of([1e-9..1e9_f64, 1e-9..1e9_f64]),
        shared_z in prop::option::of(-1e9..1e9_f64),
        paths in prop::collection::vec("[a-zé]{0,16}", 0..5),
        shared_path in prop::option::of("[a-z]{0,16}"),
        state in (any::<u64>(), any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<u64>>(), "[0-9a-f]{0,64}"),
        uids in prop::collection::vec("[0-9.]{0,64}", 7),
        segments in [any::<u64>(), any::<u64>()],
        texts in ["[A-Z\\\\_]{0,40}", "[A-Z_]{0,16}"],
    ) -> SlideHeader {
        let (size, mtime_ns, ctime_ns, inode, etag) = state;
        let etag = Etag::from(&etag).ok().filter(|etag| !etag.is_empty());
        let [image_type, organization] = texts;
        let uid = |place: usize| Uid::from(&uids[place]).unwrap();
        let [frames, focal_planes, frame_offset] = numbers;
        SlideHeader {
            state: Fingerprint { size, mtime_ns, ctime_ns, inode, etag },
            instance: uid(0),
            concatenation: uid(1),
            study: uid(2),
            series: uid(3),
            frame_of_reference: uid(4),
            pyramid: uid(5),
            sop_class: uid(6),
            image_type,
            organization,
            total: total.map(u64::from),
            tile,
            frames,
            spacing,
            focal_planes,
            shared_z: shared_z.map(|z| z + 0.0),
            paths,
            shared_path,
            frame_offset,
            segments,
            frame_paths: vec!["a".into(), "b".into(), "ü".into()],
            positions,
        }
    }
}

proptest! {
    #[test]
    fn headers_come_back_as_they_were(header in header()) {
        let stored = encode(&header).unwrap();
        prop_assert_eq!(decode(&stored).unwrap(), header);
    }

    #[test]
    fn damage_is_refused(header in header(), at in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let mut stored = encode(&header).unwrap();
        let at = at.index(stored.len());
        prop_assert!(decode(&stored[..at]).is_err());
        stored[at] ^= change;
        prop_assert!(decode(&stored).is_err());
        stored[at] ^= change;
        stored.push(0);
        prop_assert!(decode(&crc_renewed(stored)).is_err(), "a byte too many");
    }

    /// Whoever makes the checksum fit gets an error or a header, and of that a map or an error: no panic.
    #[test]
    fn hostile_bytes_are_refused_or_a_header(
        header in header(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut stored = encode(&header).unwrap();
        for (at, byte) in changes {
            let at = at.index(stored.len());
            stored[at] = byte;
        }
        stored[0] = stored::VERSION;
        if let Ok(header) = decode(&crc_renewed(stored)) {
            let _ = TileMap::new(&[&header, &header]);
            if let Ok(map) = TileMap::new(&[&header]) {
                let _ = map.find(0, 0, 0, 0);
                let _ = map.find(map.grid[0], u64::MAX, 0, 0);
            }
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(decode(&bytes).is_err());
    }
}

/// Tissue of irregular outline on a grid of 400 by 300 tiles, in the order of a scanner: row by row.
fn tissue() -> SlideHeader {
    let mut header = SlideHeader {
        organization: "TILED_SPARSE".into(),
        total: [400 * 256, 300 * 256],
        tile: [256, 256],
        focal_planes: 1,
        frame_paths: vec!["1".into()],
        paths: vec!["1".into()],
        ..SlideHeader::default()
    };
    for row in 0..300_i64 {
        for column in 0..400_i64 {
            let (x, y) = (column as f64 / 200.0 - 1.0, row as f64 / 150.0 - 1.0);
            let outline = 0.7 + 0.15 * (9.0 * y.atan2(x)).sin() + 0.05 * ((column * 7 + row * 13) % 5) as f64;
            if x * x + y * y < outline {
                let (column, row) = (Some(column * 256), Some(row * 256));
                header.positions.push(Position { column, row, z: Some(0.0), path: Some(0) });
            }
        }
    }
    header.frames = header.positions.len() as u64;
    header
}

#[test]
fn a_regular_sparse_slide_takes_less_than_a_byte_a_frame_and_a_full_one_a_few_numbers() {
    let header = tissue();
    let stored = encode(&header).unwrap();
    assert!(header.positions.len() > 60_000);
    assert!(stored.len() < header.positions.len(), "{} of {}", stored.len(), header.positions.len());
    let back = decode(&stored).unwrap();
    let (map, other) = (TileMap::new(&[&header]).unwrap(), TileMap::new(&[&back]).unwrap());
    for column in 0..400 {
        for row in 0..300 {
            assert_eq!(map.find(column, row, 0, 0).unwrap(), other.find(column, row, 0, 0).unwrap());
        }
    }
    let full = SlideHeader { organization: "TILED_FULL".into(), positions: Vec::new(), ..header };
    assert!(encode(&full).unwrap().len() < 64);
}

#[test]
fn frames_in_any_order_on_several_planes_take_little_more_than_their_places() {
    let mut header = tissue();
    let count = header.positions.len();
    let mut shuffled: Vec<Position> =
        (0..count).map(|n| header.positions[n * 7919 % count].clone()).collect();
    for (number, position) in shuffled.iter_mut().enumerate() {
        position.z = Some((number % 3) as f64 * 0.0015);
    }
    header.positions = shuffled;
    let stored = encode(&header).unwrap();
    assert!(stored.len() < 4 * count, "{} of {count}", stored.len());
    assert_eq!(decode(&stored).unwrap(), header);
}

#[test]
fn what_decompresses_to_more_than_it_says_is_refused() {
    let mut header = tissue();
    header.positions.truncate(1);
    let stored = encode(&header).unwrap();
    let raw = stored::positions_of(&header);
    let before = &stored[..stored.len() - stored::deflate(&raw).unwrap().len()];
    let with = |raw: &[u8]| crc_renewed([before, &stored::deflate(raw).unwrap()].concat());
    assert_eq!(decode(&with(&raw)).unwrap(), header);
    for other in [vec![0; 1 << 20], [&raw[..], &[0]].concat(), raw[1..].to_vec(), Vec::new()] {
        assert!(decode(&with(&other)).is_err());
    }
    assert!(decode(&crc_renewed([&with(&raw)[..], &[0]].concat())).is_err());
}

#[test]
fn positions_without_values_are_not_kept() {
    let header = SlideHeader { positions: vec![Position::default(); 1000], ..SlideHeader::default() };
    assert_eq!(encode(&header), None);
}

/// Sizes that no file has are an error or a map, never an overflow: of parts of a concatenation no count is checked.
#[test]
fn huge_images_in_instances_of_their_own_are_refused_or_a_map() {
    let part = |concatenation: &str, paths: &[&str], total: u64, z: f64| SlideHeader {
        organization: "TILED_FULL".into(),
        concatenation: Uid::from(concatenation).unwrap(),
        total: [total, total],
        tile: [1, 1],
        frames: u64::MAX,
        focal_planes: 1,
        frame_offset: 1,
        shared_z: Some(z),
        paths: paths.iter().map(ToString::to_string).collect(),
        ..SlideHeader::default()
    };
    for total in [1, 3, 1 << 31, u64::from(u32::MAX), u64::MAX] {
        for paths in [&["a"][..], &["a", "b"], &["b", "b", "b", "b"], &[]] {
            let (one, other) = (part("1.2", &["a"], total, 1.0), part("1.3", paths, total, 2.0));
            if let Ok(map) = TileMap::new(&[&one, &other]) {
                for (column, plane) in [(0, 0), (total - 1, 0), (total - 1, 1)] {
                    let _ = map.find(column, total - 1, plane, 0);
                }
            }
        }
    }
}

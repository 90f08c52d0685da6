//! Any bytes as a DICOM file: no panic, no range outside the file, and the same result from every kind of
//! source.

use _core::base::source::{Bytes, Fingerprint, Source};
use _core::base::window::Buffer;
use _core::dicom::read::fill::{self, read_frame_into};
use _core::dicom::read::read_frame;
use _core::dicom::read_table;
use _core::frames::table::{FrameTable, OffsetsIn, Verify};

/// The same bytes as a source that is not memory, which is read through windows and buffers.
struct Pieces<'a>(&'a [u8]);

impl Source for Pieces<'_> {
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_size(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> _core::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = buffer.len().min(self.0.len() - start);
        buffer[..count].copy_from_slice(&self.0[start..start + count]);
        Ok(count)
    }
}

/// Holds for any bytes.
pub fn hold(bytes: &[u8]) {
    for verify in [Verify::None, Verify::Ends, Verify::All] {
        let from_memory = read_table(&Bytes(bytes), verify, &mut Buffer::default());
        let in_pieces = read_table(&Pieces(bytes), verify, &mut Buffer::default());
        match (from_memory, in_pieces) {
            (Ok(table), Ok(other)) => {
                assert_eq!(table, other);
                check(&table, bytes, verify);
            }
            (Err(error), Err(other)) => assert_eq!(error, other),
            (one, other) => panic!("memory says {one:?}, pieces say {other:?}"),
        }
    }
}

fn check(table: &FrameTable, bytes: &[u8], verify: Verify) {
    let readable = table.truncated_from.map_or(table.frames(), |from| from as usize);
    assert!(readable <= table.frames());
    let ends = (0..readable.min(8)).chain(readable.saturating_sub(8)..readable);
    for index in ends {
        let ranges: Vec<_> = table.ranges(index).collect();
        assert!(!ranges.is_empty(), "a readable frame without bytes has one empty range");
        let length: u64 = ranges.iter().map(|(start, end)| end.checked_sub(*start).expect("ordered")).sum();
        if table.offsets_in == OffsetsIn::File {
            assert!(ranges.iter().all(|(_, end)| *end <= bytes.len() as u64));
        }
        let read = read_frame(&Bytes(bytes), table, index);
        if let Some(known) = fill::length(table, index) {
            let mut place = vec![0; known];
            match read_frame_into(&Pieces(bytes), table, index, &mut place) {
                Ok(other) => assert!(read.as_deref() == Ok(other.as_deref().unwrap_or(&place))),
                Err(error) => assert_eq!(read.as_ref().err(), Some(&error)),
            }
        }
        match read {
            Ok(frame) if verify == Verify::All => assert_eq!(frame.len() as u64, length),
            Ok(frame) => assert!(frame.len() <= bytes.len()),
            Err(error) => assert!(verify != Verify::All, "frame {index}: {error}"),
        }
    }
}

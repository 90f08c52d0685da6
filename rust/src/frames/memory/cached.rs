//! The form of a frame table in memory: its compact layout, and beside it the attributes that reading a frame
//! needs (`meta`). UIDs and notes stay in the index. A CT slice takes some 60 bytes, as Python dicts 800.

use std::cell::RefCell;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Etag, Fingerprint};
use crate::base::varint;
use crate::dicom::read::FrameBytes;
use crate::frames::attributes::Attributes;
use crate::frames::memory::lru::{KEY_CAP, META_CAP, Record};
use crate::frames::notes::Notes;
use crate::frames::packed::{self, Table};
use crate::frames::table::{
    FrameTable, Items, Kind, Layout, LayoutView, Method, Native, OffsetsIn, Status, Verified,
};

const HAS_CODES: u8 = 1;
const HAS_CUT: u8 = 2;
const HAS_PIXELS: u8 = 4;
const HAS_TIME: u8 = 8;
const HAS_IMAGE: u8 = 16;
const HAS_ETAG: u8 = 32;
const HAS_SIZE: u8 = 64;
/// The transfer syntax begins with [`SYNTAX_ROOT`], which is left out.
const STANDARD_SYNTAX: u8 = 128;
/// Further flags, beside the codes of status, kind and unit of offsets.
const HAS_NOTES: u8 = 32;
const HAS_CTIME: u8 = 64;
const HAS_INODE: u8 = 128;
const SYNTAX_ROOT: &str = "1.2.840.10008.1.2";

thread_local! {
    /// Meta and layout are written here first, so that a record is one allocation.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}
/// Bytes of scratch that are kept for the next record.
const SCRATCH_KEPT: usize = 1 << 16;

/// Makes the record of a key: key, meta, layout. Without an `etag` that of the table is kept.
///
/// # Errors
/// `invalid_argument` for an empty or overlong key, an overlong etag, and for more frames than one table holds.
pub fn record(key: &str, table: &FrameTable, etag: Option<&str>) -> Result<Record> {
    record_of(key, table, table.layout.view(), etag)
}

/// As [`record`], for a borrowed layout; that of `table` is ignored.
///
/// # Errors
/// As [`record`].
pub fn record_of(
    key: &str,
    table: &FrameTable,
    layout: LayoutView<'_>,
    etag: Option<&str>,
) -> Result<Record> {
    let refused = |detail| Error::new(ErrorKind::InvalidArgument, detail);
    if key.is_empty() || key.len() > KEY_CAP {
        return Err(refused(format!("a key of {} bytes: must be 1 to {KEY_CAP}", key.len())));
    }
    SCRATCH.with_borrow_mut(|(meta, packed)| {
        meta.clear();
        encode_meta(table, etag, meta);
        packed::encode_for_memory(layout, packed);
        let record = Record::new(key.as_bytes(), meta, packed).ok_or_else(|| {
            refused(format!("an etag that makes {} bytes of meta: at most {META_CAP}", meta.len()))
        });
        if meta.capacity() + packed.capacity() > SCRATCH_KEPT {
            (*meta, *packed) = (Vec::new(), Vec::new());
        }
        record
    })
}

fn encode_meta(table: &FrameTable, etag: Option<&str>, meta: &mut Vec<u8>) {
    let etag = etag.or(table.fingerprint.etag.as_deref());
    let image = &table.image;
    let syntax = table.transfer_syntax_uid.as_str();
    let suffix = syntax.strip_prefix(SYNTAX_ROOT);
    let Fingerprint { mtime_ns, ctime_ns, inode, .. } = table.fingerprint;
    let mut further = 0;
    for (flag, present) in [
        (HAS_NOTES, table.notes != Notes::default()),
        (HAS_CTIME, ctime_ns.is_some()),
        (HAS_INODE, inode.is_some()),
    ] {
        further |= if present { flag } else { 0 };
    }
    let plain = (table.status, table.method, table.verified, table.offsets_in)
        == (Status::NoPixels, Method::None, Verified::None, OffsetsIn::File)
        && further == 0;
    let mut flags = if suffix.is_some() { STANDARD_SYNTAX } else { 0 };
    for (flag, present) in [
        (HAS_CODES, !plain || table.kind != Kind::None),
        (HAS_CUT, table.truncated_from.is_some()),
        (HAS_PIXELS, table.pixel_data_pos.is_some()),
        (HAS_TIME, mtime_ns.is_some()),
        (HAS_IMAGE, image_part(image) != image_part(&Attributes::ABSENT)),
        (HAS_ETAG, etag.is_some()),
        (HAS_SIZE, table.fingerprint.size != 0),
    ] {
        flags |= if present { flag } else { 0 };
    }
    meta.push(flags);
    push_text(meta, suffix.unwrap_or(syntax));
    if flags & HAS_CODES != 0 {
        meta.push(table.status as u8 | (table.kind as u8) << 2 | (table.offsets_in as u8) << 4 | further);
        meta.push(table.method as u8 | (table.verified as u8) << 4);
    }
    if flags & HAS_IMAGE != 0 {
        let (numbers, photometric_interpretation) = image_part(image);
        numbers.into_iter().for_each(|number| varint::push(meta, number.into()));
        push_text(meta, photometric_interpretation);
    }
    let optional = [
        table.truncated_from.map(u64::from),
        table.pixel_data_pos,
        (table.fingerprint.size != 0).then_some(table.fingerprint.size),
    ];
    optional.into_iter().flatten().for_each(|number| varint::push(meta, number));
    if let Some(time) = mtime_ns {
        meta.extend(time.to_le_bytes());
    }
    // Most files were last changed when they were written: the distance is small.
    let since_written = ctime_ns.map(|time| zigzag(time.wrapping_sub(mtime_ns.unwrap_or(0))));
    let notes = (further & HAS_NOTES != 0).then_some(table.notes.bits());
    [since_written, inode, notes].into_iter().flatten().for_each(|number| varint::push(meta, number));
    if let Some(etag) = etag {
        push_text(meta, etag);
    }
}

/// Numbers near 0, of either sign, as small ones without a sign.
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn from_zigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// The attributes that memory keeps: rows, columns, frames, samples, bits; photometric interpretation.
fn image_part(image: &Attributes) -> ([u32; 5], &str) {
    let [samples, bits] = [image.samples_per_pixel, image.bits_allocated].map(u32::from);
    let numbers = [image.rows, image.columns, image.number_of_frames, samples, bits];
    (numbers, &image.photometric_interpretation)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    varint::push(out, text.len() as u64);
    out.extend(text.as_bytes());
}

/// Reads meta: a table with an empty layout, and its etag. `None` for bytes that [`record`] does not write.
pub fn decode_meta(meta: &[u8]) -> Option<(FrameTable, Option<String>)> {
    let mut fields = Fields(meta);
    let flags = fields.byte()?;
    let mut table = FrameTable::default();
    let syntax = fields.text()?;
    let mut further = 0;
    if flags & STANDARD_SYNTAX != 0 {
        table.transfer_syntax_uid.try_push_str(SYNTAX_ROOT).ok()?;
    }
    table.transfer_syntax_uid.try_push_str(syntax).ok()?;
    if flags & HAS_CODES != 0 {
        let (first, second) = (fields.byte()?, fields.byte()?);
        table.status = Status::from_code(first & 3)?;
        table.kind = Kind::from_code(first >> 2 & 3)?;
        table.offsets_in = OffsetsIn::from_code(first >> 4 & 1)?;
        further = first;
        table.method = Method::from_code(second & 15)?;
        table.verified = Verified::from_code(second >> 4)?;
    }
    if flags & HAS_IMAGE != 0 {
        let image = &mut table.image;
        image.rows = u32::try_from(fields.number()?).ok()?;
        image.columns = u32::try_from(fields.number()?).ok()?;
        image.number_of_frames = u32::try_from(fields.number()?).ok()?;
        image.samples_per_pixel = u16::try_from(fields.number()?).ok()?;
        image.bits_allocated = u16::try_from(fields.number()?).ok()?;
        image.photometric_interpretation.try_push_str(fields.text()?).ok()?;
    }
    if flags & HAS_CUT != 0 {
        table.truncated_from = Some(u32::try_from(fields.number()?).ok()?);
    }
    if flags & HAS_PIXELS != 0 {
        table.pixel_data_pos = Some(fields.number()?);
    }
    if flags & HAS_SIZE != 0 {
        table.fingerprint.size = fields.number()?;
    }
    if flags & HAS_TIME != 0 {
        table.fingerprint.mtime_ns = Some(i64::from_le_bytes(fields.array()?));
    }
    if further & HAS_CTIME != 0 {
        let since_written = from_zigzag(fields.number()?);
        let written = table.fingerprint.mtime_ns.unwrap_or(0);
        table.fingerprint.ctime_ns = Some(written.wrapping_add(since_written));
    }
    if further & HAS_INODE != 0 {
        table.fingerprint.inode = Some(fields.number()?);
    }
    if further & HAS_NOTES != 0 {
        table.notes = Notes::from_bits(fields.number()?)?;
    }
    let etag = if flags & HAS_ETAG != 0 { Some(fields.text()?.to_owned()) } else { None };
    table.fingerprint.etag = etag.as_deref().and_then(|etag| Etag::from(etag).ok());
    Some((table, etag))
}

/// Reads [`FrameTable::limit`] alone.
pub fn limit(meta: &[u8]) -> Option<u64> {
    let mut fields = Fields(meta);
    let flags = fields.byte()?;
    fields.text()?;
    if flags & HAS_CODES != 0 {
        let (first, _) = (fields.byte()?, fields.byte()?);
        if OffsetsIn::from_code(first >> 4 & 1)? == OffsetsIn::Inflated {
            return Some(u64::MAX);
        }
    }
    if flags & HAS_IMAGE != 0 {
        for _ in 0..5 {
            fields.number()?;
        }
        fields.text()?;
    }
    for flag in [HAS_CUT, HAS_PIXELS] {
        if flags & flag != 0 {
            fields.number()?;
        }
    }
    if flags & HAS_SIZE != 0 { fields.number() } else { Some(0) }
}

/// Reads the table of a record.
pub fn decode(meta: &[u8], value: &[u8]) -> Option<FrameTable> {
    let (mut table, _) = decode_meta(meta)?;
    table.layout = packed::decode_from_memory(value).ok()?;
    Some(table)
}

/// Some frames of a record.
pub struct Selected {
    /// A table of these frames, each with its ranges.
    pub table: FrameTable,
    /// The bits of all frames, where they are native: the table of some has bytes alone.
    pub native: Option<Native>,
}

impl Selected {
    /// Moves those of pixels that are no whole bytes to bit 0; `read` are the bytes of these `frames`.
    pub fn align(&self, frames: &[u32], read: &mut [FrameBytes]) {
        let Some(native) = self.native else { return };
        for (bytes, &frame) in read.iter_mut().zip(frames) {
            bytes.align(native.bit_offset(frame.into()), native.frame_bits);
        }
    }
}

/// Result of [`select`].
pub type Selection = std::result::Result<Selected, (usize, FrameTable)>;

/// Reads a table of some frames of a record, in the order of `frames`; other frames are not decoded.
///
/// # Errors
/// The position in `frames` of the first that does not exist, and the table without its layout: the caller
/// first checks whether the file is still the one that it describes.
pub fn select(meta: &[u8], value: &[u8], frames: &[u32]) -> Option<Selection> {
    let (mut table, _) = decode_meta(meta)?;
    let (limit, cut) = (table.limit(), table.truncated_from.take());
    let view = Table::from_memory(value);
    let mut items = Items { frame_first: Some(vec![0]), ..Items::default() };
    for (position, &frame) in frames.iter().enumerate() {
        let Some(view) = view.filter(|view| (frame as usize) < view.frames()) else {
            return Some(Err((position, table)));
        };
        if cut.is_some_and(|cut| frame >= cut) {
            table.truncated_from.get_or_insert(position as u32);
        }
        for (start, end) in view.ranges(frame as usize, limit) {
            items.offsets.push(start);
            items.lengths.push(end.saturating_sub(start));
        }
        items.frame_first.get_or_insert_default().push(items.offsets.len() as u32);
    }
    table.layout = Layout::Items(items);
    Some(Ok(Selected { table, native: view.and_then(|view| view.native()) }))
}

/// The fields of meta that are not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn number(&mut self) -> Option<u64> {
        varint::take(&mut self.0)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::notes::Note;

    #[test]
    fn meta_comes_back_and_is_small() {
        let table = FrameTable {
            status: Status::Truncated,
            kind: Kind::Video,
            method: Method::VideoStream,
            verified: Verified::All,
            offsets_in: OffsetsIn::Inflated,
            truncated_from: Some(300),
            transfer_syntax_uid: "1.2.840.10008.1.2.4.90".try_into().unwrap(),
            image: Attributes {
                rows: 512,
                columns: 65_535,
                number_of_frames: u32::MAX,
                samples_per_pixel: 3,
                bits_allocated: 16,
                photometric_interpretation: "YBR_FULL_422".try_into().unwrap(),
                ..Attributes::default()
            },
            pixel_data_pos: Some(1 << 40),
            notes: [Note::no_preamble, Note::bad_fragment_tag].into_iter().collect(),
            fingerprint: Fingerprint {
                size: u64::MAX,
                mtime_ns: Some(-5),
                ctime_ns: Some(i64::MAX),
                inode: Some(u64::MAX),
                etag: None,
            },
            ..FrameTable::default()
        };
        let encoded = |table: &FrameTable, etag| {
            let mut meta = Vec::new();
            encode_meta(table, etag, &mut meta);
            assert_eq!(limit(&meta), Some(table.limit()));
            meta
        };
        let in_file = FrameTable { offsets_in: OffsetsIn::File, ..table.clone() };
        let state = table.fingerprint;
        let with = |fingerprint| FrameTable { fingerprint, ..in_file.clone() };
        let without_ctime = with(Fingerprint { ctime_ns: None, ..state });
        let without_mtime = with(Fingerprint { mtime_ns: None, ..state });
        let without_notes =
            FrameTable { notes: Notes::default(), ..with(Fingerprint { inode: None, ..state }) };
        for (table, etag) in [
            (&table, None),
            (&table, Some("\"abc\"")),
            (&in_file, None),
            (&without_ctime, None),
            (&without_mtime, Some("x")),
            (&without_notes, None),
        ] {
            let (back, tag) = decode_meta(&encoded(table, etag)).unwrap();
            let fingerprint =
                Fingerprint { etag: etag.map(|etag| Etag::from(etag).unwrap()), ..table.fingerprint };
            assert_eq!((back, tag.as_deref()), (FrameTable { fingerprint, ..table.clone() }, etag));
        }
        let private =
            FrameTable { transfer_syntax_uid: "1.3.46".try_into().unwrap(), ..FrameTable::default() };
        let meta = encoded(&private, None);
        assert_eq!(decode_meta(&meta).unwrap().0, private);
        assert!(meta.len() < 10);
        (0..meta.len()).for_each(|cut| assert!(decode_meta(&meta[..cut]).is_none()));
    }
}

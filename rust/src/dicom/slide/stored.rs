//! The form in which a slide's header is kept: version, checksum, the state of the file, numbers and texts, then the
//! positions of the frames as four columns of steps, compressed. See `docs/formats/slide-map.md`.
//!
//! What is read is hostile until checked: no number of it is trusted, and what was not written here is refused.

use std::io::Write;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};

use super::header::{MOST_FRAMES, Position, SlideHeader};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Etag, Fingerprint};
use crate::base::varint;
use crate::frames::attributes::Uid;

/// 1 was compressed by zstd, whose compressor nothing else needs; 2 did not say of which slide the image is, 3 not whether
/// it is one of a slide, or a segmentation or a map of parameters.
pub(super) const VERSION: u8 = 4;
/// Bytes before those that the checksum covers: version and checksum.
const HEAD: usize = 5;
/// Most bytes of positions before compression, four columns together.
const MOST_RAW: usize = 64 << 20;
/// Most bytes that are kept of one header.
const MOST_STORED: usize = 16 << 20;

/// How a column of positions is written.
const NONE: u8 = 0;
const ALL: u8 = 1;
const SOME: u8 = 2;

/// Encodes a header: a few numbers of `TILED_FULL`, about a byte a frame of `TILED_SPARSE`; `None` where it would be too large to keep.
pub fn encode(header: &SlideHeader) -> Option<Vec<u8>> {
    let mut out = vec![VERSION, 0, 0, 0, 0];
    push_state(&mut out, &header.state);
    let SlideHeader {
        sop_class, instance, concatenation, study, series, frame_of_reference, pyramid, ..
    } = header;
    for uid in [sop_class, instance, concatenation, study, series, frame_of_reference, pyramid] {
        push_text(&mut out, uid);
    }
    for text in [&*header.image_type, &*header.organization] {
        push_text(&mut out, text);
    }
    for number in [header.total, header.tile].into_iter().flatten() {
        varint::push(&mut out, number);
    }
    let [segment, other] = header.segments;
    for number in [header.frames, header.focal_planes, header.frame_offset, segment, other] {
        varint::push(&mut out, number);
    }
    out.push(u8::from(header.spacing.is_some()));
    for step in header.spacing.into_iter().flatten() {
        out.extend(step.to_le_bytes());
    }
    out.push(u8::from(header.shared_z.is_some()));
    header.shared_z.iter().for_each(|z| out.extend(z.to_le_bytes()));
    out.push(u8::from(header.shared_path.is_some()));
    header.shared_path.iter().for_each(|path| push_text(&mut out, path));
    for texts in [&header.paths, &header.frame_paths] {
        varint::push(&mut out, texts.len() as u64);
        texts.iter().for_each(|text| push_text(&mut out, text));
    }
    varint::push(&mut out, header.positions.len() as u64);
    if !header.positions.is_empty() {
        let raw = positions_of(header);
        // A column without values takes one byte: there must not be more positions than bytes.
        if raw.len() > MOST_RAW || header.positions.len() > raw.len() {
            return None;
        }
        varint::push(&mut out, raw.len() as u64);
        out.extend(deflate(&raw)?);
    }
    let crc = crc32c::crc32c(out.get(HEAD..)?);
    out.get_mut(1..HEAD)?.copy_from_slice(&crc.to_le_bytes());
    (out.len() <= MOST_STORED).then_some(out)
}

pub(super) fn deflate(raw: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(raw).ok()?;
    encoder.finish().ok()
}

/// What [`deflate`] compressed, where that is all of `stored` and exactly `length` bytes.
fn inflate(stored: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut raw = vec![0; length];
    let mut decoder = Decompress::new(false);
    let ended = decoder.decompress(stored, &mut raw, FlushDecompress::Finish).ok()? == Status::StreamEnd;
    let is_exact = decoder.total_in() == stored.len() as u64 && decoder.total_out() == length as u64;
    (ended && is_exact).then_some(raw)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    varint::push(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn push_state(out: &mut Vec<u8>, state: &Fingerprint) {
    let Fingerprint { size, mtime_ns, ctime_ns, inode, etag } = state;
    varint::push(out, *size);
    let numbers = [mtime_ns.map(i64::cast_unsigned), ctime_ns.map(i64::cast_unsigned), *inode];
    out.push(numbers.iter().enumerate().map(|(bit, number)| u8::from(number.is_some()) << bit).sum());
    numbers.into_iter().flatten().for_each(|number| out.extend(number.to_le_bytes()));
    push_text(out, etag.as_deref().unwrap_or_default());
}

/// Columns, rows, focal planes and optical paths of the frames, one after another.
pub(super) fn positions_of(header: &SlideHeader) -> Vec<u8> {
    let positions = &header.positions;
    let [across, down] = header.tile;
    let mut raw = Vec::with_capacity(4 * positions.len() + 64);
    push_column(&mut raw, across, positions.iter().map(|position| position.column));
    push_column(&mut raw, down, positions.iter().map(|position| position.row));
    let bits = |position: &Position| position.z.map(|z| z.to_bits().swap_bytes().cast_signed());
    push_column(&mut raw, 1, positions.iter().map(bits));
    push_column(&mut raw, 1, positions.iter().map(|position| position.path.map(i64::from)));
    raw
}

/// The steps from one value to the next, in units of a tile where all values are multiples of it.
fn push_column(raw: &mut Vec<u8>, tile: u64, values: impl Iterator<Item = Option<i64>> + Clone) {
    let present = values.clone().flatten().count();
    let (form, some) = match present {
        0 => (NONE, false),
        _ if values.clone().all(|value| value.is_some()) => (ALL, false),
        _ => (SOME, true),
    };
    raw.push(form);
    if form == NONE {
        return;
    }
    let unit = i64::try_from(tile).ok().filter(|unit| *unit > 0).unwrap_or(1);
    let unit = if values.clone().flatten().all(|value| value % unit == 0) { unit } else { 1 };
    varint::push(raw, unit.cast_unsigned());
    if some {
        raw.extend(values.clone().map(|value| u8::from(value.is_some())));
    }
    let mut last = 0_i64;
    for value in values.flatten().map(|value| value / unit) {
        let step = value.wrapping_sub(last);
        varint::push(raw, (step << 1 ^ step >> 63).cast_unsigned());
        last = value;
    }
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// `bad_table` for another version, damage, and bytes that are not of that form.
pub fn decode(stored: &[u8]) -> Result<SlideHeader> {
    let (Some((&[version, a, b, c, d], rest)), true) =
        (stored.split_first_chunk(), stored.len() <= MOST_STORED)
    else {
        return Err(bad("is too short or too long"));
    };
    if version != VERSION {
        return Err(bad("has another version"));
    }
    if crc32c::crc32c(rest) != u32::from_le_bytes([a, b, c, d]) {
        return Err(bad("is damaged (wrong checksum)"));
    }
    let mut fields = Fields { rest };
    let mut header = SlideHeader { state: fields.state()?, ..SlideHeader::default() };
    header.sop_class = fields.uid()?;
    header.instance = fields.uid()?;
    header.concatenation = fields.uid()?;
    header.study = fields.uid()?;
    header.series = fields.uid()?;
    header.frame_of_reference = fields.uid()?;
    header.pyramid = fields.uid()?;
    header.image_type = fields.text()?.into();
    header.organization = fields.text()?.into();
    header.total = [fields.number()?, fields.number()?];
    header.tile = [fields.number()?, fields.number()?];
    header.frames = fields.number()?;
    header.focal_planes = fields.number()?;
    header.frame_offset = fields.number()?;
    header.segments = [fields.number()?, fields.number()?];
    header.spacing = if fields.flag()? { Some([fields.float()?, fields.float()?]) } else { None };
    header.shared_z = if fields.flag()? { Some(fields.float()? + 0.0) } else { None };
    if header.shared_z.is_some_and(|z| !z.is_finite()) {
        return Err(bad("has a focal plane that is no number"));
    }
    header.shared_path = if fields.flag()? { Some(fields.text()?.into()) } else { None };
    header.paths = fields.texts()?;
    header.frame_paths = fields.texts()?;
    let count = fields.count(MOST_FRAMES)?;
    if count > 0 {
        let length = fields.count(MOST_RAW)?;
        if count > length {
            return Err(bad("has more positions than bytes of them"));
        }
        let raw = inflate(fields.rest, length).ok_or_else(|| bad("does not decompress"))?;
        let mut columns = Fields { rest: &raw };
        header.positions = columns.positions(count, header.frame_paths.len())?;
        return columns.finish(header);
    }
    fields.finish(header)
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the map of a slide {what}: read the file's header again"))
}

/// What is not read yet.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn finish(&self, header: SlideHeader) -> Result<SlideHeader> {
        if self.rest.is_empty() { Ok(header) } else { Err(bad("is longer than what it holds")) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| bad("is cut"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| bad("is cut"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64> {
        varint::take(&mut self.rest).ok_or_else(|| bad("is cut"))
    }

    fn count(&mut self, most: usize) -> Result<usize> {
        let number = usize::try_from(self.number()?).ok().filter(|number| *number <= most);
        number.ok_or_else(|| bad("counts more than it may hold"))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(bad("has a flag that is neither 0 nor 1")),
        }
    }

    fn float(&mut self) -> Result<f64> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.count(self.rest.len())?;
        std::str::from_utf8(self.take(length)?).map_err(|_| bad("has text that is not UTF-8"))
    }

    fn texts(&mut self) -> Result<Vec<String>> {
        // Each takes a byte at least.
        let count = self.count(self.rest.len())?;
        (0..count).map(|_| Ok(self.text()?.to_owned())).collect()
    }

    fn uid(&mut self) -> Result<Uid> {
        Uid::from(self.text()?).map_err(|_| bad("has a UID that is too long"))
    }

    fn state(&mut self) -> Result<Fingerprint> {
        let size = self.number()?;
        let [flags] = self.array()?;
        if flags > 7 {
            return Err(bad("has an unknown flag"));
        }
        let mut numbers = [None; 3];
        for (bit, number) in numbers.iter_mut().enumerate() {
            if flags >> bit & 1 == 1 {
                *number = Some(u64::from_le_bytes(self.array()?));
            }
        }
        let [mtime_ns, ctime_ns, inode] = numbers;
        let [mtime_ns, ctime_ns] = [mtime_ns, ctime_ns].map(|time| time.map(u64::cast_signed));
        let etag = Some(self.text()?).filter(|etag| !etag.is_empty());
        let etag = etag.map(Etag::from).transpose().map_err(|_| bad("has an entity tag that is too long"))?;
        Ok(Fingerprint { size, mtime_ns, ctime_ns, inode, etag })
    }

    fn positions(&mut self, count: usize, paths: usize) -> Result<Vec<Position>> {
        let mut positions = vec![Position::default(); count];
        self.column(&mut positions, |position, column| position.column = Some(column))?;
        self.column(&mut positions, |position, row| position.row = Some(row))?;
        self.column(&mut positions, |position, bits| {
            position.z = Some(f64::from_bits(bits.cast_unsigned().swap_bytes()) + 0.0);
        })?;
        let mut is_known = true;
        self.column(&mut positions, |position, place| {
            is_known &= usize::try_from(place).is_ok_and(|place| place < paths);
            position.path = u32::try_from(place).ok();
        })?;
        if !is_known || positions.iter().any(|position| position.z.is_some_and(|z| !z.is_finite())) {
            return Err(bad("has a position on no focal plane or optical path"));
        }
        Ok(positions)
    }

    fn column(&mut self, positions: &mut [Position], mut set: impl FnMut(&mut Position, i64)) -> Result<()> {
        let [form] = self.array()?;
        if form == NONE {
            return Ok(());
        }
        let unit = i64::try_from(self.number()?).map_err(|_| bad("has a unit that is too large"))?;
        let presence = match form {
            ALL => None,
            SOME => Some(self.take(positions.len())?),
            _ => return Err(bad("has an unknown column")),
        };
        let mut last = 0_i64;
        for (at, position) in positions.iter_mut().enumerate() {
            if presence.and_then(|presence| presence.get(at)) == Some(&0) {
                continue;
            }
            let step = self.number()?;
            last = last.wrapping_add((step >> 1).cast_signed() ^ -(step & 1).cast_signed());
            set(position, last.checked_mul(unit).ok_or_else(|| bad("has a position that is too large"))?);
        }
        Ok(())
    }
}

//! A [`FrameTable`] as one self-contained record of bytes, for pickles, queues and snapshot files.

use arrayvec::ArrayString;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Fingerprint;
use crate::dicom::PARSER_VERSION;
use crate::frames::attributes::Attributes;
use crate::frames::notes::Notes;
use crate::frames::packed;
use crate::frames::table::{FrameTable, Kind, Method, OffsetsIn, Status, Verified};

/// Records of version 0.1 end their fingerprint at the modification time.
const MAGIC: [u8; 4] = *b"VXF2";
const MAGIC_OF_0_1: [u8; 4] = *b"VXFT";
const CRC_AT: usize = 4;

/// Writes magic, CRC-32C of the record with this field 0, parser version, attributes, packed layout.
pub fn encode(table: &FrameTable) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend(MAGIC);
    out.extend([0; 4]);
    out.extend(PARSER_VERSION.to_le_bytes());
    let codes = [
        table.status as u8,
        table.kind as u8,
        table.method as u8,
        table.verified as u8,
        table.offsets_in as u8,
    ];
    out.extend(codes);
    push_optional(&mut out, table.truncated_from.map(u64::from));
    push_optional(&mut out, table.pixel_data_pos);
    push_optional(&mut out, table.fingerprint.mtime_ns.map(i64::cast_unsigned));
    push_optional(&mut out, table.fingerprint.ctime_ns.map(i64::cast_unsigned));
    push_optional(&mut out, table.fingerprint.inode);
    out.extend(table.fingerprint.size.to_le_bytes());
    out.extend(table.notes.bits().to_le_bytes());
    let image = &table.image;
    for number in [image.rows, image.columns, image.number_of_frames] {
        out.extend(number.to_le_bytes());
    }
    out.extend(image.samples_per_pixel.to_le_bytes());
    out.extend(image.bits_allocated.to_le_bytes());
    for text in [
        table.fingerprint.etag.as_deref().unwrap_or_default(),
        table.transfer_syntax_uid.as_str(),
        &image.sop_instance_uid,
        &image.series_instance_uid,
        &image.study_instance_uid,
        &image.photometric_interpretation,
    ] {
        out.push(text.len() as u8); // 64 at most
        out.extend(text.as_bytes());
    }
    out.extend(packed::encode(&table.layout));
    let crc = crc32c::crc32c(&out);
    if let Some(field) = out.get_mut(CRC_AT..CRC_AT + 4) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    out
}

fn push_optional(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(u8::from(value.is_some()));
    out.extend(value.unwrap_or(0).to_le_bytes());
}

/// Reads a record and checks it.
///
/// # Errors
/// `bad_table` for another parser version, a wrong checksum, and bytes that [`encode`] does not write.
pub fn decode(record: &[u8]) -> Result<FrameTable> {
    let mut fields = Fields { rest: record };
    let magic = fields.array::<4>()?;
    let crc = u32::from_le_bytes(fields.array()?);
    let is_known = [MAGIC, MAGIC_OF_0_1].contains(&magic);
    if !is_known || crc32c::crc32c_append(crc32c::crc32c(&[magic, [0; 4]].concat()), fields.rest) != crc {
        return Err(bad("damaged, or not a record"));
    }
    if fields.array()? != PARSER_VERSION.to_le_bytes() {
        return Err(bad("of another parser version"));
    }
    let [status, kind, method, verified, offsets_in] = fields.array()?;
    let mut table = FrameTable {
        status: member(Status::from_code(status))?,
        kind: member(Kind::from_code(kind))?,
        method: member(Method::from_code(method))?,
        verified: member(Verified::from_code(verified))?,
        offsets_in: member(OffsetsIn::from_code(offsets_in))?,
        truncated_from: fields.optional()?.map(|from| member(u32::try_from(from).ok())).transpose()?,
        pixel_data_pos: fields.optional()?,
        ..FrameTable::default()
    };
    let mut state =
        Fingerprint { mtime_ns: fields.optional()?.map(u64::cast_signed), ..Fingerprint::default() };
    if magic == MAGIC {
        state.ctime_ns = fields.optional()?.map(u64::cast_signed);
        state.inode = fields.optional()?;
    }
    state.size = u64::from_le_bytes(fields.array()?);
    table.fingerprint = state;
    table.notes = member(Notes::from_bits(u64::from_le_bytes(fields.array()?)))?;
    table.image = Attributes {
        rows: u32::from_le_bytes(fields.array()?),
        columns: u32::from_le_bytes(fields.array()?),
        number_of_frames: u32::from_le_bytes(fields.array()?),
        samples_per_pixel: u16::from_le_bytes(fields.array()?),
        bits_allocated: u16::from_le_bytes(fields.array()?),
        ..Attributes::default()
    };
    if magic == MAGIC {
        table.fingerprint.etag = Some(fields.text()?).filter(|etag| !etag.is_empty());
    }
    table.transfer_syntax_uid = fields.text()?;
    table.image.sop_instance_uid = fields.text()?;
    table.image.series_instance_uid = fields.text()?;
    table.image.study_instance_uid = fields.text()?;
    table.image.photometric_interpretation = fields.text()?;
    table.layout = packed::decode(fields.rest, table.limit())?;
    Ok(table)
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the frame table's record is {what}"))
}

fn member<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| bad("of unknown codes"))
}

/// The fields of a record that are not read yet.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(|| bad("too short"))?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn optional(&mut self) -> Result<Option<u64>> {
        let [is_some] = self.array()?;
        let value = u64::from_le_bytes(self.array()?);
        Ok((is_some == 1).then_some(value))
    }

    fn text<const N: usize>(&mut self) -> Result<ArrayString<N>> {
        let [length] = self.array()?;
        let (bytes, rest) =
            self.rest.split_at_checked(usize::from(length)).ok_or_else(|| bad("too short"))?;
        self.rest = rest;
        let text = std::str::from_utf8(bytes).map_err(|_| bad("of text that is not UTF-8"))?;
        ArrayString::from(text).map_err(|_| bad("of a text too long for its attribute"))
    }
}

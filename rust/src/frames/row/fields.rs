//! Fields in PostgreSQL's binary formats: written as those of COPY, read as those of COPY or of a record.

use arrayvec::ArrayString;

use crate::base::error::{Error, ErrorKind, Result};
use crate::frames::notes::{Note, Notes};

/// Writes the fields of a tuple: each is its length and its value in network byte order; length -1 is NULL.
pub(super) struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub fn bytes(&mut self, value: Option<&[u8]>) {
        let length = value.map_or(-1, |value| value.len() as i32);
        self.out.extend(length.to_be_bytes());
        self.out.extend(value.unwrap_or_default());
    }

    pub fn long(&mut self, value: Option<i64>) {
        self.bytes(value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    pub fn int(&mut self, value: Option<i32>) {
        self.bytes(value.map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    }

    /// Absent text is NULL, never empty.
    pub fn text(&mut self, value: &str) {
        self.bytes(Some(value.as_bytes()).filter(|value| !value.is_empty()));
    }

    /// `text[]`: one dimension from 1, no NULLs, elements of type 25; NULL where there is none.
    pub fn texts(&mut self, values: &[&str]) {
        if values.is_empty() {
            return self.bytes(None);
        }
        let mut array = Vec::new();
        for number in [1, 0, TEXT_TYPE, values.len() as u32, 1] {
            array.extend(number.to_be_bytes());
        }
        for value in values {
            array.extend((value.len() as u32).to_be_bytes());
            array.extend(value.as_bytes());
        }
        self.bytes(Some(&array));
    }
}

/// Object identifier of the type `text`.
const TEXT_TYPE: u32 = 25;

/// Takes a field off `rest`; `None` for NULL. The fields of a record name their types, those of COPY do not.
pub(super) fn take_field<'a>(rest: &mut &'a [u8], is_record: bool) -> Result<Option<&'a [u8]>> {
    if is_record {
        let _type: [u8; 4] = take(rest)?;
    }
    let Ok(length) = usize::try_from(i32::from_be_bytes(take(rest)?)) else { return Ok(None) };
    let (value, after) = rest.split_at_checked(length).ok_or_else(|| bad("a cut row"))?;
    *rest = after;
    Ok(Some(value))
}

/// Takes `N` bytes off `rest`.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk().ok_or_else(|| bad("a cut row"))?;
    *rest = after;
    Ok(*bytes)
}

/// A number of 2, 4 or 8 bytes.
pub(super) fn int(field: Option<&[u8]>) -> Result<Option<i64>> {
    Ok(Some(match *field.unwrap_or_default() {
        [] if field.is_none() => return Ok(None),
        [a, b] => i16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(bad("a number that is no integer")),
    }))
}

/// A number that is not negative and fits its attribute.
pub(super) fn number<T: TryFrom<i64>>(field: Option<&[u8]>) -> Result<Option<T>> {
    let value = int(field)?;
    value.map(|value| T::try_from(value).map_err(|_| bad(&format!("{value}, out of range")))).transpose()
}

/// Text; empty for NULL.
pub(super) fn text(field: Option<&[u8]>) -> Result<&str> {
    std::str::from_utf8(field.unwrap_or_default()).map_err(|_| bad("text that is not UTF-8"))
}

/// Text that fits its attribute; empty for NULL.
pub(super) fn short<const N: usize>(field: Option<&[u8]>) -> Result<ArrayString<N>> {
    ArrayString::from(text(field)?).map_err(|_| bad("a text too long for its attribute"))
}

/// The member of a closed list that has this name.
pub(super) fn member<T>(from_name: fn(&str) -> Option<T>, field: Option<&[u8]>) -> Result<T> {
    let name = text(field)?;
    from_name(name).ok_or_else(|| bad(&format!("the unknown name {name:.40?}")))
}

/// Notes by their names, as [`Writer::texts`] writes them.
pub(super) fn note_set(field: Option<&[u8]>) -> Result<Notes> {
    let Some(mut array) = field else { return Ok(Notes::default()) };
    let dimensions = u32::from_be_bytes(take(&mut array)?);
    let [_has_nulls, _type, _length, _from]: [u32; 4] = match dimensions {
        0 => return Ok(Notes::default()),
        1 => [take(&mut array)?, take(&mut array)?, take(&mut array)?, take(&mut array)?]
            .map(u32::from_be_bytes),
        _ => return Err(bad("notes of several dimensions")),
    };
    let mut notes = Notes::default();
    while !array.is_empty() {
        let length = u32::from_be_bytes(take(&mut array)?) as usize;
        let (name, after) = array.split_at_checked(length).ok_or_else(|| bad("a cut note"))?;
        array = after;
        notes.add(member(Note::from_name, Some(name))?);
    }
    Ok(notes)
}

/// An error that continues "the index holds ...".
pub(super) fn bad(what: &str) -> Error {
    Error::new(ErrorKind::BadTable, format!("the index holds {what}: index the file again"))
}

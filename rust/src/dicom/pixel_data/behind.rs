//! What stands behind Pixel Data: nothing that belongs before it (PS3.5 7.1: ascending tags, each once).

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Source;
use crate::dicom::element::{Encoding, Tag, has_known_vr};

/// Elements that are looked at; a file with more of them is legal and their order is nobody's concern.
const MOST: usize = 16;
/// Groups of which images have elements, for data sets that write no VR: other bytes may be anything.
const GROUPS: [u16; 13] =
    [0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0032, 0x0040, 0x0048, 0x0054, 0x0070, 0x0088, 0x5200, 0x7FE0];

/// Looks at the elements from `position`, the first byte behind the pixels. Padding and bytes that are no
/// element are nobody's concern; another pixel element, an attribute, or a delimiter of an Item is: either the
/// pixels that were found are not the image's, or an attribute that was read does not count.
///
/// # Errors
/// `misplaced_element`, with its place.
pub fn check(source: &dyn Source, position: u64, encoding: Encoding) -> Result<()> {
    let mut position = position;
    for _ in 0..MOST {
        match next(source, position, encoding)? {
            Next::Nothing => return Ok(()),
            Next::GoOn(end) => position = end,
            Next::Misplaced(tag) => {
                let detail =
                    format!("{tag} stands behind Pixel Data (PS3.5 7.1: tags ascend, each stands once)");
                return Err(Error::at(ErrorKind::MisplacedElement, position, detail));
            }
        }
    }
    Ok(())
}

/// Whether an element, of whatever tag, stands at `position`.
pub fn is_element(source: &dyn Source, position: u64, encoding: Encoding) -> Result<bool> {
    Ok(!matches!(next(source, position, encoding)?, Next::Nothing))
}

enum Next {
    Nothing,
    GoOn(u64),
    Misplaced(Tag),
}

fn next(source: &dyn Source, position: u64, encoding: Encoding) -> Result<Next> {
    if position.saturating_add(8) > source.size() {
        return Ok(Next::Nothing);
    }
    let mut bytes = [0; 12];
    let count = source.read_at(position, &mut bytes)?;
    let Some(&[a, b, c, d, v, w, x, y]) = bytes.get(..count).unwrap_or_default().first_chunk::<8>() else {
        return Ok(Next::Nothing);
    };
    let [.., l, m, n, o] = bytes;
    let tag = encoding.tag([a, b, c, d]);
    let four = encoding.u32([v, w, x, y]);
    match tag {
        // Some writers end the data set as they end a sequence.
        Tag::SEQUENCE_DELIMITATION if four == 0 => return Ok(Next::GoOn(position + 8)),
        Tag::ITEM | Tag::ITEM_DELIMITATION => return Ok(Next::Misplaced(tag)),
        _ => {}
    }
    let (header, length) = if !encoding.explicit {
        (8, four)
    } else {
        match has_known_vr([v, w]) {
            Some(true) if count == 12 && [x, y] == [0, 0] => (12, encoding.u32([l, m, n, o])),
            Some(false) => (8, u32::from(encoding.u16([x, y]))),
            _ => return Ok(Next::Nothing),
        }
    };
    let end = position + header + u64::from(length);
    let is_open = length == u32::MAX;
    let is_element =
        (is_open || end <= source.size()) && (encoding.explicit || GROUPS.contains(&tag.group()));
    Ok(match tag {
        _ if tag.group() < 0x0008 => Next::Nothing,
        _ if tag <= Tag::PIXEL_DATA && is_element => Next::Misplaced(tag),
        _ if is_open || end > source.size() => Next::Nothing,
        _ => Next::GoOn(end),
    })
}

//! The form that torch wrote before 1.6, and still writes without zip serialization: five pickles (a magic
//! number, a version, the system, the object, the keys of the storages), then the storages.
//!
//! It has no checksums: a cut file is found, a flipped bit of a payload is not.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::globals;
use super::super::pickle::{self, Graph, Scanned, Value};
use super::super::verdict::{Checked, Finding, State};
use super::fields::read_range;

/// The magic number, as a pickle holds it in binary, and in text (protocols 0 and 1).
const MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const MAGIC_TEXT: &[u8] = b"119547037146038801333356L";
/// Bytes that are read first: the pickles of usual files.
const FIRST: u64 = 1 << 20;

/// A file of this form.
pub struct Legacy {
    /// The object.
    pub graph: Graph,
    /// Name, bytes and offset of each storage's elements.
    pub storages: Vec<(String, u64, u64)>,
}

/// Whether a file with these first bytes is of this form.
pub(super) fn is_legacy(head: &[u8]) -> bool {
    match pickle::scan_first(head.get(..64).unwrap_or(head)) {
        Scanned::Whole(graph) => {
            matches!(graph.get(graph.root), Value::Number(number) if number == MAGIC || number == MAGIC_TEXT)
        }
        _ => false,
    }
}

impl Legacy {
    /// Reads the pickles, and compares the storages with them and with the size of the file.
    pub(super) fn read(file: &File, size: u64) -> Checked<Self> {
        let mut length = FIRST.min(size);
        loop {
            let bytes = read_range(file, 0, length)?;
            match read_pickles(&bytes)? {
                Some((graph, keys, at)) => {
                    let storages = read_storages(file, size, &graph, &keys, at)?;
                    return Ok(Self { graph, storages });
                }
                None if length == size => {
                    return Err(Finding::of(
                        State::Truncated,
                        "data.pkl",
                        size,
                        "the file ends inside its pickles",
                    ));
                }
                None if length >= pickle::MAX_LENGTH => {
                    let detail = format!("its pickles exceed the limit of {} bytes", pickle::MAX_LENGTH);
                    return Err(Finding::new(State::Unknown, detail));
                }
                None => length = length.saturating_mul(8).min(size).min(pickle::MAX_LENGTH),
            }
        }
    }

    /// Where the elements of a storage begin.
    pub fn place(&self, key: &str) -> u64 {
        self.storages.iter().find(|(name, _, _)| name == key).map_or(0, |&(_, _, at)| at)
    }
}

/// The object, the keys of its storages and the first byte behind the pickles; `None` where `bytes` end first.
fn read_pickles(bytes: &[u8]) -> Checked<Option<(Graph, Vec<String>, u64)>> {
    let mut at = 0;
    let mut graphs = Vec::new();
    for _ in 0..5 {
        match pickle::scan_first(bytes.get(at..).unwrap_or_default()) {
            Scanned::Whole(graph) => {
                at += graph.length;
                graphs.push(graph);
            }
            Scanned::Cut => return Ok(None),
            Scanned::Malformed(what, offset) => {
                return Err(Finding::damage("data.pkl", at as u64 + offset, format!("the pickle {what}")));
            }
            Scanned::TooLarge(finding) => return Err(finding),
        }
    }
    let (Some(keys), Some(object)) = (graphs.pop(), graphs.pop()) else { return Ok(None) };
    let names = match keys.get(keys.root) {
        Value::List(items) => items.iter().map(|&id| name_of(&keys, id)).collect::<Option<Vec<String>>>(),
        _ => None,
    };
    let names = names.ok_or_else(|| {
        Finding::damage("data.pkl", at as u64, "the keys of the storages are no list of names")
    })?;
    Ok(Some((object, names, at as u64)))
}

fn name_of(graph: &Graph, id: usize) -> Option<String> {
    match graph.get(id) {
        Value::Str(text) => Some(text.clone()),
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

fn read_storages(
    file: &File,
    size: u64,
    graph: &Graph,
    keys: &[String],
    mut at: u64,
) -> Checked<Vec<(String, u64, u64)>> {
    let mut found = Vec::new();
    for key in keys {
        let record = format!("data/{key}");
        let cut = || Finding::of(State::Truncated, &record, size, "the file ends before this storage does");
        let storage = graph.storages.get(key).ok_or_else(|| {
            Finding::damage(&record, at, "the file holds a storage that its pickle does not refer to")
        })?;
        let Some(item) = globals::item_size(&storage.class) else {
            let detail = format!("the size of an element of {} is not known", storage.class);
            return Err(Finding::new(State::Unknown, detail));
        };
        let begin = at.checked_add(8).filter(|&begin| begin <= size).ok_or_else(cut)?;
        let mut count = [0; 8];
        file.read_exact_at(&mut count, at)?;
        let count = u64::from_le_bytes(count);
        if count != storage.numel {
            let detail = format!("{count} elements, the pickle says {}", storage.numel);
            return Err(Finding::damage(&record, at, detail));
        }
        let bytes = count.checked_mul(item).ok_or_else(cut)?;
        at = begin.checked_add(bytes).filter(|&end| end <= size).ok_or_else(cut)?;
        found.push((key.clone(), bytes, begin));
    }
    match graph.storages.keys().find(|key| !keys.contains(key)) {
        Some(key) => Err(Finding::damage(
            "data.pkl",
            at,
            format!("the pickle refers to storage {key}, which is missing"),
        )),
        None => Ok(found),
    }
}

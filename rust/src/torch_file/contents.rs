//! Compares the pickle with the records: bounds of every tensor, a list of tensors, and a digest of all
//! contents.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3;

use super::archive::Archive;
use super::globals;
use super::pickle::{Graph, Id, Storage, Tensor, Value};
use super::verdict::{Checked, Finding, TensorSummary};

/// Deepest nesting that summaries and digests follow; usual files have three levels.
const MAX_DEPTH: usize = 64;
/// Tensors that are listed at most.
const MAX_TENSORS: usize = 10_000;

/// Checks that every storage has a record of its size and that every tensor lies inside its storage.
///
/// torch checks neither when it maps a file: it returns the bytes that lie beside.
pub(super) fn check_bounds(graph: &Graph, archive: &Archive) -> Checked<()> {
    check_sizes(graph, archive)?;
    check_reach(graph, |key| archive.find(&format!("data/{key}")).map_or(0, |record| record.payload))
}

fn check_sizes(graph: &Graph, archive: &Archive) -> Checked<()> {
    let sizes: HashMap<&str, (u64, u64)> =
        archive.records.iter().map(|r| (r.name.as_str(), (r.size, r.payload))).collect();
    for storage in graph.storages.values() {
        let record = format!("data/{}", storage.key);
        let Some(&(size, offset)) = sizes.get(record.as_str()) else {
            return Err(Finding::damage(
                "data.pkl",
                0,
                format!("the pickle refers to {record}, which is missing"),
            ));
        };
        let Some(item_size) = globals::item_size(&storage.class) else { continue };
        if storage.numel.checked_mul(item_size) != Some(size) {
            let detail = format!(
                "{} elements of {} do not take the record's {size} bytes",
                storage.numel, storage.class
            );
            return Err(Finding::damage(&record, offset, detail));
        }
    }
    Ok(())
}

/// Checks that every tensor lies inside its storage; `place` is where the storage of a key begins.
pub(super) fn check_reach(graph: &Graph, place: impl Fn(&str) -> u64) -> Checked<()> {
    for value in &graph.values {
        if let Value::Tensor(tensor) = value
            && !is_inside_storage(tensor)
        {
            let detail = format!("a tensor of shape {:?} reaches out of its storage", tensor.shape);
            let record = format!("data/{}", tensor.storage.key);
            return Err(Finding::damage(&record, place(&tensor.storage.key), detail));
        }
    }
    Ok(())
}

fn is_inside_storage(tensor: &Tensor) -> bool {
    let Ok(mut last) = u64::try_from(tensor.offset) else { return false };
    if tensor.shape.len() != tensor.stride.len() || tensor.shape.iter().any(|&length| length < 0) {
        return false;
    }
    if tensor.shape.contains(&0) {
        return true;
    }
    for (&length, &stride) in tensor.shape.iter().zip(&tensor.stride) {
        let (Ok(steps), Ok(stride)) = (u64::try_from(length - 1), u64::try_from(stride)) else {
            return false;
        };
        match steps.checked_mul(stride).and_then(|reach| last.checked_add(reach)) {
            Some(reached) => last = reached,
            None => return false,
        }
    }
    elements(&tensor.storage, tensor.dtype.as_deref()).is_none_or(|numel| last < numel)
}

/// Elements of the storage, counted in `dtype` where a tensor states its own.
fn elements(storage: &Storage, dtype: Option<&str>) -> Option<u64> {
    let Some(dtype) = dtype else { return Some(storage.numel) };
    let bytes = storage.numel.checked_mul(globals::item_size(&storage.class)?)?;
    bytes.checked_div(globals::item_size(dtype)?)
}

/// Lists the tensors that are reachable from the root.
pub(super) fn summaries(graph: &Graph) -> Vec<TensorSummary> {
    let mut found = Vec::new();
    let mut seen = vec![false; graph.values.len()];
    list_tensors(graph, graph.root, String::new(), MAX_DEPTH, &mut seen, &mut found);
    found
}

fn list_tensors(
    graph: &Graph,
    id: Id,
    path: String,
    depth: usize,
    seen: &mut [bool],
    found: &mut Vec<TensorSummary>,
) {
    let Some(flag) = seen.get_mut(id) else { return };
    if std::mem::replace(flag, true) || depth == 0 || found.len() >= MAX_TENSORS {
        return;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match graph.get(id) {
        Value::Tensor(tensor) => found.push(summary(path, tensor, tensor.shape.clone())),
        Value::Composite(composite) => {
            if let Value::Tensor(elements) = graph.get(composite.elements) {
                found.push(summary(path, elements, composite.shape.clone()));
            }
        }
        Value::Dict(pairs) => {
            for &(key, value) in pairs {
                let name = match graph.get(key) {
                    Value::Str(text) => text.chars().take(80).collect(),
                    Value::Int(number) => number.to_string(),
                    _ => "?".to_owned(),
                };
                list_tensors(graph, value, below(&name), depth - 1, seen, found);
            }
        }
        Value::List(items) | Value::Tuple(items) => {
            for (index, &item) in items.iter().enumerate() {
                list_tensors(graph, item, below(&index.to_string()), depth - 1, seen, found);
            }
        }
        _ => {}
    }
}

fn summary(path: String, tensor: &Tensor, shape: Vec<i64>) -> TensorSummary {
    TensorSummary {
        path,
        dtype: globals::dtype_name(tensor.dtype.as_deref().unwrap_or(&tensor.storage.class)).to_owned(),
        shape,
        record: format!("data/{}", tensor.storage.key),
    }
}

/// Computes a digest of what a reader gets, whatever the order of keys and the layout of the archive.
pub(super) fn digest(graph: &Graph, records: &[(&str, Option<u128>)]) -> Option<String> {
    let records: HashMap<&str, u128> =
        records.iter().filter_map(|&(name, digest)| Some((name, digest?))).collect();
    let mut walk = Walk { graph, records, digests: HashMap::new() };
    walk.digest(graph.root, MAX_DEPTH).map(|digest| format!("{digest:032x}"))
}

struct Walk<'a> {
    graph: &'a Graph,
    records: HashMap<&'a str, u128>,
    /// Digests by value, so that a shared value costs once; `None` while in progress, which ends cycles.
    digests: HashMap<Id, Option<u128>>,
}

impl Walk<'_> {
    fn digest(&mut self, id: Id, depth: usize) -> Option<u128> {
        if let Some(digest) = self.digests.get(&id) {
            return *digest;
        }
        self.digests.insert(id, None);
        let mut hash = Xxh3::new();
        let depth = depth.checked_sub(1)?;
        match self.graph.get(id) {
            Value::None => hash.update(b"none"),
            Value::Bool(flag) => hash.update(if *flag { b"true" } else { b"false" }),
            Value::Int(number) => tagged(&mut hash, b"int", &number.to_le_bytes()),
            Value::Number(text) => tagged(&mut hash, b"number", text),
            Value::Float(number) => tagged(&mut hash, b"float", &number.to_le_bytes()),
            Value::Str(text) => tagged(&mut hash, b"str", text.as_bytes()),
            Value::Bytes(bytes) => tagged(&mut hash, b"bytes", bytes),
            Value::Global(name) => tagged(&mut hash, b"global", name.as_bytes()),
            Value::Storage(storage) => self.storage(&mut hash, storage)?,
            Value::Tuple(items) => self.sequence(&mut hash, b"tuple", items, depth)?,
            Value::List(items) => self.sequence(&mut hash, b"list", items, depth)?,
            Value::Object(items) => self.sequence(&mut hash, b"object", items, depth)?,
            Value::Composite(composite) => self.sequence(&mut hash, b"object", &composite.parts, depth)?,
            Value::Dict(pairs) => {
                let mut digests = Vec::new();
                for &(key, value) in pairs {
                    digests.push((self.digest(key, depth)?, self.digest(value, depth)?));
                }
                digests.sort_unstable();
                hash.update(b"dict");
                for (key, value) in digests {
                    hash.update(&key.to_le_bytes());
                    hash.update(&value.to_le_bytes());
                }
            }
            Value::Tensor(tensor) => {
                self.storage(&mut hash, &tensor.storage)?;
                tagged(&mut hash, b"dtype", tensor.dtype.as_deref().unwrap_or("").as_bytes());
                for number in [tensor.offset].iter().chain(&tensor.shape).chain(&tensor.stride) {
                    tagged(&mut hash, b"axis", &number.to_le_bytes());
                }
                self.sequence(&mut hash, b"extra", &tensor.extra, depth)?;
            }
        }
        let digest = hash.digest128();
        self.digests.insert(id, Some(digest));
        Some(digest)
    }

    fn sequence(&mut self, hash: &mut Xxh3, tag: &[u8], items: &[Id], depth: usize) -> Option<()> {
        tagged(hash, tag, &(items.len() as u64).to_le_bytes());
        for &item in items {
            let digest = self.digest(item, depth)?;
            hash.update(&digest.to_le_bytes());
        }
        Some(())
    }

    fn storage(&self, hash: &mut Xxh3, storage: &Storage) -> Option<()> {
        tagged(hash, b"storage", storage.class.as_bytes());
        let record = format!("data/{}", storage.key);
        hash.update(&self.records.get(record.as_str())?.to_le_bytes());
        Some(())
    }
}

fn tagged(hash: &mut Xxh3, tag: &[u8], bytes: &[u8]) {
    hash.update(tag);
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(offset: i64, shape: &[i64], stride: &[i64]) -> Tensor {
        let storage = Storage { class: "torch.FloatStorage".into(), key: "0".into(), numel: 12 };
        Tensor {
            storage: storage.into(),
            dtype: None,
            offset,
            shape: shape.into(),
            stride: stride.into(),
            extra: vec![],
        }
    }

    #[test]
    fn bounds_hold_at_the_last_element() {
        assert!(is_inside_storage(&tensor(0, &[3, 4], &[4, 1])));
        assert!(is_inside_storage(&tensor(11, &[], &[])));
        assert!(is_inside_storage(&tensor(0, &[0, 99], &[99, 1])));
        assert!(!is_inside_storage(&tensor(1, &[3, 4], &[4, 1])));
        assert!(!is_inside_storage(&tensor(12, &[], &[])));
        assert!(!is_inside_storage(&tensor(-1, &[1], &[1])));
        assert!(!is_inside_storage(&tensor(0, &[2], &[-1])));
        assert!(!is_inside_storage(&tensor(0, &[i64::MAX, 2], &[i64::MAX, 1])));
    }
}

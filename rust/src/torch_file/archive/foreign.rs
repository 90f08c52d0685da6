//! Files of other programs, told by how they begin or by the names of their records: whether one is damaged
//! cannot be said here, so none of them is called damaged.

use std::fs::File;

use super::super::globals;
use super::super::pickle::{self, Scanned};
use super::super::verdict::{Checked, Finding, State};
use super::fields::{LOCAL, read_range};

/// Bytes of a file's beginning that are looked at.
pub const HEAD: u64 = 512;
/// The end of every message: what is known, and what becomes of the file.
const LEFT: &str = "not a file of torch.save: it is not checked, and left as it is";

/// By offset and bytes: the beginnings of formats that lie about under the name of a torch file.
const BEGINNINGS: &[(usize, &[u8], &str)] = &[
    (0, b"\x93NUMPY", "a NumPy array (npy)"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file with `git lfs pull`"),
    (128, b"DICM", "a DICOM file"),
    (257, b"ustar", "a tar archive"),
    (344, b"n+1\0", "a NIfTI file"),
    (344, b"ni1\0", "a NIfTI header"),
];

/// Records of which a torch archive holds some.
const TORCH_RECORDS: &[&str] =
    &["version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"];

/// Refuses a file of `size` bytes that another program wrote, by its beginning.
pub(super) fn check_beginning(file: &File, head: &[u8], size: u64) -> Checked<()> {
    let found =
        BEGINNINGS.iter().find(|(at, bytes, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(bytes)));
    if let Some((_, _, name)) = found {
        return Err(unchecked(name));
    }
    if is_safetensors(head, size) {
        return Err(unchecked("a safetensors file"));
    }
    check_plain_pickle(file, head, size)
}

fn unchecked(what: &str) -> Finding {
    Finding::new(State::Unknown, format!("{what}, {LEFT}"))
}

/// Eight bytes of length, and that many bytes of JSON.
fn is_safetensors(head: &[u8], size: u64) -> bool {
    let Some((length, json)) = head.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    json.starts_with(b"{") && (2..100 << 20).contains(&length) && length <= size.saturating_sub(8)
}

/// Refuses what `pickle.dump` wrote. Protocols below 2 have no mark: the whole file must be a pickle.
fn check_plain_pickle(file: &File, head: &[u8], size: u64) -> Checked<()> {
    let is_marked = matches!(head, [0x80, 2..=5, ..]);
    if size > pickle::MAX_LENGTH {
        return if is_marked { Err(unchecked("a pickle")) } else { Ok(()) };
    }
    // A file of another sort is refused by its first bytes, before it is read.
    if !is_marked && matches!(pickle::scan_first(head), Scanned::Malformed(..)) {
        return Ok(());
    }
    let program = read_range(file, 0, size)?;
    match pickle::scan_first(&program) {
        Scanned::Whole(graph) if is_marked || graph.length as u64 == size => {
            let refused = graph.refused_globals();
            match refused.iter().find(|name| globals::is_dangerous(name)) {
                Some(name) => {
                    let detail =
                        format!("a pickle, not a torch file: loading would import and may run {name}");
                    Err(Finding::new(State::UnsafeGlobals, detail))
                }
                None => Err(unchecked("a pickle")),
            }
        }
        Scanned::TooLarge(finding) => Err(finding),
        _ if is_marked => Err(unchecked("a pickle, it seems")),
        _ => Ok(()),
    }
}

/// Refuses a zip archive that other functions than `torch.save` wrote, by the names of its records.
pub(super) fn check_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Checked<()> {
    let inner = names.clone().map(|name| name.split_once('/').map_or("", |(_, rest)| rest));
    if inner.clone().any(|name| name == "constants.pkl") {
        return Err(unchecked("a TorchScript program, which torch.jit.load reads"));
    }
    if inner.clone().any(|name| name == "archive_format") {
        return Err(unchecked("an exported program, which torch.export.load reads"));
    }
    if inner.clone().any(is_data) || inner.filter(|name| TORCH_RECORDS.contains(name)).take(2).count() == 2 {
        return Ok(());
    }
    Err(unchecked(zip_of(names.clone().next())))
}

/// What a zip archive is whose first record has that name.
fn zip_of(first: Option<&str>) -> &'static str {
    if first.is_some_and(|name| name.ends_with(".npy")) { "a NumPy archive (npz)" } else { "a zip archive" }
}

/// Refuses the same where the directory is lost: torch puts `data.pkl` first, into a folder.
pub(super) fn check_first_name(head: &[u8]) -> Checked<()> {
    let length = head.get(26..28).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    let name = head.get(30..30 + usize::from(length.unwrap_or(0)));
    match name.and_then(|name| std::str::from_utf8(name).ok()) {
        Some(name) if head.starts_with(LOCAL) && !name.is_empty() => {
            let inner = name.split_once('/').map_or("", |(_, rest)| rest);
            if is_data(inner) || TORCH_RECORDS.contains(&inner) {
                Ok(())
            } else {
                Err(unchecked(zip_of(Some(name))))
            }
        }
        _ => Ok(()),
    }
}

fn is_data(name: &str) -> bool {
    let digits = name.strip_prefix("data/").unwrap_or_default();
    name == "data.pkl" || (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

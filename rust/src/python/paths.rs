//! Paths as Python gives them, and as Spark and Databricks write them.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

/// Takes a path that is `str`, `bytes` or `os.PathLike`; names need not be UTF-8.
pub(super) fn path_of(object: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => Ok(PathBuf::from(OsStr::from_bytes(bytes.as_bytes()))),
        Err(_) => object.extract(),
    }
}

/// As [`path_of`], a URI of a local file as the path that it names.
pub(super) fn local_path_of(object: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    let path = path_of(object)?;
    Ok(match without_scheme(path.as_os_str().as_bytes()) {
        Some(local) => PathBuf::from(OsString::from_vec(local.into_owned())),
        None => path,
    })
}

/// The path that a URI of a local file names: `dbfs:/Volumes/a.dcm`, `file:/a.dcm`, `file:///a.dcm` (RFC 8089);
/// any other text as it is.
#[pyfunction]
fn local_path<'py>(path: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
    let name = match path.to_str() {
        Ok(text) => Cow::Borrowed(OsStr::new(text)),
        Err(_) => match path.extract::<OsString>() {
            Ok(name) => Cow::Owned(name),
            Err(_) => return Ok(path.clone().into_any()), // a lone surrogate: no file has this name
        },
    };
    Ok(match without_scheme(name.as_bytes()) {
        Some(local) => OsStr::from_bytes(&local).into_pyobject(path.py())?.into_any(),
        None => path.clone().into_any(),
    })
}

/// Hadoop writes `file:/a b.dcm` as it is; a URI with an authority, be it empty, is percent-encoded.
fn without_scheme(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (scheme, rest) = path.split_at_checked(5)?;
    if scheme.eq_ignore_ascii_case(b"dbfs:") {
        let slashes = rest.iter().take_while(|&&byte| byte == b'/').count();
        return rest.get(slashes.saturating_sub(1)..).map(Cow::Borrowed);
    }
    if !scheme.eq_ignore_ascii_case(b"file:") || !rest.starts_with(b"/") {
        return None;
    }
    let Some(authority) = rest.strip_prefix(b"//") else { return Some(Cow::Borrowed(rest)) };
    let host = authority.iter().position(|&byte| byte == b'/')?;
    let (host, encoded) = authority.split_at_checked(host)?;
    (host.is_empty() || host.eq_ignore_ascii_case(b"localhost")).then(|| Cow::Owned(decoded(encoded)))
}

/// Bytes with `%41` for `A`; what is no escape stays.
fn decoded(encoded: &[u8]) -> Vec<u8> {
    let mut rest = encoded;
    let mut bytes = Vec::with_capacity(encoded.len());
    while let Some((&first, behind)) = rest.split_first() {
        let escape = (first == b'%').then(|| behind.split_at_checked(2)).flatten();
        let value = escape.and_then(|(digits, behind)| Some((hexadecimal(digits)?, behind)));
        let (byte, next) = value.unwrap_or((first, behind));
        bytes.push(byte);
        rest = next;
    }
    bytes
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(local_path, module)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_of_local_files_name_paths() {
        for (uri, path) in [
            ("dbfs:/Volumes/a b%20.dcm", "/Volumes/a b%20.dcm"),
            ("DBFS:///Volumes/a.dcm", "/Volumes/a.dcm"),
            ("dbfs:a.dcm", "a.dcm"),
            ("file:/a b%20.dcm", "/a b%20.dcm"),
            ("file:///a%20b%zz%4.dcm%", "/a b%zz%4.dcm%"),
            ("File://LocalHost/%C3%BC.dcm", "/ü.dcm"),
        ] {
            assert_eq!(without_scheme(uri.as_bytes()).as_deref(), Some(path.as_bytes()), "{uri}");
        }
        for other in
            ["", "/a.dcm", "file:", "file:a.dcm", "file://host/a.dcm", "file://", "s3://b/a.dcm", "dbfs"]
        {
            assert_eq!(without_scheme(other.as_bytes()), None, "{other}");
        }
    }
}

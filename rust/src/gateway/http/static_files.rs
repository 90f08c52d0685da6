//! Files of a viewer: what a folder holds, and its `index.html` for every other address.

use std::path::{Component, Path};

use xxhash_rust::xxh3::xxh3_128;

use super::request::{Request, decode};
use super::response::Response;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{FileSource, Source, read_exact};
use crate::gateway::files::blocking;
use crate::gateway::wado::conditional::has_it;

/// Longest file that is served.
const LONGEST_FILE: u64 = 256 << 20;

/// Answers with the file that a path names below a folder. A viewer's own addresses, which are no files, get
/// its `index.html`: its scripts read the address. A browser asks each time whether what it keeps is current.
pub async fn file(request: &Request<'_>, folder: &Path, path: &str) -> Response {
    let decoded = decode(path).unwrap_or_default();
    let below = Path::new(decoded.trim_start_matches('/'));
    let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || decoded.contains('\0') {
        return Response::refusal(404, "not_found", "the viewer has no such file");
    }
    let is_asset = below.extension().is_some();
    let wanted = if is_asset { folder.join(below) } else { folder.join("index.html") };
    let media_type = media_type(&wanted);
    let folder = folder.to_owned();
    let Ok((source, etag)) = blocking(move || open(&folder, &wanted)).await else {
        return Response::refusal(404, "not_found", "the viewer has no such file");
    };
    let response = if has_it(request, &etag) {
        Response::empty(304)
    } else {
        match blocking(move || read_exact(&source, 0, source.size() as usize)).await {
            Ok(bytes) => Response::of(200, media_type, bytes),
            Err(_) => return Response::refusal(404, "not_found", "the viewer's file cannot be read"),
        }
    };
    response.with("Cache-Control", "no-cache").with("ETag", etag)
}

/// Opens a file below a folder; its entity tag tells its state.
fn open(folder: &Path, path: &Path) -> Result<(FileSource, String)> {
    let resolved = path.canonicalize()?;
    if !resolved.starts_with(folder.canonicalize()?) {
        return Err(Error::new(ErrorKind::IoError, "a link leads out of the viewer's folder"));
    }
    let source = FileSource::open(&resolved)?;
    if source.size() > LONGEST_FILE {
        return Err(Error::new(ErrorKind::LimitExceeded, "a file of the viewer is longer than 256 MiB"));
    }
    let etag = format!("\"{:032x}\"", xxh3_128(format!("{:?}", source.fingerprint()).as_bytes()));
    Ok((source, etag))
}

fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "wasm" => "application/wasm",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "woff" => "font/woff",
        "ttf" => "font/ttf",
        "webmanifest" => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

//! Headers as DICOM JSON (PS3.18 10.4.1.1.2).

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::mpsc::Sender;

use super::{Found, conditional, refusal_of};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::window::Buffer;
use crate::dicom::json::{self, BulkData, Options};
use crate::gateway::accept::{media_ranges, takes};
use crate::gateway::files::{self, Roots};
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Block, Body, Response};
use crate::gateway::routes::Level;
use crate::gateway::service::Worker;

const DICOM_JSON: &str = "application/dicom+json";
/// Blocks that wait for the client.
const BLOCKS: usize = 4;
/// Bytes of a block before it is compressed.
const BLOCK: usize = 256 << 10;
/// Longest value that stands in the JSON; longer ones get a URI.
const INLINE_LIMIT: u32 = 1024;

impl Worker {
    /// Answers a request for the headers of an instance, a series or a study.
    pub async fn metadata(
        &self,
        request: &Request<'_>,
        source: &str,
        root: &str,
        level: Level<'_>,
    ) -> Response {
        if !takes(&media_ranges(request), &[DICOM_JSON, "application/json"]) {
            return Response::refusal(406, "not_acceptable", "headers are sent as application/dicom+json");
        }
        let files = if level.instance.is_empty() {
            match self.files_of(source, level).await {
                Ok(files) => files,
                Err(refusal) => return refusal,
            }
        } else {
            match self.find(source, level).await {
                Ok(Found { path, .. }) => vec![(level.instance.to_owned(), path.into())],
                Err(refusal) => return refusal,
            }
        };
        // One file is read before the answer begins, so that what is wrong with it is a status.
        if let [(uid, path)] = files.as_slice() {
            let (roots, uid, path) = (self.shared.roots.clone(), uid.clone(), path.clone());
            let study = format!("{root}/studies/{}", level.study);
            let read = files::blocking(move || {
                let mut out = vec![b'['];
                write_header(&roots, &path, &uid, &study, &mut Buffer::default(), &mut |bytes| {
                    out.extend(bytes);
                    Ok(())
                })?;
                out.push(b']');
                Ok(out)
            });
            return match read.await {
                Ok(json) => json_response(request, json),
                Err(error) => refusal_of(&error),
            };
        }
        let is_zipped = takes_gzip(request);
        let (sender, receiver) = tokio::sync::mpsc::channel::<Block>(BLOCKS);
        let (roots, study) = (self.shared.roots.clone(), format!("{root}/studies/{}", level.study));
        tokio::task::spawn_blocking(move || {
            let mut out = Blocks::new(sender, is_zipped);
            let sent = write_all(&roots, &files, &study, &mut out).and_then(|()| out.finish());
            if let Err(error) = sent {
                out.fail(error);
            }
        });
        let mut response = Response {
            status: 200,
            headers: vec![("Content-Type", DICOM_JSON.to_owned())],
            body: Body::Blocks(receiver),
            length: None,
        };
        if is_zipped {
            response = response.with("Content-Encoding", "gzip");
        }
        response.with("Cache-Control", "no-cache").with("Vary", "Accept, Accept-Encoding")
    }
}

/// Writes the headers of all files as one JSON array; a file that cannot be read is left out.
fn write_all(roots: &Arc<Roots>, files: &[(String, String)], study: &str, out: &mut Blocks) -> Result<()> {
    let mut buffer = Buffer::default();
    let mut separator: &[u8] = b"[";
    for (uid, path) in files {
        let mut begun = false;
        let written = write_header(roots, path, uid, study, &mut buffer, &mut |bytes| {
            if !begun {
                out.write(separator)?;
                begun = true;
            }
            out.write(bytes)
        });
        match written {
            Ok(()) => separator = b",\n",
            Err(error) if begun || out.is_closed() => return Err(error),
            Err(_) => {} // damaged or gone: the other instances of the series are good
        }
    }
    if separator == b"[" {
        out.write(b"[")?;
    }
    out.write(b"]")
}

/// Passes the header of one file to `sink`, if the file still holds the instance. `study` is where the study is.
fn write_header(
    roots: &Roots,
    path: &str,
    uid: &str,
    study: &str,
    buffer: &mut Buffer,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let file = files::open(roots, path)?;
    if file.instance != files::uid(uid) {
        return Err(Error::new(ErrorKind::ChangedDuringRead, "the file holds another instance now"));
    }
    let uri = format!("{study}/series/{}/instances/{uid}/bulkdata", file.series_uid);
    let bulk_data = Some(BulkData { uri: &uri, inline_limit: INLINE_LIMIT });
    let options = Options { bulk_data, with_transfer_syntax: true, ..Options::default() };
    json::stream(&file.source, &options, buffer, sink)
}

fn takes_gzip(request: &Request<'_>) -> bool {
    request.header_lines("accept-encoding").flat_map(|line| line.split(',')).any(|each| {
        let mut parts = each.split(';');
        parts.next().is_some_and(|name| name.trim().eq_ignore_ascii_case("gzip"))
            && !parts.any(|part| matches!(part.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// A response of JSON that is there, compressed where the client takes that.
fn json_response(request: &Request<'_>, json: Vec<u8>) -> Response {
    let etag = format!("\"{:032x}\"", xxhash_rust::xxh3::xxh3_128(&json));
    if conditional::has_it(request, &etag) {
        return Response::empty(304).with("ETag", etag);
    }
    let response = if takes_gzip(request) {
        let mut zipped = GzEncoder::new(Vec::with_capacity(json.len() / 4), Compression::fast());
        match zipped.write_all(&json).and_then(|()| zipped.finish()) {
            Ok(zipped) => Response::of(200, DICOM_JSON, zipped).with("Content-Encoding", "gzip"),
            Err(_) => Response::of(200, DICOM_JSON, json),
        }
    } else {
        Response::of(200, DICOM_JSON, json)
    };
    response.with("ETag", etag).with("Cache-Control", "no-cache").with("Vary", "Accept, Accept-Encoding")
}

/// A body that is written on one thread and sent by another.
struct Blocks {
    sender: Sender<Block>,
    zip: Option<GzEncoder<Vec<u8>>>,
    plain: Vec<u8>,
}

impl Blocks {
    fn new(sender: Sender<Block>, is_zipped: bool) -> Self {
        let zip = is_zipped.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        Self { sender, zip, plain: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.plain.extend(bytes);
        if self.plain.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let block = match &mut self.zip {
            Some(zip) => {
                zip.write_all(&self.plain)?;
                self.plain.clear();
                std::mem::take(zip.get_mut())
            }
            None => std::mem::take(&mut self.plain),
        };
        self.send(block)
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        match self.zip.take() {
            Some(zip) => self.send(zip.finish()?),
            None => Ok(()),
        }
    }

    fn send(&self, block: Vec<u8>) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::IoError, "the client is gone");
        self.sender.blocking_send(Ok(Bytes::from(block))).map_err(gone)
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Lets the client see that the body is not whole.
    fn fail(&self, error: Error) {
        let _ = self.sender.blocking_send(Err(error));
    }
}

//! Headers as DICOM JSON (PS3.18 10.4.1.1.2).

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_128;

use super::{Found, conditional, refusal_of};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::Source;
use crate::base::window::Buffer;
use crate::dicom::PARSER_VERSION;
use crate::dicom::json::{self, BulkData, Options};
use crate::gateway::access::Scope;
use crate::gateway::files::{Member, Opened, Roots, is_out_of_reach};
use crate::gateway::http::budget::WAIT;
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Block, Body, Response};
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, busy};
use crate::gateway::wado::accept::{DICOM_JSON, media_ranges, takes_json};

/// Bytes of a block before it is compressed.
const BLOCK: usize = 64 << 10;
/// Time in which a client must take a block: the thread that makes the next one waits for it.
const STALL_TIME: Duration = Duration::from_secs(30);
/// Longest value that stands in the JSON; longer ones get a URI.
const INLINE_LIMIT: u32 = 1024;

impl Worker {
    /// Answers a request for the headers of an instance, a series or a study.
    pub async fn metadata(&self, request: &Request<'_>, scope: &Scope<'_>, level: Level<'_>) -> Response {
        if !takes_json(&media_ranges(request)) {
            return Response::refusal(406, "not_acceptable", "headers are sent as application/dicom+json");
        }
        let study = format!("{}/studies/{}", scope.root, level.study);
        if !level.instance.is_empty() {
            let found = match self.find(scope, level).await {
                Ok(found) => found,
                Err(refusal) => return refusal,
            };
            let header = async |of: &Found| self.header(request, of, &study).await;
            return match header(&found).await {
                Ok(response) => response,
                Err(error) => {
                    self.forget(&found.path);
                    self.by_another_copy((scope, level), &found, &error, header).await
                }
            };
        }
        let files = match self.files_of(scope, level).await {
            Ok(files) => files,
            Err(refusal) => return refusal,
        };
        let roots = self.shared.roots.clone();
        let write = move |out: &mut Blocks| write_all(&roots, &files, &study, out);
        match self.stream_json(takes_gzip(request), write).await {
            Ok(response) => response,
            Err(error) => error.map_or_else(busy, |error| refusal_of(&error)),
        }
    }

    /// The header of one instance.
    async fn header(&self, request: &Request<'_>, found: &Found, study: &str) -> Result<Response> {
        let (file, study, is_zipped) = (found.file.clone(), study.to_owned(), takes_gzip(request));
        let etag = etag(&file, &study, is_zipped);
        if let Some(refusal) = conditional::mismatch(request, &etag) {
            return Ok(refusal);
        }
        if conditional::has_it(request, &etag) && file.source.check_unchanged().is_ok() {
            return Ok(described(Response::empty(304)).with("ETag", etag));
        }
        let write = move |out: &mut Blocks| {
            out.write(b"[")?;
            write_header(&file, &study, &mut Buffer::default(), &mut |bytes| out.write(bytes))?;
            out.write(b"]")
        };
        match self.stream_json(is_zipped, write).await {
            Ok(response) => Ok(response.with("ETag", etag)),
            Err(error) => error.map_or_else(|| Ok(busy()), Err),
        }
    }

    /// Runs a writer on another thread. A short text is sent whole; of a long one the blocks go out while the
    /// next are made. What is wrong before the first block is a status.
    ///
    /// # Errors
    /// Those of the writer; `None` where too many long texts are under way.
    async fn stream_json(
        &self,
        is_zipped: bool,
        write: impl FnOnce(&mut Blocks) -> Result<()> + Send + 'static,
    ) -> std::result::Result<Response, Option<Error>> {
        let permit = timeout(WAIT, self.streams.clone().acquire_owned()).await;
        let permit = permit.ok().and_then(std::result::Result::ok).ok_or(None)?;
        let (begun, first) = oneshot::channel();
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut out = Blocks::new(handle, begun, is_zipped);
            let written = write(&mut out);
            out.end(written);
            drop(permit);
        });
        let begun = first.await.map_err(|_| Error::new(ErrorKind::IoError, "the gateway is stopping"))??;
        let response = match begun {
            Begun::Whole(text) => Response::of(200, DICOM_JSON, text),
            Begun::Long(blocks) => Response::made_of(Body::Blocks(blocks), DICOM_JSON, None),
        };
        let response = if is_zipped { response.with("Content-Encoding", "gzip") } else { response };
        Ok(described(response))
    }
}

/// Adds what a cache must know of headers; status 304 has the lines of status 200 (RFC 9110 15.4.5).
fn described(response: Response) -> Response {
    response.with("Cache-Control", "no-cache").with("Vary", "Accept, Accept-Encoding")
}

/// Another one whenever the text of a header may be another.
fn etag(file: &Opened, study: &str, is_zipped: bool) -> String {
    let mut text = conditional::state(file);
    text.extend(PARSER_VERSION.to_le_bytes());
    text.push(is_zipped.into());
    text.extend(study.as_bytes());
    text.extend(env!("CARGO_PKG_VERSION").as_bytes());
    format!("\"{:032x}\"", xxh3_128(&text))
}

/// Writes the headers of all instances as one JSON array. What is gone, damaged or another instance now is left out: the
/// other instances of the series are good. One of which a file could not be looked at, and no copy is good, ends the text.
fn write_all(roots: &Arc<Roots>, files: &[Member], study: &str, out: &mut Blocks) -> Result<()> {
    let mut buffer = Buffer::default();
    let (mut separator, mut failure): (&[u8], _) = (b"[", None);
    for member in files {
        let mut begun = false;
        let mut broken = None;
        let written = member.read(roots, |file| {
            let written = write_header(&file, study, &mut buffer, &mut |bytes| {
                if !begun {
                    out.write(separator)?;
                    begun = true;
                }
                out.write(bytes)
            });
            // A text that has begun cannot go on with another copy.
            if begun {
                broken = written.err();
                return Ok(());
            }
            written
        });
        match written.and(broken.map_or(Ok(()), Err)) {
            Ok(()) => separator = b",\n",
            Err(error) if begun || out.is_closed() || is_out_of_reach(&error) => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if separator == b"[" => Err(error),
        _ => out.write(b"]"),
    }
}

/// Passes the header of a file to `sink`. `study` is where the study is.
fn write_header(
    file: &Opened,
    study: &str,
    buffer: &mut Buffer,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let uri = format!("{study}/series/{}/instances/{}/bulkdata", file.series_uid, file.instance_uid);
    let bulk_data = Some(BulkData { uri: &uri, inline_limit: INLINE_LIMIT });
    let options = Options { bulk_data, with_transfer_syntax: true, ..Options::default() };
    file.source.read(|source| json::stream(source, &options, buffer, sink))
}

fn takes_gzip(request: &Request<'_>) -> bool {
    request.header_lines("accept-encoding").flat_map(|line| line.split(',')).any(|each| {
        let mut parts = each.split(';');
        parts.next().is_some_and(|name| name.trim().eq_ignore_ascii_case("gzip"))
            && !parts.any(|part| matches!(part.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// How a text begins.
enum Begun {
    /// With all of it.
    Whole(Bytes),
    /// With the first of several blocks.
    Long(Receiver<Block>),
}

/// A text that is written on one thread and sent by another.
struct Blocks {
    handle: Handle,
    begun: Option<oneshot::Sender<Result<Begun>>>,
    sender: Option<Sender<Block>>,
    zip: Option<GzEncoder<Vec<u8>>>,
    plain: Vec<u8>,
}

impl Blocks {
    fn new(handle: Handle, begun: oneshot::Sender<Result<Begun>>, is_zipped: bool) -> Self {
        let zip = is_zipped.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        Self { handle, begun: Some(begun), sender: None, zip, plain: Vec::new() }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK));
            self.plain.extend_from_slice(now);
            bytes = later;
            if self.plain.len() >= BLOCK {
                let block = self.take()?;
                if self.zip.is_none() || block.len() >= BLOCK / 4 {
                    self.send(block)?;
                } else if let Some(zip) = &mut self.zip {
                    *zip.get_mut() = block; // more is compressed before it is worth a block
                }
            }
        }
        Ok(())
    }

    /// What was made since the last block.
    fn take(&mut self) -> Result<Vec<u8>> {
        let Some(zip) = &mut self.zip else { return Ok(std::mem::take(&mut self.plain)) };
        zip.write_all(&self.plain)?;
        self.plain.clear();
        Ok(std::mem::take(zip.get_mut()))
    }

    fn send(&mut self, block: Vec<u8>) -> Result<()> {
        if let Some(begun) = self.begun.take() {
            let (sender, blocks) = tokio::sync::mpsc::channel(1);
            let _ = begun.send(Ok(Begun::Long(blocks)));
            self.sender = Some(sender);
        }
        let gone = || Error::new(ErrorKind::IoError, "the client is gone, or takes nothing");
        let sender = self.sender.as_ref().ok_or_else(gone)?;
        let sent = self.handle.block_on(async { timeout(STALL_TIME, sender.send(Ok(block.into()))).await });
        sent.ok().and_then(std::result::Result::ok).ok_or_else(gone)
    }

    fn is_closed(&self) -> bool {
        self.sender.as_ref().is_some_and(Sender::is_closed)
    }

    /// Sends what is left, or lets the client see that the text is not whole.
    fn end(mut self, written: Result<()>) {
        let rest = written.and_then(|()| {
            let mut rest = self.take()?;
            if let Some(zip) = self.zip.take() {
                // What `take` left out of the encoder stands before its end.
                rest.extend(zip.finish()?);
            }
            Ok(rest)
        });
        match (rest, self.begun.take()) {
            (Ok(rest), Some(begun)) => drop(begun.send(Ok(Begun::Whole(rest.into())))),
            (Err(error), Some(begun)) => drop(begun.send(Err(error))),
            (Ok(rest), None) => drop(self.send(rest)),
            (Err(error), None) => {
                if let Some(sender) = self.sender {
                    let failed = async { timeout(STALL_TIME, sender.send(Err(error))).await };
                    drop(self.handle.block_on(failed));
                }
            }
        }
    }
}

//! `.../frames/{list}`: frames as they are stored, single or in parts (PS3.18 10.4.1.1.6).

use std::fmt::Write as _;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::{ATTEMPTS, Found, conditional, is_exact, is_worth_a_retry, refusal_of};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Resident, Source};
use crate::dicom::read::headers_fit;
use crate::frames::memory::cache::read_frames;
use crate::frames::memory::cached::Selected;
use crate::frames::table::{FrameTable, Kind, Verify};
use crate::gateway::accept::{FrameForm, frame_form, media_ranges, served_syntax};
use crate::gateway::files::{Opened, blocking};
use crate::gateway::http::parts::{FileParts, Step};
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Body, Response};
use crate::gateway::routes::{Level, frame_list};
use crate::gateway::service::{Worker, not_found};

/// Longest answer: a client asks for fewer frames at once.
const LONGEST_ANSWER: u64 = 256 << 20;
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

impl Worker {
    /// Answers a request for frames.
    pub async fn frames(
        &self,
        request: &Request<'_>,
        source: &str,
        root: &str,
        level: Level<'_>,
        list: &str,
    ) -> Response {
        let frames = match frame_list(list) {
            Ok(frames) => frames,
            Err((status, detail)) => return Response::refusal(status, "bad_frame_list", &detail),
        };
        let mut verify = None;
        for left in (0..ATTEMPTS).rev() {
            let found = match self.find(source, level).await {
                Ok(found) => found,
                Err(refusal) => return refusal,
            };
            match self.try_frames(request, source, root, level, &frames, &found, verify).await {
                Ok(response) => return response,
                Err(error) if left > 0 && is_worth_a_retry(&error) => {
                    // A wrong entry of the file's own table is found by a walk.
                    verify = (error.kind == ErrorKind::BadTable).then_some(Verify::All);
                    self.forget(&found.path);
                }
                Err(error) => return refusal_of(&error),
            }
        }
        refusal_of(&Error::new(ErrorKind::ChangedDuringRead, "the file changes while it is read"))
    }

    #[allow(clippy::too_many_arguments)] // the request and what was found for it
    async fn try_frames(
        &self,
        request: &Request<'_>,
        source: &str,
        root: &str,
        level: Level<'_>,
        frames: &[u32],
        found: &Found,
        verify: Option<Verify>,
    ) -> Result<Response> {
        let selection = match verify {
            None => self.select(source, found, frames).await?,
            Some(verify) => self.compute(source, found, frames, verify).await?,
        };
        let selected = match selection {
            Ok(selected) => selected,
            Err((position, table)) => {
                table.check_describes(&found.file.source)?;
                let frame = frames.get(position).map_or(0, |&frame| u64::from(frame) + 1);
                return Ok(not_found(&format!("the instance has no frame {frame}")));
            }
        };
        let table = &selected.table;
        table.check_describes(&found.file.source)?;
        if table.kind == Kind::Video {
            let detail = "a video is one stream without frames: retrieve the instance or its bulk data";
            return Ok(Response::refusal(406, "video", detail));
        }
        let stored = table.transfer_syntax_uid;
        let form = match frame_form(&media_ranges(request), &stored, frames.len()) {
            Ok(form) => form,
            Err(detail) => return Ok(Response::refusal(406, "not_acceptable", &detail)),
        };
        let digest = digest(&found.file, table, frames, &form);
        let etag = format!("\"{digest:032x}\"");
        if conditional::has_it(request, &etag) {
            return Ok(Response::empty(304)
                .with("ETag", etag)
                .with("Cache-Control", CACHE)
                .with("Vary", "Accept"));
        }
        for position in 0..frames.len() {
            table.check_readable(position)?;
        }
        let bytes = table.fragments_length();
        if bytes > LONGEST_ANSWER {
            let detail = format!("{} MiB in one answer: at most 256, ask for fewer frames", bytes >> 20);
            return Ok(Response::refusal(413, "answer_too_large", &detail));
        }
        let multipart =
            Multipart { boundary: format!("{digest:032x}"), root, level, syntax: served_syntax(&stored) };
        let payloads = payloads(&found.file, selected, frames).await?;
        let mut steps = Vec::with_capacity(payloads.len() * 3);
        for (payload, &frame) in payloads.into_iter().zip(frames) {
            if form.is_multipart {
                steps.push(Step::Bytes(multipart.head(form.media_type, frame)));
            }
            steps.extend(payload);
            if form.is_multipart {
                steps.push(Step::Bytes(b"\r\n".to_vec()));
            }
        }
        if form.is_multipart {
            steps.push(Step::Bytes(format!("--{}--\r\n", multipart.boundary).into_bytes()));
        }
        let parts = FileParts::new(found.file.clone(), steps);
        let length = parts.length();
        let content_type = if form.is_multipart {
            format!("multipart/related; type=\"{}\"; boundary={}", form.media_type, multipart.boundary)
        } else {
            format!("{};transfer-syntax={}", form.media_type, multipart.syntax)
        };
        let headers = vec![("Content-Type", content_type), ("ETag", etag.clone())];
        let response =
            Response { status: 200, headers, body: Body::Parts(Box::new(parts)), length: Some(length) }
                .with("Cache-Control", CACHE)
                .with("Vary", "Accept");
        let wanted = conditional::range(request, length, &etag);
        Ok(conditional::cut(response, &wanted))
    }
}

const CACHE: &str = "private, max-age=3600";

/// A number that is another whenever the representation is.
fn digest(file: &Opened, table: &FrameTable, frames: &[u32], form: &FrameForm) -> u128 {
    let fingerprint = file.source.fingerprint();
    let mut text = Vec::with_capacity(96 + frames.len() * 4);
    text.extend(file.instance.to_le_bytes());
    text.extend(fingerprint.size.to_le_bytes());
    text.extend(fingerprint.mtime_ns.unwrap_or(0).to_le_bytes());
    text.extend(fingerprint.ctime_ns.unwrap_or(0).to_le_bytes());
    text.extend(table.fragments_length().to_le_bytes());
    text.push(form.is_multipart.into());
    text.extend(form.media_type.as_bytes());
    frames.iter().for_each(|frame| text.extend(frame.to_le_bytes()));
    xxh3_128(&text)
}

/// The frame of a multipart answer around each payload.
struct Multipart<'a> {
    boundary: String,
    root: &'a str,
    level: Level<'a>,
    syntax: &'a str,
}

impl Multipart<'_> {
    fn head(&self, media_type: &str, frame: u32) -> Vec<u8> {
        let Self { boundary, root, level, syntax } = self;
        let Level { study, series, instance } = level;
        let mut head = String::with_capacity(384);
        let _ = write!(
            head,
            "--{boundary}\r\nContent-Type: {media_type};transfer-syntax={syntax}\r\nContent-Location: \
             {root}/studies/{study}/series/{series}/instances/{instance}/frames/{}\r\n\r\n",
            u64::from(frame) + 1
        );
        head.into_bytes()
    }
}

/// Compares the header before each payload with the table: the payloads are sent as they are.
async fn check_headers(file: &Arc<Opened>, table: &FrameTable) -> Result<()> {
    let resident = Resident::new(&file.source);
    let fit = match headers_fit(&resident, table) {
        Err(_) if resident.lacks_bytes() => {
            let (file, table) = (file.clone(), table.clone());
            blocking(move || headers_fit(&file.source, &table)).await?
        }
        fit => fit?,
    };
    let wrong = || Error::new(ErrorKind::BadTable, "the table describes other bytes than the file holds");
    if fit { Ok(()) } else { Err(wrong()) }
}

/// The steps that send each frame of a selection.
async fn payloads(file: &Arc<Opened>, selected: Selected, frames: &[u32]) -> Result<Vec<Vec<Step>>> {
    let table = &selected.table;
    let width = usize::from(table.image.bits_allocated / 8);
    let is_swapped = table.transfer_syntax_uid.as_str() == BIG_ENDIAN && width > 1;
    let is_whole = selected.native.is_none_or(|native| native.frame_bits.is_multiple_of(8));
    if is_exact(table) && is_whole && !is_swapped {
        check_headers(file, table).await?;
        let steps = |position| {
            let ranges = table.ranges(position).map(|(start, end)| Step::Range(start, end - start));
            ranges.chain([Step::Check]).collect()
        };
        return Ok((0..table.frames()).map(steps).collect());
    }
    let (file, frames) = (file.clone(), frames.to_vec());
    let read = blocking(move || {
        let mut read = read_frames(&file.source, &selected.table)?;
        selected.align(&frames, &mut read);
        let mut read: Vec<Vec<u8>> = read.into_iter().map(Vec::from).collect();
        if is_swapped {
            read.iter_mut().for_each(|bytes| bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse));
        }
        Ok(read)
    });
    Ok(read.await?.into_iter().map(|bytes| vec![Step::Bytes(bytes)]).collect())
}

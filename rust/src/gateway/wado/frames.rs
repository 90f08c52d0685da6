//! `.../frames/{list}`: frames as they are stored, single or in parts (PS3.18 10.4.1.1.6).

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::conditional::{self, described};
use super::convert::convert;
use super::{ATTEMPTS, Found, is_exact, is_worth_a_retry, refusal_of};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{Resident, Source};
use crate::dicom::read::headers_fit;
use crate::frames::memory::cache::{append_resident, read_resident_frames};
use crate::frames::memory::cached::Selected;
use crate::frames::table::{FrameTable, Kind, Verify};
use crate::gateway::access::Scope;
use crate::gateway::files::{Opened, blocking};
use crate::gateway::http::budget::{reusable, spare};
use crate::gateway::http::parts::{FileParts, Step};
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Body, Response};
use crate::gateway::routes::{Level, MOST_FRAMES, frame_list};
use crate::gateway::service::{Worker, busy, not_found};
use crate::gateway::telemetry::metrics::Tier;
use crate::gateway::wado::accept::{Form, frame_form, media_ranges, served_syntax};

/// Longest answer: a client asks for fewer frames at once.
const LONGEST_ANSWER: u64 = 256 << 20;
/// Frames up to this many bytes are read with the headers before them, and sent with one call.
const MOST_AT_ONCE: u64 = 32 << 10;
/// Bytes before a payload in a multipart answer, about.
const PART_HEAD: usize = 416;
const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

impl Worker {
    /// Answers a request for frames.
    pub async fn frames(
        &self,
        request: &Request<'_>,
        scope: &Scope<'_>,
        level: Level<'_>,
        list: &str,
    ) -> Response {
        let frames = match frame_list(list) {
            Ok(frames) => frames,
            Err((status, detail)) => return Response::refusal(status, "bad_frame_list", &detail),
        };
        self.listed_frames(request, scope, level, &frames).await
    }

    /// Answers with frames, counted from 0, each named once.
    pub async fn listed_frames(
        &self,
        request: &Request<'_>,
        scope: &Scope<'_>,
        level: Level<'_>,
        frames: &[u32],
    ) -> Response {
        let asked = Asked { request, scope, level, frames };
        let mut verify = None;
        for left in (0..ATTEMPTS).rev() {
            let found = match self.find(scope, level).await {
                Ok(found) => found,
                Err(refusal) => return refusal,
            };
            match self.try_frames(asked, &found, verify).await {
                Ok(response) => return response,
                Err(error) if left > 0 && is_worth_a_retry(&error) => {
                    // A wrong entry of the file's own table is found by a walk.
                    verify = (error.kind == ErrorKind::BadTable).then_some(Verify::All);
                    self.forget(&found.path);
                }
                Err(error) => {
                    let answer = async |other: &Found| self.try_frames(asked, other, None).await;
                    return Box::pin(self.by_another_copy((scope, level), &found, &error, answer)).await;
                }
            }
        }
        refusal_of(&Error::new(ErrorKind::ChangedDuringRead, "the file changes while it is read"))
    }

    async fn try_frames(&self, asked: Asked<'_>, found: &Found, verify: Option<Verify>) -> Result<Response> {
        let Asked { request, scope, level, frames } = asked;
        let (selection, tier) = match verify {
            None => self.select(scope, found, frames).await?,
            Some(verify) => (Box::pin(self.compute(scope.source, found, frames, verify)).await?, Tier::File),
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
        table.check_state(&found.file.source)?;
        if table.kind == Kind::Video {
            let detail = "a video is one stream without frames: retrieve the instance or its bulk data";
            return Ok(Response::refusal(406, "video", detail));
        }
        let stored = table.transfer_syntax_uid;
        let form = match frame_form(&media_ranges(request), &stored, frames.len()) {
            Ok(form) => form,
            Err(detail) => return Ok(Response::refusal(406, "not_acceptable", &detail)),
        };
        let boundary = format!("{:032x}", digest(&found.file, table, frames, &form));
        let etag = ["\"", &boundary, "\""].concat();
        if let Some(refusal) = conditional::mismatch(request, &etag) {
            return Ok(refusal);
        }
        if conditional::has_it(request, &etag) {
            found.file.source.check_unchanged()?;
            return Ok(described(Response::empty(304), etag));
        }
        for position in 0..frames.len() {
            table.check_readable(position)?;
        }
        let bytes = table.fragments_length();
        if bytes > LONGEST_ANSWER {
            return Ok(too_large(bytes, LONGEST_ANSWER));
        }
        let content_type = if form.is_multipart {
            ["multipart/related; type=\"", form.media_type, "\"; boundary=", &boundary].concat()
        } else {
            [form.media_type, ";transfer-syntax=", served_syntax(&stored)].concat()
        };
        let multipart = form.is_multipart.then(|| Multipart {
            boundary,
            root: &scope.root,
            level,
            media_type: form.media_type,
            syntax: served_syntax(&stored),
        });
        let body = match self.body(found, selected, frames, multipart).await? {
            Ok(body) => body,
            Err(refusal) => return Ok(refusal),
        };
        let length = match &body {
            Body::Parts(parts) => parts.length(),
            Body::Full(bytes) => bytes.len() as u64,
            _ => 0,
        };
        let wanted = conditional::range(request, length, &etag);
        let mut response = described(Response::made_of(body, content_type, Some(length)), etag);
        response.tier = Some(tier);
        Ok(conditional::cut(response, &wanted))
    }

    /// The body of an answer: small frames at once, large ones while they are sent.
    async fn body(
        &self,
        found: &Found,
        selected: Selected,
        frames: &[u32],
        multipart: Option<Multipart<'_>>,
    ) -> Result<std::result::Result<Body, Response>> {
        let (file, table) = (&found.file, &selected.table);
        let is_big_endian = table.transfer_syntax_uid.as_str() == BIG_ENDIAN;
        let is_whole = selected.native.is_none_or(|native| native.frame_bits.is_multiple_of(8));
        let bytes = table.fragments_length();
        let is_file = file.source.file().is_some();
        if !(is_exact(table) && is_whole && !is_big_endian && is_file) {
            return Box::pin(self.converted(file, selected, frames, multipart, is_big_endian)).await;
        }
        // Heads of parts are bytes too: very many frames may hold next to none.
        if bytes <= MOST_AT_ONCE
            && frames.len() <= MOST_FRAMES
            && let Some(whole) = read_at_once(file, table, frames, multipart.as_ref())?
        {
            return Ok(Ok(Body::Full(reusable(whole))));
        }
        file.source.check_unchanged()?;
        // Heads of parts, where a value has more frames than a list may name.
        let mut share = None;
        if frames.len() > MOST_FRAMES {
            let heads = (frames.len() * PART_HEAD) as u64;
            let Ok((kept, _)) = self.shared.budget.answer(heads).await else { return Ok(Err(busy())) };
            share = Some(kept);
        }
        Box::pin(check_headers(file, table)).await?;
        let payloads = (0..table.frames()).map(|position| {
            let ranges = table.ranges(position).map(|(start, end)| Step::Range(start, end - start));
            ranges.chain([Step::Check])
        });
        let parts = FileParts::new(file.clone(), join(payloads, frames, multipart)).holding(share);
        Ok(Ok(Body::Parts(Box::new(parts))))
    }

    /// The same of frames that are not sent as the file holds them: made in memory, within the budget.
    async fn converted(
        &self,
        file: &Arc<Opened>,
        selected: Selected,
        frames: &[u32],
        multipart: Option<Multipart<'_>>,
        is_big_endian: bool,
    ) -> Result<std::result::Result<Body, Response>> {
        let (bytes, most) = (selected.table.fragments_length(), self.shared.budget.longest_answer());
        if bytes > most {
            return Ok(Err(too_large(bytes, most)));
        }
        let Ok((kept, working)) = self.shared.budget.answer(bytes).await else { return Ok(Err(busy())) };
        let payloads = convert(file, selected, frames, is_big_endian).await?;
        drop(working);
        let payloads = payloads.into_iter().map(|bytes| [Step::Bytes(bytes)]);
        let parts = FileParts::new(file.clone(), join(payloads, frames, multipart)).holding(Some(kept));
        Ok(Ok(Body::Parts(Box::new(parts))))
    }
}

/// A request for frames, counted from 0.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a Request<'a>,
    scope: &'a Scope<'a>,
    level: Level<'a>,
    frames: &'a [u32],
}

fn too_large(bytes: u64, most: u64) -> Response {
    let detail = format!("{} MiB in one answer: at most {}, ask for fewer frames", bytes >> 20, most >> 20);
    Response::refusal(413, "answer_too_large", &detail)
}

/// The steps that send each payload, in a part of its own where parts are wanted.
fn join(
    payloads: impl Iterator<Item = impl IntoIterator<Item = Step>>,
    frames: &[u32],
    multipart: Option<Multipart<'_>>,
) -> Vec<Step> {
    let mut steps = Vec::with_capacity(frames.len() * 4 + 1);
    for (payload, &frame) in payloads.zip(frames) {
        if let Some(multipart) = &multipart {
            let mut head = Vec::with_capacity(PART_HEAD);
            multipart.push_head(frame, &mut head);
            steps.push(Step::Bytes(head));
        }
        steps.extend(payload);
        if multipart.is_some() {
            steps.push(Step::Bytes(b"\r\n".to_vec()));
        }
    }
    if let Some(multipart) = multipart {
        let mut end = Vec::new();
        multipart.push_end(&mut end);
        steps.push(Step::Bytes(end));
    }
    steps
}

/// The same with the payloads, in one piece; `None` where the page cache lacks one of them. A single one is read to
/// its place in the answer.
fn read_at_once(
    file: &Opened,
    table: &FrameTable,
    frames: &[u32],
    multipart: Option<&Multipart<'_>>,
) -> Result<Option<Vec<u8>>> {
    let bytes = table.fragments_length() as usize;
    let room = bytes + if multipart.is_some() { frames.len() * PART_HEAD + 64 } else { 0 };
    let mut out = spare(room);
    let mut ranges = table.ranges(0);
    if let (&[frame], Some(range), None, Some(source)) =
        (frames, ranges.next(), ranges.next(), file.source.file())
    {
        if let Some(multipart) = multipart {
            multipart.push_head(frame, &mut out);
        }
        if !append_resident(source, table, range, &mut out)? {
            return Ok(None);
        }
        if multipart.is_some() {
            out.extend_from_slice(b"\r\n");
        }
    } else {
        let Some(read) = read_resident_frames(&file.source, table)? else { return Ok(None) };
        for (payload, &frame) in read.iter().zip(frames) {
            if let Some(multipart) = multipart {
                multipart.push_head(frame, &mut out);
            }
            out.extend_from_slice(payload);
            if multipart.is_some() {
                out.extend_from_slice(b"\r\n");
            }
        }
    }
    if let Some(multipart) = multipart {
        multipart.push_end(&mut out);
    }
    Ok(Some(out))
}

/// A number that is another whenever the representation is.
fn digest(file: &Opened, table: &FrameTable, frames: &[u32], form: &Form) -> u128 {
    let mut text = conditional::state(file);
    text.extend(table.fragments_length().to_le_bytes());
    text.push(form.is_multipart.into());
    text.extend(form.media_type.as_bytes());
    frames.iter().for_each(|frame| text.extend(frame.to_le_bytes()));
    xxh3_128(&text)
}

/// What stands around each payload of a multipart answer.
struct Multipart<'a> {
    boundary: String,
    root: &'a str,
    level: Level<'a>,
    media_type: &'a str,
    syntax: &'a str,
}

impl Multipart<'_> {
    fn push_head(&self, frame: u32, out: &mut Vec<u8>) {
        let Self { boundary, root, level, media_type, syntax } = self;
        let number = (u64::from(frame) + 1).to_string();
        for part in [
            "--",
            boundary,
            "\r\nContent-Type: ",
            media_type,
            ";transfer-syntax=",
            syntax,
            "\r\nContent-Location: ",
            root,
            "/studies/",
            level.study,
            "/series/",
            level.series,
            "/instances/",
            level.instance,
            "/frames/",
            &number,
            "\r\n\r\n",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    fn push_end(&self, out: &mut Vec<u8>) {
        for part in ["--", &self.boundary, "--\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Compares the header before each payload with the table: the payloads are sent as they are.
async fn check_headers(file: &Arc<Opened>, table: &FrameTable) -> Result<()> {
    let resident = Resident::new(&file.source);
    let is_quick = table.frames() <= MOST_FRAMES;
    let at_once = is_quick.then(|| headers_fit(&resident, table));
    let fit = match at_once.filter(|fit| fit.is_ok() || !resident.lacks_bytes()) {
        Some(fit) => fit?,
        None => {
            let (file, table) = (file.clone(), table.clone());
            blocking(move || headers_fit(&file.source, &table)).await?
        }
    };
    let wrong = || Error::new(ErrorKind::BadTable, "the table describes other bytes than the file holds");
    if fit { Ok(()) } else { Err(wrong()) }
}

//! Whole instances, and the values of single elements (PS3.18 10.4.1.1.1 to 10.4.1.1.5).

use xxhash_rust::xxh3::xxh3_128;

use super::{Found, conditional, refusal_of};
use crate::base::source::Source;
use crate::gateway::accept::{media_ranges, takes};
use crate::gateway::http::parts::{FileParts, Step};
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Block, Body, Response};
use crate::gateway::jobs::{Answer, Question};
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, not_found, unavailable};

/// Blocks of a study that wait for the client.
const BLOCKS: usize = 4;

impl Worker {
    /// Answers a request for an instance, or for all of a series or study.
    pub async fn instances(&self, request: &Request<'_>, source: &str, level: Level<'_>) -> Response {
        let ranges = media_ranges(request);
        if !takes(&ranges, &["application/dicom"]) {
            return Response::refusal(406, "not_acceptable", "instances are sent as application/dicom");
        }
        if level.instance.is_empty() {
            return self.many_instances(source, level).await;
        }
        let found = match self.find(source, level).await {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let stored = found.file.transfer_syntax.as_str();
        let fits = ranges.iter().any(|range| {
            range.transfer_syntax.as_deref().is_none_or(|wanted| wanted == "*" || wanted == stored)
        });
        if !fits {
            let detail = format!("the instance is stored as {stored}: accept it, or transfer-syntax=*");
            return Response::refusal(406, "not_acceptable", &detail);
        }
        if let Err(error) = found.file.source.check_unchanged() {
            self.forget(&found.path);
            return refusal_of(&error);
        }
        let wants_parts =
            ranges.iter().find(|range| takes(std::slice::from_ref(range), &["application/dicom"]));
        let is_single = wants_parts.is_some_and(|range| !range.is_multipart && range.media_type != "*/*");
        whole(request, &found, is_single)
    }

    /// Streams every instance of a series or study as parts.
    async fn many_instances(&self, source: &str, level: Level<'_>) -> Response {
        let files = match self.files_of(source, level).await {
            Ok(files) => files,
            Err(refusal) => return refusal,
        };
        let boundary = format!("{:032x}", xxh3_128(format!("{}/{}", level.study, level.series).as_bytes()));
        let content_type = format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
        let (sender, receiver) = tokio::sync::mpsc::channel::<Block>(BLOCKS);
        let roots = self.shared.roots.clone();
        tokio::task::spawn_blocking(move || {
            for (_, path) in files {
                if !send_file(&roots, &path, &boundary, &sender) {
                    return;
                }
            }
            let _ = sender.blocking_send(Ok(format!("--{boundary}--\r\n").into()));
        });
        let headers = vec![("Content-Type", content_type), ("Cache-Control", "no-cache".to_owned())];
        Response { status: 200, headers, body: Body::Blocks(receiver), length: None }
    }

    /// SOP Instance UIDs and paths of a study or series, as the index says.
    pub(super) async fn files_of(
        &self,
        source: &str,
        level: Level<'_>,
    ) -> Result<Vec<(String, String)>, Response> {
        if !level.is_well_formed() {
            return Err(Response::refusal(
                400,
                "bad_uid",
                "a UID has at most 64 digits and points (PS3.5 9.1)",
            ));
        }
        let question = Question::Files {
            source: source.to_owned(),
            study: level.study.to_owned(),
            series: level.series.to_owned(),
        };
        match self.shared.jobs.ask(question, self.shared.settings.index_time * 10).await {
            Ok(Answer::Files(files)) if files.is_empty() => {
                Err(not_found("the source holds no such study or series"))
            }
            Ok(Answer::Files(files)) => Ok(files),
            Ok(_) => Err(unavailable("the index gave no answer of this kind")),
            Err(why) => Err(unavailable(&why)),
        }
    }
}

/// One instance, as a body of its own or as the only part of one.
fn whole(request: &Request<'_>, found: &Found, is_single: bool) -> Response {
    let fingerprint = found.file.source.fingerprint();
    let mut text = found.file.instance.to_le_bytes().to_vec();
    text.extend(fingerprint.size.to_le_bytes());
    text.extend(fingerprint.mtime_ns.unwrap_or(0).to_le_bytes());
    text.extend(fingerprint.ctime_ns.unwrap_or(0).to_le_bytes());
    text.push(is_single.into());
    let digest = xxh3_128(&text);
    let etag = format!("\"{digest:032x}\"");
    if conditional::has_it(request, &etag) {
        return Response::empty(304).with("ETag", etag);
    }
    let part_type = format!("application/dicom;transfer-syntax={}", found.file.transfer_syntax);
    let mut steps = vec![Step::Range(0, fingerprint.size), Step::Check];
    let content_type = if is_single {
        part_type
    } else {
        let boundary = format!("{digest:032x}");
        steps.insert(
            0,
            Step::Bytes(format!("--{boundary}\r\nContent-Type: {part_type}\r\n\r\n").into_bytes()),
        );
        steps.push(Step::Bytes(format!("\r\n--{boundary}--\r\n").into_bytes()));
        format!("multipart/related; type=\"application/dicom\"; boundary={boundary}")
    };
    let parts = FileParts::new(found.file.clone(), steps);
    let length = parts.length();
    let wanted = conditional::range(request, length, &etag);
    let headers = vec![("Content-Type", content_type), ("ETag", etag)];
    let response =
        Response { status: 200, headers, body: Body::Parts(Box::new(parts)), length: Some(length) }
            .with("Cache-Control", "private, max-age=3600")
            .with("Vary", "Accept");
    conditional::cut(response, &wanted)
}

/// Sends one file as a part; `false` when the client is gone or the file fails.
fn send_file(
    roots: &crate::gateway::files::Roots,
    path: &str,
    boundary: &str,
    sender: &tokio::sync::mpsc::Sender<Block>,
) -> bool {
    let file = match crate::gateway::files::open(roots, path) {
        Ok(file) => file,
        Err(error) => {
            let _ = sender.blocking_send(Err(error));
            return false;
        }
    };
    let syntax = &file.transfer_syntax;
    let head = format!("--{boundary}\r\nContent-Type: application/dicom;transfer-syntax={syntax}\r\n\r\n");
    if sender.blocking_send(Ok(head.into())).is_err() {
        return false;
    }
    let (mut offset, size) = (0, file.source.size());
    while offset < size {
        let length = (size - offset).min(1 << 20) as usize;
        let block = crate::base::source::read_exact(&file.source, offset, length)
            .and_then(|bytes| file.source.check_unchanged().map(|()| bytes.into()));
        let failed = block.is_err();
        if sender.blocking_send(block).is_err() || failed {
            return false;
        }
        offset += length as u64;
    }
    sender.blocking_send(Ok("\r\n".into())).is_ok()
}

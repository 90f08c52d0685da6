//! Whole instances, and the values of single elements (PS3.18 10.4.1.1.1 to 10.4.1.1.5).

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::conditional::Single;
use super::{Found, refusal_of};
use crate::gateway::access::Scope;
use crate::gateway::http::parts::whole_file;
use crate::gateway::http::request::Request;
use crate::gateway::http::response::{Body, Response};
use crate::gateway::http::sequence::FileSequence;
use crate::gateway::routes::Level;
use crate::gateway::service::Worker;
use crate::gateway::wado::accept::{DICOM, MediaRange, instance_form, media_ranges, takes_instances};

impl Worker {
    /// Answers a request for an instance, or for all of a series or study.
    pub async fn instances(&self, request: &Request<'_>, scope: &Scope<'_>, level: Level<'_>) -> Response {
        let ranges = media_ranges(request);
        if instance_form(&ranges, None).is_none() {
            return Response::refusal(406, "not_acceptable", "instances are sent as application/dicom");
        }
        if level.instance.is_empty() {
            return self.many_instances(&ranges, scope, level).await;
        }
        let found = match self.find_unchanged(scope, level).await {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let Some(form) = instance_form(&ranges, Some(&found.file.transfer_syntax)) else {
            return stored_otherwise(&found.file.transfer_syntax);
        };
        whole(request, &found, form.is_multipart)
    }

    /// Sends every instance of a series or study as a part.
    async fn many_instances(
        &self,
        ranges: &[MediaRange<'_>],
        scope: &Scope<'_>,
        level: Level<'_>,
    ) -> Response {
        if !takes_instances(ranges, None) {
            return Response::refusal(
                406,
                "not_acceptable",
                "several instances go into multipart/related alone",
            );
        }
        let files = match self.files_of(scope, level).await {
            Ok(files) => files,
            Err(refusal) => return refusal,
        };
        let refuses_one = ranges.iter().any(|range| range.weight == 0 && range.transfer_syntax.is_some());
        if refuses_one || !takes_instances(ranges, Some("")) {
            // Each is looked at before the first is sent. One that cannot be read breaks the answer off then.
            for member in &files {
                for path in &member.paths {
                    let Ok(file) = self.files.take(path).await else { continue };
                    // What lies there now may not be for who asks.
                    if member.check(path, &file).is_err() {
                        continue;
                    }
                    if !takes_instances(ranges, Some(&file.transfer_syntax)) {
                        return stored_otherwise(&file.transfer_syntax);
                    }
                    break;
                }
            }
        }
        let name = format!("{}/{}", level.study, level.series);
        let boundary = format!("{:032x}", xxh3_128_with_seed(name.as_bytes(), self.shared.secret));
        let content_type = format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
        let files = match FileSequence::begin(self.shared.roots.clone(), files, boundary).await {
            Ok(files) => files,
            Err(error) => return refusal_of(&error),
        };
        Response::made_of(Body::Files(Box::new(files)), content_type, None).with("Cache-Control", "no-cache")
    }
}

fn stored_otherwise(stored: &str) -> Response {
    let detail = format!("the instance is stored as {stored}: accept it, or transfer-syntax=*");
    Response::refusal(406, "not_acceptable", &detail)
}

/// One instance, as a body of its own or as the only part of one.
pub(super) fn whole(request: &Request<'_>, found: &Found, is_multipart: bool) -> Response {
    let file = &found.file;
    let single = Single {
        media_type: DICOM,
        content_type: format!("{DICOM};transfer-syntax={}", file.transfer_syntax),
        is_multipart,
        name: &file.begin.bytes,
        steps: whole_file(file),
        share: None,
    };
    single.answer(request, file)
}

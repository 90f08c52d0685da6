//! `.../bulkdata/{place}`: the value of one element (PS3.18 10.4.1.1.5), a video among them.

use super::Found;
use super::conditional::Single;
use crate::base::error::Result;
use crate::base::source::Source;
use crate::base::window::Buffer;
use crate::dicom::json::{Bulk, find_bulk};
use crate::frames::table::Kind;
use crate::gateway::access::Scope;
use crate::gateway::files::blocking;
use crate::gateway::http::budget::Share;
use crate::gateway::http::parts::Step;
use crate::gateway::http::request::Request;
use crate::gateway::http::response::Response;
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, busy, not_found};
use crate::gateway::wado::accept::{Form, OCTETS, media_ranges, media_type, value_form};

/// Longest value that is brought into another form than that of the file.
const MOST_BYTES: usize = 64 << 20;
/// Most frames of a value that is sent as frames.
const MOST_VALUE_FRAMES: usize = 1 << 16;

impl Worker {
    /// Answers a request for the value of an element.
    pub async fn bulk_data(
        &self,
        request: &Request<'_>,
        scope: &Scope<'_>,
        level: Level<'_>,
        place: &str,
    ) -> Response {
        let found = match self.find(scope, level).await {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let value = async |of: &Found| self.value(request, scope, level, (place, of)).await;
        match value(&found).await {
            Ok(response) => response,
            Err(error) => {
                self.forget(&found.path);
                self.by_another_copy((scope, level), &found, &error, value).await
            }
        }
    }

    async fn value(
        &self,
        request: &Request<'_>,
        scope: &Scope<'_>,
        level: Level<'_>,
        (place, found): (&str, &Found),
    ) -> Result<Response> {
        let (file, wanted) = (found.file.clone(), place.to_owned());
        let bulk = blocking(move || {
            let find = |source: &dyn Source| find_bulk(source, &wanted, MOST_BYTES, &mut Buffer::default());
            let bulk = file.source.read(find)?;
            file.source.check_unchanged()?;
            Ok(bulk)
        });
        let mut share = None;
        let (media_type, steps) = match bulk.await? {
            Some(Bulk::Range { start, length }) => (OCTETS, vec![Step::Range(start, length), Step::Check]),
            Some(Bulk::Bytes(bytes)) => {
                let Ok((kept, _)) = self.shared.budget.answer(bytes.len() as u64).await else {
                    return Ok(busy());
                };
                share = Some(kept);
                (OCTETS, vec![Step::Bytes(bytes)])
            }
            Some(Bulk::Frames) => match self.stream(scope, found).await? {
                Ok(video) => video,
                Err(frames) if frames > MOST_VALUE_FRAMES => {
                    let detail = format!("{frames} frames in one value: ask for frames");
                    return Ok(Response::refusal(413, "answer_too_large", &detail));
                }
                Err(frames) if frames > 0 => {
                    let frames: Vec<u32> = (0..frames as u32).collect();
                    return Ok(self.listed_frames(request, scope, level, &frames).await);
                }
                Err(_) => return Ok(not_found("the instance has no frames")),
            },
            None => return Ok(not_found("the instance has no bulk data at this place")),
        };
        Ok(answer(request, found, place, media_type, (steps, share)))
    }

    /// The one stream of a video; the number of frames where there are frames.
    async fn stream(
        &self,
        scope: &Scope<'_>,
        found: &Found,
    ) -> Result<std::result::Result<(&'static str, Vec<Step>), usize>> {
        let table = match self.select(scope, found, &[0]).await?.0 {
            Ok(selected) => selected.table,
            Err(_) => return Ok(Err(0)),
        };
        table.check_describes(&found.file.source)?;
        if table.kind != Kind::Video {
            return Ok(Err(table.image.number_of_frames as usize));
        }
        table.check_readable(0)?;
        let ranges = table.ranges(0).map(|(start, end)| Step::Range(start, end - start));
        Ok(Ok((media_type(&table.transfer_syntax_uid), ranges.chain([Step::Check]).collect())))
    }
}

fn answer(
    request: &Request<'_>,
    found: &Found,
    place: &str,
    natural: &'static str,
    (steps, share): (Vec<Step>, Option<Share>),
) -> Response {
    let Some(Form { is_multipart, media_type }) = value_form(&media_ranges(request), natural) else {
        let detail = format!("the value is sent as {natural}, or as {OCTETS}");
        return Response::refusal(406, "not_acceptable", &detail);
    };
    let content_type = media_type.to_owned();
    let single = Single { media_type, content_type, is_multipart, name: place.as_bytes(), steps, share };
    single.answer(request, &found.file)
}

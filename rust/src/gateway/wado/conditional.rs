//! Conditions and ranges of a request (RFC 9110 13, 14), and what is sent under them.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::base::source::Source;
use crate::gateway::files::Opened;
use crate::gateway::http::budget::Share;
use crate::gateway::http::parts::{FileParts, Step};
use crate::gateway::http::request::{Method, Request};
use crate::gateway::http::response::{Body, Response};

/// Bytes of one file, sent as a body of their own or as the only part of one.
pub struct Single<'a> {
    /// Media type.
    pub media_type: &'static str,
    /// The same with its parameters.
    pub content_type: String,
    /// Whether it is sent as a part.
    pub is_multipart: bool,
    /// What tells it from other bytes of the file in this form.
    pub name: &'a [u8],
    /// The bytes.
    pub steps: Vec<Step>,
    /// The part of the budget that bytes in memory take.
    pub share: Option<Share>,
}

impl Single<'_> {
    /// Answers with the bytes, or with what the conditions and the range of the request make of them.
    pub fn answer(mut self, request: &Request<'_>, file: &Arc<Opened>) -> Response {
        let digest = self.digest(file);
        let etag = format!("\"{digest:032x}\"");
        if let Some(refusal) = mismatch(request, &etag) {
            return refusal;
        }
        if has_it(request, &etag) {
            return described(Response::empty(304), etag);
        }
        let content_type =
            if self.is_multipart { self.wrap(&format!("{digest:032x}")) } else { self.content_type };
        let parts = FileParts::new(file.clone(), self.steps).holding(self.share);
        let length = parts.length();
        let wanted = range(request, length, &etag);
        let response = Response::made_of(Body::Parts(Box::new(parts)), content_type, Some(length));
        cut(described(response, etag), &wanted)
    }

    fn digest(&self, file: &Opened) -> u128 {
        let mut text = state(file);
        text.push(self.is_multipart.into());
        text.extend(self.content_type.as_bytes());
        text.push(0);
        text.extend(self.name);
        xxh3_128(&text)
    }

    /// Puts the head and the end of a part around the bytes; returns the media type of the whole.
    fn wrap(&mut self, boundary: &str) -> String {
        let head = format!("--{boundary}\r\nContent-Type: {}\r\n\r\n", self.content_type);
        self.steps.insert(0, Step::Bytes(head.into_bytes()));
        self.steps.push(Step::Bytes(format!("\r\n--{boundary}--\r\n").into_bytes()));
        format!("multipart/related; type=\"{}\"; boundary={boundary}", self.media_type)
    }
}

/// Adds what a cache must know of bytes of a file; status 304 has the lines of status 200 (RFC 9110 15.4.5).
pub fn described(response: Response, etag: String) -> Response {
    response.with("ETag", etag).with("Cache-Control", "private, max-age=3600").with("Vary", "Accept")
}

/// What an entity tag is made of: the instance, and the state of the file that holds it.
pub fn state(file: &Opened) -> Vec<u8> {
    let fingerprint = file.source.fingerprint();
    let mut text = Vec::with_capacity(128);
    text.extend(file.instance.to_le_bytes());
    text.extend(fingerprint.size.to_le_bytes());
    text.extend(fingerprint.mtime_ns.unwrap_or(0).to_le_bytes());
    text.extend(fingerprint.ctime_ns.unwrap_or(0).to_le_bytes());
    text.extend(fingerprint.etag.as_deref().unwrap_or_default().as_bytes());
    text
}

/// Whether If-None-Match names an entity tag: the client has this representation.
pub fn has_it(request: &Request<'_>, etag: &str) -> bool {
    request.header_lines("if-none-match").flat_map(|line| line.split(',')).any(|each| {
        let each = each.trim();
        each == "*" || each.strip_prefix("W/").unwrap_or(each) == etag
    })
}

/// The refusal of a request whose If-Match names other representations than this one (RFC 9110 13.1.1): it goes before
/// If-None-Match and Range.
pub fn mismatch(request: &Request<'_>, etag: &str) -> Option<Response> {
    let mut wanted = request
        .header_lines("if-match")
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|each| !each.is_empty())
        .peekable();
    if wanted.peek().is_none() || wanted.any(|each| each == "*" || each == etag) {
        return None;
    }
    let detail = "the representation is not the one that If-Match names";
    Some(Response::refusal(412, "precondition_failed", detail).with("ETag", etag.to_owned()))
}

/// What a Range header asks of a representation.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: there is no Range header, or one that is passed over.
    All,
    /// Bytes `start..end`.
    Part(u64, u64),
    /// Nothing that it has: status 416.
    Nothing,
}

/// Reads the Range header for a representation of `length` bytes. Several ranges, and other units, are passed
/// over, as RFC 9110 14.2 allows; so is a range under an If-Range that names another representation. Other methods
/// than GET have none.
pub fn range(request: &Request<'_>, length: u64, etag: &str) -> Wanted {
    let Some(line) = request.header("range").filter(|_| request.method == Method::Get) else {
        return Wanted::All;
    };
    if request.header("if-range").is_some_and(|tag| tag.trim() != etag) {
        return Wanted::All;
    }
    let Some(set) = line.trim().strip_prefix("bytes=") else { return Wanted::All };
    let Some((first, last)) = set.split_once('-').filter(|_| !set.contains(',')) else { return Wanted::All };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => Wanted::Nothing,
            Some(_) if length == 0 => Wanted::Nothing,
            Some(count) => Wanted::Part(length - count.min(length), length),
            None => Wanted::All,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(start), _) if start >= length => Wanted::Nothing,
            (Some(start), None) if last.is_empty() => Wanted::Part(start, length),
            (Some(start), Some(end)) if end >= start => {
                Wanted::Part(start, end.saturating_add(1).min(length))
            }
            _ => Wanted::All,
        },
    }
}

/// Cuts a response with status 200 to what the Range header asks for.
pub fn cut(response: Response, wanted: &Wanted) -> Response {
    let length = response.length.unwrap_or(0);
    match *wanted {
        Wanted::All => response.with("Accept-Ranges", "bytes"),
        Wanted::Nothing => {
            Response::refusal(416, "range_not_satisfiable", "the representation ends before this range")
                .with("Content-Range", format!("bytes */{length}"))
        }
        Wanted::Part(start, end) => {
            let mut response =
                response.with("Content-Range", format!("bytes {start}-{}/{length}", end.saturating_sub(1)));
            response.status = 206;
            response.length = Some(end - start);
            match &mut response.body {
                Body::Full(bytes) => *bytes = bytes.slice(start as usize..end as usize),
                Body::Parts(parts) => parts.cut(start, end - start),
                Body::Empty | Body::Files(_) | Body::Blocks(_) => {}
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use httparse::Header;

    #[test]
    fn ranges() {
        let of = |value: &str| {
            let headers = [Header { name: "Range", value: value.as_bytes() }];
            range(&Request::new("GET", "/", &headers), 100, "\"e\"")
        };
        let headers = [Header { name: "Range", value: b"bytes=0-9" }];
        assert_eq!(range(&Request::new("HEAD", "/", &headers), 100, "\"e\""), Wanted::All);
        assert_eq!(of("bytes=0-9"), Wanted::Part(0, 10));
        assert_eq!(of("bytes=90-"), Wanted::Part(90, 100));
        assert_eq!(of("bytes=90-1000"), Wanted::Part(90, 100));
        assert_eq!(of("bytes=-10"), Wanted::Part(90, 100));
        assert_eq!(of("bytes=-1000"), Wanted::Part(0, 100));
        assert_eq!(of("bytes=100-"), Wanted::Nothing);
        assert_eq!(of("bytes=-0"), Wanted::Nothing);
        for passed_over in ["bytes=9-0", "bytes=0-1,3-4", "rows=1-2", "bytes=", "bytes=a-b", "bytes=-"] {
            assert_eq!(of(passed_over), Wanted::All, "{passed_over}");
        }
    }
}

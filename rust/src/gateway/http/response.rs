//! A response: status, header lines, and a body that is made while it is sent.

use std::borrow::Cow;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::gateway::http::parts::FileParts;
use crate::gateway::http::sequence::FileSequence;
use crate::gateway::telemetry::metrics::Tier;

/// A name and its value.
pub type HeaderLine = (&'static str, Cow<'static, str>);

/// What is sent behind the header.
pub enum Body {
    /// Nothing, for a status that forbids a body too (204, 304).
    Empty,
    /// Bytes that are there.
    Full(Bytes),
    /// Parts of a file, read one after another while they are sent.
    Parts(Box<FileParts>),
    /// Files one after another, whose number of bytes nobody knows before: HTTP/1.1 sends them in chunks.
    Files(Box<FileSequence>),
    /// Blocks that another thread makes; in chunks too.
    Blocks(mpsc::Receiver<Block>),
}

/// A block of a body, or the reason for which it ends here: the connection is closed then, so that the client
/// sees a short body.
pub type Block = Result<Bytes, crate::Error>;

/// A response.
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Header lines, without those that frame the body.
    pub headers: Vec<HeaderLine>,
    /// The body.
    pub body: Body,
    /// Length of a representation that a HEAD request does not get; the length of `body` otherwise.
    pub length: Option<u64>,
    /// Where the frame table came from, for an answer that needed one.
    pub tier: Option<Tier>,
}

impl Response {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Empty, length: None, tier: None }
    }

    /// A response of bytes.
    pub fn of(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        let headers = vec![("Content-Type", content_type.to_owned().into())];
        Self { status, headers, body: Body::Full(body), length, tier: None }
    }

    /// A response with status 200 whose body is made while it is sent; `length` in bytes where it is known.
    pub fn made_of(body: Body, content_type: impl Into<Cow<'static, str>>, length: Option<u64>) -> Self {
        let mut headers = Vec::with_capacity(8);
        headers.push(("Content-Type", content_type.into()));
        Self { status: 200, headers, body, length, tier: None }
    }

    /// Whether the body's length is known when it ends, and not before.
    pub fn is_streamed(&self) -> bool {
        matches!(self.body, Body::Blocks(_) | Body::Files(_))
    }

    /// A refusal: a JSON object with its kind and a sentence. Names no path and no attribute of a patient.
    pub fn refusal(status: u16, kind: &str, detail: &str) -> Self {
        let mut text = String::from("{\"error\":{\"kind\":");
        push_json(&mut text, kind);
        text.push_str(",\"detail\":");
        push_json(&mut text, detail);
        text.push_str("}}\n");
        Self::of(status, "application/json", text).with("Cache-Control", "no-store")
    }

    /// Adds a header line.
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Drops the body, keeps what the header says of it: the answer to HEAD.
    pub fn without_body(mut self) -> Self {
        self.body = Body::Empty;
        self
    }
}

/// Appends a JSON string.
pub fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
}

/// The reason phrase of a status; empty for one that the gateway does not send.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

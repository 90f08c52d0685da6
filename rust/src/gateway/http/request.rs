//! A request, whichever version of HTTP brought it.

use std::borrow::Cow;

use httparse::Header;

/// A method that the gateway knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read without the body.
    Head,
    /// CORS preflight.
    Options,
    /// Anything else: refused.
    Other,
}

impl Method {
    /// The method of this name; names are case-sensitive (RFC 9110 9.1).
    pub fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    /// Its name, where it is one that the gateway knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// A request without a body.
pub struct Request<'a> {
    /// Its method.
    pub method: Method,
    /// The target before `?`, as it was sent.
    pub path: &'a str,
    /// The target behind `?`, as it was sent.
    pub query: &'a str,
    /// Its header lines.
    pub headers: &'a [Header<'a>],
}

impl<'a> Request<'a> {
    /// A request to a target in origin form (RFC 9112 3.2.1).
    pub fn new(method: &str, target: &'a str, headers: &'a [Header<'a>]) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self { method: Method::of(method), path, query, headers }
    }

    /// The values of all header lines of a name, those that are text.
    pub fn header_lines<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.raw_lines(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// The values of all header lines of a name.
    pub fn raw_lines<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let lines = self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        lines.map(|header| header.value)
    }

    /// The first header line of a name.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.header_lines(name).next()
    }

    /// The decoded value of the first query parameter of a name.
    pub fn parameter(&self, name: &str) -> Option<Cow<'a, str>> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value)).flatten()
        })
    }
}

/// Decodes `%XX`; `None` where that is no UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok()
}

//! Content negotiation of PS3.18 8.7: which form of a frame a client takes.

use std::borrow::Cow;

use crate::gateway::http::request::Request;

/// Explicit VR Little Endian: the form of every uncompressed frame that is sent.
pub const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";
/// The media type of bytes that no other is known for.
pub const OCTETS: &str = "application/octet-stream";
/// Most media ranges that are looked at.
const MOST_RANGES: usize = 64;

/// A media range of an Accept header or of the query parameter `accept`.
#[derive(Debug, PartialEq, Eq)]
pub struct MediaRange<'a> {
    /// Whether the answer is to be multipart/related; the other fields then describe its parts.
    pub is_multipart: bool,
    /// Type and subtype in lower case, `*/*` for any.
    pub media_type: Cow<'a, str>,
    /// Transfer syntax UID, or `*`.
    pub transfer_syntax: Option<Cow<'a, str>>,
    /// Weight in thousandths; 0 where the client refuses it.
    pub weight: u16,
}

/// Media ranges in the order of preference; the query's stand before the header's (PS3.18 8.7.8.1). Those
/// that a client refuses (`q=0`) are among them, and a client that says nothing takes anything.
pub fn media_ranges<'a>(request: &Request<'a>) -> Vec<MediaRange<'a>> {
    let query = request.parameter("accept").unwrap_or_default();
    let mut lines = request.header_lines("accept").peekable();
    if lines.peek().is_none() && query.is_empty() {
        return parse("*/*").collect();
    }
    let mut ranges = match &query {
        Cow::Borrowed(query) => sorted(parse(query).collect()),
        Cow::Owned(query) => sorted(parse(query).map(MediaRange::into_owned).collect()),
    };
    let of_header = sorted(lines.flat_map(parse).collect());
    if ranges.is_empty() {
        return of_header;
    }
    ranges.extend(of_header);
    ranges
}

fn sorted(mut ranges: Vec<MediaRange<'_>>) -> Vec<MediaRange<'_>> {
    ranges.sort_by_key(|range| std::cmp::Reverse(range.weight)); // stable: equal weights keep their order
    ranges.truncate(MOST_RANGES);
    ranges
}

fn parse(text: &str) -> impl Iterator<Item = MediaRange<'_>> {
    split(text, b',').filter_map(media_range).take(MOST_RANGES)
}

fn media_range(text: &str) -> Option<MediaRange<'_>> {
    let mut parts = split(text, b';');
    let outer = lower_case(parts.next()?.trim());
    let is_multipart = matches!(outer.as_ref(), "multipart/related" | "multipart/*");
    let media_type = if is_multipart { "*/*".into() } else { outer };
    let mut range = MediaRange { is_multipart, media_type, transfer_syntax: None, weight: 1000 };
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if is_multipart && name.eq_ignore_ascii_case("type") {
            range.media_type = lower_case(value);
        } else if name.eq_ignore_ascii_case("transfer-syntax") {
            range.transfer_syntax = Some(value.into());
        } else if name.eq_ignore_ascii_case("q") {
            range.weight = weight(value);
        }
    }
    range.media_type.contains('/').then_some(range)
}

/// Clients nearly always send lower case, which need not be copied.
fn lower_case(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}

/// How closely a media range names a form. The closest one decides (RFC 9110 12.5.1).
type Closeness = (u8, bool, bool);

impl MediaRange<'_> {
    /// How closely it names a form, nothing where it says nothing of it. What it says of a media type holds of
    /// parts of that type too; what it says of parts does not hold of a single one.
    fn closeness(&self, form: &FrameForm, syntax: Option<&str>) -> Option<Closeness> {
        let of_type = match self.media_type.strip_suffix("/*") {
            _ if self.media_type == form.media_type => 2,
            Some("*") => 0,
            Some(main) if form.media_type.split('/').next() == Some(main) => 1,
            _ => return None,
        };
        let wanted = self.transfer_syntax.as_deref().filter(|&wanted| wanted != "*");
        if self.is_multipart && !form.is_multipart || wanted.is_some() && wanted != syntax {
            return None;
        }
        Some((of_type, self.is_multipart, wanted.is_some()))
    }

    fn into_owned(self) -> MediaRange<'static> {
        MediaRange {
            is_multipart: self.is_multipart,
            media_type: self.media_type.into_owned().into(),
            transfer_syntax: self.transfer_syntax.map(|syntax| syntax.into_owned().into()),
            weight: self.weight,
        }
    }
}

fn weight(text: &str) -> u16 {
    let weight = text.parse().ok().filter(|weight: &f32| !weight.is_nan());
    (weight.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16
}

/// Splits at a separator outside of quotation marks. Both are ASCII, so that bytes are looked at, not characters.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut left = Some(text);
    std::iter::from_fn(move || {
        let text = left.take()?;
        let mut is_quoted = false;
        let end = text.bytes().position(|byte| {
            is_quoted ^= byte == b'"';
            byte == separator && !is_quoted
        });
        let (part, rest) = text.split_at(end.unwrap_or(text.len()));
        left = rest.get(1..);
        Some(part)
    })
}

/// The form in which frames are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameForm {
    /// Whether the answer is multipart/related.
    pub is_multipart: bool,
    /// Media type of a frame.
    pub media_type: &'static str,
}

/// The form of `count` frames for the first media range that can be served.
///
/// Frames are sent as they are stored, so the stored transfer syntax decides. Without a `transfer-syntax` a
/// client asks for Explicit VR Little Endian (PS3.18 8.7.3.3); a lossy frame is sent as stored even so, as no
/// other form of it exists.
///
/// # Errors
/// A sentence for the client, where no range can be served: status 406.
pub fn frame_form(ranges: &[MediaRange<'_>], stored: &str, count: usize) -> Result<FrameForm, String> {
    let natural = media_type(stored);
    let served = served_syntax(stored);
    let mut may_be_single = false;
    for range in ranges {
        if range.weight == 0 {
            continue;
        }
        let is_any = range.media_type == "*/*";
        let octets = matches!(range.media_type.as_ref(), "application/octet-stream" | "application/*");
        let is_natural =
            range.media_type == natural || (range.media_type == "image/*" && natural.starts_with("image/"));
        if !(is_any || octets || is_natural) {
            continue;
        }
        let fits = match range.transfer_syntax.as_deref() {
            Some("*") => true,
            Some(wanted) => wanted == served,
            None => is_any || is_natural || served == EXPLICIT_LITTLE_ENDIAN || is_lossy(stored),
        };
        if !fits {
            continue;
        }
        let is_multipart = range.is_multipart || is_any;
        if !is_multipart && count != 1 {
            may_be_single = true;
            continue;
        }
        let form = FrameForm { is_multipart, media_type: if octets { OCTETS } else { natural } };
        if is_refused(ranges, &form, Some(served)) {
            continue;
        }
        return Ok(form);
    }
    Err(if may_be_single {
        "several frames go into multipart/related alone: accept it, or ask for one frame".to_owned()
    } else {
        format!("the frames are stored as {served}: accept transfer-syntax={served}, or transfer-syntax=*")
    })
}

/// The ranges that take one of some media types, single or in parts, whatever their transfer syntax.
pub fn taking<'a, 'b>(
    ranges: &'b [MediaRange<'a>],
    media_types: &'b [&'static str],
) -> impl Iterator<Item = &'b MediaRange<'a>> {
    let taken = |range: &MediaRange<'_>, media_type| {
        let form = FrameForm { is_multipart: range.is_multipart, media_type };
        range.closeness(&form, range.transfer_syntax.as_deref()).is_some() && !is_refused(ranges, &form, None)
    };
    let live = ranges.iter().filter(|range| range.weight > 0);
    live.filter(move |range| media_types.iter().any(|&media_type| taken(range, media_type)))
}

/// Whether the ranges that name a form most closely refuse it.
fn is_refused(ranges: &[MediaRange<'_>], form: &FrameForm, syntax: Option<&str>) -> bool {
    if ranges.iter().all(|range| range.weight > 0) {
        return false;
    }
    let said = ranges.iter().filter_map(|range| Some((range.closeness(form, syntax)?, range.weight == 0)));
    said.max().is_some_and(|(_, is_refused)| is_refused)
}

/// The transfer syntax that is announced: every uncompressed one is sent as Explicit VR Little Endian.
pub fn served_syntax(stored: &str) -> &str {
    if media_type(stored) == OCTETS && is_uncompressed(stored) { EXPLICIT_LITTLE_ENDIAN } else { stored }
}

fn is_uncompressed(syntax: &str) -> bool {
    matches!(
        syntax,
        "1.2.840.10008.1.2" | EXPLICIT_LITTLE_ENDIAN | "1.2.840.10008.1.2.1.99" | "1.2.840.10008.1.2.2"
    )
}

fn is_lossy(syntax: &str) -> bool {
    let tail = syntax.strip_prefix("1.2.840.10008.1.2.4.").unwrap_or_default();
    matches!(tail, "50" | "51" | "81" | "91" | "93" | "203" | "112")
}

/// The media type of a frame (PS3.18 table 8.7.3-2 to -5).
pub fn media_type(syntax: &str) -> &'static str {
    if syntax == "1.2.840.10008.1.2.5" {
        return "image/dicom-rle";
    }
    match syntax.strip_prefix("1.2.840.10008.1.2.4.").unwrap_or_default() {
        "50" | "51" | "57" | "70" => "image/jpeg",
        "80" | "81" => "image/jls",
        "90" | "91" => "image/jp2",
        "92" | "93" => "image/jpx",
        "110" | "111" | "112" => "image/jxl",
        "201" | "202" | "203" => "image/jphc",
        "100" | "100.1" | "101" | "101.1" => "video/mpeg",
        "102" | "102.1" | "103" | "103.1" | "104" | "104.1" | "105" | "105.1" | "106" | "106.1" | "107"
        | "108" => "video/mp4",
        _ => OCTETS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use httparse::Header;

    const JPEG: &str = "1.2.840.10008.1.2.4.50";
    const LOSSLESS: &str = "1.2.840.10008.1.2.4.70";

    fn form(accept: &str, stored: &str, count: usize) -> Option<(bool, &'static str)> {
        let headers = [Header { name: "Accept", value: accept.as_bytes() }];
        let ranges = media_ranges(&Request::new("GET", "/", &headers));
        frame_form(&ranges, stored, count).ok().map(|form| (form.is_multipart, form.media_type))
    }

    #[test]
    fn what_real_clients_send_is_understood() {
        let octets = Some((true, "application/octet-stream"));
        for accept in [
            "multipart/related; type=\"application/octet-stream\"; transfer-syntax=\"*\"",
            "multipart/related; type=application/octet-stream; transfer-syntax=*",
            "Multipart/Related;TYPE=Application/Octet-Stream;Transfer-Syntax=*",
            "application/dicom+json, multipart/related; type=application/octet-stream; transfer-syntax=*",
            "multipart/related;type=\"a,b;c/d\", multipart/related;type=application/octet-stream;transfer-syntax=*",
        ] {
            assert_eq!(form(accept, LOSSLESS, 3), octets, "{accept}");
        }
        assert_eq!(form("*/*", JPEG, 2), Some((true, "image/jpeg")));
        assert_eq!(form("image/jpeg", JPEG, 1), Some((false, "image/jpeg")));
        assert_eq!(
            form("application/octet-stream", "1.2.840.10008.1.2", 1),
            Some((false, "application/octet-stream"))
        );
    }

    #[test]
    fn without_a_syntax_a_lossless_compressed_frame_is_not_acceptable() {
        let bare = "multipart/related; type=application/octet-stream";
        assert_eq!(form(bare, LOSSLESS, 1), None);
        assert_eq!(form(bare, JPEG, 1), Some((true, "application/octet-stream")));
        assert_eq!(form(bare, EXPLICIT_LITTLE_ENDIAN, 1), Some((true, "application/octet-stream")));
    }

    #[test]
    fn any_subtype_is_as_good_as_a_named_one() {
        let octets = |is_multipart| Some((is_multipart, "application/octet-stream"));
        assert_eq!(form("application/*", EXPLICIT_LITTLE_ENDIAN, 1), octets(false));
        assert_eq!(form("application/*;transfer-syntax=*", LOSSLESS, 1), octets(false));
        assert_eq!(form("application/*", LOSSLESS, 1), None);
        assert_eq!(form("multipart/*", JPEG, 2), Some((true, "image/jpeg")));
        assert_eq!(form("multipart/*, application/*", EXPLICIT_LITTLE_ENDIAN, 2), octets(true));
    }

    #[test]
    fn refused_and_unknown_ranges_are_passed_over() {
        assert_eq!(form("image/jpeg;q=0", JPEG, 1), None);
        for refused in
            ["image/jpeg;q=0", "image/*;q=0", "multipart/*;q=0", "*/*;q=0", "image/jpeg;q=0.000;a=b"]
        {
            assert_eq!(form(&format!("*/*, {refused}"), JPEG, 1), None, "{refused}");
        }
        for other in
            ["image/jls;q=0", "application/*;q=0", "image/jpeg;transfer-syntax=1.2;q=0", "image/*;q=nan"]
        {
            assert_eq!(form(&format!("*/*, {other}"), JPEG, 1), Some((true, "image/jpeg")), "{other}");
        }
        // The closest range decides, in whatever order they stand.
        for closest in ["image/*;q=0, image/jpeg", "image/jpeg;q=0.1, */*;q=0"] {
            assert_eq!(form(closest, JPEG, 1), Some((false, "image/jpeg")), "{closest}");
        }
        let parts_refused = "multipart/related;type=image/jpeg;q=0, image/jpeg";
        assert_eq!(
            (form(parts_refused, JPEG, 1), form(parts_refused, JPEG, 2)),
            (Some((false, "image/jpeg")), None)
        );
        assert_eq!(
            form("image/*;q=0.5, image/jpeg; q=0.0, application/octet-stream;q=0.1", JPEG, 1),
            Some((false, "application/octet-stream"))
        );
        assert_eq!(form("*/*;q=0.5, image/png;q=0", JPEG, 2), Some((true, "image/jpeg")));
        assert_eq!(form("image/png, text/html", JPEG, 1), None);
        assert_eq!(form("image/jpeg", JPEG, 2), None);
        assert_eq!(
            form("image/jpeg;q=0.1, multipart/related;type=image/jpeg", JPEG, 1),
            Some((true, "image/jpeg"))
        );
        let implicit = "multipart/related;type=application/octet-stream;transfer-syntax=1.2.840.10008.1.2";
        assert_eq!(form(implicit, "1.2.840.10008.1.2", 1), None);
    }
}

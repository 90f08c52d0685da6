//! Content negotiation of PS3.18 8.7: which form of a frame a client takes.

use std::borrow::Cow;

use crate::gateway::http::request::Request;

/// Explicit VR Little Endian: the form of every uncompressed frame that is sent.
pub const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";
/// The media type of bytes that no other is known for.
pub const OCTETS: &str = "application/octet-stream";
/// The media type of an instance.
pub const DICOM: &str = "application/dicom";
/// The media type of headers.
pub const DICOM_JSON: &str = "application/dicom+json";
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

/// What a media range says of a form: how closely it names the media type, whether it is of parts, whether it
/// names the transfer syntax.
type Closeness = (u8, bool, bool);

impl MediaRange<'_> {
    /// How closely it names a media type, nothing where it is of others.
    fn names(&self, media_type: &str) -> Option<u8> {
        match self.media_type.strip_suffix("/*") {
            _ if self.media_type == media_type => Some(2),
            Some("*") => Some(0),
            Some(main) => (media_type.split('/').next() == Some(main)).then_some(1),
            None => None,
        }
    }

    /// What it takes a body as, that has a media type of its own: as that, or as octets.
    fn media_type_of(&self, natural: &'static str) -> Option<&'static str> {
        self.names(natural).map(|_| natural).or_else(|| self.names(OCTETS).map(|_| OCTETS))
    }

    /// Whether it takes a transfer syntax, where it need not name one.
    fn takes_syntax(&self, syntax: &str) -> bool {
        self.transfer_syntax.as_deref().is_none_or(|wanted| wanted == "*" || wanted == syntax)
    }

    /// What it says of a form, nothing where it says nothing. What is said of a media type holds of parts of that
    /// type too, not the other way round. A refusal of one transfer syntax says nothing while it is not known.
    fn closeness(&self, form: &Form, syntax: Option<&str>) -> Option<Closeness> {
        let names_syntax = self.transfer_syntax.as_deref().is_some_and(|wanted| wanted != "*");
        let fits = match syntax {
            Some(syntax) => self.takes_syntax(syntax),
            None => self.weight > 0 || !names_syntax,
        };
        let is_said = fits && (form.is_multipart || !self.is_multipart);
        is_said.then_some((self.names(form.media_type)?, self.is_multipart, names_syntax))
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

/// The form in which something is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Whether the answer is multipart/related.
    pub is_multipart: bool,
    /// Media type, of each part where there are parts.
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
pub fn frame_form(ranges: &[MediaRange<'_>], stored: &str, count: usize) -> Result<Form, String> {
    let (natural, served) = (media_type(stored), served_syntax(stored));
    let needs_no_syntax = served == EXPLICIT_LITTLE_ENDIAN || is_lossy(stored);
    let taken_as = |range: &MediaRange<'_>| {
        let found = range.media_type_of(natural)?;
        let may_be_bare = range.transfer_syntax.is_some() || found == natural || needs_no_syntax;
        (may_be_bare && range.takes_syntax(served)).then_some(found)
    };
    let mut forms = forms(ranges, Some(served), true, taken_as).peekable();
    let may_be_single = forms.peek().is_some();
    forms.find(|form| form.is_multipart || count == 1).ok_or_else(|| {
        if may_be_single {
            "several frames go into multipart/related alone: accept it, or ask for one frame".to_owned()
        } else {
            format!(
                "the frames are stored as {served}: accept transfer-syntax={served}, or transfer-syntax=*"
            )
        }
    })
}

/// The form of an instance of a transfer syntax, or of any that some range takes.
pub fn instance_form(ranges: &[MediaRange<'_>], syntax: Option<&str>) -> Option<Form> {
    let fits = |range: &MediaRange<'_>| syntax.is_none_or(|syntax| range.takes_syntax(syntax));
    forms(ranges, syntax, true, |range| (range.names(DICOM).is_some() && fits(range)).then_some(DICOM)).next()
}

/// Whether instances of a transfer syntax are taken as parts, also by who asked for single ones.
pub fn takes_instances(ranges: &[MediaRange<'_>], syntax: Option<&str>) -> bool {
    let parts = Form { is_multipart: true, media_type: DICOM };
    instance_form(ranges, syntax).is_some() && !is_refused(ranges, &parts, syntax)
}

/// The form of a value of a media type: as that, or as octets.
pub fn value_form(ranges: &[MediaRange<'_>], natural: &'static str) -> Option<Form> {
    forms(ranges, None, false, |range| range.media_type_of(natural)).next()
}

/// Whether headers are taken, which are sent as `application/dicom+json`.
pub fn takes_json(ranges: &[MediaRange<'_>]) -> bool {
    let is_refused = |range: &MediaRange<'_>| range.weight == 0 && range.media_type == DICOM_JSON;
    let taken = |media_type| {
        forms(ranges, None, false, |range| range.names(media_type).map(|_| media_type)).next().is_some()
    };
    !ranges.iter().any(is_refused) && [DICOM_JSON, "application/json"].into_iter().any(taken)
}

/// The forms in which something can be sent, in the order of preference: as the media type that `taken_as` says of
/// a range. For `*/*` that is a single body; with `parts_first` parts are offered before it.
fn forms<'a>(
    ranges: &'a [MediaRange<'_>],
    syntax: Option<&'a str>,
    parts_first: bool,
    taken_as: impl Fn(&MediaRange<'_>) -> Option<&'static str> + 'a,
) -> impl Iterator<Item = Form> + 'a {
    let offered = move |range: &MediaRange<'_>| {
        let media_type = taken_as(range);
        let in_parts = range.is_multipart || parts_first && range.media_type == "*/*";
        let shapes = [in_parts.then_some(true), (!range.is_multipart).then_some(false)];
        media_type.into_iter().flat_map(move |media_type| {
            shapes.into_iter().flatten().map(move |is_multipart| Form { is_multipart, media_type })
        })
    };
    let live = ranges.iter().filter(|range| range.weight > 0);
    live.flat_map(offered).filter(move |form| !is_refused(ranges, form, syntax))
}

/// Whether a form is refused by what names its media type most closely, or its being in parts.
fn is_refused(ranges: &[MediaRange<'_>], form: &Form, syntax: Option<&str>) -> bool {
    if ranges.iter().all(|range| range.weight > 0) {
        return false;
    }
    let said = || ranges.iter().filter_map(|range| Some((range.closeness(form, syntax)?, range.weight == 0)));
    let by_type = said().max();
    let by_parts = said().map(|((of_type, parts, of_syntax), no)| ((parts, of_type, of_syntax), no)).max();
    by_type.is_some_and(|(_, is_refused)| is_refused) || by_parts.is_some_and(|(_, is_refused)| is_refused)
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
        for refused in ["image/jpeg;q=0", "image/*;q=0", "*/*;q=0", "image/jpeg;q=0.000;a=b"] {
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

    fn ranges(accept: &str) -> Vec<MediaRange<'static>> {
        parse(accept).map(MediaRange::into_owned).collect()
    }

    #[test]
    fn a_range_that_names_a_syntax_is_closer_than_a_refusal_of_all_else() {
        let instance =
            format!("multipart/related; type=\"application/dicom\"; transfer-syntax={JPEG}, */*;q=0");
        for syntax in [None, Some(JPEG)] {
            assert_eq!(instance_form(&ranges(&instance), syntax).map(|form| form.is_multipart), Some(true));
            assert!(takes_instances(&ranges(&instance), syntax));
        }
        assert_eq!(instance_form(&ranges(&instance), Some(LOSSLESS)), None);
        let bare_refused = format!("application/dicom;q=0, application/dicom;transfer-syntax={JPEG}");
        assert!(instance_form(&ranges(&bare_refused), Some(JPEG)).is_some());
        assert!(takes_json(&ranges("application/dicom+json;transfer-syntax=1.2.840.10008.1.2.1, */*;q=0")));
        assert!(takes_json(&ranges("application/json, */*;q=0")));
        let video = value_form(&ranges("video/mp4;transfer-syntax=1.2, */*;q=0"), "video/mp4");
        assert_eq!(video.map(|form| form.media_type), Some("video/mp4"));
    }

    #[test]
    fn what_is_refused_in_one_way_goes_out_in_another_or_not_at_all() {
        let one_syntax =
            format!("application/dicom;transfer-syntax=*, application/dicom;transfer-syntax={JPEG};q=0");
        assert!(instance_form(&ranges(&one_syntax), None).is_some());
        assert!(instance_form(&ranges(&one_syntax), Some(LOSSLESS)).is_some());
        assert!(instance_form(&ranges(&one_syntax), Some(JPEG)).is_none());
        let no_parts = ranges("*/*, multipart/related;q=0");
        assert_eq!(instance_form(&no_parts, Some(JPEG)).map(|form| form.is_multipart), Some(false));
        assert!(!takes_instances(&no_parts, Some(JPEG)));
        assert_eq!(form("*/*, multipart/related;q=0", JPEG, 1), Some((false, "image/jpeg")));
        assert_eq!(form("image/jpeg, */*;q=0.1, multipart/related;q=0", JPEG, 2), None);
        assert!(!takes_json(&ranges("*/*, application/dicom+json;q=0")));
        assert_eq!(
            value_form(&ranges("application/octet-stream, video/mp4;q=0"), "video/mp4").unwrap().media_type,
            OCTETS
        );
        assert_eq!(value_form(&ranges("application/octet-stream"), "video/mp4").unwrap().media_type, OCTETS);
        assert_eq!(
            value_form(&ranges("*/*"), "video/mp4"),
            Some(Form { is_multipart: false, media_type: "video/mp4" })
        );
        assert_eq!(value_form(&ranges("text/html"), "video/mp4"), None);
    }
}

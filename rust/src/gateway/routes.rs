//! The gateway's addresses: DICOMweb's resources (PS3.18 10) below `/dicomweb`, `/wado`, and its own pages.

use std::borrow::Cow;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A DICOMweb resource of the source of this name; `None` for the default source.
    Dicomweb(Option<&'a str>, Resource<'a>),
    /// The status page.
    Page,
    /// What the status page shows, as JSON.
    Status,
    /// Whether the process is alive.
    Health,
    /// Whether the first preload is through.
    Ready,
    /// Counters in Prometheus' text format.
    Metrics,
    /// A file of the viewer, or nothing.
    File(&'a str),
}

/// A resource of a source.
#[derive(Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A search (QIDO-RS): the path below the root.
    Search(&'a str),
    /// Whole instances (WADO-RS).
    Instances(Level<'a>),
    /// Their headers as DICOM JSON.
    Metadata(Level<'a>),
    /// Frames of an instance: the list as it was sent.
    Frames(Level<'a>, &'a str),
    /// The value of one element of an instance: its place, as tags and item numbers.
    BulkData(Level<'a>, &'a str),
    /// An instance that the query names (WADO-URI, PS3.18 9).
    Object,
    /// Nothing that the gateway knows.
    Unknown,
}

/// A study, a series or an instance; an absent UID is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level<'a> {
    /// Study Instance UID.
    pub study: &'a str,
    /// Series Instance UID.
    pub series: &'a str,
    /// SOP Instance UID.
    pub instance: &'a str,
}

impl Level<'_> {
    /// Whether each UID that is there is one: digits and points, at most 64 (PS3.5 9.1).
    pub fn is_well_formed(&self) -> bool {
        [self.study, self.series, self.instance]
            .into_iter()
            .all(|uid| uid.len() <= 64 && uid.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit()))
    }
}

/// Reads a path.
pub fn route(path: &str) -> Route<'_> {
    match path {
        "/" | "/status" => return Route::Page,
        "/status.json" => return Route::Status,
        "/health" => return Route::Health,
        "/ready" => return Route::Ready,
        "/metrics" => return Route::Metrics,
        _ => {}
    }
    let below = path.strip_prefix('/').unwrap_or_default();
    match below.split_once('/') {
        None if below == "wado" => return Route::Dicomweb(None, Resource::Object),
        Some((source, "wado")) => return Route::Dicomweb(Some(source), Resource::Object),
        _ => {}
    }
    if let Some(rest) = below.strip_prefix("dicomweb").filter(|rest| is_end_of_segment(rest)) {
        let found = resource(rest);
        // A source may have this name.
        if found != Resource::Unknown || !rest.starts_with("/dicomweb") {
            return Route::Dicomweb(None, found);
        }
    }
    if let Some((source, rest)) = below.split_once("/dicomweb")
        && !source.contains('/')
        && is_end_of_segment(rest)
    {
        return Route::Dicomweb(Some(source), resource(rest));
    }
    Route::File(path)
}

fn is_end_of_segment(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

fn resource(path: &str) -> Resource<'_> {
    let path = path.trim_matches('/');
    let mut segments = [""; 9];
    let mut count = 0;
    for segment in path.splitn(segments.len(), '/') {
        if let Some(slot) = segments.get_mut(count) {
            *slot = segment;
            count += 1;
        }
    }
    let given = segments.get(..count).unwrap_or_default();
    match *given {
        ["studies" | "series" | "instances"]
        | ["studies", _, "series" | "instances"]
        | ["studies", _, "series", _, "instances"] => Resource::Search(path),
        // An empty UID is none: it would stand for any.
        [..] if given.contains(&"") => Resource::Unknown,
        ["studies", study] => Resource::Instances(Level { study, ..Level::default() }),
        ["studies", study, "series", series] => {
            Resource::Instances(Level { study, series, ..Level::default() })
        }
        ["studies", study, "series", series, "instances", instance] => {
            Resource::Instances(Level { study, series, instance })
        }
        ["studies", study, "metadata"] => Resource::Metadata(Level { study, ..Level::default() }),
        ["studies", study, "series", series, "metadata"] => {
            Resource::Metadata(Level { study, series, ..Level::default() })
        }
        ["studies", study, "series", series, "instances", instance, "metadata"] => {
            Resource::Metadata(Level { study, series, instance })
        }
        ["studies", study, "series", series, "instances", instance, "frames", frames] => {
            Resource::Frames(Level { study, series, instance }, frames)
        }
        ["studies", study, "series", series, "instances", instance, "bulkdata", first] => {
            Resource::BulkData(Level { study, series, instance }, first)
        }
        ["studies", study, "series", series, "instances", instance, "bulkdata", first, rest] => {
            // The place may have several segments: all of the path behind `bulkdata/`.
            let length = first.len() + 1 + rest.len();
            let place = path.get(path.len().saturating_sub(length)..).unwrap_or_default();
            Resource::BulkData(Level { study, series, instance }, place)
        }
        _ => Resource::Unknown,
    }
}

/// Most frames of one request.
pub const MOST_FRAMES: usize = 512;

/// Reads a list of frame numbers, counted from 1, each once, in any order (PS3.18 10.4.1): counted from 0.
///
/// # Errors
/// What is wrong, in a sentence, and the status: 400, or 413 for too many.
pub fn frame_list(text: &str) -> Result<Vec<u32>, (u16, String)> {
    let text: Cow<'_, str> =
        if text.contains('%') { text.replace("%2C", ",").replace("%2c", ",").into() } else { text.into() };
    let mut frames = Vec::new();
    for item in text.split(',') {
        let is_number =
            !item.is_empty() && item.len() <= 10 && item.bytes().all(|byte| byte.is_ascii_digit());
        let number = if is_number { item.parse::<u32>().unwrap_or(0) } else { 0 };
        let Some(frame) = number.checked_sub(1) else {
            let shown: String = item.chars().take(20).collect();
            return Err((400, format!("{shown:?} is no frame number: they count from 1")));
        };
        if frames.len() == MOST_FRAMES {
            return Err((413, format!("more than {MOST_FRAMES} frames in one request: ask for fewer")));
        }
        frames.push(frame);
    }
    if frames.len() == 1 {
        return Ok(frames);
    }
    let mut sorted = frames.clone();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair.first() == pair.last()) {
        let twice = pair.first().map_or(0, |&frame| u64::from(frame) + 1);
        return Err((400, format!("frame {twice} is asked for twice")));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let level = Level { study: "1", series: "2", instance: "3" };
        let under = "/dicomweb/studies/1/series/2/instances/3";
        let of = |path: &str| format!("{:?}", route(path));
        let expected = |resource| format!("{:?}", Route::Dicomweb(None, resource));
        assert_eq!(of("/dicomweb/studies"), expected(Resource::Search("studies")));
        assert_eq!(of("/dicomweb/studies/"), expected(Resource::Search("studies")));
        assert_eq!(of(under), expected(Resource::Instances(level)));
        assert_eq!(of(&format!("{under}/frames/1,2")), expected(Resource::Frames(level, "1,2")));
        assert_eq!(
            of(&format!("{under}/bulkdata/00420011")),
            expected(Resource::BulkData(level, "00420011"))
        );
        let nested = "bulkdata/54000100/0/54001010";
        assert_eq!(
            of(&format!("{under}/{nested}")),
            expected(Resource::BulkData(level, "54000100/0/54001010"))
        );
        assert_eq!(
            of("/dicomweb/studies/1/metadata"),
            expected(Resource::Metadata(Level { study: "1", ..Level::default() }))
        );
        for nothing in ["patients", "studies//metadata", "studies/1/series//metadata", "studies//series/2"] {
            assert_eq!(of(&format!("/dicomweb/{nothing}")), expected(Resource::Unknown));
        }
        assert_eq!(of(&under.replace("/3", "/")), expected(Resource::Search("studies/1/series/2/instances")));
        assert_eq!(of(&under.replace("/2/", "//")), expected(Resource::Unknown));
        assert_eq!(route("/ct/dicomweb/studies"), Route::Dicomweb(Some("ct"), Resource::Search("studies")));
        assert_eq!(route("/wado"), Route::Dicomweb(None, Resource::Object));
        assert_eq!(route("/ct/wado"), Route::Dicomweb(Some("ct"), Resource::Object));
        assert_eq!(route("/ct/a/wado"), Route::File("/ct/a/wado"));
        assert_eq!(route("/dicomwebs"), Route::File("/dicomwebs"));
        assert_eq!(route("*"), Route::File("*"));
    }

    #[test]
    fn frame_lists() {
        assert_eq!(frame_list("3,1,2"), Ok(vec![2, 0, 1]));
        assert_eq!(frame_list("3%2C1"), Ok(vec![2, 0]));
        for bad in
            ["", "0", "-1", "+1", "1.5", "a", "1,", ",1", "1,,2", "1,1", " 1", "4294967296", "99999999999"]
        {
            assert_eq!(frame_list(bad).unwrap_err().0, 400, "{bad}");
        }
        let many: Vec<String> = (1..=513).map(|number| number.to_string()).collect();
        assert_eq!(frame_list(&many.join(",")).unwrap_err().0, 413);
    }
}

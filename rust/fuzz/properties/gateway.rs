//! What must hold of every request: the fuzz target and a property test of the crate run it.

use _core::gateway::http::request::{Request, decode};
use _core::gateway::routes::{MOST_FRAMES, Resource, Route, frame_list, route};
use _core::gateway::wado::accept::{Form, MediaRange, frame_form, media_ranges, media_type, served_syntax};
use _core::gateway::wado::conditional::{Wanted, has_it, range};

const SYNTAXES: [&str; 7] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.100",
    "1.2.840.10008.1.2.5",
];

/// Puts a text into each place of a request that a client fills.
pub fn hold(text: &str, number: u64) {
    hold_of_paths(text);
    hold_of_lists(text);
    for name in ["Accept", "Range", "If-Range", "If-None-Match"] {
        let headers = [httparse::Header { name, value: text.as_bytes() }];
        let request = Request::new("GET", text, &headers);
        hold_of_ranges(&request, number);
        hold_of_forms(&request);
        let _ = has_it(&request, "\"a\"");
    }
    let _ = decode(text);
}

fn hold_of_paths(text: &str) {
    for path in [text.to_owned(), format!("/dicomweb/{text}"), format!("/{text}/dicomweb/studies/1/series")] {
        if let Route::Dicomweb(_, resource) = route(&path) {
            let level = match resource {
                Resource::Frames(level, list) => {
                    assert!(path.contains(list));
                    level
                }
                Resource::BulkData(level, place) => {
                    assert!(path.trim_end_matches('/').ends_with(place));
                    level
                }
                Resource::Instances(level) | Resource::Metadata(level) => level,
                _ => return,
            };
            if level.is_well_formed() {
                assert!(level.instance.len() <= 64 && !level.instance.contains('/'));
            }
        }
    }
}

fn hold_of_lists(text: &str) {
    let Ok(frames) = frame_list(text) else { return };
    assert!(!frames.is_empty() && frames.len() <= MOST_FRAMES);
    let written: Vec<String> = frames.iter().map(|&frame| (u64::from(frame) + 1).to_string()).collect();
    assert_eq!(frame_list(&written.join(",")), Ok(frames.clone()));
    let mut distinct = frames.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), frames.len());
}

fn hold_of_ranges(request: &Request<'_>, length: u64) {
    match range(request, length, "\"a\"") {
        Wanted::Part(start, end) => assert!(start < end && end <= length),
        Wanted::Nothing => assert!(request.header("range").is_some()),
        Wanted::All => {}
    }
}

fn hold_of_forms(request: &Request<'_>) {
    let ranges = media_ranges(request);
    assert!(ranges.iter().all(|range| range.weight <= 1000));
    for syntax in SYNTAXES {
        for count in [1, 2] {
            let Ok(Form { is_multipart, media_type: named }) = frame_form(&ranges, syntax, count) else {
                continue;
            };
            assert!(is_multipart || count == 1);
            // What a client refuses by its name goes out only where another range names it too.
            let mut by_name = ranges.iter().filter(|range| range.media_type == named);
            let is_refused = |range: &MediaRange<'_>| {
                range.weight == 0 && !range.is_multipart && range.transfer_syntax.is_none()
            };
            assert!(!by_name.clone().any(is_refused) || by_name.any(|range| range.weight > 0));
            assert!(named == "application/octet-stream" || named == media_type(syntax));
            assert_ne!(served_syntax(syntax), "1.2.840.10008.1.2"); // PS3.18 8.7.3.3
        }
    }
}

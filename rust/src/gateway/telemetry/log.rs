//! The access log: a JSON object a line, without UIDs, paths, names or values of a query.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::gateway::http::response::{Response, push_json};
use crate::gateway::routes::{Resource, Route};

/// Lines that wait for a slow reader of the log; more are counted and dropped.
const MOST_WAITING: usize = 8192;
/// Time for the last lines at the stop: a full pipe that nobody reads would hold it up.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Writes lines on a thread of its own: a request never waits for a pipe.
pub struct AccessLog {
    lines: Mutex<Option<SyncSender<String>>>,
    dropped: AtomicU64,
    writer: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
}

impl AccessLog {
    /// Starts the thread, which writes to a descriptor.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(out: OwnedFd) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(MOST_WAITING);
        let (end, ended) = sync_channel(1);
        let writer = thread::Builder::new().name("voxtier-access-log".to_owned()).spawn(move || {
            write_lines(File::from(out), &waiting);
            let _ = end.send(());
        })?;
        Ok(Self {
            lines: Mutex::new(Some(lines)),
            dropped: AtomicU64::new(0),
            writer: Mutex::new(Some((writer, ended))),
        })
    }

    /// Writes the line of a request.
    pub fn write(&self, line: String) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.as_ref().is_some_and(|lines| lines.try_send(line).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits and ends the thread.
    pub fn close(&self) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lines) = lines {
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > 0 {
                let _ = lines.try_send(format!("{{\"time\":\"{}\",\"dropped\":{dropped}}}\n", now()));
            }
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((thread, ended)) = writer
            && ended.recv_timeout(LAST_LINES) != Err(RecvTimeoutError::Timeout)
        {
            let _ = thread.join();
        }
    }
}

fn write_lines(mut out: File, waiting: &Receiver<String>) {
    while let Ok(mut block) = waiting.recv() {
        block.extend(waiting.try_iter().take(256));
        if out.write_all(block.as_bytes()).is_err() {
            return; // nobody reads the log any more
        }
    }
}

/// The line of a request. `source` is one that the gateway serves, or empty.
pub fn line(method: &str, asked: &Route<'_>, source: &str, response: &Response, microseconds: u64) -> String {
    let mut out =
        format!("{{\"time\":\"{}\",\"method\":\"{method}\",\"route\":\"{}\"", now(), template(asked));
    if !source.is_empty() {
        out.push_str(",\"source\":");
        push_json(&mut out, source);
    }
    out.push_str(&format!(",\"status\":{}", response.status));
    if let Some(length) = response.length {
        out.push_str(&format!(",\"bytes\":{length}"));
    }
    if let Some(tier) = response.tier {
        out.push_str(&format!(",\"tier\":\"{}\"", tier.name()));
    }
    out.push_str(&format!(",\"microseconds\":{microseconds}}}\n"));
    out
}

/// The form of an address, whatever it names.
fn template(asked: &Route<'_>) -> &'static str {
    match asked {
        Route::Page => "/status",
        Route::Status => "/status.json",
        Route::Health => "/health",
        Route::Ready => "/ready",
        Route::Metrics => "/metrics",
        Route::File(_) => "viewer",
        Route::Dicomweb(_, resource) => match resource {
            Resource::Unknown => "unknown",
            Resource::Object => "/wado",
            Resource::Frames(..) => "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
            Resource::BulkData(..) => {
                "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{place}"
            }
            Resource::Search(path) => match (path.split('/').count(), path.rsplit('/').next()) {
                (1, Some("studies")) => "/studies",
                (1, Some("series")) => "/series",
                (1, _) => "/instances",
                (3, Some("series")) => "/studies/{study}/series",
                (3, _) => "/studies/{study}/instances",
                _ => "/studies/{study}/series/{series}/instances",
            },
            Resource::Instances(level) => match (level.series, level.instance) {
                ("", _) => "/studies/{study}",
                (_, "") => "/studies/{study}/series/{series}",
                _ => "/studies/{study}/series/{series}/instances/{instance}",
            },
            Resource::Metadata(level) => match (level.series, level.instance) {
                ("", _) => "/studies/{study}/metadata",
                (_, "") => "/studies/{study}/series/{series}/metadata",
                _ => "/studies/{study}/series/{series}/instances/{instance}/metadata",
            },
        },
    }
}

/// The present time as RFC 3339 has it.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, day) = (since.as_secs() % 86_400, since.as_secs() / 86_400);
    let (year, month, day) = date(day);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a number of days since 1970 (Gregorian calendar).
fn date(days: u64) -> (u64, u64, u64) {
    // Days since the 1st of March of the year 0: leap days then stand at the end of a year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routes::route;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(20_784), (2026, 11, 27));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn a_line_names_no_uid_and_no_value() {
        let path = "/ct/dicomweb/studies/1.2.3/series/1.2.4/instances/1.2.5/frames/7";
        let response = Response::of(200, "image/jpeg", "abc");
        let line = line("GET", &route(path), "ct", &response, 12);
        assert!(
            line.contains(
                "\"route\":\"/studies/{study}/series/{series}/instances/{instance}/frames/{frames}\""
            )
        );
        assert!(line.contains("\"source\":\"ct\",\"status\":200,\"bytes\":3,\"microseconds\":12}"));
        assert!(!line.contains("1.2.3") && !line.contains("1.2.4") && !line.contains("1.2.5"));
        for (path, form) in [
            ("/dicomweb/studies", "/studies"),
            ("/dicomweb/series", "/series"),
            ("/dicomweb/instances", "/instances"),
            ("/dicomweb/studies/1/series", "/studies/{study}/series"),
            ("/dicomweb/studies/1/instances", "/studies/{study}/instances"),
            ("/dicomweb/studies/1/series/2/instances", "/studies/{study}/series/{series}/instances"),
            ("/dicomweb/studies/1", "/studies/{study}"),
            ("/dicomweb/studies/1/metadata", "/studies/{study}/metadata"),
            ("/wado", "/wado"),
            ("/Doe^John", "viewer"),
        ] {
            assert_eq!(template(&route(path)), form);
        }
    }
}

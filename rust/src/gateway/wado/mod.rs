//! WADO-RS: from UIDs to the file that holds them, and the resources made of it (PS3.18 10.4).

mod bulk_data;
mod conditional;
mod frames;
mod instances;
mod metadata;

use std::sync::Arc;

use super::catalogue::digest;
use super::files::{Opened, blocking, uid};
use super::http::response::Response;
use super::jobs::{Answer, Question};
use super::metrics::Tier;
use super::routes::Level;
use super::service::{Worker, not_found, unavailable};
use crate::base::error::{Error, ErrorKind};
use crate::base::window::Buffer;
use crate::dicom;
use crate::frames::memory::cache::{look_up, request};
use crate::frames::memory::cached::{self, Selection};
use crate::frames::memory::lru::{Class, Put};
use crate::frames::row::{self, Row, next_row};
use crate::frames::table::{FrameTable, Verify};

/// Tries when a file changes while it is read.
const ATTEMPTS: usize = 3;

/// An instance: its path and its open file, which holds the UIDs that were asked for.
pub struct Found {
    path: Box<str>,
    file: Arc<Opened>,
}

impl Worker {
    /// The file that holds an instance now.
    ///
    /// # Errors
    /// The response that says why there is none.
    async fn find(&self, source: &str, level: Level<'_>) -> Result<Found, Response> {
        if !level.is_well_formed() {
            return Err(Response::refusal(
                400,
                "bad_uid",
                "a UID has at most 64 digits and points (PS3.5 9.1)",
            ));
        }
        let name = digest(source, level.instance);
        let wanted = uid(level.instance);
        if let Some(path) = self.shared.catalogue.path(name) {
            match self.files.take(&path).await {
                Ok(file) if file.instance == wanted => return belongs(Found { path, file }, level),
                // The file is gone, or another instance lies there now: the index may know a second copy.
                _ => self.shared.catalogue.forget(name),
            }
        }
        self.alone(name, self.resolve(source, level)).await
    }

    /// Asks the index for the file of an instance, unless another request has done so meanwhile.
    async fn resolve(&self, source: &str, level: Level<'_>) -> Result<Found, Response> {
        let name = digest(source, level.instance);
        let wanted = uid(level.instance);
        if let Some(path) = self.shared.catalogue.path(name)
            && let Ok(file) = self.files.take(&path).await
            && file.instance == wanted
        {
            return belongs(Found { path, file }, level);
        }
        let question = Question::Instance { source: source.to_owned(), uid: level.instance.to_owned() };
        let rows = match self.shared.jobs.ask(question, self.shared.settings.index_time).await {
            Ok(Answer::Rows(rows)) => rows,
            Ok(_) => return Err(unavailable("the index gave no answer of this kind")),
            Err(why) => return Err(unavailable(&why)),
        };
        let mut failure = None;
        for path in self.remember(source, &rows, level.instance) {
            match self.files.take(&path).await {
                Ok(file) if file.instance == wanted => {
                    self.shared.catalogue.put(name, &path);
                    return belongs(Found { path, file }, level);
                }
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure
            .map_or_else(|| not_found("the source holds no such instance"), |error| refusal_of(&error)))
    }

    /// Keeps the rows of an answer, and returns the paths of those that hold an instance, as the index says.
    fn remember(&self, source: &str, rows: &[u8], instance: &str) -> Vec<Box<str>> {
        let (mut rest, mut paths) = (rows, Vec::new());
        // Rows that are of no use are passed over: the file is read instead.
        let _ = self.shared.cache.put_rows(rows, Class::Normal);
        while let Ok(Some(row)) = next_row(&mut rest) {
            let Ok(Row { path, outcome: Ok(table), .. }) = row else { continue };
            let held = table.image.sop_instance_uid.as_str();
            if held == instance {
                paths.push(path.into());
            } else if !held.is_empty() {
                self.shared.catalogue.put(digest(source, held), path);
            }
        }
        paths
    }

    /// A table of some frames of a file: from memory, the index, or the file itself.
    async fn select(&self, source: &str, found: &Found, frames: &[u32]) -> Result<Selection, Error> {
        if let Some(selection) = self.look_up(&found.path, frames) {
            self.shared.metrics.count_tier(Tier::Memory);
            return Ok(selection);
        }
        self.alone(digest("", &found.path), self.load(source, found, frames)).await
    }

    fn look_up(&self, path: &str, frames: &[u32]) -> Option<Selection> {
        look_up(&mut self.shared.cache.lru.lock(), path, frames, request(false))
    }

    async fn load(&self, source: &str, found: &Found, frames: &[u32]) -> Result<Selection, Error> {
        if let Some(selection) = self.look_up(&found.path, frames) {
            self.shared.metrics.count_tier(Tier::Memory); // another request loaded it meanwhile
            return Ok(selection);
        }
        let question = Question::File { source: source.to_owned(), path: found.path.to_string() };
        if let Ok(Answer::Rows(rows)) = self.shared.jobs.ask(question, self.shared.settings.index_time).await
            && self.shared.cache.put_rows(&rows, Class::Normal).is_ok()
            && let Some(Ok(selection)) = self.look_up(&found.path, frames)
            && selection.table.check_describes(&found.file.source).is_ok()
        {
            self.shared.metrics.count_tier(Tier::Index);
            return Ok(Ok(selection));
        }
        self.shared.metrics.count_tier(Tier::File);
        self.compute(source, found, frames, Verify::Ends).await
    }

    /// Computes the table of a file, keeps it, and has it written to the index.
    async fn compute(
        &self,
        source: &str,
        found: &Found,
        frames: &[u32],
        verify: Verify,
    ) -> Result<Selection, Error> {
        let (file, source, path) = (found.file.clone(), source.to_owned(), found.path.to_string());
        let frames = frames.to_vec();
        let (record, row, selection) = blocking(move || {
            let table = dicom::read_table(&file.source, verify, &mut Buffer::default())?;
            let record = cached::record(&path, &table, None)?;
            let mut row = Vec::new();
            row::encode(&source, &path, Some(table.fingerprint), Ok(&table), &mut row);
            let selection = cached::select(record.meta(), record.value(), &frames);
            let selection =
                selection.ok_or_else(|| Error::new(ErrorKind::BadTable, "the table does not decode"))?;
            Ok((record, (source, row), selection))
        })
        .await?;
        let put = Put { class: Class::Normal, used_at: 0, preload_limit: None };
        self.shared.cache.lru.lock().put(record, put);
        self.shared.jobs.tell(Question::Computed { source: row.0, row: row.1 });
        Ok(selection)
    }

    /// Forgets what is known of a file that is no longer what it was.
    fn forget(&self, path: &str) {
        self.files.forget(path);
        self.shared.cache.lru.lock().invalidate(path.as_bytes());
    }
}

/// Refuses an instance of another study or series than the address says.
fn belongs(found: Found, level: Level<'_>) -> Result<Found, Response> {
    let same = |asked: &str, held: u128| asked.is_empty() || uid(asked) == held;
    if same(level.study, found.file.study) && same(level.series, found.file.series) {
        Ok(found)
    } else {
        Err(not_found("the instance belongs to another study or series"))
    }
}

/// The response for what is wrong with a file: its kind and place, never its path.
fn refusal_of(error: &Error) -> Response {
    let place = error.offset.map_or(String::new(), |offset| format!(" (byte {offset})"));
    let status = match error.kind {
        ErrorKind::IoError if error.errno == Some(2) => 404,
        ErrorKind::IoError | ErrorKind::ChangedDuringRead => 503,
        _ => 404,
    };
    let detail = if error.kind == ErrorKind::IoError {
        "the file cannot be read now".to_owned()
    } else {
        format!("{}{place}", error.detail)
    };
    Response::refusal(status, error.kind.name(), &detail)
}

/// Whether another try may succeed: the file changed, or its own offset table is wrong somewhere.
fn is_worth_a_retry(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::ChangedDuringRead | ErrorKind::BadTable)
}

/// Whether the ranges of a selection are exactly the bytes of its frames.
fn is_exact(table: &FrameTable) -> bool {
    table.offsets_in == crate::frames::table::OffsetsIn::File && !table.is_unwalked()
}

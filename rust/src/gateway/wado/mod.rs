//! WADO-RS: from UIDs to the file that holds them, and the resources made of it (PS3.18 10.4).

pub mod accept;
mod bulk_data;
pub mod conditional;
mod convert;
mod frames;
mod instances;
mod metadata;
mod object;
mod rights;

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::base::error::{Error, ErrorKind};
use crate::base::source::Source;
use crate::base::window::Buffer;
use crate::dicom;
use crate::frames::memory::cache::{look_up, request};
use crate::frames::memory::cached::{self, Selection};
use crate::frames::memory::lru::{Class, Put};
use crate::frames::row::{self, Row, next_row};
use crate::frames::table::{FrameTable, Status, Verify};
use crate::gateway::access::Scope;
use crate::gateway::files::catalogue::digest;
use crate::gateway::files::{Opened, blocking, is_out_of_reach, uid};
use crate::gateway::http::response::Response;
use crate::gateway::jobs::{Answer, Question};
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, not_found, unavailable};
use crate::gateway::telemetry::metrics::Tier;

/// Tries when a file changes while it is read.
const ATTEMPTS: usize = 3;
/// One sentence for what is not there, lies elsewhere, or may not be seen.
const NO_INSTANCE: &str = "the source holds no such instance in this study and series";

/// An instance: its path and its open file, which holds the UIDs that were asked for.
pub struct Found {
    path: Arc<str>,
    file: Arc<Opened>,
}

/// What the file of a copy is to a request.
enum Copy {
    /// It holds the instance, and may be read.
    Here(Found),
    /// It holds the instance in another study or series, or not for these groups.
    Hidden,
    /// It holds another instance now.
    Replaced,
    /// It cannot be opened.
    Failed(Error),
}

impl Worker {
    /// The file that holds an instance now, if the request may see it.
    ///
    /// # Errors
    /// The response that says why there is none.
    async fn find(&self, scope: &Scope<'_>, level: Level<'_>) -> Result<Found, Response> {
        if !level.is_well_formed() {
            return Err(bad_uid());
        }
        let name = scope.name(level.instance);
        let mut cut = None;
        if let Some(path) = self.shared.catalogue.path(name) {
            match self.look_at(scope, level, &path).await? {
                Copy::Here(found) if self.is_best_known(name, &found) => return Ok(found),
                Copy::Here(found) => cut = Some(found),
                // Another copy of it may be of this study, or for these groups.
                Copy::Hidden => {}
                // The file is gone, or another instance lies there now: the index may know a second copy.
                Copy::Replaced | Copy::Failed(_) => self.shared.catalogue.forget(name),
            }
        }
        let found = Box::pin(self.alone(name, self.resolve(scope, level))).await;
        match (found, cut) {
            // Nothing better is known, as long as the index does not answer.
            (Err(refusal), Some(cut)) if refusal.status == 503 => {
                self.shared.best_known.note(name);
                Ok(cut)
            }
            (found, _) => found,
        }
    }

    /// Asks the index for the file of an instance, unless another request has done so meanwhile.
    async fn resolve(&self, scope: &Scope<'_>, level: Level<'_>) -> Result<Found, Response> {
        let name = scope.name(level.instance);
        if let Some(path) = self.shared.catalogue.path(name)
            && let Copy::Here(found) = self.look_at(scope, level, &path).await?
            && self.is_best_known(name, &found)
        {
            return Ok(found);
        }
        let mut failure = None;
        for path in self.copies(scope, level).await? {
            match self.look_at(scope, level, &path).await? {
                Copy::Here(found) => {
                    self.shared.catalogue.put(name, &path);
                    if found.file.is_cut {
                        self.shared.best_known.note(name);
                    }
                    return Ok(found);
                }
                Copy::Hidden | Copy::Replaced => {}
                Copy::Failed(error) => {
                    // What its file is like is told to nobody whom the index may not show it, or shows another file.
                    let is_told = scope.groups.is_none()
                        || is_out_of_reach(&error) && self.may_read(scope, [&*path], level.instance).await?;
                    // One that may be good says more than one that is not.
                    if is_told && !failure.as_ref().is_some_and(is_out_of_reach) {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.map_or_else(|| not_found(NO_INSTANCE), |error| refusal_of(&error)))
    }

    /// Whether no copy is better than one, as far as is known: of one that is cut off the index is asked now and then.
    fn is_best_known(&self, name: u128, found: &Found) -> bool {
        !found.file.is_cut || self.shared.best_known.holds(name)
    }

    /// As [`Self::find`]; a file that was written anew, renamed or linked since it was opened is opened again.
    ///
    /// # Errors
    /// As [`Self::find`]; that of a file that changes all the time.
    async fn find_unchanged(&self, scope: &Scope<'_>, level: Level<'_>) -> Result<Found, Response> {
        let mut found = self.find(scope, level).await?;
        for _ in 1..ATTEMPTS {
            if found.file.source.check_unchanged().is_ok() {
                return Ok(found);
            }
            self.forget(&found.path);
            found = self.find(scope, level).await?;
        }
        found.file.source.check_unchanged().map_err(|error| refusal_of(&error))?;
        Ok(found)
    }

    /// The paths of an instance that the index shows to a request, the best first.
    async fn copies(&self, scope: &Scope<'_>, level: Level<'_>) -> Result<Vec<Arc<str>>, Response> {
        let (source, uid) = (scope.source.to_owned(), level.instance.to_owned());
        let question = Question::Instance { source, uid, groups: scope.groups.clone() };
        let limit = self.shared.settings.index_time;
        let asked = self.shared.jobs.ask_for(question, limit, Answer::rows).await;
        let rows = asked.map_err(|why| unavailable(&why))?;
        Ok(self.remember(scope, &rows, level.instance))
    }

    /// What the file of a path is to a request for an instance.
    ///
    /// # Errors
    /// The response where nobody knows the rights.
    async fn look_at(&self, scope: &Scope<'_>, level: Level<'_>, path: &Arc<str>) -> Result<Copy, Response> {
        let file = match self.take(path, level).await {
            Ok(file) if file.instance == uid(level.instance) => file,
            Ok(_) => return Ok(Copy::Replaced),
            Err(error) => return Ok(Copy::Failed(error)),
        };
        let is_seen = belongs(&file, level) && {
            // A file behind a link is shown under its own name as well.
            let own_name = scope.groups.as_ref().and_then(|_| file.own_name(path));
            let names = std::iter::once(&**path).chain(own_name.as_deref());
            self.may_read(scope, names, level.instance).await?
        };
        Ok(if is_seen { Copy::Here(Found { path: path.clone(), file }) } else { Copy::Hidden })
    }

    /// Answers from the file as it is now where it has changed, or from another copy of an instance, as the file that was
    /// found is at fault. Says what its fault is where
    /// no other copy gives more, of which the index is asked now and then.
    async fn by_another_copy(
        &self,
        (scope, level): (&Scope<'_>, Level<'_>),
        found: &Found,
        error: &Error,
        answer: impl AsyncFn(&Found) -> Result<Response, Error>,
    ) -> Response {
        let name = scope.name(level.instance);
        if error.kind == ErrorKind::ChangedDuringRead
            && let Ok(Copy::Here(again)) = self.look_at(scope, level, &found.path).await
            && let Ok(response) = answer(&again).await
        {
            return response;
        }
        let work = async {
            // Another request may have looked meanwhile, and found a copy or none.
            if self.shared.in_vain.holds(name) {
                return None;
            }
            let known = self.shared.catalogue.path(name).filter(|path| *path != found.path);
            let copies = match known {
                Some(path) => vec![path],
                None => self.copies(scope, level).await.ok()?,
            };
            for path in copies.iter().filter(|path| **path != found.path) {
                if let Ok(Copy::Here(other)) = self.look_at(scope, level, path).await
                    && let Ok(response) = answer(&other).await
                    && response.status != 404
                {
                    self.shared.catalogue.put(name, path);
                    return Some(response);
                }
            }
            self.shared.in_vain.note(name);
            None
        };
        Box::pin(self.alone(name, work)).await.unwrap_or_else(|| refusal_of(error))
    }

    /// The open file of a path; opened again where it changed since and held another instance then.
    async fn take(&self, path: &str, level: Level<'_>) -> Result<Arc<Opened>, Error> {
        let file = self.files.take(path).await?;
        let is_wanted = file.instance == uid(level.instance) && belongs(&file, level);
        if is_wanted || file.source.check_unchanged().is_ok() {
            return Ok(file);
        }
        self.files.forget(path);
        self.files.take(path).await
    }

    /// Keeps the rows of an answer, and returns the paths of those that hold an instance, as the index says: by path,
    /// those that are cut off, and last those whose frames are refused, behind the others. Of each other instance the
    /// first path of a whole copy is noted.
    fn remember(&self, scope: &Scope<'_>, rows: &[u8], instance: &str) -> Vec<Arc<str>> {
        let mut rest = rows;
        let (mut copies, mut others) = (BTreeSet::new(), HashMap::<&str, (u8, &str)>::new());
        // Rows that are of no use are passed over: the file is read instead.
        let _ = self.shared.cache.put_rows(rows, Class::Normal);
        while let Ok(Some(row)) = next_row(&mut rest) {
            let Ok(Row { path, sop_instance_uid: held, outcome, .. }) = row else { continue };
            if !self.shared.roots.hold(path) {
                continue;
            }
            let harm = match &outcome {
                Ok(table) => u8::from(table.status == Status::Truncated),
                Err(_) => 2,
            };
            let place = (harm, path);
            if held == instance {
                copies.insert(place);
            } else if !held.is_empty() {
                others.entry(held).and_modify(|first| *first = place.min(*first)).or_insert(place);
            }
        }
        // Of one that is harmed there may be a better copy, whose row was left out of a long series.
        for (held, (_, path)) in others.into_iter().filter(|(_, (harm, _))| *harm == 0) {
            self.shared.catalogue.put(scope.name(held), path);
        }
        copies.into_iter().map(|(_, path)| path.into()).collect()
    }

    /// A table of some frames of a file: from memory, the index, or the file itself.
    async fn select(
        &self,
        scope: &Scope<'_>,
        found: &Found,
        frames: &[u32],
    ) -> Result<(Selection, Tier), Error> {
        let answer = match self.look_up(&found.path, frames) {
            Some(selection) => (selection, Tier::Memory),
            None => Box::pin(self.alone(digest("", &found.path), self.load(scope, found, frames))).await?,
        };
        self.shared.metrics.count_tier(answer.1);
        Ok(answer)
    }

    fn look_up(&self, path: &str, frames: &[u32]) -> Option<Selection> {
        look_up(&mut self.shared.cache.lru.lock(), path, frames, request(false))
    }

    async fn load(
        &self,
        scope: &Scope<'_>,
        found: &Found,
        frames: &[u32],
    ) -> Result<(Selection, Tier), Error> {
        if let Some(selection) = self.look_up(&found.path, frames) {
            return Ok((selection, Tier::Memory)); // another request loaded it meanwhile
        }
        let (source, path) = (scope.source.to_owned(), found.path.to_string());
        let question = Question::File { source, path, groups: scope.groups.clone() };
        let limit = self.shared.settings.index_time;
        if let Ok(rows) = self.shared.jobs.ask_for(question, limit, Answer::rows).await
            && self.shared.cache.put_rows(&rows, Class::Normal).is_ok()
            && let Some(Ok(selection)) = self.look_up(&found.path, frames)
            && selection.table.check_describes(&found.file.source).is_ok()
        {
            return Ok((Ok(selection), Tier::Index));
        }
        Ok((self.compute(scope.source, found, frames, Verify::Ends).await?, Tier::File))
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
            let read = |source: &dyn Source| dicom::read_table(source, verify, &mut Buffer::default());
            let table = file.source.read(read)?;
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

fn bad_uid() -> Response {
    Response::refusal(400, "bad_uid", "a UID has at most 64 digits and points (PS3.5 9.1)")
}

/// Whether a file is of the study and series that the address names, where it names them.
fn belongs(file: &Opened, level: Level<'_>) -> bool {
    let same = |asked: &str, held: u128| asked.is_empty() || uid(asked) == held;
    same(level.study, file.study) && same(level.series, file.series)
}

/// The response for what is wrong with a file: its kind and place, never its path.
fn refusal_of(error: &Error) -> Response {
    let place = error.offset.map_or(String::new(), |offset| format!(" (byte {offset})"));
    let status = match error.kind {
        ErrorKind::IoError if error.is_gone() => 404,
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

//! What the groups of a request may see: a file, under its own name too where a link leads to it, and the instances of
//! a study or series.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::{bad_uid, refusal_of};
use crate::gateway::access::Scope;
use crate::gateway::files::{Member, blocking, led_to, uid};
use crate::gateway::http::response::Response;
use crate::gateway::jobs::{Answer, Question};
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, not_found, unavailable};

impl Worker {
    /// Whether the groups of a request may read a file under all of its names. Nothing is remembered: a right that is
    /// withdrawn ends with the next request.
    pub(super) async fn may_read(
        &self,
        scope: &Scope<'_>,
        names: impl IntoIterator<Item = &str>,
        instance: &str,
    ) -> Result<bool, Response> {
        let Some(groups) = &scope.groups else { return Ok(true) };
        let files = names.into_iter().map(|name| (name.to_owned(), instance.to_owned())).collect();
        let asked = self.rights(scope, groups, files, self.shared.settings.index_time);
        Ok(Box::pin(asked).await?.into_iter().all(|may| may))
    }

    /// Whether groups may read each of some files, given by path and SOP Instance UID.
    async fn rights(
        &self,
        scope: &Scope<'_>,
        groups: &[String],
        files: Vec<(String, String)>,
        limit: Duration,
    ) -> Result<Vec<bool>, Response> {
        let (source, groups, count) = (scope.source.to_owned(), groups.to_vec(), files.len());
        let question = Question::Rights { source, files, groups };
        let take = |answer| match answer {
            Answer::Rights(rights) if rights.len() == count => Some(rights),
            _ => None,
        };
        let asked = self.shared.jobs.ask_for(question, limit, take).await;
        asked.map_err(|why| unavailable(&why))
    }

    /// Leaves out the paths that lead by a link to what groups may not see, and the instances that have no others.
    async fn behind_links(
        &self,
        scope: &Scope<'_>,
        groups: &[String],
        files: Vec<(String, Vec<String>)>,
    ) -> Result<(Vec<(String, Vec<String>)>, HashSet<(String, String)>), Response> {
        let named = move || {
            let all = files.iter().flat_map(|(uid, paths)| paths.iter().map(move |path| (uid, path)));
            let led = all.filter_map(|(uid, path)| Some((path.clone(), (led_to(path)?, uid.clone()))));
            let led: HashMap<String, (String, String)> = led.collect();
            Ok((files, led))
        };
        let (mut files, led) = blocking(named).await.map_err(|error| refusal_of(&error))?;
        if led.is_empty() {
            return Ok((files, HashSet::new()));
        }
        let asked: Vec<(String, String)> = led.values().cloned().collect();
        let rights = self.rights(scope, groups, asked.clone(), self.shared.settings.index_time * 10).await?;
        let shown = asked.into_iter().zip(rights).filter(|(_, may)| *may);
        let shown: HashSet<(String, String)> = shown.map(|(file, _)| file).collect();
        for (_, paths) in &mut files {
            paths.retain(|path| led.get(path).is_none_or(|file| shown.contains(file)));
        }
        files.retain(|(_, paths)| !paths.is_empty());
        Ok((files, shown))
    }

    /// The instances of a study or series that a request may see, as the index says.
    ///
    /// # Errors
    /// The response that says why there is none.
    pub(super) async fn files_of(
        &self,
        scope: &Scope<'_>,
        level: Level<'_>,
    ) -> Result<Vec<Member>, Response> {
        if !level.is_well_formed() {
            return Err(bad_uid());
        }
        let question = Question::Files {
            source: scope.source.to_owned(),
            study: level.study.to_owned(),
            series: level.series.to_owned(),
            groups: scope.groups.clone(),
        };
        let place = (uid(level.study), (!level.series.is_empty()).then(|| uid(level.series)));
        let files = |answer| if let Answer::Files(files) = answer { Some(files) } else { None };
        let asked = self.shared.jobs.ask_for(question, self.shared.settings.index_time * 10, files).await;
        let mut files = asked.map_err(|why| unavailable(&why))?;
        let mut shown = None;
        if let Some(groups) = &scope.groups {
            let of_links;
            (files, of_links) = Box::pin(self.behind_links(scope, groups, files)).await?;
            shown = Some(Arc::new(of_links));
        }
        if files.is_empty() {
            return Err(not_found("the source holds no such study or series"));
        }
        let member = |(uid, paths)| Member { paths, uid, place, shown: shown.clone() };
        Ok(files.into_iter().map(member).collect())
    }
}

//! `/wado`: one instance, named by the query (WADO-URI, PS3.18 9).

use super::instances::whole;
use crate::gateway::access::Scope;
use crate::gateway::http::request::Request;
use crate::gateway::http::response::Response;
use crate::gateway::routes::Level;
use crate::gateway::service::Worker;
use crate::gateway::wado::accept::{DICOM, instance_form, media_ranges};

impl Worker {
    /// Answers a request by WADO-URI; the one form is that of the file.
    pub async fn object(&self, request: &Request<'_>, scope: &Scope<'_>) -> Response {
        let given = |name: &str| request.parameter(name).unwrap_or_default();
        if given("requestType") != "WADO" {
            return bad_query("requestType must be WADO (PS3.18 9.1.2.1)");
        }
        let [study, series, instance] = ["studyUID", "seriesUID", "objectUID"].map(given);
        if study.is_empty() || series.is_empty() || instance.is_empty() {
            return bad_query("studyUID, seriesUID and objectUID must be given (PS3.18 9.1.2.1)");
        }
        if !given("anonymize").is_empty() {
            return bad_query("instances are sent as they are stored: anonymize cannot be asked for");
        }
        if !given("frameNumber").is_empty() {
            return bad_query("frameNumber is not for application/dicom: ask for frames by WADO-RS");
        }
        let wanted = given("contentType");
        let fits = if wanted.is_empty() {
            instance_form(&media_ranges(request), None).is_some()
        } else {
            let mut types = wanted.split(',').map(|each| each.split(';').next().unwrap_or_default().trim());
            types.any(|each| each.eq_ignore_ascii_case(DICOM) || each == "*/*")
        };
        if !fits {
            return Response::refusal(406, "not_acceptable", "instances are sent as application/dicom");
        }
        let level = Level { study: &study, series: &series, instance: &instance };
        let found = match self.find_unchanged(scope, level).await {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let (syntax, stored) = (given("transferSyntax"), found.file.transfer_syntax.as_str());
        if !(syntax.is_empty() || syntax == stored) {
            let detail = format!("the instance is stored as {stored}: ask for it, or give no transferSyntax");
            return Response::refusal(406, "not_acceptable", &detail);
        }
        whole(request, &found, false)
    }
}

fn bad_query(detail: &str) -> Response {
    Response::refusal(400, "bad_query", detail)
}

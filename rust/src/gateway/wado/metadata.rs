//! Headers as DICOM JSON, and bulk data (PS3.18 10.4.1.1.2, 10.4.1.1.5).

use crate::gateway::http::request::Request;
use crate::gateway::http::response::Response;
use crate::gateway::routes::Level;
use crate::gateway::service::{Worker, not_found};

impl Worker {
    /// Answers a request for headers.
    pub async fn metadata(
        &self,
        _request: &Request<'_>,
        _source: &str,
        _root: &str,
        _level: Level<'_>,
    ) -> Response {
        not_found("headers are not served yet")
    }

    /// Answers a request for the value of an element.
    pub async fn bulk_data(
        &self,
        _request: &Request<'_>,
        _source: &str,
        _level: Level<'_>,
        _place: &str,
    ) -> Response {
        not_found("bulk data is not served yet")
    }
}

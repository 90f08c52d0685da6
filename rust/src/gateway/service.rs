//! What a worker does with a request: who may ask, what is asked, and what goes with every response.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::{Mutex, watch};

use super::catalogue::Catalogue;
use super::files::{Files, Roots};
use super::http::request::{Method, Request};
use super::http::response::{Body, Response};
use super::jobs::{Answer, Jobs, Question};
use super::metrics::{Kind, Metrics};
use super::routes::{Resource, Route, route};
use crate::frames::memory::cache::FrameCache;

/// Descriptors that a worker keeps open.
const OPEN_FILES: usize = 256;
/// Instances whose paths are kept in memory: half of them.
const CATALOGUE: usize = 250_000;
/// Time for a search.
const SEARCH_TIME: Duration = Duration::from_secs(30);

/// How a gateway answers; fixed when it starts.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Sources that may be asked; the first is the default one.
    pub sources: Vec<String>,
    /// Digests of tokens (BLAKE2b) and the sources that each is good for; none: no token is asked for.
    pub tokens: Vec<([u8; 32], Vec<String>)>,
    /// Origins that scripts of other sites may come from (CORS), exactly as a browser sends them.
    pub cors_origins: Vec<String>,
    /// Folder of a viewer's files, or none.
    pub viewer: Option<std::path::PathBuf>,
    /// Longest time that a frame waits for the index.
    pub index_time: Duration,
    /// Page at `/status`.
    pub page: String,
    /// `app-config.js` of the viewer.
    pub viewer_config: String,
}

/// What the workers share.
pub struct Shared {
    /// See [`Settings`].
    pub settings: Settings,
    /// Tier 1.
    pub cache: Arc<FrameCache>,
    /// Paths by UID.
    pub catalogue: Catalogue,
    /// Questions to Python.
    pub jobs: Jobs,
    /// Counters.
    pub metrics: Metrics,
    /// Folders that are served.
    pub roots: Arc<Roots>,
    /// Whether the first preload is through.
    pub is_ready: AtomicBool,
    /// Whether the gateway is to stop.
    stop: watch::Sender<bool>,
}

impl Shared {
    /// What the workers of a gateway that has not begun share.
    pub fn new(settings: Settings, cache: Arc<FrameCache>, roots: Vec<std::path::PathBuf>) -> Self {
        Self {
            settings,
            cache,
            catalogue: Catalogue::new(CATALOGUE),
            jobs: Jobs::default(),
            metrics: Metrics::default(),
            roots: Arc::new(Roots::new(roots)),
            is_ready: AtomicBool::new(false),
            stop: watch::Sender::new(false),
        }
    }

    /// Lets the workers end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether the workers are to end.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

/// One worker: what its thread alone uses, and what it shares.
pub struct Worker {
    /// See [`Shared`].
    pub shared: Arc<Shared>,
    /// Open files.
    pub files: Files,
    /// One question about a name at a time: see [`Worker::alone`].
    flights: RefCell<HashMap<u128, Rc<Mutex<()>>>>,
    stop: watch::Receiver<bool>,
}

impl Worker {
    /// A worker for the thread that calls.
    pub fn new(shared: Arc<Shared>) -> Self {
        let files = Files::new(shared.roots.clone(), OPEN_FILES);
        let stop = shared.stop.subscribe();
        Self { shared, files, flights: RefCell::default(), stop }
    }

    /// Whether the gateway is to stop.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Does the work for a name while no other request of this worker does work for it.
    pub async fn alone<R>(&self, name: u128, work: impl Future<Output = R>) -> R {
        let flight = self.flights.borrow_mut().entry(name).or_default().clone();
        let guard = flight.lock().await;
        let result = work.await;
        drop(guard);
        // This request and the map hold it: nobody waits.
        if Rc::strong_count(&flight) == 2 {
            self.flights.borrow_mut().remove(&name);
        }
        result
    }

    /// Waits until the gateway is to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move {
            let _ = stop.wait_for(|&stop| stop).await;
        }
    }

    /// Answers a request.
    pub async fn respond(&self, request: &Request<'_>) -> Response {
        let begun = Instant::now();
        let metrics = &self.shared.metrics;
        let in_flight = Gauge::up(&metrics.in_flight);
        let asked = route(request.path);
        let kind = kind_of(&asked);
        let response = match request.method {
            Method::Options => preflight(),
            Method::Other => {
                Response::refusal(405, "method_not_allowed", "resources are read only: GET, HEAD, OPTIONS")
                    .with("Allow", "GET, HEAD, OPTIONS")
            }
            Method::Get | Method::Head => self.answer(request, asked).await,
        };
        drop(in_flight);
        let mut response = self.with_common(request, response);
        let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let is_head = request.method == Method::Head;
        metrics.count(kind, response.status, response.length.filter(|_| !is_head), microseconds);
        if is_head {
            response = response.without_body();
        }
        response
    }

    async fn answer(&self, request: &Request<'_>, asked: Route<'_>) -> Response {
        match asked {
            Route::Health => Response::of(200, "text/plain", "ok\n"),
            Route::Ready => self.ready(),
            Route::File(_) | Route::Page | Route::Status | Route::Metrics | Route::Dicomweb(..) => {
                let source = match &asked {
                    Route::Dicomweb(Some(source), _) => Some(*source),
                    Route::Dicomweb(None, _) => self.shared.settings.sources.first().map(String::as_str),
                    _ => None,
                };
                if let Err(refusal) = self.authorize(request, source) {
                    return refusal;
                }
                self.answer_authorized(request, asked, source.unwrap_or_default()).await
            }
        }
    }

    async fn answer_authorized(&self, request: &Request<'_>, asked: Route<'_>, source: &str) -> Response {
        match asked {
            Route::Page if request.path == "/" && self.shared.settings.viewer.is_some() => {
                self.viewer_file("/").await
            }
            Route::Page => Response::of(200, "text/html; charset=utf-8", self.shared.settings.page.clone())
                .with("Cache-Control", "no-cache"),
            Route::Status => self.status().await,
            Route::Metrics => {
                let text = self.shared.metrics.to_prometheus();
                Response::of(200, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            Route::Dicomweb(named, resource) => {
                if !self.shared.settings.sources.iter().any(|known| known == source) {
                    return Response::refusal(
                        404,
                        "no_such_source",
                        "the gateway serves no source of this name",
                    );
                }
                let root = named.map_or("/dicomweb".to_owned(), |named| format!("/{named}/dicomweb"));
                match resource {
                    Resource::Frames(level, list) => self.frames(request, source, &root, level, list).await,
                    Resource::Instances(level) => self.instances(request, source, level).await,
                    Resource::Metadata(level) => self.metadata(request, source, &root, level).await,
                    Resource::BulkData(level, place) => {
                        self.bulk_data(request, source, &root, level, place).await
                    }
                    Resource::Search(path) => self.search(request, source, &root, path).await,
                    Resource::Unknown => not_found("DICOMweb has no such resource"),
                }
            }
            Route::File(path) => self.viewer_file(path).await,
            Route::Health | Route::Ready => Response::empty(404),
        }
    }

    fn ready(&self) -> Response {
        if self.shared.is_ready.load(Ordering::Relaxed) {
            Response::of(200, "text/plain", "ready\n")
        } else {
            Response::of(503, "text/plain", "tables are being loaded\n").with("Retry-After", "1")
        }
    }

    /// Checks the token of a request against those that are good for a source.
    fn authorize(&self, request: &Request<'_>, source: Option<&str>) -> Result<(), Response> {
        let tokens = &self.shared.settings.tokens;
        if tokens.is_empty() {
            return Ok(());
        }
        let given = request.header("authorization").and_then(|line| {
            let (scheme, token) = line.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token_digest(token.trim()))
        });
        // Digests are compared, so that the time of the comparison says nothing of the token.
        let known = given.and_then(|given| tokens.iter().find(|(token, _)| *token == given));
        let Some((_, sources)) = known else {
            let detail = "send the header: Authorization: Bearer TOKEN";
            let challenge = "Bearer realm=\"voxtier\"";
            return Err(Response::refusal(401, "unauthorized", detail).with("WWW-Authenticate", challenge));
        };
        match source {
            Some(source) if !sources.is_empty() && !sources.iter().any(|each| each == source) => {
                Err(not_found("the gateway serves no source of this name"))
            }
            _ => Ok(()),
        }
    }

    /// Adds what every response carries.
    fn with_common(&self, request: &Request<'_>, mut response: Response) -> Response {
        response.headers.push(("X-Content-Type-Options", "nosniff".to_owned()));
        let origins = &self.shared.settings.cors_origins;
        if !origins.is_empty() {
            response.headers.push(("Vary", "Origin".to_owned()));
            if let Some(origin) =
                request.header("origin").filter(|origin| origins.iter().any(|each| each == origin))
            {
                response.headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
                let exposed = "ETag, Content-Range, Content-Location, Content-Length, Warning";
                response.headers.push(("Access-Control-Expose-Headers", exposed.to_owned()));
            }
        }
        response
    }

    async fn search(&self, request: &Request<'_>, source: &str, root: &str, path: &str) -> Response {
        let question = Question::Search {
            source: source.to_owned(),
            path: path.to_owned(),
            query: request.query.to_owned(),
            root: root.to_owned(),
        };
        self.ask_python(question).await
    }

    async fn status(&self) -> Response {
        let own = self.shared.metrics.to_json();
        let other = match self.shared.jobs.ask(Question::Status, self.shared.settings.index_time).await {
            Ok(Answer::Http(200, _, body)) => String::from_utf8(body).unwrap_or_else(|_| "null".to_owned()),
            _ => "null".to_owned(),
        };
        let text = format!("{{\"gateway\":{own},\"frames\":{other}}}");
        Response::of(200, "application/json", text).with("Cache-Control", "no-store")
    }

    async fn ask_python(&self, question: Question) -> Response {
        match self.shared.jobs.ask(question, SEARCH_TIME).await {
            Ok(Answer::Http(204, _, _)) => Response::empty(204),
            Ok(Answer::Http(status, media_type, body)) => {
                Response::of(status, &media_type, body).with("Cache-Control", "no-cache")
            }
            Ok(_) => unavailable("the index gave no answer of this kind"),
            Err(why) => unavailable(&why),
        }
    }

    async fn viewer_file(&self, path: &str) -> Response {
        let Some(folder) = &self.shared.settings.viewer else {
            return not_found("nothing is served at this address: the root of DICOMweb is /dicomweb");
        };
        if path == "/app-config.js" {
            return Response::of(200, "text/javascript", self.shared.settings.viewer_config.clone())
                .with("Cache-Control", "no-cache");
        }
        super::http::static_files::file(folder, path).await
    }
}

/// A token as it is kept and compared.
pub fn token_digest(token: &str) -> [u8; 32] {
    use blake2::digest::consts::U32;
    use blake2::{Blake2b, Digest};
    Blake2b::<U32>::digest(token.as_bytes()).into()
}

/// Status 404.
pub fn not_found(detail: &str) -> Response {
    Response::refusal(404, "not_found", detail)
}

/// Status 503: another try may succeed.
pub fn unavailable(detail: &str) -> Response {
    Response::refusal(503, "unavailable", detail).with("Retry-After", "1")
}

fn preflight() -> Response {
    Response { body: Body::Empty, ..Response::empty(204) }
        .with("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        .with("Access-Control-Allow-Headers", "Accept, Authorization, If-None-Match, Range")
        .with("Access-Control-Max-Age", "7200")
}

fn kind_of(route: &Route<'_>) -> Kind {
    match route {
        Route::Dicomweb(_, Resource::Frames(..)) => Kind::Frames,
        Route::Dicomweb(_, Resource::Instances(_)) => Kind::Instances,
        Route::Dicomweb(_, Resource::Metadata(_)) => Kind::Metadata,
        Route::Dicomweb(_, Resource::BulkData(..)) => Kind::BulkData,
        Route::Dicomweb(_, Resource::Search(_) | Resource::Unknown) => Kind::Search,
        _ => Kind::Page,
    }
}

/// A number that is one higher while this lives.
pub struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    /// Counts up.
    pub fn up(number: &'a AtomicU64) -> Self {
        number.fetch_add(1, Ordering::Relaxed);
        Self(number)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

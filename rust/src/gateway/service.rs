//! What a worker does with a request: who may ask, what is asked, and what goes with every response.

use std::cell::RefCell;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::{Mutex, Semaphore, watch};

use super::access::{Scope, check_token, groups, opens};
use super::files::catalogue::{Catalogue, InVain};
use super::files::{Files, Roots};
use super::http::budget::{Budget, WAIT};
use super::http::request::{Method, Request, decode};
use super::http::response::{Response, push_json};
use super::jobs::{Answer, Jobs, Question};
use super::routes::{Resource, Route, route};
use super::telemetry::log::{self, AccessLog};
use super::telemetry::metrics::{Kind, Metrics};
use super::wado::accept::{media_ranges, takes_json};
use crate::frames::memory::cache::FrameCache;

/// Descriptors that a worker keeps open.
const OPEN_FILES: usize = 256;
/// Instances whose paths are kept in memory: half of them.
const CATALOGUE: usize = 250_000;
/// Open connections in all; fewer where the process may have fewer descriptors.
const MOST_CONNECTIONS: u64 = 4096;
/// Time between two requests of a connection, and where more than half of all connections are taken.
const IDLE_TIME: Duration = Duration::from_secs(75);
const SHORT_IDLE_TIME: Duration = Duration::from_secs(5);
/// Long answers that one worker makes on other threads at the same time.
const MOST_STREAMS: usize = 16;
/// Time for a search.
const SEARCH_TIME: Duration = Duration::from_secs(30);

/// How a gateway answers; fixed when it starts.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Sources that may be asked; the first is the default one.
    pub sources: Vec<String>,
    /// Digests of tokens (BLAKE2b) and the sources that each is good for; none: no token is asked for.
    pub tokens: Vec<([u8; 32], Vec<String>)>,
    /// Header line in which a proxy names the groups of a user; none: everybody sees everything.
    pub groups_header: Option<String>,
    /// Origins that scripts of other sites may come from (CORS), exactly as a browser sends them.
    pub cors_origins: Vec<String>,
    /// Folder of a viewer's files, or none.
    pub viewer: Option<std::path::PathBuf>,
    /// Longest time that a frame waits for the index.
    pub index_time: Duration,
    /// Bytes of answers that may lie in memory while clients take them.
    pub in_flight_bytes: u64,
    /// Page at `/status`.
    pub page: String,
    /// `app-config.js` of the viewer, behind the line that names sources.
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
    /// Instances of which no better copy is known.
    pub in_vain: InVain,
    /// Instances of which no copy is better than the one that is cut off.
    pub best_known: InVain,
    /// Questions to Python.
    pub jobs: Arc<Jobs>,
    /// Counters.
    pub metrics: Metrics,
    /// Memory for answers on their way.
    pub budget: Arc<Budget>,
    /// The access log, if one is kept.
    pub log: Option<AccessLog>,
    /// Folders that are served.
    pub roots: Arc<Roots>,
    /// Whether the first preload is through.
    pub is_ready: AtomicBool,
    /// Open connections at most.
    pub most_connections: u64,
    /// Makes boundaries that nobody who writes a file can know before.
    pub secret: u64,
    /// Whether the gateway is to stop.
    stop: watch::Sender<bool>,
}

impl Shared {
    /// What the workers of a gateway that has not begun share.
    pub fn new(
        settings: Settings,
        cache: Arc<FrameCache>,
        roots: Vec<std::path::PathBuf>,
        log: Option<AccessLog>,
    ) -> Self {
        let jobs = Arc::new(Jobs::default());
        Self {
            budget: Arc::new(Budget::new(settings.in_flight_bytes, WAIT)),
            log,
            settings,
            cache,
            catalogue: Catalogue::new(CATALOGUE),
            in_vain: InVain::default(),
            best_known: InVain::default(),
            roots: Arc::new(Roots::new(roots, jobs.clone())),
            jobs,
            metrics: Metrics::default(),
            is_ready: AtomicBool::new(false),
            most_connections: most_connections(),
            secret: RandomState::new().hash_one(0),
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
    /// Long answers that other threads make for this worker.
    pub streams: Arc<Semaphore>,
    /// One question about a name at a time: see [`Worker::alone`].
    flights: RefCell<HashMap<u128, Rc<Mutex<()>>>>,
    stop: watch::Receiver<bool>,
}

impl Worker {
    /// A worker for the thread that calls.
    pub fn new(shared: Arc<Shared>) -> Self {
        let files = Files::new(shared.roots.clone(), OPEN_FILES);
        let stop = shared.stop.subscribe();
        let streams = Arc::new(Semaphore::new(MOST_STREAMS));
        Self { shared, files, streams, flights: RefCell::default(), stop }
    }

    /// Time for which a connection may stay without a request.
    pub fn idle_time(&self) -> Duration {
        let open = self.shared.metrics.connections.load(Ordering::Relaxed);
        if open * 2 > self.shared.most_connections { SHORT_IDLE_TIME } else { IDLE_TIME }
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
        let source = self.source_of(&asked);
        let response = match request.method {
            Method::Options => preflight(),
            Method::Other => {
                Response::refusal(405, "method_not_allowed", "resources are read only: GET, HEAD, OPTIONS")
                    .with("Allow", "GET, HEAD, OPTIONS")
            }
            Method::Get | Method::Head => self.answer(request, &asked, source).await,
        };
        drop(in_flight);
        let mut response = self.with_common(request, response);
        let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let is_head = request.method == Method::Head;
        let length = response.length.filter(|_| !is_head);
        metrics.count(kind_of(&asked), response.status, length, microseconds);
        if is_head {
            response = response.without_body();
        }
        if let Some(log) = &self.shared.log {
            let source = source.unwrap_or_default();
            log.write(log::line(request.method.name(), &asked, source, &response, microseconds));
        }
        response
    }

    /// The source that a DICOMweb resource belongs to, if it is one that is served.
    fn source_of(&self, asked: &Route<'_>) -> Option<&str> {
        let mut sources = self.shared.settings.sources.iter().map(String::as_str);
        match asked {
            Route::Dicomweb(Some(named), _) => {
                let named = decode(named)?;
                sources.find(|known| *known == named)
            }
            Route::Dicomweb(None, _) => sources.next(),
            _ => None,
        }
    }

    async fn answer(&self, request: &Request<'_>, asked: &Route<'_>, source: Option<&str>) -> Response {
        match asked {
            Route::Health => return Response::of(200, "text/plain", "ok\n"),
            Route::Ready => return self.ready(),
            _ => {}
        }
        let good_for = match check_token(&self.shared.settings.tokens, request) {
            Ok(good_for) => good_for,
            Err(refusal) => return refusal,
        };
        match asked {
            Route::Page if request.path == "/" && self.shared.settings.viewer.is_some() => {
                Box::pin(self.viewer_file(request, "/", good_for)).await
            }
            Route::Page => Response::of(200, "text/html; charset=utf-8", self.shared.settings.page.clone())
                .with("Cache-Control", "no-cache"),
            Route::Status => Box::pin(self.status(good_for)).await,
            Route::Metrics => {
                let tables = {
                    let lru = self.shared.cache.lru.lock();
                    [lru.len() as u64, lru.used(), lru.budget()]
                };
                let text = self.shared.metrics.to_prometheus(tables);
                Response::of(200, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            Route::File(path) => Box::pin(self.viewer_file(request, path, good_for)).await,
            Route::Health | Route::Ready => Response::empty(404),
            Route::Dicomweb(named, resource) => {
                // One that the token does not open is not told from one that is not there.
                let Some(source) = source.filter(|source| opens(good_for, source)) else {
                    let detail = "the gateway serves no source of this name";
                    return Response::refusal(404, "no_such_source", detail);
                };
                let groups = match groups(self.shared.settings.groups_header.as_deref(), request) {
                    Ok(groups) => groups,
                    Err(refusal) => return refusal,
                };
                let root = named.map_or("/dicomweb".into(), |named| format!("/{named}/dicomweb").into());
                self.resource(request, &Scope { source, root, groups }, resource).await
            }
        }
    }

    /// The sources that a token opens.
    fn opened<'a>(&'a self, good_for: &'a [String]) -> impl Iterator<Item = &'a str> {
        let sources = self.shared.settings.sources.iter().map(String::as_str);
        sources.filter(|source| opens(good_for, source))
    }

    async fn resource(&self, request: &Request<'_>, scope: &Scope<'_>, resource: &Resource<'_>) -> Response {
        // The state of what is rare lies in memory of its own: that of a connection stays small.
        match *resource {
            Resource::Frames(level, list) => self.frames(request, scope, level, list).await,
            Resource::Instances(level) => Box::pin(self.instances(request, scope, level)).await,
            Resource::Metadata(level) => Box::pin(self.metadata(request, scope, level)).await,
            Resource::BulkData(level, place) => Box::pin(self.bulk_data(request, scope, level, place)).await,
            Resource::Object => Box::pin(self.object(request, scope)).await,
            Resource::Search(path) => Box::pin(self.search(request, scope, path)).await,
            Resource::Unknown => not_found("DICOMweb has no such resource"),
        }
    }

    fn ready(&self) -> Response {
        if self.shared.is_ready.load(Ordering::Relaxed) {
            Response::of(200, "text/plain", "ready\n")
        } else {
            Response::of(503, "text/plain", "the index has not answered yet, or tables are being loaded\n")
                .with("Retry-After", "1")
        }
    }

    /// Adds what every response carries.
    fn with_common(&self, request: &Request<'_>, mut response: Response) -> Response {
        response.headers.push(("X-Content-Type-Options", "nosniff".into()));
        let origins = &self.shared.settings.cors_origins;
        if !origins.is_empty() {
            response.headers.push(("Vary", "Origin".into()));
            if let Some(origin) =
                request.header("origin").filter(|origin| origins.iter().any(|each| each == origin))
            {
                response.headers.push(("Access-Control-Allow-Origin", origin.to_owned().into()));
                let exposed = "ETag, Content-Range, Content-Location, Content-Length, Warning";
                response.headers.push(("Access-Control-Expose-Headers", exposed.into()));
            }
        }
        response
    }

    async fn search(&self, request: &Request<'_>, scope: &Scope<'_>, path: &str) -> Response {
        if !takes_json(&media_ranges(request)) {
            let detail = "search results are sent as application/dicom+json";
            return Response::refusal(406, "not_acceptable", detail);
        }
        let question = Question::Search {
            source: scope.source.to_owned(),
            path: path.to_owned(),
            query: request.query.to_owned(),
            root: scope.root.clone().into_owned(),
            groups: scope.groups.clone(),
        };
        let asked = self.shared.jobs.ask_for(question, SEARCH_TIME, Answer::http).await;
        let (status, media_type, body, warning) = match asked {
            Ok(answer) => answer,
            Err(why) => return unavailable(&why),
        };
        let response = if status == 204 {
            Response::empty(204)
        } else {
            match self.shared.budget.admit(body).await {
                Ok(body) => {
                    let kept = if status < 400 { "no-cache" } else { "no-store" };
                    Response::of(status, &media_type, body).with("Cache-Control", kept)
                }
                Err(_) => return busy(),
            }
        };
        match warning {
            Some(text) => response.with("Warning", format!("299 voxtier \"{text}\"")),
            None => response,
        }
    }

    async fn status(&self, good_for: &[String]) -> Response {
        let own = self.shared.metrics.to_json();
        let limit = self.shared.settings.index_time;
        let sources = self.opened(good_for).map(str::to_owned).collect();
        let other = match self.shared.jobs.ask_for(Question::Status { sources }, limit, Answer::http).await {
            Ok((200, _, body, _)) => String::from_utf8(body).unwrap_or_else(|_| "null".to_owned()),
            _ => "null".to_owned(),
        };
        let text = format!("{{\"gateway\":{own},\"frames\":{other}}}");
        Response::of(200, "application/json", text).with("Cache-Control", "no-store")
    }

    async fn viewer_file(&self, request: &Request<'_>, path: &str, good_for: &[String]) -> Response {
        let Some(folder) = &self.shared.settings.viewer else {
            return not_found("nothing is served at this address: the root of DICOMweb is /dicomweb");
        };
        if path == "/app-config.js" {
            return Response::of(200, "text/javascript", self.viewer_config(good_for))
                .with("Cache-Control", "no-cache");
        }
        super::http::static_files::file(request, folder, path).await
    }

    /// The configuration of the viewer, with the sources that a token opens.
    fn viewer_config(&self, good_for: &[String]) -> String {
        let default = self.shared.settings.sources.first().map(String::as_str);
        let sources: Vec<String> = self
            .opened(good_for)
            .map(|name| {
                let mut source = "{\"name\":".to_owned();
                push_json(&mut source, name);
                source + &format!(",\"isDefault\":{}}}", Some(name) == default)
            })
            .collect();
        format!("const sources = [{}];\n{}", sources.join(","), self.shared.settings.viewer_config)
    }
}

/// Connections for which there are descriptors: files and the database need theirs.
fn most_connections() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(MOST_CONNECTIONS, |limit| (limit / 2).min(MOST_CONNECTIONS))
}

/// Status 404.
pub fn not_found(detail: &str) -> Response {
    Response::refusal(404, "not_found", detail)
}

/// Status 503: another try may succeed.
pub fn unavailable(detail: &str) -> Response {
    Response::refusal(503, "unavailable", detail).with("Retry-After", "1")
}

/// Status 503: the answers that are on their way fill their memory.
pub fn busy() -> Response {
    unavailable("slow clients hold the memory for answers: ask again")
}

fn preflight() -> Response {
    Response::empty(204)
        .with("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        .with("Access-Control-Allow-Headers", "Accept, Authorization, If-None-Match, Range")
        .with("Access-Control-Max-Age", "7200")
}

fn kind_of(route: &Route<'_>) -> Kind {
    match route {
        Route::Dicomweb(_, Resource::Frames(..)) => Kind::Frames,
        Route::Dicomweb(_, Resource::Instances(_) | Resource::Object) => Kind::Instances,
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

//! `Gateway`: starts and stops the workers, and hands their questions to Python threads.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::frames::cache::PyFrameCache;
use super::sources::{State, fingerprint_of, state_of};
use crate::base::error::{Error, ErrorKind};
use crate::gateway::access::token_digest;
use crate::gateway::jobs::{Answer, Job, Question};
use crate::gateway::server::Server;
use crate::gateway::service::{Settings, Shared};
use crate::gateway::telemetry::log::AccessLog;
use crate::python::gil::Release;

/// Between two looks whether a signal came while a gateway stops.
const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(5);

#[pyclass(frozen, module = "voxtier._core", name = "Gateway")]
struct PyGateway {
    shared: Arc<Shared>,
    server: Mutex<Option<Arc<Server>>>,
}

impl PyGateway {
    fn server(&self) -> std::sync::MutexGuard<'_, Option<Arc<Server>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyGateway {
    #[new]
    #[pyo3(signature = (cache, sources, *, roots, tokens, groups_header, cors_origins, viewer, index_seconds, in_flight_bytes, access_log, page, viewer_config))]
    #[allow(clippy::too_many_arguments)] // mirrors the Python signature
    fn new(
        cache: &Bound<'_, PyFrameCache>,
        sources: Vec<String>,
        roots: Vec<PathBuf>,
        tokens: Vec<(String, Vec<String>)>,
        groups_header: Option<String>,
        cors_origins: Vec<String>,
        viewer: Option<PathBuf>,
        index_seconds: f64,
        in_flight_bytes: u64,
        access_log: Option<i32>,
        page: String,
        viewer_config: String,
    ) -> PyResult<Self> {
        let tokens = tokens.into_iter().map(|(token, sources)| (token_digest(&token), sources)).collect();
        let index_time = Duration::try_from_secs_f64(index_seconds).unwrap_or(Duration::ZERO);
        let log =
            access_log.map(|number| -> PyResult<AccessLog> { Ok(AccessLog::start(duplicate(number)?)?) });
        let settings = Settings {
            sources,
            tokens,
            groups_header,
            cors_origins,
            viewer,
            index_time,
            in_flight_bytes,
            page,
            viewer_config,
        };
        let shared = Shared::new(settings, cache.get().cache.clone(), roots, log.transpose()?);
        Ok(Self { shared: Arc::new(shared), server: Mutex::new(None) })
    }

    fn start(&self, py: Python<'_>, host: &str, port: u16, workers: usize) -> PyResult<(String, u16)> {
        let host: IpAddr = host
            .parse()
            .map_err(|_| PyValueError::new_err(format!("host = {host:?}: must be an IP address")))?;
        let mut running = self.server();
        if running.is_some() || self.shared.is_stopping() {
            return Err(PyRuntimeError::new_err("the gateway was started before"));
        }
        let shared = self.shared.clone();
        let address = SocketAddr::new(host, port);
        let server = py.release(|| Server::start(address, workers.max(1), shared))?;
        let bound = server.address();
        *running = Some(Arc::new(server));
        Ok((bound.ip().to_string(), bound.port()))
    }

    /// Stops the workers; from another thread during a long stop: shortens it.
    /// A signal whose handler raises ends the time of open requests, and is raised when all workers have ended.
    fn stop(&self, py: Python<'_>, drain_seconds: f64) -> PyResult<()> {
        let drain = Duration::try_from_secs_f64(drain_seconds).unwrap_or(Duration::ZERO);
        let Some(server) = self.server().clone() else {
            self.shared.stop();
            self.shared.jobs.close();
            return Ok(());
        };
        server.begin_stop(drain);
        let mut raised = Ok(());
        while !server.has_ended() {
            py.release(|| std::thread::sleep(LOOK_FOR_SIGNALS));
            if let Err(error) = py.check_signals() {
                server.begin_stop(Duration::ZERO);
                raised = Err(error);
            }
        }
        py.release(|| server.finish());
        raised
    }

    /// In a child of `fork`, whose copies of the workers do not exist: forgets them.
    fn abandon(&self) {
        std::mem::forget(self.server().take());
    }

    fn set_ready(&self) {
        self.shared.is_ready.store(true, Ordering::Relaxed);
    }

    fn counters(&self) -> String {
        self.shared.metrics.to_json()
    }

    fn next_job(&self, py: Python<'_>, seconds: f64) -> Option<PyGatewayJob> {
        let limit = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO);
        py.release(|| self.shared.jobs.next(limit)).map(|job| PyGatewayJob { job: Mutex::new(Some(job)) })
    }
}

/// A descriptor of our own for one that Python lends.
fn duplicate(number: i32) -> PyResult<OwnedFd> {
    if number < 0 {
        return Err(PyValueError::new_err(format!("a file descriptor cannot be {number}")));
    }
    // SAFETY: the caller lends an open descriptor for the call; a closed one is an EBADF, not a danger.
    let lent = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(lent.try_clone_to_owned()?)
}

#[pyclass(frozen, module = "voxtier._core", name = "GatewayJob")]
struct PyGatewayJob {
    job: Mutex<Option<Job>>,
}

impl PyGatewayJob {
    fn reply(&self, answer: Answer) {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = job.and_then(|job| job.reply) {
            let _ = reply.send(answer); // the request may have given up
        }
    }
}

#[pymethods]
impl PyGatewayJob {
    /// The kind of question and its arguments, source first.
    #[getter]
    fn question<'py>(&self, py: Python<'py>) -> PyResult<(&'static str, Bound<'py, PyTuple>)> {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = job.as_ref() else {
            return Err(PyRuntimeError::new_err("the question was answered"));
        };
        Ok(match &job.question {
            Question::Instance { source, uid, groups } => {
                ("instance", (source, uid, groups.clone()).into_pyobject(py)?)
            }
            Question::File { source, path, groups } => {
                ("file", (source, path, groups.clone()).into_pyobject(py)?)
            }
            Question::Files { source, study, series, groups } => {
                ("files", (source, study, series, groups.clone()).into_pyobject(py)?)
            }
            Question::Rights { source, files, groups } => {
                ("rights", (source, files.clone(), groups.clone()).into_pyobject(py)?)
            }
            Question::Search { source, path, query, root, groups } => {
                ("search", (source, path, query, root, groups.clone()).into_pyobject(py)?)
            }
            Question::Status { sources } => ("status", (sources.clone(),).into_pyobject(py)?),
            Question::Open { address } => ("open", (address,).into_pyobject(py)?),
            Question::Ranges { address, state, ranges } => {
                ("ranges", (address, state_of(*state), ranges.clone()).into_pyobject(py)?)
            }
            Question::Computed { source, row } => {
                ("computed", (source, PyBytes::new(py, row)).into_pyobject(py)?)
            }
        })
    }

    fn answer_rows(&self, rows: Vec<u8>) {
        self.reply(Answer::Rows(rows));
    }

    fn answer_files(&self, files: Vec<(String, Vec<String>)>) {
        self.reply(Answer::Files(files));
    }

    fn answer_rights(&self, may_read: Vec<bool>) {
        self.reply(Answer::Rights(may_read));
    }

    #[pyo3(signature = (status, media_type, body, warning=None))]
    fn answer_http(&self, status: u16, media_type: String, body: Vec<u8>, warning: Option<String>) {
        self.reply(Answer::Http(status, media_type, body, warning));
    }

    /// The state of an object, the bytes that a request costs, the first bytes.
    fn answer_object(
        &self,
        py: Python<'_>,
        state: State,
        bridge: u64,
        head: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let head = PyBuffer::<u8>::get(head)?.to_vec(py)?;
        self.reply(Answer::Object { state: fingerprint_of(state), bridge, head });
        Ok(())
    }

    fn answer_ranges(&self, py: Python<'_>, parts: Vec<Bound<'_, PyAny>>) -> PyResult<()> {
        let parts = parts.iter().map(|part| PyBuffer::<u8>::get(part)?.to_vec(py));
        self.reply(Answer::Ranges(parts.collect::<PyResult<_>>()?));
        Ok(())
    }

    /// An object cannot be read, for a reason of `voxtier.errors.SourceError`.
    #[pyo3(signature = (kind, detail, errno=None))]
    fn refuse(&self, kind: &str, detail: String, errno: Option<i32>) {
        let kind = ErrorKind::from_name(kind).unwrap_or(ErrorKind::IoError);
        self.reply(Answer::Refused(Error { kind, offset: None, detail, errno }));
    }

    fn fail(&self, why: String) {
        self.reply(Answer::Failed(why));
    }
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyGateway>()?;
    module.add_class::<PyGatewayJob>()
}

//! Work without the GIL, and its end with the interpreter.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// Whether the interpreter is about to end.
static ENDS: AtomicBool = AtomicBool::new(false);
/// Threads between their work without the GIL and the GIL.
static COMING_BACK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_ENDING_IT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// A thread on its way to the GIL.
///
/// Python up to 3.13 ends a thread that asks for the GIL of an interpreter that is taken apart, there and then,
/// by the unwinder of the system. pyo3 stops it at the next call below, which crashes where Rust brings another
/// unwinder, as in the wheels. So such a thread does not ask: it waits for the end of the process, as Python
/// lets it since 3.14.
struct ComingBack;

impl ComingBack {
    fn begin() -> Self {
        COMING_BACK.fetch_add(1, SeqCst);
        if ENDS.load(SeqCst) && !IS_ENDING_IT.get() {
            COMING_BACK.fetch_sub(1, SeqCst);
            loop {
                thread::park();
            }
        }
        Self
    }
}

impl Drop for ComingBack {
    fn drop(&mut self) {
        COMING_BACK.fetch_sub(1, SeqCst);
    }
}

/// Work without the GIL.
pub(super) trait Release {
    /// Does it, as `Python::detach`; a thread whose interpreter ends meanwhile does not come back.
    fn release<T: Send>(self, work: impl Send + FnOnce() -> T) -> T;
}

impl Release for Python<'_> {
    fn release<T: Send>(self, work: impl Send + FnOnce() -> T) -> T {
        self.detach(|| (work(), ComingBack::begin())).0
    }
}

/// Works with the GIL, as `Python::attach`; only for a thread that does not have it: see [`Release`].
pub(super) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    let back = ComingBack::begin();
    Python::attach(|py| {
        drop(back);
        work(py)
    })
}

/// The last of voxtier's exit hooks: from here on no thread comes back.
#[pyfunction]
fn end(py: Python<'_>) {
    IS_ENDING_IT.set(true);
    ENDS.store(true, SeqCst);
    while COMING_BACK.load(SeqCst) > 0 {
        py.detach(|| thread::sleep(Duration::from_millis(1)));
    }
}

/// In a forked child, which has none of those threads.
#[pyfunction]
fn forget_threads() {
    COMING_BACK.store(0, SeqCst);
    ENDS.store(false, SeqCst);
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(end, module)?,))?;
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        let hooks = pyo3::types::PyDict::new(py);
        hooks.set_item("after_in_child", wrap_pyfunction!(forget_threads, module)?)?;
        os.call_method("register_at_fork", (), Some(&hooks))?;
    }
    Ok(())
}

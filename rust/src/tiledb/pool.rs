//! The state of one process: its thread pools and its cache of decoded chunks.
//!
//! Threads and locks do not survive a fork. A child that finds its parent's state makes its own and never
//! drops the parent's, whose destructors would wait for threads that do not exist in the child.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::memory::cache::Cache;
use super::memory::handles::Handles;
use crate::base::error::{Error, ErrorKind, Result};

/// The state of one process.
pub struct Process {
    pid: u32,
    /// The cache of decoded chunks.
    pub cache: Cache,
    /// The open tile files.
    pub handles: Handles,
    pools: Mutex<HashMap<usize, Arc<ThreadPool>>>,
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

/// The state of this process, created on first use.
pub fn process() -> &'static Process {
    let pid = std::process::id();
    loop {
        let current = CURRENT.load(Ordering::Acquire);
        // SAFETY: a pointer in CURRENT comes from Box::leak below and is never freed.
        if let Some(found) = unsafe { current.as_ref() }
            && found.pid == pid
        {
            return found;
        }
        let fresh = Box::new(Process {
            pid,
            cache: Cache::new(0),
            handles: Handles::default(),
            pools: Mutex::default(),
        });
        let fresh = Box::into_raw(fresh);
        if CURRENT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: another thread won; `fresh` was never shared.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

impl Process {
    /// A pool of `threads` - 1 helpers, as the calling thread works too.
    fn pool(&self, threads: usize) -> Result<Arc<ThreadPool>> {
        let helpers = threads.saturating_sub(1).max(1);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pools.get(&helpers) {
            return Ok(Arc::clone(found));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(helpers)
            .thread_name(|n| format!("voxtier-tiles-{n}"))
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::IoError, format!("cannot start {helpers} threads: {error}"))
            })?;
        let pool = Arc::new(pool);
        pools.insert(helpers, Arc::clone(&pool));
        Ok(pool)
    }

    /// Runs `work` on every task with `threads` threads, each taking the next one; stops at the first error.
    ///
    /// # Errors
    /// The first error of `work`, or `io_error` when threads cannot be started.
    pub fn run<T: Sync>(
        &self,
        tasks: &[T],
        threads: usize,
        work: impl Fn(&T) -> Result<()> + Sync,
    ) -> Result<()> {
        if threads < 2 || tasks.len() < 2 {
            return tasks.iter().try_for_each(work);
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let first_error = Mutex::new(None);
        let drain = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(error) = work(task) {
                    failed.store(true, Ordering::Relaxed);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        let drain = &drain;
        self.pool(threads)?.in_place_scope(|scope| {
            for _ in 1..threads.min(tasks.len()) {
                scope.spawn(move |_| drain());
            }
            drain();
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

//! Checks many files with several threads; results come in the order in which files finish.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::verdict::{Checks, Finding, Report, State};
use super::verify::verify_file;
use crate::base::window::Buffer;

/// A running check of a list of files. Dropping it stops the threads after their current file.
pub struct ParallelVerifier {
    results: Mutex<Receiver<(usize, Report)>>,
    next: Arc<AtomicUsize>,
    total: usize,
    threads: Vec<JoinHandle<()>>,
}

/// The answer of [`ParallelVerifier::next`].
pub enum Next {
    /// The report on the file of that index.
    Done(usize, Box<Report>),
    /// No file finished in time.
    Waiting,
    /// Every file was reported.
    Finished,
}

impl ParallelVerifier {
    /// Starts to check `paths` with `threads` threads, of which 1 to 64 are used.
    ///
    /// # Errors
    /// The operating system's, when it grants no thread at all.
    pub fn start(paths: Vec<PathBuf>, checks: Checks, threads: usize) -> std::io::Result<Self> {
        let (total, next) = (paths.len(), Arc::new(AtomicUsize::new(0)));
        let paths = Arc::new(paths);
        let (sender, receiver) = sync_channel(1024);
        let mut running = Vec::new();
        for _ in 0..threads.clamp(1, 64) {
            let (paths, next, sender) = (Arc::clone(&paths), Arc::clone(&next), sender.clone());
            let work = move || {
                let mut buffer = Buffer::default();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(index) else { break };
                    let check = AssertUnwindSafe(|| verify_file(path, checks, &mut buffer));
                    let report = catch_unwind(check).unwrap_or_else(|_| {
                        let finding = Finding::new(
                            State::Unknown,
                            "the verifier failed on this file: please report this defect of voxtier",
                        );
                        Report { finding: Some(finding), ..Report::default() }
                    });
                    if sender.send((index, report)).is_err() {
                        break;
                    }
                }
            };
            match std::thread::Builder::new().name("voxtier-verify".into()).spawn(work) {
                Ok(thread) => running.push(thread),
                Err(error) if running.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(Self { results: Mutex::new(receiver), next, total, threads: running })
    }

    /// Waits up to `patience` for the next report.
    pub fn next(&self, patience: Duration) -> Next {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match results.recv_timeout(patience) {
            Ok((index, report)) => Next::Done(index, Box::new(report)),
            Err(RecvTimeoutError::Timeout) => Next::Waiting,
            Err(RecvTimeoutError::Disconnected) => Next::Finished,
        }
    }

    /// Stops the threads after their current file.
    pub fn stop(&self) {
        self.next.fetch_max(self.total, Ordering::Relaxed);
    }
}

impl Drop for ParallelVerifier {
    fn drop(&mut self) {
        self.stop();
        let (_, closed) = sync_channel(0);
        *self.results.get_mut().unwrap_or_else(PoisonError::into_inner) = closed;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

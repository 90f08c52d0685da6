//! Many files at once, with threads of our own, results in the order in which they finish.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::payload::Buffer;
use super::verdict::{Checks, Finding, Report, State};
use super::verify::verify_file;

/// A running check of a list of files. Dropping it stops the threads after their current files.
pub struct ParallelVerifier {
    results: Mutex<Receiver<(usize, Report)>>,
    next: Arc<AtomicUsize>,
    total: usize,
    threads: Vec<JoinHandle<()>>,
}

/// What [`ParallelVerifier::next`] has.
pub enum Next {
    /// The file of that index is done.
    Done(usize, Box<Report>),
    /// Nothing yet.
    Waiting,
    /// Every file is done.
    Finished,
}

impl ParallelVerifier {
    /// Starts to check `paths` with that many threads (at least one, at most 64).
    ///
    /// # Errors
    /// The operating system's, when it grants not one thread.
    pub fn start(paths: Vec<PathBuf>, checks: Checks, threads: usize) -> std::io::Result<Self> {
        let (total, next) = (paths.len(), Arc::new(AtomicUsize::new(0)));
        let paths = Arc::new(paths);
        let (sender, receiver) = sync_channel(1024);
        let mut running = Vec::new();
        for _ in 0..threads.clamp(1, 64) {
            let (paths, next, sender) = (Arc::clone(&paths), Arc::clone(&next), sender.clone());
            let work = move || {
                let mut buffer = Buffer::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(index) else { break };
                    let check = AssertUnwindSafe(|| verify_file(path, checks, &mut buffer));
                    let report = catch_unwind(check).unwrap_or_else(|_| {
                        let finding = Finding::new(
                            State::Unknown,
                            "the verifier failed on this file: a defect of voxtier",
                        );
                        Report { finding: Some(finding), ..Report::empty() }
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

    /// Waits up to `patience` for the next result.
    pub fn next(&self, patience: Duration) -> Next {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match results.recv_timeout(patience) {
            Ok((index, report)) => Next::Done(index, Box::new(report)),
            Err(RecvTimeoutError::Timeout) => Next::Waiting,
            Err(RecvTimeoutError::Disconnected) => Next::Finished,
        }
    }

    /// Lets no thread begin another file.
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

//! Reads many files in parallel, by blocking threads: cold storage needs more reads in flight than there are
//! cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::base::window::Buffer;

/// A pool of reading threads for one list of files. Jobs go in and outcomes come out in batches.
pub struct ParallelReader<J, O> {
    jobs: Option<SyncSender<Vec<J>>>,
    outcomes: Mutex<Receiver<Vec<O>>>,
    threads: Vec<JoinHandle<()>>,
    /// A forked child inherits the object but not the threads.
    pid: u32,
}

impl<J: Send + 'static, O: Send + 'static> ParallelReader<J, O> {
    /// Starts `threads` threads that run `work`, each with a buffer of its own; `queue` batches may wait
    /// before [`ParallelReader::submit`] blocks.
    ///
    /// # Errors
    /// The operating system's, when it does not grant the threads.
    pub fn start<W>(threads: usize, queue: usize, work: W) -> std::io::Result<Self>
    where
        W: Fn(J, &mut Buffer) -> O + Send + Sync + 'static,
    {
        let (jobs, receiver) = sync_channel(queue);
        let (sender, outcomes) = channel();
        let shared = Arc::new((Mutex::new(receiver), work));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (shared, sender) = (Arc::clone(&shared), sender.clone());
                let builder = std::thread::Builder::new().name("voxtier-read".to_owned());
                builder.spawn(move || {
                    let (receiver, work) = &*shared;
                    let mut buffer = Buffer::default();
                    loop {
                        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(batch): Result<Vec<J>, _> = next else { return };
                        let work = || batch.into_iter().map(|job| work(job, &mut buffer)).collect();
                        // After a panic the caller must not wait for ever: an empty batch reports it.
                        let outcomes = catch_unwind(AssertUnwindSafe(work)).unwrap_or_default();
                        if sender.send(outcomes).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        let (jobs, outcomes) = (Some(jobs), Mutex::new(outcomes));
        Ok(Self { jobs, outcomes, threads, pid: std::process::id() })
    }

    /// Queues a batch, waiting while the queue is full; `false` once all threads are gone.
    pub fn submit(&self, batch: Vec<J>) -> bool {
        self.is_ours() && self.jobs.as_ref().is_some_and(|jobs| jobs.send(batch).is_ok())
    }

    /// Returns the next batch of outcomes if one is ready.
    pub fn poll(&self) -> Option<Vec<O>> {
        let outcomes = self.outcomes.try_lock().ok()?;
        let outcomes = if self.is_ours() { outcomes.try_recv().ok() } else { None };
        outcomes.filter(|outcomes| !outcomes.is_empty())
    }

    /// Waits for the next batch of outcomes; `None` when a thread failed or all are gone.
    pub fn wait(&self) -> Option<Vec<O>> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = if self.is_ours() { outcomes.recv().ok() } else { None };
        outcomes.filter(|outcomes| !outcomes.is_empty())
    }
}

impl<J, O> ParallelReader<J, O> {
    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl<J, O> Drop for ParallelReader<J, O> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if self.pid == std::process::id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_reader_ends_the_wait() {
        let reader = ParallelReader::start(2, 2, |job: i32, _: &mut Buffer| 10 / job).unwrap();
        assert!(reader.submit(vec![5]));
        assert_eq!(reader.wait(), Some(vec![2]));
        assert!(reader.submit(vec![0]));
        assert_eq!(reader.wait(), None);
    }
}

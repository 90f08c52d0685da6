//! Many files at once: blocking threads keep enough reads in flight for cold storage, whatever the number
//! of cores, and results come back as they are ready.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::dicom;
use crate::error::Result;
use crate::frame_table::{FrameTable, Verify};
use crate::source::{Buffer, FileSource};

/// A file to read, and the number by which the caller knows it.
pub type Job = (u64, PathBuf);
/// What came of a job.
pub type Outcome = (u64, Result<FrameTable>);

/// A pool that lives as long as one bulk read: threads never outlive it and never survive a fork unnoticed.
pub struct Bulk {
    jobs: Option<SyncSender<Vec<Job>>>,
    outcomes: Mutex<Receiver<Vec<Outcome>>>,
    threads: Vec<JoinHandle<()>>,
    /// A forked child inherits the object but not the threads.
    pid: u32,
}

impl Bulk {
    /// Starts `threads` readers; `queue` batches may wait before [`Bulk::submit`] blocks.
    pub fn start(threads: usize, queue: usize, verify: Verify) -> std::io::Result<Self> {
        let (jobs, receiver) = sync_channel(queue);
        let (sender, outcomes) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (receiver, sender) = (Arc::clone(&receiver), sender.clone());
                let name = "voxtier-read".to_owned();
                std::thread::Builder::new().name(name).spawn(move || {
                    let mut buffer = Buffer::default();
                    loop {
                        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(batch): std::result::Result<Vec<Job>, _> = next else { return };
                        let read = |(id, path): Job| (id, read_path(&path, verify, &mut buffer));
                        if sender.send(batch.into_iter().map(read).collect()).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { jobs: Some(jobs), outcomes: Mutex::new(outcomes), threads, pid: std::process::id() })
    }

    /// Hands over a batch; waits while the queue is full. `false` once all readers are gone.
    pub fn submit(&self, batch: Vec<Job>) -> bool {
        self.is_ours() && self.jobs.as_ref().is_some_and(|jobs| jobs.send(batch).is_ok())
    }

    /// Waits for the next batch of outcomes; `None` once all readers are gone.
    pub fn wait(&self) -> Option<Vec<Outcome>> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_ours() { outcomes.recv().ok() } else { None }
    }

    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if self.pid == std::process::id() {
                let _ = thread.join();
            }
        }
    }
}

/// Reads the table of the file at a path.
pub fn read_path(path: &std::path::Path, verify: Verify, buffer: &mut Buffer) -> Result<FrameTable> {
    dicom::read_table(&FileSource::open(path)?, verify, buffer)
}

//! Objects of stores: what is asked of them goes by the queue to Python's threads, which have the credentials.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::IoSliceMut;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::planned::{Cost, Fetch, Planned};
use crate::base::source::{FileSource, Fingerprint, Range, Source};
use crate::gateway::jobs::{Answer, Jobs, Question};

/// Longest wait for a store, with what Python does to try again.
const LONGEST: Duration = Duration::from_secs(30);

/// An object in the state in which it was opened.
pub struct Object {
    fetch: Requests,
    fingerprint: Fingerprint,
    cost: Cost,
    head: Vec<u8>,
}

/// Asks for ranges of an object.
#[derive(Clone)]
struct Requests {
    jobs: Arc<Jobs>,
    address: String,
    state: Fingerprint,
}

/// Asks from a thread that may wait; `take` as of [`Jobs::ask_for`].
fn ask<T>(jobs: &Jobs, question: Question, take: impl FnOnce(Answer) -> Option<T>) -> Result<T> {
    let failed = |why: String| Error::new(ErrorKind::IoError, why);
    // Blocking threads belong to the runtime of a worker, which keeps the time.
    let runtime = tokio::runtime::Handle::try_current().map_err(|error| failed(error.to_string()))?;
    let take = |answer| match answer {
        Answer::Refused(error) => Some(Err(error)),
        answer => take(answer).map(Ok),
    };
    runtime.block_on(jobs.ask_for(question, LONGEST, take)).map_err(failed)?
}

impl Object {
    /// Opens an object: its state, and its first bytes.
    ///
    /// # Errors
    /// `io_error` where the store refuses or does not answer.
    pub fn open(jobs: &Arc<Jobs>, address: &str) -> Result<Self> {
        ask(jobs, Question::Open { address: address.to_owned() }, |answer| match answer {
            Answer::Object { state, bridge, head } => Some(Self {
                fetch: Requests { jobs: jobs.clone(), address: address.to_owned(), state },
                fingerprint: state,
                cost: Cost { bridge, ..Cost::default() },
                head,
            }),
            _ => None,
        })
    }

    fn planned(&self, head: Vec<u8>) -> Planned<Requests> {
        Planned::new(self.fetch.clone(), self.fingerprint, self.cost, head)
    }
}

impl Fetch for Requests {
    fn fetch(&self, ranges: &[Range]) -> Result<Vec<Vec<u8>>> {
        let question =
            Question::Ranges { address: self.address.clone(), state: self.state, ranges: ranges.to_vec() };
        ask(
            &self.jobs,
            question,
            |answer| if let Answer::Ranges(bytes) = answer { Some(bytes) } else { None },
        )
    }
}

/// What a gateway reads: a file, or an object of a store.
pub enum Served {
    /// A file.
    File(FileSource),
    /// An object.
    Object(Object),
}

impl Served {
    /// The file, which the kernel may send by itself.
    pub fn file(&self) -> Option<&FileSource> {
        match self {
            Self::File(file) => Some(file),
            Self::Object(_) => None,
        }
    }

    /// Calls `work` with a source for many reads: those of an object are planned, and what they fetched goes
    /// when `work` ends. Only on a thread that may wait.
    pub fn read<R>(&self, work: impl FnOnce(&dyn Source) -> R) -> R {
        match self {
            Self::File(file) => work(file),
            Self::Object(object) => work(&object.planned(object.head.clone())),
        }
    }

    /// As [`Self::read`]; every byte of an object is asked for now, on condition that it has its state.
    pub fn read_now<R>(&self, work: impl FnOnce(&dyn Source) -> R) -> R {
        match self {
            Self::File(file) => work(file),
            Self::Object(object) => work(&object.planned(Vec::new())),
        }
    }
}

impl Source for Served {
    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::File(file) => file.fingerprint(),
            Self::Object(object) => object.fingerprint,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::File(file) => file.read_at(offset, buffer),
            Self::Object(object) => object.planned(Vec::new()).read_at(offset, buffer),
        }
    }

    fn read_resident_into(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> bool {
        self.file().is_some_and(|file| file.read_resident_into(offset, buffers))
    }

    fn check_unchanged(&self) -> Result<()> {
        // Each read of an object is on condition that it is unchanged.
        self.file().map_or(Ok(()), Source::check_unchanged)
    }
}

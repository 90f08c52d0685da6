//! Questions to Python threads: what only the database knows. Python fetches them; it is never called.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::base::error::Error;
use crate::base::source::{Fingerprint, Range};

/// Questions that may wait; with more the files answer, or the request is refused.
const MOST_WAITING: usize = 256;

/// What is asked.
#[derive(Debug)]
pub enum Question {
    /// The rows of a SOP Instance and of its series, as the index sends them: [`Answer::Rows`].
    Instance {
        /// Source.
        source: String,
        /// SOP Instance UID.
        uid: String,
        /// Groups of the user, whose rows are wanted; `None` where everybody sees everything.
        groups: Option<Vec<String>>,
    },
    /// The rows of a file and of its series: [`Answer::Rows`].
    File {
        /// Source.
        source: String,
        /// Path.
        path: String,
        /// Groups of the user, whose rows are wanted; `None` where everybody sees everything.
        groups: Option<Vec<String>>,
    },
    /// The files of a study or a series that groups may see: [`Answer::Files`].
    Files {
        /// Source.
        source: String,
        /// Study Instance UID.
        study: String,
        /// Series Instance UID, or empty.
        series: String,
        /// Groups of the user; `None` where everybody sees everything.
        groups: Option<Vec<String>>,
    },
    /// Which files groups may read: [`Answer::Rights`].
    Rights {
        /// Source.
        source: String,
        /// The path of each, and the SOP Instance UID that it holds.
        files: Vec<(String, String)>,
        /// Groups of the user.
        groups: Vec<String>,
    },
    /// A search: [`Answer::Http`].
    Search {
        /// Source.
        source: String,
        /// Path below the root.
        path: String,
        /// Query string as it was sent.
        query: String,
        /// Where DICOMweb's resources begin, for Retrieve URL.
        root: String,
        /// Groups of the user; `None` where everybody sees everything.
        groups: Option<Vec<String>>,
    },
    /// What the status page shows beside the gateway's own counters: [`Answer::Http`].
    Status {
        /// Sources that may be named.
        sources: Vec<String>,
    },
    /// An object of a store: [`Answer::Object`].
    Open {
        /// Address.
        address: String,
    },
    /// Ranges of an object in a state: [`Answer::Ranges`].
    Ranges {
        /// Address.
        address: String,
        /// The state that it must have.
        state: Fingerprint,
        /// Bytes, half-open.
        ranges: Vec<Range>,
    },
    /// A row of a table that was computed, to be written to the index. Nobody waits for the answer.
    Computed {
        /// Source.
        source: String,
        /// The row.
        row: Vec<u8>,
    },
}

/// What is answered.
#[derive(Debug)]
pub enum Answer {
    /// Rows in the form of [`crate::frames::row::next_row`]; none where the index does not know the name.
    Rows(Vec<u8>),
    /// SOP Instance UIDs in the order of their first paths, and the paths of the copies of each, the best first.
    Files(Vec<(String, Vec<String>)>),
    /// Whether each is allowed.
    Rights(Vec<bool>),
    /// A whole response: status, media type, body, and a sentence for the header line Warning, or none.
    Http(u16, String, Vec<u8>, Option<String>),
    /// The state of an object, bytes that a request to its store costs, its first bytes.
    Object {
        /// State.
        state: Fingerprint,
        /// See [`crate::base::planned::Cost`].
        bridge: u64,
        /// First bytes.
        head: Vec<u8>,
    },
    /// The bytes of ranges.
    Ranges(Vec<Vec<u8>>),
    /// An object cannot be read.
    Refused(Error),
    /// The database did not answer.
    Failed(String),
}

impl Answer {
    /// Takes [`Answer::Rows`].
    pub fn rows(self) -> Option<Vec<u8>> {
        if let Self::Rows(rows) = self { Some(rows) } else { None }
    }

    /// Takes [`Answer::Http`].
    pub fn http(self) -> Option<(u16, String, Vec<u8>, Option<String>)> {
        match self {
            Self::Http(status, media_type, body, warning) => Some((status, media_type, body, warning)),
            _ => None,
        }
    }
}

/// A question and where its answer is awaited.
pub struct Job {
    /// The question.
    pub question: Question,
    /// The waiting request; `None` where none waits.
    pub reply: Option<oneshot::Sender<Answer>>,
}

/// The queue between the workers and the Python threads.
pub struct Jobs {
    /// `None` once the queue is closed.
    sender: RwLock<Option<SyncSender<Job>>>,
    receiver: Mutex<Receiver<Job>>,
}

impl Default for Jobs {
    fn default() -> Self {
        let (sender, receiver) = sync_channel(MOST_WAITING);
        Self { sender: RwLock::new(Some(sender)), receiver: Mutex::new(receiver) }
    }
}

impl Jobs {
    /// Asks, and waits at most `limit`.
    ///
    /// # Errors
    /// Why there is no answer, in a sentence.
    pub async fn ask(&self, question: Question, limit: Duration) -> Result<Answer, String> {
        let (reply, answer) = oneshot::channel();
        self.send(Job { question, reply: Some(reply) })?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Answer::Failed(why))) => Err(why),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err("the question to the index was dropped".to_owned()),
            Err(_) => Err(format!("the index did not answer within {} ms", limit.as_millis())),
        }
    }

    /// As [`Self::ask`], for the one kind of answer that fits: `take` has what it holds, and `None` for others.
    ///
    /// # Errors
    /// Why there is no answer, or none of this kind, in a sentence.
    pub async fn ask_for<T>(
        &self,
        question: Question,
        limit: Duration,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, String> {
        let answer = self.ask(question, limit).await?;
        take(answer).ok_or_else(|| "the index gave no answer of this kind".to_owned())
    }

    /// Says something that nobody waits for; it is dropped where the queue is full.
    pub fn tell(&self, question: Question) {
        let _ = self.send(Job { question, reply: None });
    }

    /// Takes no more questions; whoever waits for the next one is told at once.
    pub fn close(&self) {
        *self.sender.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn send(&self, job: Job) -> Result<(), String> {
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        let sent = match sender.as_ref() {
            Some(sender) => sender.try_send(job),
            None => return Err("the gateway is stopping".to_owned()),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("too many requests wait for the index".to_owned()),
            Err(TrySendError::Disconnected(_)) => Err("the gateway is stopping".to_owned()),
        }
    }

    /// The next question; `None` where none comes in time, or the queue is closed and empty.
    pub fn next(&self, limit: Duration) -> Option<Job> {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.recv_timeout(limit).ok()
    }
}

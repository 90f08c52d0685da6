//! Parts of files on their way to a client: frames, whole instances, ranges of either.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::source::{FileSource, Source, read_exact};
use crate::dicom::Begin;
use crate::gateway::files::{Opened, blocking};
use crate::gateway::http::budget::{Budget, Share, Tally};

/// Ranges from this length on go from the page cache to the socket without a copy.
const SENDFILE_FROM: u64 = 32 << 10;
/// Smaller pieces are joined up to this length, and longer ones read in pieces of it: a connection whose
/// client takes nothing keeps one.
const BLOCK: usize = 64 << 10;
/// Bytes at the end of a body that leave only when the file was looked at once more: a file that was overwritten while
/// it was sent shows as a body that is too short.
const HELD: u64 = 512;
/// Longest piece of an object that is asked for at once.
const LONGEST_REQUEST: u64 = 1 << 20;

/// What is sent next.
pub enum Piece {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes of [`FileParts::file`].
    InFile {
        /// Their place.
        offset: u64,
        /// Their number.
        length: u64,
    },
}

/// What is planned.
pub enum Step {
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// A range of the current file.
    Range(u64, u64),
    /// The file must still be the one that the plan was made for.
    Check,
}

/// The steps that send all of a file, as one of PS3.10 whatever it lacks.
pub fn whole_file(file: &Opened) -> Vec<Step> {
    let Begin { bytes, start } = &file.begin;
    let mut steps = vec![Step::Range(*start, file.source.size().saturating_sub(*start)), Step::Check];
    if !bytes.is_empty() {
        steps.insert(0, Step::Bytes(bytes.clone()));
    }
    steps
}

/// How pieces leave.
#[derive(Clone)]
pub enum Way {
    /// One after another, each when the one before is gone; the kernel may send ranges by itself.
    Socket,
    /// By a protocol that keeps pieces until the client makes room: they take part of this budget.
    Kept(Arc<Budget>, Arc<Tally>),
}

/// A body: its steps, and the file that they read.
pub struct FileParts {
    file: Arc<Opened>,
    steps: VecDeque<Step>,
    /// The part of the budget that bytes in memory take.
    share: Option<Share>,
}

impl FileParts {
    /// A body of these steps.
    pub fn new(file: Arc<Opened>, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { file, steps: steps.into_iter().collect(), share: None }
    }

    /// A body whose steps hold bytes that take a part of the budget.
    pub fn holding(mut self, share: Option<Share>) -> Self {
        self.share = share;
        self
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        self.steps.iter().fold(0, |sum, step| sum.saturating_add(step.length()))
    }

    /// The file of [`Piece::InFile`].
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.source.file().map(FileSource::fd)
    }

    /// Whether nothing is left to send.
    pub fn is_through(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Check))
    }

    /// Keeps `length` bytes from `start` on: the answer to a Range request.
    pub fn cut(&mut self, start: u64, length: u64) {
        let (mut skip, mut left) = (start, length);
        let mut kept = VecDeque::new();
        for step in std::mem::take(&mut self.steps) {
            let whole = step.length();
            let skipped = skip.min(whole);
            let taken = left.min(whole - skipped);
            skip -= skipped;
            left -= taken;
            match step {
                Step::Bytes(bytes) if taken > 0 => {
                    let range = skipped as usize..(skipped + taken) as usize;
                    kept.push_back(Step::Bytes(bytes.get(range).unwrap_or_default().to_vec()));
                }
                Step::Range(offset, _) if taken > 0 => kept.push_back(Step::Range(offset + skipped, taken)),
                Step::Check => kept.push_back(Step::Check),
                _ => {}
            }
        }
        self.steps = kept;
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// `changed_during_read` when the file is no longer the one that was planned for, and where there is no
    /// memory for the piece in time: the client must see a body that is too short.
    pub async fn next_piece(&mut self, way: &Way) -> Result<Option<Piece>> {
        let room = match (way, &self.share) {
            (Way::Kept(budget, tally), None) => {
                let room = budget.piece(self.length().min(BLOCK as u64), Some(tally)).await;
                Some(room.map_err(|_| Error::new(ErrorKind::IoError, "there is no memory for an answer"))?)
            }
            (_, share) => share.clone(),
        };
        let mut block = Vec::new();
        while block.len() < BLOCK
            && let Some(step) = self.steps.pop_front()
        {
            match step {
                Step::Bytes(bytes) if block.is_empty() => block = bytes,
                Step::Bytes(bytes) if block.len() + bytes.len() > 2 * BLOCK => {
                    self.steps.push_front(Step::Bytes(bytes));
                    break;
                }
                Step::Bytes(bytes) => block.extend(bytes),
                Step::Check => self.file.source.check_unchanged()?,
                Step::Range(offset, length) if self.must_be_held(length) => {
                    self.steps.push_front(Step::Range(offset + length - HELD, HELD));
                    self.steps.push_front(Step::Range(offset, length - HELD));
                }
                Step::Range(offset, length) if self.may_send(way, offset, length) => {
                    if block.is_empty() {
                        return Ok(Some(Piece::InFile { offset, length }));
                    }
                    self.steps.push_front(Step::Range(offset, length));
                    break;
                }
                Step::Range(offset, length) => {
                    let room = (BLOCK - block.len()) as u64;
                    let count = length.min(if self.file().is_some() { room } else { LONGEST_REQUEST });
                    if count < length {
                        self.steps.push_front(Step::Range(offset + count, length - count));
                    }
                    self.read(offset, count as usize, &mut block).await?;
                }
            }
        }
        if self.is_through() && !self.steps.is_empty() {
            self.steps.clear();
            self.file.source.check_unchanged()?;
        }
        if block.is_empty() {
            return Ok(None);
        }
        Ok(Some(Piece::Bytes(match room {
            Some(room) => room.with(block),
            None => block.into(),
        })))
    }

    /// Whether a range is the last of a file, and may leave before all that [`FileParts::next_piece`] reads was looked at.
    fn must_be_held(&self, length: u64) -> bool {
        length >= SENDFILE_FROM && self.is_through() && self.file().is_some()
    }

    /// Whether the kernel sends a range: where that is cheaper, and the page cache holds its ends, so that the
    /// worker does not wait for a disk.
    fn may_send(&self, way: &Way, offset: u64, length: u64) -> bool {
        let source = &self.file.source;
        matches!(way, Way::Socket)
            && length >= SENDFILE_FROM
            && source.read_resident(offset, &mut [0; 8])
            && source.read_resident(offset + length - 8, &mut [0; 8])
    }

    /// Reads on this thread what the page cache holds, and on another what may take a disk's time.
    async fn read(&self, offset: u64, length: usize, block: &mut Vec<u8>) -> Result<()> {
        let filled = block.len();
        block.resize(filled + length, 0);
        let slot = block.get_mut(filled..).unwrap_or_default();
        if self.file.source.read_resident(offset, slot) {
            return Ok(());
        }
        let file = self.file.clone();
        let bytes = blocking(move || read_exact(&file.source, offset, length)).await?;
        if bytes.len() != slot.len() {
            return Err(Error::at(
                ErrorKind::ChangedDuringRead,
                offset,
                "the file was cut while it was sent",
            ));
        }
        slot.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Step {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range(_, length) => *length,
            Self::Check => 0,
        }
    }
}

//! Memory for answers on their way: a client that takes its answer slowly keeps what was made for it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes of one permit.
const UNIT: u64 = 1024;
/// Time for which a request waits until others have taken their answers.
pub const WAIT: Duration = Duration::from_secs(10);

/// Streams of one connection that may wait for a piece at the same time: the others wait behind them, not in the
/// line that other connections stand in.
const PLACES: usize = 2;
/// Units of the longest piece of a file.
const PIECE: usize = 64;

/// Two budgets: whole answers, which may be large, and pieces, so that no tile waits behind a large answer.
pub struct Budget {
    answers: Arc<Semaphore>,
    pieces: Arc<Semaphore>,
    most_answers: u32,
    most_pieces: u32,
    wait: Duration,
}

/// The budget had no room in time.
#[derive(Debug)]
pub struct Full;

/// A part of the budget; it is free again when the last copy is gone.
#[derive(Clone)]
pub struct Share {
    _taken: Arc<Taken>,
}

struct Taken {
    _permit: OwnedSemaphorePermit,
    tally: Option<Arc<Tally>>,
}

/// The shares of one connection, for which somebody watches whether they become free.
pub struct Tally {
    taken: AtomicU64,
    freed: AtomicU64,
    places: Semaphore,
}

impl Default for Tally {
    fn default() -> Self {
        Self { taken: AtomicU64::new(0), freed: AtomicU64::new(0), places: Semaphore::new(PLACES) }
    }
}

impl Tally {
    /// Shares that were freed so far, where others are taken; `None` where none is.
    pub fn waits_at(&self) -> Option<u64> {
        let freed = self.freed.load(Ordering::Relaxed);
        (self.taken.load(Ordering::Relaxed) > freed).then_some(freed)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(tally) = &self.tally {
            tally.freed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes and the part of the budget that they take, both gone when they are sent.
struct Held<B> {
    bytes: B,
    _share: Share,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Permits for some bytes, at most all.
fn units(bytes: u64, most: u32) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(2, most)
}

impl Budget {
    /// A budget of `bytes`, three quarters for answers, for which a request waits so long.
    pub fn new(bytes: u64, wait: Duration) -> Self {
        let most =
            |bytes: u64| u32::try_from(bytes / UNIT).unwrap_or(u32::MAX >> 3).clamp(256, u32::MAX >> 3);
        let (most_answers, most_pieces) = (most(bytes / 4 * 3), most(bytes / 4));
        let semaphore = |units: u32| Arc::new(Semaphore::new(units as usize));
        Self {
            answers: semaphore(most_answers),
            pieces: semaphore(most_pieces),
            most_answers,
            most_pieces,
            wait,
        }
    }

    /// Bytes of the longest answer that may be made in memory: it is there twice for a moment.
    pub fn longest_answer(&self) -> u64 {
        u64::from(self.most_answers) * UNIT / 2
    }

    /// Room for an answer of some bytes, and as much again for the time in which it is made.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn answer(&self, bytes: u64) -> Result<(Share, Share), Full> {
        let units = units(bytes.saturating_mul(2), self.most_answers);
        let mut permit = self.take(&self.answers, units).await?;
        let half = permit.split(permit.num_permits() / 2).ok_or(Full)?;
        Ok((Share::new(permit, None), Share::new(half, None)))
    }

    /// Room for a piece of an answer that is read while it is sent.
    ///
    /// # Errors
    /// As [`Budget::answer`].
    pub async fn piece(&self, bytes: u64, tally: Option<&Arc<Tally>>) -> Result<Share, Full> {
        let units = units(bytes, self.most_pieces);
        if let Ok(permit) = self.pieces.clone().try_acquire_many_owned(units) {
            return Ok(Share::new(permit, tally.cloned())); // mostly: a clock would cost more
        }
        let place = tally.map(|tally| timeout(self.wait, tally.places.acquire()));
        let _place = match place {
            Some(place) => Some(place.await.map_err(|_| Full)?),
            None => None,
        };
        Ok(Share::new(self.take(&self.pieces, units).await?, tally.cloned()))
    }

    /// Whether a piece would have to wait.
    pub fn is_short(&self) -> bool {
        self.pieces.available_permits() < PIECE
    }

    /// Bytes that were made already, once there is room for them.
    ///
    /// # Errors
    /// As [`Budget::answer`].
    pub async fn admit(&self, bytes: Vec<u8>) -> Result<Bytes, Full> {
        let share = self.piece(bytes.len() as u64, None).await?;
        Ok(share.with(bytes))
    }

    async fn take(&self, budget: &Arc<Semaphore>, units: u32) -> Result<OwnedSemaphorePermit, Full> {
        let permit = timeout(self.wait, budget.clone().acquire_many_owned(units)).await;
        permit.ok().and_then(Result::ok).ok_or(Full)
    }
}

impl Share {
    fn new(permit: OwnedSemaphorePermit, tally: Option<Arc<Tally>>) -> Self {
        if let Some(tally) = &tally {
            tally.taken.fetch_add(1, Ordering::Relaxed);
        }
        Self { _taken: Arc::new(Taken { _permit: permit, tally }) }
    }

    /// Bytes that hold this share until they are sent.
    pub fn with(&self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: self.clone() })
    }
}

thread_local! {
    /// Memory of small answers that were sent.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}
/// Answers whose memory a worker keeps, and the longest of them.
const MOST_SPARE: usize = 64;
const LONGEST_SPARE: usize = 8 << 10;

/// An empty vector for an answer of about `length` bytes, in memory that was used before where some is left.
pub fn spare(length: usize) -> Vec<u8> {
    let spare = if length > LONGEST_SPARE { None } else { SPARE.with_borrow_mut(Vec::pop) };
    let mut out = spare.unwrap_or_else(|| Vec::with_capacity(length.max(4 << 10)));
    out.reserve(length);
    out
}

/// Bytes whose memory is used again when they are sent.
pub fn reusable(bytes: Vec<u8>) -> Bytes {
    if bytes.capacity() > LONGEST_SPARE { bytes.into() } else { Bytes::from_owner(Reusable(bytes)) }
}

struct Reusable(Vec<u8>);

impl AsRef<[u8]> for Reusable {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Reusable {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        // A thread that ends has no list any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MOST_SPARE {
                spare.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_answers_use_memory_again() {
        let mut first = spare(3000);
        let place = first.as_ptr();
        first.extend([7; 3000]);
        let sent = reusable(first);
        let other = spare(100);
        assert!(other.as_ptr() != place);
        drop(sent);
        let second = spare(100);
        assert!(second.is_empty() && second.as_ptr() == place);
        drop(reusable(Vec::with_capacity(LONGEST_SPARE + 1)));
        assert!(SPARE.with_borrow(Vec::is_empty));
        let many: Vec<Bytes> = (0..2 * MOST_SPARE).map(|_| reusable(vec![1])).collect();
        drop(many);
        assert_eq!(SPARE.with_borrow(Vec::len), MOST_SPARE);
    }

    #[test]
    fn room_is_free_again_when_the_bytes_are_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let budget = Budget::new(1 << 20, Duration::ZERO);
            let longest = budget.longest_answer();
            let (kept, working) = budget.answer(longest).await.unwrap();
            assert!(budget.answer(1).await.is_err());
            assert!(budget.piece(1, None).await.is_ok());
            drop(working);
            let bytes = kept.with(vec![1; 10]);
            drop(kept);
            assert!(budget.answer(longest / 2).await.is_ok());
            assert!(budget.answer(longest).await.is_err());
            drop(bytes);
            assert!(budget.answer(u64::MAX).await.is_ok());
            let tally = Arc::new(Tally::default());
            assert_eq!(tally.waits_at(), None);
            let share = budget.piece(1, Some(&tally)).await.unwrap();
            assert_eq!(tally.waits_at(), Some(0));
            drop(share);
            assert_eq!(tally.waits_at(), None);
        });
    }
}

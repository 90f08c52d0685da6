//! Memory for answers on their way: a client that takes its answer slowly keeps what was made for it.

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
#[derive(Default)]
pub struct Tally {
    taken: AtomicU64,
    freed: AtomicU64,
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

impl Budget {
    /// A budget of `bytes`, three quarters for answers, for which a request waits so long.
    pub fn new(bytes: u64, wait: Duration) -> Self {
        let units =
            |bytes: u64| u32::try_from(bytes / UNIT).unwrap_or(u32::MAX >> 3).clamp(256, u32::MAX >> 3);
        let (most_answers, most_pieces) = (units(bytes / 4 * 3), units(bytes / 4));
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
        let mut permit = self.take(&self.answers, self.most_answers, bytes.saturating_mul(2)).await?;
        let half = permit.split(permit.num_permits() / 2).ok_or(Full)?;
        Ok((Share::new(permit, None), Share::new(half, None)))
    }

    /// Room for a piece of an answer that is read while it is sent.
    ///
    /// # Errors
    /// As [`Budget::answer`].
    pub async fn piece(&self, bytes: u64, tally: Option<&Arc<Tally>>) -> Result<Share, Full> {
        let permit = self.take(&self.pieces, self.most_pieces, bytes).await?;
        Ok(Share::new(permit, tally.cloned()))
    }

    /// Bytes that were made already, once there is room for them.
    ///
    /// # Errors
    /// As [`Budget::answer`].
    pub async fn admit(&self, bytes: Vec<u8>) -> Result<Bytes, Full> {
        let share = self.piece(bytes.len() as u64, None).await?;
        Ok(share.with(bytes))
    }

    async fn take(
        &self,
        budget: &Arc<Semaphore>,
        most: u32,
        bytes: u64,
    ) -> Result<OwnedSemaphorePermit, Full> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(2, most);
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

#[cfg(test)]
mod tests {
    use super::*;

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

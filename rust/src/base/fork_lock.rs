//! A mutex for holds of microseconds that survives `fork`: the forking thread holds it across it.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Rounds of spinning, then of yielding, before a waiter sleeps.
const SPINS: u32 = 64;
const YIELDS: u32 = 16;
/// Longest sleep of a waiter: what it may lose when the holder was descheduled.
const LONGEST_SLEEP: Duration = Duration::from_micros(500);

/// A mutex around `T`: one atomic exchange to take it, a plain store to free it.
///
/// The mutex of the standard library pays a second exchange to wake waiters, which is a tenth of a look-up.
/// Nobody holds this one for longer than some hundred entries, so that waiters spin, yield, and then sleep
/// for ever longer, as others may not run at all while the holder waits for a processor.
///
/// A child forked while another thread held the mutex would wait for ever for a thread that it does not
/// have: hence [`ForkLock::hold`] before a fork and [`ForkLock::release`] after it, in both processes.
pub struct ForkLock<T> {
    busy: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached through a `Guard` only, of which there is one at a time (`busy`).
unsafe impl<T: Send> Sync for ForkLock<T> {}

impl<T> ForkLock<T> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Self {
        Self { busy: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the mutex.
    pub fn lock(&self) -> Guard<'_, T> {
        let mut round = 0;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            self.wait(round);
            round = round.saturating_add(1);
        }
    }

    /// The mutex, if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // No `then_some`: it would make a guard in any case, and drop it, which frees the mutex of another.
        if self.busy.swap(true, Ordering::Acquire) {
            None
        } else {
            Some(Guard { lock: self, value: PhantomData })
        }
    }

    #[cold]
    fn wait(&self, round: u32) {
        // Reading alone until it is free: exchanges would take the cache line from the holder.
        for _ in 0..SPINS {
            if !self.busy.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
        match round.checked_sub(YIELDS) {
            None => thread::yield_now(),
            Some(more) => thread::sleep(Duration::from_micros(10 << more.min(6)).min(LONGEST_SLEEP)),
        }
    }

    /// Before the fork: takes the mutex and keeps it.
    pub fn hold(&self) {
        std::mem::forget(self.lock());
    }

    /// After the fork, in the parent and in the child: frees the mutex.
    ///
    /// # Safety
    /// Only by the thread that called [`ForkLock::hold`], or its copy in the child.
    pub unsafe fn release(&self) {
        self.busy.store(false, Ordering::Release);
    }
}

/// The held mutex; dropping it frees it.
pub struct Guard<'a, T> {
    lock: &'a ForkLock<T>,
    /// A guard may be shared by threads only where the value may.
    value: PhantomData<&'a mut T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `busy` was taken for this guard, so that nobody else reaches the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard itself is borrowed for writing.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_and_release_frees() {
        let lock = ForkLock::new(vec![1]);
        lock.hold();
        assert!(lock.try_lock().is_none());
        // SAFETY: this thread holds it.
        unsafe { lock.release() };
        lock.lock().push(2);
        assert_eq!(*lock.lock(), [1, 2]);
    }

    #[test]
    fn a_panic_while_holding_frees() {
        let lock = ForkLock::new(0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock.lock();
            panic!("on purpose");
        }));
        assert!(caught.is_err() && lock.try_lock().is_some());
    }

    #[test]
    fn no_count_is_lost_among_threads() {
        let lock = ForkLock::new(0_u64);
        let begin = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    begin.wait();
                    for round in 0..20_000 {
                        let mut guard = if round % 2 == 0 {
                            lock.lock()
                        } else {
                            std::iter::repeat_with(|| lock.try_lock()).find_map(|tried| tried).unwrap()
                        };
                        let count = *guard;
                        (0..round % 20).for_each(|_| std::hint::spin_loop());
                        *guard = count + 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 80_000);
    }
}

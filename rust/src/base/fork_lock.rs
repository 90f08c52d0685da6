//! A mutex for critical sections of microseconds that survives `fork`: the forking thread takes it before.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Rounds of spinning, then of yielding, before a waiter sleeps.
const SPINS: u32 = 64;
const YIELDS: u32 = 16;
/// Longest sleep of a waiter: the time it may lose after the holder freed the mutex.
const LONGEST_SLEEP: Duration = Duration::from_micros(500);

/// A mutex around `T`: an atomic exchange takes it, a plain store frees it.
///
/// The mutex of the standard library needs a second exchange to wake waiters: a tenth of the time of a
/// look-up. This one is held for at most some hundred entries, so waiters spin, then yield, then sleep for
/// growing times, as the holder may itself be waiting for a processor.
///
/// A child that is forked while another thread holds the mutex would wait for ever, as that thread does not
/// exist in the child. Call [`ForkLock::hold`] before a fork and [`ForkLock::release`] after it, in both
/// processes.
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
        // `then_some` would construct and drop a guard in any case, which frees another thread's mutex.
        if self.busy.swap(true, Ordering::Acquire) {
            None
        } else {
            Some(Guard { lock: self, value: PhantomData })
        }
    }

    #[cold]
    fn wait(&self, round: u32) {
        // Only loads until the mutex is free: exchanges would take the cache line from the holder.
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

    /// Takes the mutex and keeps it: for the moment before a fork.
    pub fn hold(&self) {
        std::mem::forget(self.lock());
    }

    /// Frees the mutex: for the moment after a fork, in parent and child.
    ///
    /// # Safety
    /// Only for the thread that called [`ForkLock::hold`], or its copy in the child.
    pub unsafe fn release(&self) {
        self.busy.store(false, Ordering::Release);
    }
}

/// Access to the value; dropping the guard frees the mutex.
pub struct Guard<'a, T> {
    lock: &'a ForkLock<T>,
    /// Lets threads share a guard only where they may share the value.
    value: PhantomData<&'a mut T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `busy` was set for this guard, so nobody else reaches the value.
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

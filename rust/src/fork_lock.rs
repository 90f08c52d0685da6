//! A mutex that survives `fork`: the forking thread holds it across, the child makes it new.

use std::cell::UnsafeCell;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A mutex around `T`.
///
/// Without the protocol below, a child forked while another thread held the mutex would wait for ever for
/// a thread that it does not have.
pub struct ForkLock<T: 'static> {
    mutex: UnsafeCell<Mutex<T>>,
    /// The guard that [`ForkLock::hold`] leaves behind; only its holder touches this field.
    held: UnsafeCell<Option<MutexGuard<'static, T>>>,
}

// SAFETY: `mutex` is shared as a `Mutex` is; `held` is read and written only while the mutex is held, by
// the thread that holds it, and replaced in the child when there is one thread.
unsafe impl<T: Send> Sync for ForkLock<T> {}
// SAFETY: a value that can be moved has no holder, so that `held` is `None`.
unsafe impl<T: Send> Send for ForkLock<T> {}

impl<T> ForkLock<T> {
    /// An unlocked mutex.
    pub fn new(value: T) -> Self {
        Self { mutex: UnsafeCell::new(Mutex::new(value)), held: UnsafeCell::new(None) }
    }

    fn mutex(&self) -> &Mutex<T> {
        // SAFETY: replaced only by `reset_in_child`, when no other thread exists.
        unsafe { &*self.mutex.get() }
    }

    /// Waits for the mutex.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.mutex().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mutex, if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.mutex().try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Before the fork: takes the mutex and keeps it.
    pub fn hold(&self) {
        let guard = self.lock();
        // SAFETY: the guard is dropped by `release`, or forgotten by `reset_in_child`, of this same lock,
        // and so never outlives it; the mutex is held, hence `held` is ours.
        unsafe {
            *self.held.get() = Some(std::mem::transmute::<MutexGuard<'_, T>, MutexGuard<'static, T>>(guard))
        }
    }

    /// After the fork, in the parent: frees the mutex.
    ///
    /// # Safety
    /// Only by the thread that called [`ForkLock::hold`].
    pub unsafe fn release(&self) {
        // SAFETY: this thread holds the mutex, hence `held` is ours.
        drop(unsafe { (*self.held.get()).take() });
    }

    /// After the fork, in the child: a new, free mutex around the same value.
    ///
    /// # Safety
    /// Only in the child of a fork before which [`ForkLock::hold`] was called, while it has one thread.
    pub unsafe fn reset_in_child(&self) {
        // SAFETY: one thread, which inherited the held mutex: nobody else can see either field. The value
        // is moved bitwise into the new mutex; the old one and its guard are forgotten, never dropped.
        unsafe {
            let Some(guard) = (*self.held.get()).take() else { return };
            let value = std::ptr::read(&raw const *guard);
            std::mem::forget(guard);
            self.mutex.get().write(Mutex::new(value));
        }
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
        lock.hold();
        // SAFETY: as in a child: this thread holds it and no other one knows it.
        unsafe { lock.reset_in_child() };
        assert_eq!(*lock.lock(), [1, 2]);
    }
}

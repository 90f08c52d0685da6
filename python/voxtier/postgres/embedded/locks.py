"""File locks that the kernel frees when their process is killed, and that forks cannot keep by accident."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from voxtier.postgres.embedded.keeper import try_lock

_held: set[int] = set()


def take(path: Path, *, shared: bool = False) -> int | None:
    """Take a lock without waiting: its descriptor, or None while another process holds it."""
    lock = try_lock(str(path), fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if lock is not None:
        _held.add(lock)
    return lock


def release(lock: int | None, *, inherited: bool = False) -> None:
    """Release a lock, also where a child forked meanwhile still has the descriptor.

    Parameters
    ----------
    lock : int or None
        From `take`; None, and a lock that was taken before a fork, are no lock of this process.
    inherited : bool
        Leave the lock to the programs that were started with it; only the descriptor is closed.
    """
    if lock is None or lock not in _held:
        return
    _held.discard(lock)
    if not inherited:
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _after_fork_in_child() -> None:
    # Closing does not unlock: the parent still holds the same locks. The child takes its own.
    for lock in _held:
        with contextlib.suppress(OSError):
            os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

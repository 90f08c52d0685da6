"""File locks between the processes of a machine: freed by a kill, and not held by a forked child."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from voxtier.system.fork import after_fork_in_child
from voxtier.system.locks.flock import try_flock

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_held: set[int] = set()


def take(path: Path, *, shared: bool = False, mode: int = 0o600) -> int | None:
    """Take a lock without waiting: its descriptor, or None while another holds it; see `try_flock`.

    Parameters
    ----------
    path : Path
        The lock file; made where it is absent.
    shared : bool
        Let others hold it too, who take it shared as well.
    mode : int
        Permission bits of a new file, before the umask.

    Returns
    -------
    int or None
        For `release`.
    """
    lock = try_flock(str(path), shared=shared, mode=mode)
    if lock is not None:
        _held.add(lock)
    return lock


def release(lock: int | None, *, inherited: bool = False) -> None:
    """Release a lock, also where a child forked meanwhile still has the descriptor.

    Parameters
    ----------
    lock : int or None
        From `take`; None, and a lock that was taken before a fork, are no locks of this process.
    inherited : bool
        Leave the lock to the programs that were started with it; only the descriptor is closed.
    """
    if lock is None or lock not in _held:
        return
    _held.discard(lock)
    if not inherited:
        fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


@contextlib.contextmanager
def hold_lock(path: Path, timeout: float, *, mode: int = 0o600) -> Iterator[int]:
    """Hold a lock exclusively, waiting for other holders.

    Parameters
    ----------
    path : Path
        The lock file; made where it is absent.
    timeout : float
        Longest wait, in seconds.
    mode : int
        Permission bits of a new file, before the umask.

    Yields
    ------
    int
        The descriptor of the lock file, whose content is the holder's to write.

    Raises
    ------
    TimeoutError
        Another holds it for longer than `timeout`.
    """
    deadline, pause = time.monotonic() + timeout, _SHORTEST_PAUSE
    while (lock := take(path, mode=mode)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} was held by another process for {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    try:
        yield lock
    finally:
        release(lock)


def _close_in_child() -> None:
    # Closing does not unlock: the parent still holds the same locks. The child takes its own.
    for lock in _held:
        with contextlib.suppress(OSError):
            os.close(lock)
    _held.clear()


after_fork_in_child(_close_in_child)

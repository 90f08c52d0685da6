"""What a reader counts: requests by tier, and what went wrong on the way."""

from __future__ import annotations

import threading


class Counters:
    """Named counters of all threads of a process.

    Parameters
    ----------
    *names : str
        What is counted.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.after_fork()

    def after_fork(self) -> None:
        """Count from 0 in a child process, whose threads are its own."""
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(self._names, 0)

    def add(self, *names: str) -> None:
        """Add one to each of some counters."""
        with self._lock:
            for name in names:
                self._counts[name] += 1

    def read(self) -> dict[str, int]:
        """Return all counters of one moment, by name."""
        with self._lock:
            return dict(self._counts)

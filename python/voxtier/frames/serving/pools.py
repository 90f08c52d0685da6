"""Threads for requests that have to wait, apart by what they wait for."""

from __future__ import annotations

import threading

from voxtier.system.workers import ContextThreads

_THREADS = 32


class ThreadPools:
    """A pool of threads for each name, made when it is first asked for."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Start without pools in a child process, whose threads are its own."""
        self._lock = threading.Lock()
        self._pools: dict[str, ContextThreads] = {}

    def get(self, name: str) -> ContextThreads:
        """Return the pool of a name."""
        with self._lock:
            if name not in self._pools:
                self._pools[name] = ContextThreads(_THREADS, f"voxtier-{name}")
            return self._pools[name]

    def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown(wait=True)

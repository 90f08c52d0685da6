"""What the reader owes the index: accesses and computed tables, written in batches by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta

from voxtier import _core
from voxtier.errors import BackendError, ConfigError
from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.store.store import FrameStore
from voxtier.frames.table import TableResult

__all__ = ["Bookkeeper"]

_BATCH = 5000
_DIRTY_AT_MOST = 10_000
# Computed tables that wait for a database that is down; beyond it the oldest are computed again some day.
_WAITING_AT_MOST = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bookkeeper:
    """Writes accesses every `seconds` and when many wait, and computed tables soon.

    A batch that fails goes back to the cache's pending accesses, so that nothing is lost but by a crash,
    and then at most `seconds` of it. A batch whose commit was not confirmed may count twice. Where the role
    may not write tables, those computed here stay in memory alone.
    """

    def __init__(self, cache: FrameCache, store: FrameStore | None, source: str, seconds: float) -> None:
        self.cache, self.store, self.source, self.seconds = cache, store, source, seconds
        self._closed = False
        self._may_write = True
        self.after_fork()

    def after_fork(self) -> None:
        """Start with nothing owed: what there was is the parent's. The thread starts at the next access."""
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._tables: deque[TableResult] = deque(maxlen=_WAITING_AT_MOST)
        self._counts = {"flushed": 0, "flush_errors": 0, "unknown_ids": 0, "written_back": 0}

    def wake(self) -> None:
        """Something was accessed: see that the thread runs."""
        if self._thread is not None or self.store is None or self._closed:
            return
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="voxtier-books", daemon=True)
                self._thread.start()

    def write_back(self, result: TableResult) -> None:
        """Take a computed table to be written to the index."""
        if self.store is not None and self._may_write:
            self._tables.append(result)
            self._work.set()

    def flush(self) -> int:
        """Write what is owed; return how many files had accesses. A database that fails is no exception."""
        if self.store is None:
            return 0
        with self._flushing:
            self._write_tables()
            return self._write_accesses()

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return dict(self._counts)

    def close(self) -> None:
        """Write what is owed and stop the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._work.set()
        if thread is not None:
            thread.join()
        self.flush()

    def _run(self) -> None:
        step = min(self.seconds, 1.0)
        due = time.monotonic() + self.seconds
        while not self._closed:
            called = self._work.wait(step)
            self._work.clear()
            if time.monotonic() >= due or self.cache.counters()["dirty"] >= _DIRTY_AT_MOST:
                self.flush()
                due = time.monotonic() + self.seconds
            elif called:
                with self._flushing:
                    self._write_tables()

    def _write_tables(self) -> None:
        assert self.store is not None
        results = []
        while self._tables:
            results.append(self._tables.popleft())
        if not results:
            return
        try:
            self.store.upsert(self.source, results)
            self._counts["written_back"] += len(results)
        except BackendError:
            self._counts["flush_errors"] += 1
            self._tables.extendleft(reversed(results))
        except ConfigError:
            self._counts["flush_errors"] += 1
            self._may_write = False

    def _write_accesses(self) -> int:
        assert self.store is not None
        keys, counts, times = self.cache.drain_access()
        for start in range(0, len(keys), _BATCH):
            part = slice(start, start + _BATCH)
            ids = [_core.file_key(self.source, key) for key in keys[part]]
            at = [_EPOCH + timedelta(microseconds=time) for time in times[part].tolist()]
            try:
                unknown = self.store.touch(ids, counts[part].tolist(), at)
            except (BackendError, ConfigError):
                self._counts["flush_errors"] += 1
                rest = slice(start, None)
                self.cache.restore_access(keys[rest], counts[rest].tolist(), times[rest].tolist())
                return start
            self._counts["flushed"] += len(ids) - len(unknown)
            self._counts["unknown_ids"] += len(unknown)
        return len(keys)

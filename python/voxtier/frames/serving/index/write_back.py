"""Writes accesses, computed tables and maps of slides to the index, in batches, on one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeAlias

from voxtier._core import encode_rows, file_key
from voxtier.errors import BackendError, ConfigError
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.memory.cache import FrameCache
from voxtier.frames.store.store import FrameStore
from voxtier.system.workers import start_thread


class Linked(NamedTuple):
    """The table of a file that has another name than the one by which it was asked for."""

    result: TableResult


#: A table, and the row of one that was computed elsewhere. The writer encodes: it takes a table of 10^5
#: frames 0.4 ms, which the thread that asks for a frame need not wait for.
_Waiting: TypeAlias = TableResult | Linked | bytes

_log = logging.getLogger(__name__)

_BATCH = 5000
_DIRTY_AT_MOST = 10_000
# Computed tables that wait while the database is down; beyond it the oldest are dropped and computed again.
_WAITING_AT_MOST = 10_000
# Maps of slides that wait, for the rows of their files too; beyond it they are not kept.
_MAPS_AT_MOST, _MAP_BYTES_AT_MOST = 1_000, 16 << 20
# After a database has refused to take a table.
_FORBIDDEN_SECONDS = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class WriteBack:
    """Writes accesses every `seconds` and when many wait, computed tables within a second.

    Accesses of a batch that fails go back to the cache, so that only a crash loses some, at most those of
    `seconds`; so does a database that does not answer within ten seconds of `close`. A batch whose commit was
    not confirmed may count twice. Where the role or server may not write tables of a source, those that are
    computed stay in memory only; after a minute the next one is tried again.

    Parameters
    ----------
    cache : FrameCache
        Counts the accesses.
    store : FrameStore or None
        The index; None: nothing is written.
    sources : sequence of str
        Names of the sources that the files may belong to. An access is of the first that knows the file.
    seconds : float
        Between two writes of accesses.
    """

    def __init__(
        self, cache: FrameCache, store: FrameStore | None, sources: Sequence[str], seconds: float
    ) -> None:
        self.cache, self.store, self.sources, self.seconds = cache, store, list(sources), seconds
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Reset in a child process: pending tables are the parent's. The next access starts a thread."""
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._forbidden_until: dict[str, float] = {}
        self._maps_forbidden_until = 0.0
        self._maps: dict[str, bytes] = {}
        self._rows: deque[tuple[str, _Waiting]] = deque(maxlen=_WAITING_AT_MOST)
        self._counts = {"flushed": 0, "flush_errors": 0, "unknown_ids": 0, "written_back": 0}

    def wake(self) -> None:
        """Start the thread, if it does not run: something was accessed."""
        if self._thread is not None or self.store is None or self._closed:
            return
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = start_thread(self._run, "voxtier-write-back")

    def add_table(self, result: TableResult | Linked) -> None:
        """Add a computed table to those that wait to be written."""
        self._add(self.sources[0], result)

    def add_row(self, source: str, row: bytes) -> None:
        """Add the row of a table that was computed elsewhere: see `encode_rows`."""
        self._add(source, row)

    def _add(self, source: str, row: _Waiting) -> None:
        if self.store is not None and time.monotonic() >= self._forbidden_until.get(source, 0.0):
            with self._lock:
                self._rows.append((source, row))
            self._work.set()

    def add_slide_map(self, path: str, kept: bytes) -> None:
        """Add what is to be kept of the header of a slide: see `SlideHeader.to_bytes`."""
        if self.store is None or time.monotonic() < self._maps_forbidden_until:
            return
        with self._lock:
            waiting = sum(map(len, self._maps.values())) + len(kept)
            if len(self._maps) < _MAPS_AT_MOST and waiting <= _MAP_BYTES_AT_MOST:
                self._maps[path] = kept
        self._work.set()

    def flush(self) -> int:
        """Write everything that waits; return the number of files accessed. A database may fail meanwhile."""
        if self.store is None:
            return 0
        with self._flushing:
            self._write_tables()
            return self._attempt(self._write_accesses) or 0

    def stats(self) -> dict[str, int]:
        """Return the counters since the start."""
        return dict(self._counts)

    def close(self, seconds: float = 10.0) -> None:
        """Write everything that waits and stop the thread; give up after `seconds`."""
        self.wake()
        with self._lock:
            self._closed = True
            thread = self._thread
        self._work.set()
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        step = min(self.seconds, 1.0)
        due = time.monotonic() + self.seconds
        while not self._closed:
            is_called = self._work.wait(step)
            self._work.clear()
            if time.monotonic() >= due or self.cache.counters()["dirty"] >= _DIRTY_AT_MOST:
                self.flush()
                due = time.monotonic() + self.seconds
            elif is_called:
                with self._flushing:
                    self._write_tables()
        self.flush()

    def _attempt(self, write: Callable[[], int | None]) -> int | None:
        """Write something; what nobody foresaw is logged, and ends neither the thread nor other writes."""
        try:
            return write()
        except Exception:
            self._counts["flush_errors"] += 1
            _log.exception("what was read could not be written to the index")
            return None

    def _write_tables(self) -> None:
        """Write rows source by source, as one may be forbidden that others are not, and maps behind them."""
        with self._lock:
            waiting, self._rows = self._rows, deque(maxlen=_WAITING_AT_MOST)
        rows: dict[str, list[_Waiting]] = {}
        for source, row in waiting:
            rows.setdefault(source, []).append(row)
        for source, mine in rows.items():
            self._attempt(partial(self._write_rows, source, mine))
        self._attempt(self._write_maps)

    def _write_rows(self, source: str, rows: list[_Waiting]) -> None:
        assert self.store is not None
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            try:
                tables = [row for row in batch if isinstance(row, TableResult)]
                linked = [row.result for row in batch if isinstance(row, Linked)]
                # A rule for the file's own name holds for no other, by which everybody would see it.
                if linked and not self.store.names_paths():
                    tables += linked
                encoded, _ = encode_rows(source, tables)
                encoded += b"".join(row for row in batch if isinstance(row, bytes))
                self.store.upsert_rows(source, encoded, by_reader=True)
            except BackendError:
                self._counts["flush_errors"] += 1
                self._put_back(source, rows[start:])
                return
            except ConfigError:
                self._counts["flush_errors"] += 1
                self._forbidden_until[source] = time.monotonic() + _FORBIDDEN_SECONDS
                return
            self._counts["written_back"] += len(batch)

    def _put_back(self, source: str, rows: list[_Waiting]) -> None:
        """Have rows wait before those that came meanwhile; where there is no room, the oldest are dropped."""
        with self._lock:
            came = list(self._rows)
            self._rows.clear()
            self._rows.extend((source, row) for row in rows)
            self._rows.extend(came)

    def _write_maps(self) -> None:
        """Write the maps of slides whose files have a row; the others wait for it."""
        assert self.store is not None
        with self._lock:
            maps = dict(self._maps)
        if not maps:
            return
        done = set(maps)
        try:
            done = self.store.keep_slide_maps(self.sources[0], maps)
        except BackendError:
            self._counts["flush_errors"] += 1
            done = set()
        except ConfigError:  # no right to: each process reads the headers again
            self._maps_forbidden_until = time.monotonic() + _FORBIDDEN_SECONDS
        finally:  # also of those that cannot be written at all: others would wait behind them
            with self._lock:
                for path in done:
                    if self._maps.get(path) is maps[path]:
                        del self._maps[path]

    def _write_accesses(self) -> int:
        keys, counts, times = self.cache.drain_access()
        waiting = list(zip(keys, counts.tolist(), times.tolist(), strict=True))
        for start in range(0, len(waiting), _BATCH):
            part = waiting[start : start + _BATCH]
            try:
                self._touch(part)
            except Exception as error:
                rest = part + waiting[start + _BATCH :]
                self.cache.restore_access(*map(list, zip(*rest, strict=True)))
                if not isinstance(error, (BackendError, ConfigError)):
                    raise
                self._counts["flush_errors"] += 1
                return start
        return len(waiting)

    def _touch(self, accesses: list[tuple[str, int, int]]) -> None:
        """Write each access to the first source that knows its file, and take it off the list."""
        assert self.store is not None
        for source in self.sources:
            if not accesses:
                return
            keys = [file_key(source, path) for path, _, _ in accesses]
            at = [_EPOCH + timedelta(microseconds=time) for _, _, time in accesses]
            unknown = set(self.store.touch(keys, [count for _, count, _ in accesses], at))
            self._counts["flushed"] += len(keys) - len(unknown)
            accesses[:] = [each for key, each in zip(keys, accesses, strict=True) if key in unknown]
        self._counts["unknown_ids"] += len(accesses)

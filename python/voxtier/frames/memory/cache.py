"""Tier 1: frame tables in memory within a budget of bytes, each loaded by one thread for all that ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from voxtier import _core
from voxtier._core import FrameTable
from voxtier.frames.memory.flights import Flights
from voxtier.frames.sources.address import is_text
from voxtier.system.fork import at_fork

#: How an entry is treated: see `FrameCache.put_table`.
Class = Literal["normal", "scan", "pinned"]
#: Who answered: memory, the index, the file.
Tier = Literal["tier1", "tier2", "tier3"]


class LoadResult(NamedTuple):
    """What a loader found.

    Attributes
    ----------
    table : FrameTable
        The table that was asked for.
    tier : {"tier1", "tier2", "tier3"}
        Where; ``tier1`` for the threads that waited for another one.
    rows : bytes
        Rows of the index that memory shall keep, that of `table` first; empty: memory keeps `table`.
    """

    table: FrameTable
    tier: Tier = "tier3"
    rows: bytes = b""


Loader: TypeAlias = Callable[[str], FrameTable | LoadResult]


class FrameCache(_core.FrameCache):
    """Frame tables by key, least recently used out first, never beyond its budget.

    Parameters
    ----------
    budget_bytes : int
        Bytes for everything: tables, keys, slots, accesses that wait to be written. 0: always a miss.
    policy : {"lru"}
        What leaves first.
    max_entry_fraction : float
        Share of the budget that one table may take; a larger one is refused and evicts nothing.
    debounce_seconds : float
        Accesses to one file closer together count once.

    Notes
    -----
    Frames count from 0. One object serves all threads. It survives `os.fork`: a child keeps the tables and
    forgets the accesses, which its parent writes.
    """

    #: Seconds that never go back; another clock serves replays.
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        budget_bytes: int,
        *,
        policy: str = "lru",
        max_entry_fraction: float = 0.25,
        debounce_seconds: float = 600.0,
    ) -> None:
        self._lock = threading.Lock()
        self._flights = Flights()
        self._counts = {"loads": 0, "load_errors": 0, "load_waits": 0, "load_ns": 0, "primed": 0}
        at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._in_child,
        )

    def get_or_load(
        self, key: str, loader: Loader, *, etag: str | None = None, klass: Class = "normal"
    ) -> FrameTable:
        """Return the table of a key, from memory or by one call of a loader, however many threads ask.

        Parameters
        ----------
        key : str
            The loader's argument.
        loader : callable
            Returns a `FrameTable` or a `LoadResult`.
        etag : str or None
            Kept beside a table without rows.
        klass : {"normal", "scan", "pinned"}
            See `put_table`.

        Returns
        -------
        FrameTable
            The table, also when memory has no room for it.

        Raises
        ------
        RuntimeError
            The loader asks for the key that it is loading.
        BaseException
            What the loader raised, in every thread that waited; nothing of it is kept.
        """
        scan = klass == "scan"
        if self.touch(key, scan=scan):
            table = self.table(key)
            if table is not None:
                return table
        table = self.load(key, loader, etag=etag, klass=klass).table
        self.touch(key, scan=scan)
        return table

    def load(
        self, key: str, loader: Loader, *, etag: str | None = None, klass: Class = "normal"
    ) -> LoadResult:
        """Call a loader as `get_or_load` does, without looking into memory: an entry there is stale.

        Parameters
        ----------
        key : str
            The loader's argument.
        loader : callable
            See `get_or_load`.
        etag : str or None
            See `get_or_load`.
        klass : {"normal", "scan", "pinned"}
            See `put_table`.

        Returns
        -------
        LoadResult
            What the loader returned.

        Raises
        ------
        RuntimeError, BaseException
            See `get_or_load`.
        """
        with self._lock:
            flight, is_mine = self._flights.join(key)
            self._counts["load_waits"] += not is_mine
        if not is_mine:
            return cast(LoadResult, flight.wait())._replace(tier="tier1")
        start = time.perf_counter_ns()
        try:
            found = loader(key)
            loaded = found if isinstance(found, LoadResult) else LoadResult(found)
            if not flight.is_stale:
                self._keep(key, loaded, etag, klass)
        except BaseException as error:
            with self._lock:
                self._flights.end(key)
                self._counts["load_errors"] += 1
            flight.fail(error)
            raise
        with self._lock:
            self._flights.end(key)
            self._counts["loads"] += 1
            self._counts["load_ns"] += time.perf_counter_ns() - start
            if flight.is_stale:
                super().invalidate(key)
        flight.land(loaded)
        return loaded

    def claim_series(self, key: str) -> bool:
        """Within a loader: whether it shall also bring the series of its key. See `Flights.claim_series`."""
        with self._lock:
            return self._flights.claim_series(key, self.clock())

    def invalidate(self, key: str) -> bool:
        """Forget a key; a load of it that is under way is handed out, but not kept."""
        if not is_text(key):  # no key, but a path may be
            return False
        with self._lock:
            self._flights.mark_stale(key)
            return super().invalidate(key)

    def _keep(self, key: str, loaded: LoadResult, etag: str | None, klass: Class) -> None:
        if not loaded.rows:
            self.put_table(key, loaded.table, etag=etag, klass=klass)
            return
        keys, stored = self.put_rows(loaded.rows, klass=klass)
        if len(keys) > 1:
            with self._lock:
                self._flights.add_arrivals(keys, self.clock())
                self._counts["primed"] += stored

    def stats(self) -> dict[str, Any]:
        """Return the counters since the start: look-ups, evictions by cause, refusals by reason, loads."""
        with self._lock:
            return {**self.counters(), **self._counts}

    def _in_child(self) -> None:
        self._after_fork_in_child()
        self._lock = threading.Lock()
        self._flights.end_all()

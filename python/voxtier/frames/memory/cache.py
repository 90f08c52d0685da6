"""Tier 1: frame tables in memory within a budget of bytes, loaded once however many ask."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from voxtier import _core
from voxtier._core import FrameTable
from voxtier.system.fork import at_fork

__all__ = ["Class", "FrameCache"]

#: How an entry is treated: see `FrameCache.put_table`.
Class = Literal["normal", "scan", "pinned"]

_MOST_PRIMED = 65_536
# A series whose files miss again so much later has been evicted: it is worth another batch.
_PRIMED_SECONDS = 60.0


class Recalled(NamedTuple):
    """A table that a loader found in the index, and its last access there (µs since 1970, 0 if none)."""

    table: FrameTable
    last_used_us: int


Loader = Callable[[str], FrameTable | Recalled]


def _recalled(loaded: FrameTable | Recalled) -> Recalled:
    return loaded if isinstance(loaded, Recalled) else Recalled(loaded, 0)


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
        self._flights: dict[str, _Flight] = {}
        self._primed: OrderedDict[str, float] = OrderedDict()
        self._counts = {"loads": 0, "load_errors": 0, "load_waits": 0, "load_ns": 0, "primed": 0}
        at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._in_child,
        )

    def get_or_load(
        self,
        key: str,
        loader: Loader,
        *,
        etag: str | None = None,
        klass: Class = "normal",
    ) -> FrameTable:
        """Return the table of `key`, from memory or by one call of `loader`, however many threads ask.

        Parameters
        ----------
        key : str
            What `loader` is called with.
        loader : callable
            Returns a `FrameTable`, or a `Recalled`, whose last access takes part in the debouncing.
        etag : str or None
            Kept beside the table.
        klass : {"normal", "scan", "pinned"}
            As for `put_table`.

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
        table = self.load(key, loader, etag=etag, klass=klass)
        self.touch(key, scan=scan)
        return table

    def load(
        self,
        key: str,
        loader: Loader,
        *,
        etag: str | None = None,
        klass: Class = "normal",
    ) -> FrameTable:
        """Call `loader` although the key may be there (its entry is stale), again once for all threads."""
        with self._lock:
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
            elif flight.thread == threading.get_ident():
                raise RuntimeError(f"the loader of {key!r} asks for the key that it is loading")
            else:
                self._counts["load_waits"] += 1
        if not mine:
            return cast(FrameTable, flight.wait())
        start = time.perf_counter_ns()
        try:
            loaded = loader(key)
        except BaseException as error:
            with self._lock:
                self._flights.pop(key, None)
                self._counts["load_errors"] += 1
            flight.fail(error)
            raise
        table, last_used = _recalled(loaded)
        with self._lock:
            self._flights.pop(key, None)
            self._counts["loads"] += 1
            self._counts["load_ns"] += time.perf_counter_ns() - start
            if not flight.stale:
                self.put_table(key, table, etag=etag, klass=klass, last_used_us=last_used)
        flight.land(table)
        return table

    def prime(
        self,
        series: str,
        keys: Sequence[str],
        batch_loader: Callable[[list[str]], Mapping[str, FrameTable | Recalled]],
        *,
        first: str | None = None,
    ) -> int:
        """Load the tables of a series in one batch, at its first miss; calls in the next minute do nothing.

        A load, not an access. At most half the budget is filled, from the key `first` on.

        Returns
        -------
        int
            Tables that were put.
        """
        mark = f"\0series\0{series}"
        with self._lock:
            if self.is_primed(series):
                return 0
            flight = self._flights.get(mark)
            mine = flight is None
            if flight is None:
                flight = self._flights[mark] = _Flight()
        if not mine:
            flight.wait()
            return 0
        try:
            start = keys.index(first) if first in keys else 0
            wanted = [key for key in [*keys[start:], *keys[:start]] if key not in self]
            tables = batch_loader(wanted) if wanted else {}
            put, limit = 0, self.counters()["used"] + self.counters()["budget"] // 2
            for key in wanted:
                if key in tables and self.counters()["used"] < limit:
                    table, last_used = _recalled(tables[key])
                    put += self.put_table(key, table, last_used_us=last_used)
        except BaseException as error:
            with self._lock:
                self._flights.pop(mark, None)
            flight.fail(error)
            raise
        with self._lock:
            self._flights.pop(mark, None)
            now = self.clock()
            for mark_of in (series, *tables):
                self._primed[mark_of] = now
                self._primed.move_to_end(mark_of)
            # An expired mark says nothing any more, and holds a path.
            gone = now - _PRIMED_SECONDS
            while len(self._primed) > _MOST_PRIMED or next(iter(self._primed.values())) <= gone:
                self._primed.popitem(last=False)
            self._counts["primed"] += put
        flight.land(None)
        return put

    def is_primed(self, series: str) -> bool:
        """Whether `prime` has loaded that series, or that key, within the last minute."""
        primed = self._primed.get(series)
        return primed is not None and self.clock() - primed < _PRIMED_SECONDS

    def invalidate(self, key: str) -> bool:
        """Forget a key; a load of it that is under way is handed out, but not kept."""
        with self._lock:
            if flight := self._flights.get(key):
                flight.stale = True
            return super().invalidate(key)

    def stats(self) -> dict[str, Any]:
        """Return the counters since the start: look-ups, evictions by cause, refusals by reason, loads."""
        with self._lock:
            return {**self.counters(), **self._counts}

    def _in_child(self) -> None:
        self._after_fork_in_child()
        self._lock = threading.Lock()
        self._flights = {}


class _Flight:
    """One load that others wait for."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.stale = False
        self._done = threading.Event()
        self._table: Any = None
        self._error: BaseException | None = None

    def land(self, table: FrameTable | None) -> None:
        self._table = table
        self._done.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> Any:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._table

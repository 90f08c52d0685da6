"""The one guard against loading twice: loads under way, and keys that came along with one a moment ago."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

_MOST_ARRIVALS = 65_536
# A file of a series that misses again so much later has been evicted: the series is worth another batch.
_ARRIVAL_SECONDS = 60.0


class Flight:
    """One load: the thread that began it works, the others wait for what it brings."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.is_stale = False
        self.folder: str | None = None
        self._landed = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def land(self, result: Any) -> None:
        """Hand a result to those that wait."""
        self._result = result
        self._landed.set()

    def fail(self, error: BaseException) -> None:
        """Raise an exception in those that wait."""
        self._error = error
        self._landed.set()

    def wait(self) -> Any:
        """Return the result, or raise the exception, of the thread that works."""
        self._landed.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Flights:
    """The loads of a cache. The cache holds its lock around every call; `now` is in seconds of its clock."""

    def __init__(self) -> None:
        self._under_way: dict[str, Flight] = {}
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def join(self, key: str) -> tuple[Flight, bool]:
        """Return the load of a key, and whether the caller has just begun it.

        Raises
        ------
        RuntimeError
            The caller's own thread is loading the key.
        """
        flight = self._under_way.get(key)
        if flight is None:
            flight = self._under_way[key] = Flight()
            return flight, True
        if flight.thread == threading.get_ident():
            raise RuntimeError(f"the loader of {key!r} asks for the key that it is loading")
        return flight, False

    def claim_series(self, key: str, now: float) -> bool:
        """Return whether the load of a key shall bring the rest of its series.

        Not while another load does so for the same folder: a viewer asks for many slices at once. Not for a
        key that came along within the last minute and was evicted since.
        """
        folder = os.path.dirname(key)  # noqa: PTH120 - on the way of every miss
        arrived = self._arrivals.get(key)
        recent = arrived is not None and now - arrived < _ARRIVAL_SECONDS
        if recent or any(flight.folder == folder for flight in self._under_way.values()):
            return False
        if flight := self._under_way.get(key):
            flight.folder = folder
        return True

    def mark_stale(self, key: str) -> None:
        """Keep what the load of a key brings out of the cache."""
        if flight := self._under_way.get(key):
            flight.is_stale = True

    def end(self, key: str) -> None:
        """Forget the load of a key: the next miss begins another."""
        self._under_way.pop(key, None)

    def end_all(self) -> None:
        """Forget all loads: after a fork, the threads that do them are the parent's."""
        self._under_way.clear()

    def add_arrivals(self, keys: Iterable[str], now: float) -> None:
        """Add keys that one load brought; drop those that came more than a minute ago."""
        for key in keys:
            self._arrivals[key] = now
            self._arrivals.move_to_end(key)
        while self._arrivals and (
            len(self._arrivals) > _MOST_ARRIVALS
            or next(iter(self._arrivals.values())) <= now - _ARRIVAL_SECONDS
        ):
            self._arrivals.popitem(last=False)

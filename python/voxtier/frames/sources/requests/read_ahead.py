"""Bytes of an object before they are asked for: a viewer that scrolls does not wait for each frame.

What was asked for ahead and never wanted stays below a quarter of what the viewer read, and what came is
given out for two seconds: behind that the object may be another one, and is asked again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from voxtier.frames.sources.requests.fetching import submit
from voxtier.system.fork import after_fork_in_child

_FRESH_SECONDS = 2.0
_MOST_AHEAD = 8 << 20
_MOST_KEPT = 64 << 20
# Bytes ahead, as a share of those read by the same scroll.
_SHARE = 4
# Neighbours are never further apart than so many of them: requests of one viewer overtake each other.
_SLACK = 4
# Share of the bytes passed that were read: who takes every other frame is not helped by what lies between.
_DENSE = 0.8
# Scrolls through one object at the same time, as of several viewers; objects that are followed.
_SCROLLS, _OBJECTS = 4, 256

Get = Callable[[int, int], Any]


class _Piece:
    """A range that is asked for ahead, by a thread of its own or by the first one who wants it."""

    def __init__(self, start: int, end: int, get: Get) -> None:
        self.start, self.end, self._get = start, end, get
        self.asked = time.monotonic()
        self._lock = threading.Lock()
        self._body: memoryview | None = None
        self._has_failed = False

    def fetch(self) -> memoryview | None:
        """Return its bytes; None where they do not come: whoever needs them asks, and is told why."""
        with self._lock:
            if self._body is None and not self._has_failed:
                try:
                    self._body = memoryview(self._get(self.start, self.end))
                except Exception:
                    self._has_failed = True
            return self._body


class _Scroll:
    """One way through an object, upwards or downwards."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end  # what was passed
        self.step = 0
        self.shared = 0  # bytes that neighbours have in common: a frame is read with the header of the next
        self.read = 0
        self.began = time.monotonic()
        self.pieces: list[_Piece] = []

    def follows(self, start: int, end: int) -> bool:
        """Return whether a read goes on with this scroll."""
        slack = _SLACK * (end - start)
        if self.start <= start and end <= self.end:  # once more, or overtaken by its neighbours
            return end > self.end - slack if self.step > 0 else start < self.start + slack
        is_behind = self.step * (start - self.start) < 0
        return not is_behind and -(end - start) // 2 <= self._gap(start, end) <= slack

    def _gap(self, start: int, end: int) -> int:
        return start - self.end if start > self.start else self.start - end

    def take(self, start: int, end: int) -> None:
        """Take note of a read."""
        self.read += end - start
        if start < self.start or end > self.end:
            self.step = 1 if start > self.start else -1
            self.shared = max(self.shared, -self._gap(start, end))
            self.start, self.end = min(self.start, start), max(self.end, end)

    def next_range(self, length: int, size: int) -> tuple[int, int] | None:
        """Return what to ask for ahead of a read of `length` bytes, in an object of `size`."""
        passed = self.end - self.start
        if not self.step or self.read < passed * _DENSE:
            return None
        soon = passed / max(time.monotonic() - self.began, 0.001) * _FRESH_SECONDS / 2
        most = min(passed // _SHARE, _MOST_AHEAD, int(soon))
        if most < length:
            return None
        if self.step > 0:
            front = max([self.end - self.shared, *(piece.end for piece in self.pieces)])
            found, left = (front, min(self.end + most, size)), front - self.end
        else:
            front = min([self.start + self.shared, *(piece.start for piece in self.pieces)])
            found, left = (max(self.start - most, 0), front), self.start - front
        return found if left < most / 2 and found[0] < found[1] else None

    def drop_passed(self, length: int) -> None:
        """Let go what lies well behind, and what is old."""
        now, kept = time.monotonic(), _SLACK * length
        self.pieces = [
            piece
            for piece in self.pieces
            if now - piece.asked < _FRESH_SECONDS
            and (piece.end > self.end - kept if self.step > 0 else piece.start < self.start + kept)
        ]


class ReadAhead:
    """Follows reads through objects and asks for what comes next, within a budget of bytes.

    Parameters
    ----------
    budget_bytes : int
        Bytes that are kept or under way at most.
    """

    def __init__(self, budget_bytes: int = _MOST_KEPT) -> None:
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._scrolls: OrderedDict[Hashable, list[_Scroll]] = OrderedDict()

    def get(self, key: Hashable, size: int, start: int, end: int, get: Get) -> Any:
        """Read a range of an object, and have what comes next fetched if a scroll is seen.

        Parameters
        ----------
        key : hashable
            The object in its state: what was read of another state is not given out.
        size : int
            Its bytes.
        start, end : int
            What is wanted, half-open.
        get : callable
            Takes start and end, returns the bytes; called on other threads too.

        Returns
        -------
        buffer
            The bytes.
        """
        with self._lock:
            scroll = self._follow(key, start, end)
            scroll.drop_passed(end - start)
            pieces = sorted(scroll.pieces, key=lambda piece: piece.start)
            ahead = scroll.next_range(end - start, size)
            if ahead is not None and self._make_room(ahead[1] - ahead[0], key):
                scroll.pieces.append(_Piece(*ahead, get))
                submit(scroll.pieces[-1].fetch)
        found: list[Any] = []
        for piece in pieces:
            if piece.start <= start < min(piece.end, end):
                body = piece.fetch()
                if body is None:
                    break
                found.append(body[start - piece.start : end - piece.start])
                start = piece.end
        if start < end:
            found.append(get(start, end))
        return found[0] if len(found) == 1 else b"".join(found)

    def _follow(self, key: Hashable, start: int, end: int) -> _Scroll:
        scrolls = self._scrolls.setdefault(key, [])
        self._scrolls.move_to_end(key)
        if len(self._scrolls) > _OBJECTS:
            self._scrolls.popitem(last=False)
        followed = [each for each in scrolls if each.follows(start, end)]
        if not followed:
            scrolls.append(_Scroll(start, end))
            del scrolls[:-_SCROLLS]
            followed = scrolls[-1:]
        scroll = max(followed, key=lambda each: each.read)  # a read of its own may lie before it
        scroll.take(start, end)
        return scroll

    def _make_room(self, size: int, key: Hashable) -> bool:
        """Forget the objects that were not read for longest, until so many bytes fit."""
        while self._kept() + size > self._budget:
            oldest = next(iter(self._scrolls))
            if oldest == key:
                return False
            del self._scrolls[oldest]
        return True

    def _kept(self) -> int:
        return sum(
            piece.end - piece.start
            for scrolls in self._scrolls.values()
            for scroll in scrolls
            for piece in scroll.pieces
        )

    def after_fork(self) -> None:
        """Forget all in a child process, which has none of the threads."""
        self._lock = threading.Lock()
        self._scrolls.clear()


#: That of the process: all readers and gateways share its budget.
read_ahead = ReadAhead()
after_fork_in_child(lambda: read_ahead.after_fork())

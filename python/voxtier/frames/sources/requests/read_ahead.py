"""Bytes of an object before they are asked for: a viewer that scrolls does not wait for each frame.

What was asked for ahead and never wanted stays below a quarter of what the viewer read, and a piece is given
out until two seconds after it was asked for: behind that the object may be another one, and is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from voxtier.system.fork import after_fork_in_child
from voxtier.system.workers import ContextThreads

_FRESH_SECONDS = 2.0
# A piece under way is waited for: so many times what the store usually takes for it, and no less than this.
_PATIENCE, _LEAST_PATIENCE = 8, 0.25
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

# Their own: who wants several ranges now does not stand behind what is asked ahead.
_THREADS = 8

Get = Callable[[int, int], Any]
Usual = Callable[[int], float | None]
_log = logging.getLogger(__name__)


class _Piece:
    """A range that is asked for ahead, by a thread of its own or by the first one who wants it."""

    def __init__(self, start: int, end: int, get: Get, usual: float | None) -> None:
        self.start, self.end, self._get = start, end, get
        self.asked = time.monotonic()
        self._patience = None if usual is None else max(_PATIENCE * usual, _LEAST_PATIENCE)
        self.is_dropped = False
        self.used = 0
        self._lock = threading.Lock()
        self._body: memoryview | None = None

    @property
    def freshness(self) -> float:
        """Seconds for which it is given out yet."""
        return self.asked + _FRESH_SECONDS - time.monotonic()

    def fetch(self) -> memoryview | None:
        """Return its bytes; None where they do not come in time: whoever needs them asks, and is told why."""
        wait = self.freshness
        if self._patience is not None:
            wait = min(wait, self.asked + self._patience - time.monotonic())
        if not self._lock.acquire(timeout=max(wait, 0)):
            return None
        try:
            if self._body is None and not self.is_dropped:
                self._body = memoryview(self._get(self.start, self.end))
        except Exception:
            _log.debug("bytes %d to %d were not read ahead", self.start, self.end, exc_info=True)
            self.is_dropped = True
        finally:
            self._lock.release()
        return self._body


class _Scroll:
    """One way through an object, upwards or downwards."""

    def __init__(self, start: int, end: int) -> None:
        self.pieces: list[_Piece] = []
        self._begin(start, end)

    def _begin(self, start: int, end: int) -> None:
        self.start, self.end = start, end  # what was passed
        self.step = 0
        self.shared = 0  # bytes that neighbours have in common: a frame is read with the header of the next
        self.read = self.wasted = 0
        self.began = self.last = time.monotonic()

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
        """Take note of a read; behind a pause it is the first of a new scroll."""
        self._drop_passed(end - start)
        now = time.monotonic()
        if now - self.last >= _FRESH_SECONDS:
            self._begin(start, end)
        self.last = now
        self.read += end - start
        if start < self.start or end > self.end:
            self.step = 1 if start > self.start else -1
            self.shared = max(self.shared, -self._gap(start, end))
            self.start, self.end = min(self.start, start), max(self.end, end)

    def _drop_passed(self, length: int) -> None:
        """Let go what lies well behind, and what is old; what of that was never given out was wasted."""
        kept, pieces = _SLACK * length, []
        for piece in self.pieces:
            is_behind = piece.end <= self.end - kept if self.step > 0 else piece.start >= self.start + kept
            if piece.freshness > 0 and not is_behind:
                pieces.append(piece)
                continue
            piece.is_dropped = True
            self.wasted += max(piece.end - piece.start - piece.used, 0)
        self.pieces = pieces

    def _left_behind(self) -> int:
        """Return the bytes that came ahead of what was passed by now and were not wanted yet."""
        passed = [
            piece
            for piece in self.pieces
            if (piece.end <= self.end if self.step > 0 else piece.start >= self.start)
        ]
        return sum(max(piece.end - piece.start - piece.used, 0) for piece in passed)

    def next_range(self, length: int, size: int) -> tuple[int, int] | None:
        """Return what to ask for ahead of a read of `length` bytes, in an object of `size`."""
        passed = self.end - self.start
        if not self.step or self.read < passed * _DENSE:
            return None
        soon = passed / max(time.monotonic() - self.began, 0.001) * _FRESH_SECONDS / 2
        most = min(passed // _SHARE - self.wasted - self._left_behind(), _MOST_AHEAD, int(soon))
        if most < length:
            return None
        if self.step > 0:
            front = max([self.end - self.shared, *(piece.end for piece in self.pieces)])
            found, left = (front, min(self.end + most, size)), front - self.end
        else:
            front = min([self.start + self.shared, *(piece.start for piece in self.pieces)])
            found, left = (max(self.start - most, 0), front), self.start - front
        return found if left < most / 2 and found[0] < found[1] else None


class ReadAhead:
    """Follows reads through objects and asks for what comes next, within a budget of bytes.

    Parameters
    ----------
    budget_bytes : int
        Bytes that are kept or under way at most.
    """

    def __init__(self, budget_bytes: int = _MOST_KEPT) -> None:
        self._budget = budget_bytes
        self.after_fork()

    def after_fork(self) -> None:
        """Begin anew, as in a child process, which has none of the threads."""
        self._lock = threading.Lock()
        self._scrolls: OrderedDict[Hashable, list[_Scroll]] = OrderedDict()
        self._threads: ContextThreads | None = None

    def get(
        self,
        key: Hashable,
        size: int,
        start: int,
        end: int,
        get: Get,
        *,
        ahead: Get | None = None,
        usual: Usual = lambda _: None,
    ) -> Any:
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
            Takes start and end, returns the bytes.
        ahead : callable or None
            The same for what nobody waits for, on another thread; None: nothing is asked ahead now.
        usual : callable
            Takes a number of bytes, returns the seconds in which they usually come; None where nobody knows.

        Returns
        -------
        buffer
            The bytes.
        """
        end = min(end, size)
        with self._lock:
            scroll = self._follow(key, start, end)
            scroll.take(start, end)
            pieces = sorted(scroll.pieces, key=lambda piece: piece.start)
            length, parts = end - start, []
            for piece in pieces:
                past = min(piece.end, end)
                if piece.start <= start < past:
                    piece.used += past - start
                    parts.append((piece, start, past))
                    start = past
            following = scroll.next_range(length, size) if ahead is not None else None
            if following is not None and ahead is not None and self._has_room(following, key):
                size_ahead = following[1] - following[0]
                self._start(scroll, _Piece(*following, ahead, usual(size_ahead)))
        found: list[Any] = []
        for piece, first, past in parts:
            body = piece.fetch()
            if body is None:
                start = first
                break
            found.append(body[first - piece.start : past - piece.start])
        if start < end:
            found.append(get(start, end))
        return found[0] if len(found) == 1 else b"".join(found)

    def _start(self, scroll: _Scroll, piece: _Piece) -> None:
        if self._threads is None:
            self._threads = ContextThreads(_THREADS, "voxtier-ahead")
        try:
            self._threads.submit(piece.fetch)
        except RuntimeError:  # the interpreter ends: what is read yet is read without us
            return
        scroll.pieces.append(piece)

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
        return max(followed, key=lambda each: each.read)  # a read of its own may lie before it

    def _has_room(self, asked: tuple[int, int], key: Hashable) -> bool:
        """Return whether so many bytes fit, and forget what was not read for longest until they do."""
        size = asked[1] - asked[0]
        if _bytes_of(self._scrolls[key]) + size > self._budget:
            return False
        kept = sum(map(_bytes_of, self._scrolls.values()))
        while kept + size > self._budget:
            oldest = next(iter(self._scrolls))  # never this object, which is the newest and fits alone
            scrolls = self._scrolls.pop(oldest)
            kept -= _bytes_of(scrolls)
            for scroll in scrolls:
                for piece in scroll.pieces:
                    piece.is_dropped = True
        return True

    def kept(self) -> int:
        """Return the bytes that are kept or under way."""
        with self._lock:
            return sum(map(_bytes_of, self._scrolls.values()))


def _bytes_of(scrolls: list[_Scroll]) -> int:
    return sum(piece.end - piece.start for scroll in scrolls for piece in scroll.pieces)


#: That of the process: all readers and gateways share its budget.
read_ahead = ReadAhead()
after_fork_in_child(lambda: read_ahead.after_fork())

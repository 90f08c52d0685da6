"""What may be asked of one store at a time: requests and bytes in flight, pauses after "slow down"."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# In flight; one request of more bytes passes alone. How many requests there are, the threads decide that ask.
_MOST_BYTES = 256 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Good answers after which one more request may be in flight, once the store has asked for less.
_GOOD_ANSWERS = 16


class Gate:
    """Lets requests to a store pass; shared by all threads of a process."""

    def __init__(self) -> None:
        # Requests that may be in flight, and how many were when the store first asked for less; None while it
        # has not, or takes as many as then.
        self._limit: int | None = None
        self._before = 0
        self._in_flight = self._bytes = self._good = 0
        self._paused_until, self._pause = 0.0, _FIRST_PAUSE
        self._changed = threading.Condition()

    @contextmanager
    def one(self, size: int) -> Iterator[None]:
        """Hold the place of one request of `size` bytes."""
        with self._changed:
            while True:
                wait = self._paused_until - time.monotonic()
                fits = self._bytes + size <= _MOST_BYTES or not self._in_flight
                if wait <= 0 and fits and (self._limit is None or self._in_flight < self._limit):
                    break
                self._changed.wait(wait if wait > 0 else None)
            self._in_flight += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._bytes -= size
                self._changed.notify_all()

    @property
    def is_limited(self) -> bool:
        """Whether the store has asked for fewer requests: none is made that nobody waits for."""
        return self._limit is not None

    def slow_down(self) -> None:
        """Halve what all threads may ask, after a pause: the store refused a request as one too many."""
        with self._changed:
            now = time.monotonic()
            if now >= self._paused_until:  # those that were in flight together count once
                if self._limit is None:
                    self._limit = self._before = self._in_flight + 1  # the one that was refused has left
                self._limit = max(1, self._limit // 2)
                self._paused_until = now + self._pause * random.uniform(0.5, 1.0)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._good = 0

    def speed_up(self) -> None:
        """Take note that the store answered."""
        if self._limit is None and self._pause == _FIRST_PAUSE:
            return
        with self._changed:
            self._good += 1
            if self._good >= _GOOD_ANSWERS:
                self._good, self._pause = 0, _FIRST_PAUSE
                if self._limit is not None:
                    self._limit = self._limit + 1 if self._limit < self._before else None
                self._changed.notify_all()

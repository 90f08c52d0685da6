"""Several requests at the same time, by threads that the sources of a process share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from voxtier.system.fork import after_fork_in_child
from voxtier.system.workers import ContextThreads

_THREADS = 32

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_lock = threading.Lock()
_pool: ContextThreads | None = None


def fetch_together(get: Callable[[int, int], Any], ranges: Sequence[tuple[int, int]]) -> list[Any]:
    """Call a function for each range, several at a time; return its answers in the order of `ranges`."""
    if len(ranges) < 2:
        return [get(start, end) for start, end in ranges]
    waiting = [_threads().submit(get, start, end) for start, end in ranges[1:]]
    try:
        return [get(*ranges[0]), *(each.result() for each in waiting)]
    except BaseException:
        for each in waiting:
            each.cancel()
        raise


def ask_ahead(ask: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[tuple[Item, Answer]]:
    """Yield items with what a function answers, in their order; the next ones are asked for meanwhile."""
    waiting: deque[tuple[Item, Future[Answer]]] = deque()
    try:
        for item in items:
            waiting.append((item, _threads().submit(ask, item)))
            if len(waiting) >= _THREADS:
                first, answer = waiting.popleft()
                yield first, answer.result()
        while waiting:
            first, answer = waiting.popleft()
            yield first, answer.result()
    finally:
        for _, answer in waiting:
            answer.cancel()


def _threads() -> ContextThreads:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ContextThreads(_THREADS, "voxtier-ranges")
        return _pool


def _after_fork() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


after_fork_in_child(_after_fork)

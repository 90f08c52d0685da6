"""Many frames of many files, such as a series of objects: read at the same time, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from voxtier.frames.serving.reader import FrameReader
from voxtier.system.workers import Workers

_MOST_BYTES = 256 << 20


def read_many(
    reader: FrameReader,
    requests: Iterable[tuple[str, int]],
    *,
    in_flight: int = 32,
    budget_bytes: int = _MOST_BYTES,
) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Read frames of many files at the same time: each waits for a disk or a store, not for the others.

    Parameters
    ----------
    reader : FrameReader
        Reads the frames.
    requests : iterable of (str, int)
        Path, address or SOP Instance UID, and frame, counted from 0. Consumed as results are taken.
    in_flight : int
        Frames that are read at the same time at most.
    budget_bytes : int
        Bytes of frames that wait to be taken, from which on nothing more is read; 0 for one frame at a time.

    Yields
    ------
    ((str, int), bytes)
        The request and its frame, in the order of `requests`.

    Raises
    ------
    IndexError, NotFoundError, FormatError, SourceError
        See `FrameReader.frame`; the frames before it have been yielded.
    """
    waiting: deque[tuple[tuple[str, int], Future[bytes]]] = deque()
    left = iter(requests)
    with Workers(in_flight, "voxtier-many") as threads:
        while True:
            while len(waiting) < in_flight and (not waiting or _bytes_of(waiting) < budget_bytes):
                request = next(left, None)
                if request is None:
                    break
                waiting.append((request, threads.submit(reader.frame, *request)))
            if not waiting:
                return
            request, future = waiting.popleft()
            yield request, future.result()


def _bytes_of(waiting: Iterable[tuple[tuple[str, int], Future[bytes]]]) -> int:
    done = (each for _, each in waiting if each.done() and not each.cancelled() and each.exception() is None)
    return sum(len(each.result()) for each in done)

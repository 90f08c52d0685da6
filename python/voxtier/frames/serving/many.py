"""Many frames of many files, such as a series of objects: read at the same time, handed out in order."""

from __future__ import annotations

import threading
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
    lock, held = threading.Lock(), 0  # bytes that wait to be taken

    def count(size: int) -> None:
        nonlocal held
        with lock:
            held += size

    def read(request: tuple[str, int]) -> bytes:
        frame = reader.frame(*request)
        count(len(frame))
        return frame

    with Workers(in_flight, "voxtier-many") as threads:
        while True:
            while not waiting or (len(waiting) < in_flight and held < budget_bytes):
                request = next(left, None)
                if request is None:
                    break
                waiting.append((request, threads.submit(read, request)))
            if not waiting:
                return
            request, future = waiting.popleft()
            frame = future.result()
            count(-len(frame))
            yield request, frame

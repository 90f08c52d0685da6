"""What a request to a store costs, measured on the requests themselves."""

from __future__ import annotations

import threading
from collections import deque

_FIRST_READ, _SMALLEST_READ, _LARGEST_READ = 64 << 10, 16 << 10, 1 << 20
_SMALLEST_BRIDGE, _LARGEST_BRIDGE = 1 << 20, 8 << 20
_SMALL, _LARGE = 128 << 10, 1 << 20
# Requests and headers that are looked at, and how many it takes to decide.
_KEPT, _ENOUGH = 64, 8


class Cost:
    """Latency and bandwidth of a store, and the size of headers of its objects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._bandwidths: deque[float] = deque(maxlen=_KEPT)
        self._headers: deque[int] = deque(maxlen=_KEPT)
        #: Bytes that arrive in the time that a request takes to begin.
        self.bridge = _SMALLEST_BRIDGE
        #: Bytes of the first read of an object: enough for nine in ten of the headers seen.
        self.first_read = _FIRST_READ
        self._requests = 0  # since the start

    def add_request(self, size: int, seconds: float) -> None:
        """Take account of a request that brought `size` bytes."""
        with self._lock:
            self._requests += 1
            if size <= _SMALL:
                self._latencies.append(seconds)
            elif size >= _LARGE:
                latency = min(self._latencies, default=0.0)
                self._bandwidths.append(size / max(seconds - latency, seconds / 10, 1e-6))
            if self._requests % _ENOUGH == 0 and self._latencies and self._bandwidths:
                median = sorted(self._bandwidths)[len(self._bandwidths) // 2]
                found = int(sorted(self._latencies)[len(self._latencies) // 2] * median)
                self.bridge = min(max(found, _SMALLEST_BRIDGE), _LARGEST_BRIDGE)

    def usual_seconds(self, size: int) -> float | None:
        """Return the time in which `size` bytes usually come; None before enough requests have been seen."""
        with self._lock:
            if len(self._latencies) < _ENOUGH:
                return None
            latency = sorted(self._latencies)[len(self._latencies) // 2]
            if self._bandwidths:
                return latency + size / sorted(self._bandwidths)[len(self._bandwidths) // 2]
            return latency * (1 + size / self.bridge)

    def add_header(self, size: int) -> None:
        """Take account of the bytes before the pixels of an object."""
        with self._lock:
            self._headers.append(size)
            if len(self._headers) >= _ENOUGH:
                most = sorted(self._headers)[len(self._headers) * 9 // 10]
                # Room for the Basic Offset Table and the first Item of a small image.
                wanted = 1 << (most + 4096).bit_length()
                self.first_read = min(max(wanted, _SMALLEST_READ), _LARGEST_READ)

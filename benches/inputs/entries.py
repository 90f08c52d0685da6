"""Cache entries for the journeys: paths as archives have them, and caches filled with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxtier.frames import FrameCache


def paths_of(count: int) -> list[str]:
    """Return paths of 64 characters, as archives have them."""
    return [f"/Volumes/archive/pixels/study{i // 500:06d}/s{i // 50:06d}/{i:010d}.dcm" for i in range(count)]


def filled(keys: list[str], budget: int = 1 << 40, frames: int = 1) -> FrameCache:
    cache = FrameCache(budget)
    offsets = 1352 + np.arange(frames, dtype=np.uint64) * 1008
    lengths = np.full(frames, 1000, np.uint64)
    for key in keys:
        cache.put(key, offsets, lengths, ts_uid="1.2.840.10008.1.2.4.90", pixel_data_pos=1330)
    return cache


def rss() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

"""Memory of the machine, or of the container that runs us: how much there is, and how much is free."""

from __future__ import annotations

import os
from pathlib import Path

_UNKNOWN = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")
# Limit and use, of version 2 and of version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def total_memory() -> int:
    """Return the bytes that there are: the machine's, or fewer where the cgroup has a limit."""
    sizes = [limit for limit, _ in _cgroup_limits()]
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        sizes.append(_UNKNOWN)
    return min(sizes)


def available_memory() -> int:
    """Return the bytes that new processes may use: what the kernel estimates, or the cgroup has left."""
    sizes = [max(0, limit - used) for limit, used in _cgroup_limits()]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    return min(sizes, default=_UNKNOWN)


def _cgroup_limits() -> list[tuple[int, int]]:
    found = []
    for limit, used in _CGROUP_FILES:
        try:
            found.append((int((_CGROUP / limit).read_text()), int((_CGROUP / used).read_text())))
        except (OSError, ValueError):  # "max" means no limit
            continue
    return found

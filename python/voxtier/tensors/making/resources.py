"""Free memory (also inside a container) and free disk space, and what fits into them."""

from __future__ import annotations

import os
from pathlib import Path

BYTES_PER_VOXEL = 51
"""Peak memory of the pipeline per input voxel (3.2 GB for 512 x 512 x 240), measured with MONAI 1.6.1."""
WORKER_BASE = 400 << 20
"""Memory of a worker before its first volume: torch and MONAI."""
TYPICAL_VOXELS = 512 * 512 * 240
"""A chest CT, for volumes whose header is not on disk yet."""
RESERVE = 512 << 20
"""Memory that the workers leave to others."""


def available_memory() -> int:
    """Return the bytes that new processes may use: what the kernel estimates, or the cgroup has left."""
    estimates = [_meminfo_available(), *_cgroup_available()]
    return min((value for value in estimates if value is not None), default=4 << 30)


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _cgroup_available(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    available = []
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = int((root / limit_name).read_text())
            used = int((root / used_name).read_text())
        except (OSError, ValueError):  # "max" means no limit
            continue
        available.append(max(0, limit - used))
    return available


def affordable_workers(asked: int, voxels: int | None) -> int:
    """Return how many volumes of that size fit into memory at once.

    Parameters
    ----------
    asked : int
        The most workers that are wanted.
    voxels : int or None
        Voxels of the largest known input; None for a typical chest CT.
    """
    peak = BYTES_PER_VOXEL * (voxels or TYPICAL_VOXELS) + WORKER_BASE
    return max(1, min(asked, (available_memory() - RESERVE) // peak))


def has_memory_for(voxels: int | None) -> bool:
    """Whether one more volume of that size fits into memory now; None for a typical chest CT."""
    return available_memory() >= BYTES_PER_VOXEL * (voxels or TYPICAL_VOXELS)


def free_disk(path: Path) -> int:
    """Return free bytes of the file system that holds ``path`` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def resident_bytes(pid: int | None = None) -> int:
    """Return the memory that a process holds now (not its peak)."""
    try:
        fields = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0

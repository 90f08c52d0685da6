"""What fits into free memory and free disk space."""

from __future__ import annotations

import os
from pathlib import Path

from voxtier.system.machine import available_memory

BYTES_PER_VOXEL = 51
"""Peak memory of MONAI's pipeline per input voxel (3.2 GB for 512 x 512 x 240), measured with MONAI 1.6.1."""
ENGINE_BYTES_PER_VOXEL = 4
"""Peak memory of the core: a compressed file beside what it inflates to, 2 bytes a voxel each at most."""
ENGINE_SCRATCH = 48 << 20
"""Memory of the core beside that: some planes, the libraries' own."""
WORKER_BASE = 400 << 20
"""Memory of a worker before its first volume: torch and MONAI."""
TYPICAL_VOXELS = 512 * 512 * 240
"""A chest CT, for volumes whose header is not on disk yet."""
RESERVE = 512 << 20
"""Memory that the workers leave to others."""


def volume_bytes(voxels: int | None, *, is_fused: bool = False, output: int = 0) -> int:
    """Return the memory that one volume takes at its peak.

    Parameters
    ----------
    voxels : int or None
        Voxels of the input; None for a typical chest CT.
    is_fused : bool
        Whether the core makes its tensor; MONAI otherwise.
    output : int
        Bytes of the tensor.

    Returns
    -------
    int
        Bytes, without what a worker takes before its first volume.
    """
    if is_fused:
        return ENGINE_BYTES_PER_VOXEL * (voxels or TYPICAL_VOXELS) + 2 * output + ENGINE_SCRATCH
    return BYTES_PER_VOXEL * (voxels or TYPICAL_VOXELS)


def affordable_workers(asked: int, voxels: int | None, *, is_fused: bool = False, output: int = 0) -> int:
    """Return how many volumes of that size fit into memory at once.

    With the core there must be room for one volume that MONAI makes beside the others.

    Parameters
    ----------
    asked : int
        The most workers that are wanted.
    voxels : int or None
        Voxels of the largest known input; None for a typical chest CT.
    is_fused : bool
        Whether the core makes the tensors.
    output : int
        Bytes of a tensor.

    Returns
    -------
    int
        At least 1 and at most ``asked``.
    """
    room = available_memory() - RESERVE
    if is_fused:
        room -= volume_bytes(voxels)
    peak = volume_bytes(voxels, is_fused=is_fused, output=output) + WORKER_BASE
    return max(1, min(asked, room // peak))


def has_memory_for(needed: int) -> bool:
    """Whether so many bytes are free now."""
    return available_memory() >= needed


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

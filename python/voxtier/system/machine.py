"""What the machine says: whether another process runs and since when, its processors, and its memory.

The kernel gives numbers of ended processes to new ones: number and start together name a process. Each
container gives numbers of its own: `numbering` tells whose one is.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_UNKNOWN_MEMORY = 4 << 30
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACES = Path("/proc/self/ns")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_OWN_CGROUP = re.compile(r"^\d+:([^:]*):(/.*)$", re.MULTILINE)


def numbering() -> str:
    """Return eight hexadecimal digits that name where this process' number counts.

    That is one machine since its last start, and on it one container: the others give the same numbers to
    processes of their own, and may be the same kernel's.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(_BOOT.read_text())
    for kind in ("pid", "time"):  # starts of processes are told by the clock of a container
        with contextlib.suppress(OSError):
            parts.append(str((_NAMESPACES / kind).stat().st_ino))
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"


def is_running(where: str, pid: int, started: str = "") -> bool | None:
    """Return whether a process runs, if that can be told here.

    Parameters
    ----------
    where : str
        What `numbering` returned to it.
    pid : int
        Its number there.
    started : str
        What `start_ticks` said of it; empty where that is not known.

    Returns
    -------
    bool or None
        None where nobody here can tell, as its number counts elsewhere.
    """
    if where != numbering():
        return None
    return is_alive(pid) and started in ("", start_ticks(pid))


def is_alive(pid: int) -> bool:
    """Return whether a process of that number exists on this machine and has not ended.

    An ended process remains until its parent asks for its exit code, in some containers for ever.
    """
    if pid <= 0:  # these name groups, not a process
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    fields = _stat(pid)
    return not fields or fields[0] not in "ZX"


def start_ticks(pid: int) -> str:
    """Return when a process began, in the kernel's ticks since boot; empty where the system does not say.

    The times of the folder ``/proc/PID`` would be those of the first look at it.
    """
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def start_time(pid: int) -> float | None:
    """Return when a process began, in seconds since 1970; None where the system does not say."""
    try:
        since_boot = int(start_ticks(pid)) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, ValueError, AttributeError):
        return None


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` after the name, which is in parentheses and may be any text."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def usable_processors() -> int:
    """Return the processors that this process may run on: the machine's, or fewer by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Return the bytes of memory: the machine's, or fewer under the limit of a container, job or service."""
    sizes = [limit for limit, _ in _cgroup_limits()]
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        sizes.append(_UNKNOWN_MEMORY)
    return min(sizes)


def available_memory() -> int:
    """Return the bytes that new processes may use: what the kernel estimates, or a limit has left."""
    sizes = [max(0, limit - used) for limit, used in _cgroup_limits()]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    return min(sizes, default=_UNKNOWN_MEMORY)


def _cgroup_limits() -> list[tuple[int, int]]:
    """Return limit and use of each control group that this process is in: its own, and those around it."""
    found = []
    for folder, limit, used in _cgroups():
        try:
            found.append((int((folder / limit).read_text()), int((folder / used).read_text())))
        except (OSError, ValueError):  # "max" means no limit
            continue
    return found


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """Yield their folders, and the names of the files of limit and use: of version 2, of version 1."""
    try:
        lines = _OWN_CGROUP.findall(_OWN_CGROUPS.read_text(errors="replace"))
    except OSError:
        lines = []
    # A container often shows its own group as the root, whatever the line says.
    own = {"": "/", "memory": "/"} | {name: path for names, path in lines for name in names.split(",")}
    for version, folder, limit, used in (
        ("", _CGROUPS, "memory.max", "memory.current"),
        ("memory", _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        yield folder, limit, used
        for part in own[version].strip("/").split("/"):
            folder /= part
            yield folder, limit, used

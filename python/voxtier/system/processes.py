"""Whether another process of this machine still runs, and since when.

The kernel gives numbers of ended processes to new ones: number and start together name a process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


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

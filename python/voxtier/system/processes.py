"""Whether another process of this machine still runs, and since when: its number alone does not tell."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["is_alive", "started", "started_at"]


def is_alive(pid: int) -> bool:
    """Whether a process of that number exists on this machine, and has not ended.

    One that ended stays for as long as nobody asks for its exit code, in some containers for ever.
    """
    if pid <= 0:  # which name groups, not a process
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    fields = _stat(pid)
    return not fields or fields[0] not in "ZX"


def started(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; empty where the system does not tell.

    Not the times of ``/proc/PID``: they are those of the first look at it.
    """
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def started_at(pid: int) -> float | None:
    """Return when a process began, in seconds since 1970; None where the system does not tell."""
    try:
        since_boot = int(started(pid)) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, ValueError, AttributeError):
        return None


def _stat(pid: int) -> list[str]:
    """Return the fields behind the name, which stands in parentheses and may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []

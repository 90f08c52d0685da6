"""Who has the memory of decoded blocks that the processes of a user share, and how another process joins it.

The memory has no name in any folder, least of all in /dev/shm: it is reached through the descriptor of a
process that has it, and goes with the last of them. A file lists these processes.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import threading
from pathlib import Path

from voxtier import _core
from voxtier.errors import VoxtierError
from voxtier.system.fork import after_fork_in_child
from voxtier.system.locks import hold_lock
from voxtier.system.machine import start_ticks

Member = tuple[int, str, int, int]
"""Process, its start, its descriptor of the memory, and the memory's inode."""

_PATIENCE = 5.0  # seconds; joining takes milliseconds
_lock = threading.Lock()
# Process, and why it shares no memory (None: it does), without and with all of its reads.
_answers: dict[tuple[int, bool], str | None] = {}


def _begin_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_begin_child)


def join(budget: int, *, every_read: bool) -> str | None:
    """Join the memory of another process, or make it; a process tries once.

    Parameters
    ----------
    budget : int
        Bytes of the memory, if this process makes it.
    every_read : bool
        Whether all reads of this process use it, or only those of batch engines.

    Returns
    -------
    str or None
        Why this process shares no memory.
    """
    key = os.getpid(), every_read
    with _lock:
        if key not in _answers:
            _answers[key] = _try(budget, every_read=every_read)
        return _answers[key]


def _try(budget: int, *, every_read: bool) -> str | None:
    try:
        folder = _folder()
        with hold_lock(folder / "tiles", _PATIENCE) as file:
            members = [member for member in _read(file) if start_ticks(member[0]) == member[1]]
            descriptor = _join_one(members, every_read=every_read)
            if descriptor is None:
                descriptor = _core.make_tile_cache(budget, every_read=every_read)
            own = (os.getpid(), start_ticks(os.getpid()), descriptor, os.fstat(descriptor).st_ino)
            _write(file, [*(member for member in members if member[0] != own[0]), own])
    except (VoxtierError, OSError, ValueError) as error:
        return f"refused here: {error}"
    return None


def _join_one(members: list[Member], *, every_read: bool) -> int | None:
    for pid, _, descriptor, inode in reversed(members):
        path = f"/proc/{pid}/fd/{descriptor}"
        try:
            if os.stat(path).st_ino == inode:  # noqa: PTH116 -- a link of the kernel, no path
                return _core.join_tile_cache(path, every_read=every_read)
        except (VoxtierError, OSError, ValueError):
            continue  # it has just ended, or another system of processes gave its number to this one
    return None


def _folder() -> Path:
    """Return a folder of the user on this machine.

    Raises
    ------
    PermissionError
        When it belongs to somebody else.
    """
    given = os.environ.get("VOXTIER_HOME") or os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(given or tempfile.gettempdir()) / f"voxtier-{os.getuid()}"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _read(file: int) -> list[Member]:
    try:
        rows = json.loads(os.pread(file, 1 << 20, 0) or b"[]")
        return [(int(pid), str(start), int(descriptor), int(inode)) for pid, start, descriptor, inode in rows]
    except (ValueError, TypeError):
        return []  # a write was cut off: the memory lives on with those who have it


def _write(file: int, members: list[Member]) -> None:
    content = json.dumps(members).encode()
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)

"""What running readers say of themselves: one small JSON file each, in voxtier's folder, for people to read.

A file is replaced whole every two seconds and goes when its reader closes. That of a process which was killed
stays until somebody reads the folder. Nothing is shared but these files, so that a reader never waits.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from voxtier.system.durable import TEMPORARY, temporary_is_live, write_file
from voxtier.system.home import default_home
from voxtier.system.processes import is_alive, started_at

__all__ = ["Published", "Publisher", "published", "readers_folder"]

INTERVAL = 2.0
#: A living process that has written nothing for so long is stopped, or hangs.
SILENT_AFTER = 15.0
_NAME = re.compile(r"([1-9][0-9]{0,9})-[0-9]{1,9}\.json\Z")
_LARGEST = 1 << 16
_NUMBERS = ("requests", "tier1", "tier2", "tier3", "degraded")
_numbers = itertools.count()


def readers_folder() -> Path:
    """Return where readers publish: ``readers`` in voxtier's folder (``VOXTIER_HOME``)."""
    return default_home() / "readers"


class Published(NamedTuple):
    """What one reader last said.

    Attributes
    ----------
    name : str
        Of its file: other readers have other names.
    pid : int
        Its process.
    age : float
        Seconds since then.
    content : dict
        ``source``, ``program``, ``started`` and ``written`` (s since 1970), and ``stats`` as
        `FrameReader.stats` returns them.
    """

    name: str
    pid: int
    age: float
    content: dict[str, Any]


class Publisher:
    """Writes what `stats` returns to a file of its own, on a thread, from the first `wake` on.

    Parameters
    ----------
    folder : Path or None
        Where; None publishes nothing.
    source : str
        Named in the file.
    stats : callable
        Returns what shall be told.
    """

    def __init__(self, folder: Path | None, source: str, stats: Callable[[], dict[str, Any]]) -> None:
        # Weakly: a reader that nobody closes must not live for ever because its thread runs.
        self.folder, self.source, self._stats = folder, source, weakref.WeakMethod(stats)
        self.after_fork()

    def after_fork(self) -> None:
        """In a child: a file of its own, from its first access on; the parent's is left alone."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.time()
        self._number = next(_numbers)

    def wake(self) -> None:
        """Something was asked: see that the thread runs."""
        if self._thread is not None or self.folder is None or self._closed.is_set():
            return
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="voxtier-published", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop, and take the file away."""
        self._closed.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
            with suppress(OSError):
                self._path().unlink(missing_ok=True)

    def _path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{os.getpid()}-{self._number}.json"

    def _run(self) -> None:
        while stats := self._stats():
            try:
                self._write(stats())
            except OSError:  # no room, no permission: nobody looks on, and frames are served all the same
                self._closed.wait(30)
            del stats
            if self._closed.wait(INTERVAL):
                return
        with suppress(OSError):
            self._path().unlink(missing_ok=True)

    def _write(self, stats: dict[str, Any]) -> None:
        path = self._path()
        content = {
            "source": self.source, "program": Path(sys.argv[0] or "python").name, "started": self._started,
            "written": time.time(), "stats": stats,
        }  # fmt: skip
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(json.dumps(content).encode()), sync=False)


def published(folder: Path) -> Iterator[Published]:
    """Iterate over what running readers last said, in the order of their processes.

    Files of processes that are no more are removed; what is no such file is passed over.
    """
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        match = _NAME.match(path.name)
        if match is None:
            if TEMPORARY.fullmatch(path.name) and not temporary_is_live(path):
                with suppress(OSError):
                    path.unlink()
            continue
        pid = int(match[1])
        try:
            written = path.stat().st_mtime
        except OSError:
            continue
        began = started_at(pid)
        # A process that began later bears the number of the one that wrote.
        if not is_alive(pid) or (began is not None and began > written + 1):
            with suppress(OSError):
                path.unlink()
        elif content := _read(path):
            yield Published(path.name, pid, max(time.time() - content["written"], 0.0), content)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a reader of this version wrote; None for anything else."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
        stats = content["stats"]
        numbers = [content["written"], content["started"], *(stats[name] for name in _NUMBERS)]
        numbers += [stats["cache"][name] for name in ("used", "budget", "dirty")] + [stats["preload"]["seen"]]
        texts = [content["source"], content["program"], stats["preload"]["state"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    true = all(isinstance(number, int | float) for number in numbers) and all(
        isinstance(text, str) for text in texts
    )
    return content if true else None

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
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Published", "Publisher", "published", "readers_folder"]

INTERVAL = 2.0
#: A living process that has written nothing for so long is stopped, or hangs.
SILENT_AFTER = 15.0
_NAME = re.compile(r"([1-9][0-9]{0,9})-([0-9]{1,9})\.json\Z")
_LARGEST = 1 << 16
_numbers = itertools.count()


def readers_folder() -> Path:
    """Return where readers publish: ``readers`` in voxtier's folder (``VOXTIER_HOME``)."""
    from voxtier.embedded import default_home

    return default_home() / "readers"


class Published(NamedTuple):
    """What one reader last said.

    Attributes
    ----------
    pid : int
        Its process.
    age : float
        Seconds since then.
    content : dict
        ``source``, ``program``, ``started`` and ``written`` (s since 1970), and ``stats`` as
        `FrameReader.stats` returns them.
    """

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
        self.folder, self.source, self._stats = folder, source, stats
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
        while True:
            try:
                self._write()
            except OSError:  # no room, no permission: nobody looks on, and frames are served all the same
                self._closed.wait(30)
            if self._closed.wait(INTERVAL):
                return

    def _write(self) -> None:
        path = self._path()
        content = {
            "source": self.source, "program": Path(sys.argv[0] or "python").name, "started": self._started,
            "written": time.time(), "stats": self._stats(),
        }  # fmt: skip
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def published(folder: Path) -> Iterator[Published]:
    """Iterate over what running readers last said, in the order of their processes.

    Files of processes that are no more are removed; what is no such file is passed over.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if _NAME.match(name))
    except FileNotFoundError:
        return
    for name in names:
        match = _NAME.match(name)
        assert match is not None
        pid, path = int(match[1]), folder / name
        if not _is_alive(pid):
            with suppress(OSError):
                path.unlink()
            continue
        content = _read(path)
        if content is not None:
            yield Published(pid, max(time.time() - content["written"], 0.0), content)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
        written = isinstance(content["written"], float) and isinstance(content["stats"]["cache"], dict)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return content if written else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True

"""Status of running readers: one small JSON file each in voxtier's folder, read by ``voxtier frames top``.

A reader replaces its file every two seconds and removes it when it closes. The file of a killed process stays
until somebody reads the folder. Readers share nothing but these files, so that none waits for another.
Those of other containers that share the folder are left alone: nobody here can tell whether they live.
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

from voxtier.system.durable import TEMPORARY, changed_lately, temporary_is_live, write_file
from voxtier.system.home import default_home, home_if_any
from voxtier.system.machine import is_running, numbering, start_time
from voxtier.system.workers import start_thread

#: Seconds between two writes.
INTERVAL = 2.0
#: Seconds after which a living process that wrote no status counts as stopped or hanging.
SILENT_AFTER = 15.0
# Versions before wrote no `numbering`.
_NAME = re.compile(r"(?:([0-9a-f]{8})-)?([1-9][0-9]{0,9})-[0-9]{1,9}\.json\Z")
_LARGEST = 1 << 16
_NUMBERS = ("requests", "tier1", "tier2", "tier3", "degraded")
_ROUTE_NUMBERS = ("requests", "refused", "microseconds", "slowest")
_numbers = itertools.count()


def readers_folder() -> Path:
    """Return the folder of the status files: ``readers`` in voxtier's folder (``VOXTIER_HOME``)."""
    return default_home() / "readers"


def own_folder() -> Path | None:
    """Return the same for a reader's own status; None where it has no home and goes without."""
    home = home_if_any()
    return None if home is None else home / "readers"


class ReaderStatus(NamedTuple):
    """The last status that one reader wrote.

    Attributes
    ----------
    name : str
        Name of its file, different for each reader.
    pid : int
        Its process.
    age : float
        Seconds since it was written.
    content : dict
        ``source``, ``program``, ``started`` and ``written`` (s since 1970), and ``stats`` as
        `FrameReader.stats` or `Gateway.stats` return them; the latter hold a ``gateway``.
    """

    name: str
    pid: int
    age: float
    content: dict[str, Any]


class StatusWriter:
    """Writes the counters of one reader to its file, on a thread that the first `wake` starts.

    Parameters
    ----------
    folder : Path or None
        Folder of the file; None: nothing is written.
    source : str
        Source of the reader, named in the file.
    stats : callable
        Bound method of the reader that returns its counters.
    """

    def __init__(self, folder: Path | None, source: str, stats: Callable[[], dict[str, Any]]) -> None:
        # A weak reference: the thread does not keep a reader alive that nobody closes.
        self.folder, self.source, self._stats = folder, source, weakref.WeakMethod(stats)
        self.after_fork()

    def after_fork(self) -> None:
        """Reset in a child process: it writes a file of its own from its first access on."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.time()
        self._number = next(_numbers)

    def wake(self) -> None:
        """Start the thread, if it does not run: something was read."""
        if self._thread is not None or self.folder is None or self._closed.is_set():
            return
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = start_thread(self._run, "voxtier-status")

    def close(self) -> None:
        """Stop the thread and remove the file."""
        self._closed.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
            with suppress(OSError):
                self._path().unlink(missing_ok=True)

    def _path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{numbering()}-{os.getpid()}-{self._number}.json"

    def _run(self) -> None:
        while stats := self._stats():
            try:
                self._write(stats())
            except OSError:  # no room, no permission: frames are served without a status
                self._closed.wait(30)
            del stats
            if self._closed.wait(INTERVAL):
                return
        with suppress(OSError):
            self._path().unlink(missing_ok=True)

    def _write(self, stats: dict[str, Any]) -> None:
        path = self._path()
        program = Path(sys.argv[0] or "python").name
        content = {"source": self.source, "program": program, "started": self._started, "stats": stats}
        content["written"] = time.time()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(json.dumps(content).encode()), sync=False)


def read_statuses(folder: Path) -> Iterator[ReaderStatus]:
    """Iterate over the statuses of running readers here, by the names of their files.

    Removes the files of processes that have ended, and those of other containers that nobody writes any more;
    skips files that are no statuses.
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
        pid = int(match[2])
        try:
            written = path.stat().st_mtime
        except OSError:
            continue
        began = start_time(pid)
        running = is_running(match[1] or numbering(), pid)
        # A process that began later has taken over the number of the one that wrote.
        is_another = running and began is not None and began > written + 1
        if running is False or is_another or (running is None and not changed_lately(path)):
            with suppress(OSError):
                path.unlink()
        elif running and (content := _read(path)):
            yield ReaderStatus(path.name, pid, max(time.time() - content["written"], 0.0), content)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a status file; None for anything that this version does not write."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
        stats = content["stats"]
        numbers = [content["written"], content["started"], *(stats[name] for name in _NUMBERS)]
        numbers += [stats["cache"][name] for name in ("used", "budget", "dirty")] + [stats["preload"]["seen"]]
        texts = [content["source"], content["program"], stats["preload"]["state"]]
        if "gateway" in stats:
            gateway, searches = stats["gateway"], stats["searches"]
            texts.append(gateway["url"])
            numbers += [gateway["bytes"], gateway["connections"], searches["index"], searches["headers"]]
            numbers += [each[name] for each in gateway["routes"].values() for name in _ROUTE_NUMBERS]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if "gateway" in stats and not str(stats["gateway"]["url"]).startswith("http://"):
        return None
    is_status = all(isinstance(number, int | float) for number in numbers) and all(
        isinstance(text, str) for text in texts
    )
    return content if is_status else None

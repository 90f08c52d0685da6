"""Descriptors that stay open between reads: opening and closing doubles the cost of a read."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from voxtier._core import read_table

# A file may be replaced under its name, and its old descriptor reads the old content.
_RECHECK_SECONDS = 1.0


class OpenFiles:
    """Open files by path, each lent to any number of threads.

    Parameters
    ----------
    cap : int
        Files that stay open for the next read; beyond it the least recently used is closed as soon as nobody
        uses it.
    """

    #: Called with the path of an open file whose name another file has now, whatever their clocks say.
    on_replaced: Callable[[str], object] | None = None

    def __init__(self, cap: int = 256) -> None:
        self.cap = cap
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()

    def forget(self, path: str) -> None:
        """Close the descriptor of a path as soon as nobody uses it."""
        with self._lock:
            file = self._open.pop(path, None)
            if file is not None:
                self._retire(file)

    def close(self) -> None:
        """Close all files, those in use when they are given back."""
        with self._lock:
            while self._open:
                self._retire(self._open.popitem()[1])

    def __len__(self) -> int:
        return len(self._open)

    def after_fork(self) -> None:
        """Reset in a child process: its copies of the descriptors stay good, the threads are the parent's."""
        self._lock = threading.Lock()
        for file in self._open.values():
            file.users = 0

    def take(self, path: str) -> OpenFile:
        """Lend an open descriptor of the file that a path names now; call `give_back` whatever happens.

        Not a context manager, which would take a sixth of the time of a request.
        """
        if (file := self.take_open(path)) is not None:
            return file
        now = time.monotonic()
        try:
            status: os.stat_result | None = Path(path).stat()
        except OSError:
            status = None
        with self._lock:
            file = self._open.get(path)
            if file is not None:
                if status is not None and (status.st_dev, status.st_ino) == file.inode:
                    file.checked = now
                    file.users += 1
                    self._open.move_to_end(path)
                    return file
                self._retire(self._open.pop(path))
        if file is not None and self.on_replaced is not None:
            self.on_replaced(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened = os.fstat(fd)
        file = OpenFile(fd, (opened.st_dev, opened.st_ino), now)
        with self._lock:
            if path in self._open:
                self._retire(self._open.pop(path))
            self._open[path] = file
            while len(self._open) > self.cap:
                self._retire(self._open.popitem(last=False)[1])
        return file

    def take_open(self, path: str) -> OpenFile | None:
        """Lend the descriptor of a path if that asks nothing of the file system; see `take`."""
        with self._lock:
            file = self._open.get(path)
            if file is None or time.monotonic() - file.checked >= _RECHECK_SECONDS:
                return None
            file.users += 1
            self._open.move_to_end(path)
            return file

    def give_back(self, file: OpenFile) -> None:
        """Return a file that `take` has lent."""
        with self._lock:
            file.users -= 1
            if file.retired and file.users == 0:
                os.close(file.fd)

    def _retire(self, file: OpenFile) -> None:
        file.retired = True
        if file.users == 0:
            os.close(file.fd)


class OpenFile:
    """An open file and how many threads use it.

    Parameters
    ----------
    fd : int
        Its descriptor.
    inode : tuple of (int, int)
        Its device, and its number there.
    checked : float
        When its path was last seen to name it, in seconds of the monotonic clock.
    """

    __slots__ = ("_instance", "_state", "checked", "fd", "inode", "retired", "users")

    def __init__(self, fd: int, inode: tuple[int, int], checked: float) -> None:
        self.fd, self.inode, self.checked = fd, inode, checked
        self.users = 1
        self.retired = False
        self._state: tuple[int, int, int] | None = None
        self._instance = ""

    def instance(self) -> str:
        """Return the SOP Instance UID of the file, read again whenever the file's state has changed.

        Raises
        ------
        FormatError
            The file is refused.
        """
        state = self._read_state()
        if state != self._state:
            self._instance = read_table(self.fd, verify="none").sop_instance_uid
            self._state = state
        return self._instance

    def is_known_as(self, uid: str) -> bool:
        """Whether the file was found to hold a SOP Instance, and has not changed since."""
        return self._instance == uid and self._state == self._read_state()

    def _read_state(self) -> tuple[int, int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

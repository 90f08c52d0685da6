"""Open descriptors that are used again: opening and closing doubles the cost of a read."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

__all__ = ["OpenFiles"]

# A file may be replaced under its name; the old descriptor would serve the old content for ever.
_RECHECK_SECONDS = 1.0


class OpenFiles:
    """Descriptors by path, at most `cap` of them idle, each lent to any number of threads.

    Parameters
    ----------
    cap : int
        Idle descriptors that stay open; those in use are beyond it.
    """

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
        """Close all that are idle, and the others when they come back."""
        with self._lock:
            while self._open:
                self._retire(self._open.popitem()[1])

    def __len__(self) -> int:
        return len(self._open)

    def after_fork(self) -> None:
        """In a child: the descriptors are its own copies and stay good, the lock and the lenders do not."""
        self._lock = threading.Lock()
        for file in self._open.values():
            file.users = 0

    def take(self, path: str) -> OpenFile:
        """Lend a descriptor of the file that now bears the name; to be given back, whatever happens.

        No context manager: that would be a sixth of the time of a request.
        """
        now = time.monotonic()
        with self._lock:
            file = self._open.get(path)
            if file is not None and now - file.checked < _RECHECK_SECONDS:
                file.users += 1
                self._open.move_to_end(path)
                return file
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

    def give_back(self, file: OpenFile) -> None:
        """End a loan."""
        with self._lock:
            file.users -= 1
            if file.retired and file.users == 0:
                os.close(file.fd)

    def _retire(self, file: OpenFile) -> None:
        file.retired = True
        if file.users == 0:
            os.close(file.fd)


class OpenFile:
    """An open file: its descriptor, and how many borrow it."""

    __slots__ = ("checked", "fd", "inode", "retired", "users")

    def __init__(self, fd: int, inode: tuple[int, int], checked: float) -> None:
        self.fd, self.inode, self.checked = fd, inode, checked
        self.users = 1
        self.retired = False

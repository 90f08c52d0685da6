"""Files that stay open between reads: opening and closing doubles the cost. Beside them objects of stores."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from voxtier._core import read_table
from voxtier.errors import SourceError
from voxtier.frames.dicom.table import Fingerprint
from voxtier.frames.serving.files.remote_file import RemoteFile
from voxtier.frames.sources.address import is_address, is_text
from voxtier.system.s3_config import S3Config, context_s3_config, get_s3_config

# A file may be replaced under its name, and its old descriptor reads the old content.
_RECHECK_SECONDS = 1.0
GONE = (errno.ENOENT, errno.ENOTDIR)
"""Numbers of the system's errors that say that there is no such file."""


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
    #: Returns the state in which memory knows an object: it is read in that state, without asking for it.
    known_state: Callable[[str], Fingerprint | None] | None = None

    def __init__(self, cap: int = 256) -> None:
        self.cap = cap
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile | RemoteFile] = OrderedDict()
        self._made_in = context_s3_config()

    def s3_config(self) -> S3Config:
        """Return how ``s3://`` is reached now.

        A block of ``configured`` counts for what it asks; then the one in which this object was made, for
        threads of others, which have no context; then the process.
        """
        return context_s3_config() or self._made_in or get_s3_config()

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

    def take(self, path: str) -> OpenFile | RemoteFile:
        """Lend an open descriptor of the file that a path names now; call `give_back` whatever happens.

        Not a context manager, which would take a sixth of the time of a request.

        Raises
        ------
        SourceError
            The file cannot be opened; `errno` says why.
        """
        if (file := self.take_open(path)) is not None:
            return file
        if is_address(path):
            return self._take_object(path)
        now = time.monotonic()
        try:
            status: os.stat_result | None = Path(path).stat()
        except (OSError, ValueError):  # opening it gives the reason
            status = None
        with self._lock:
            file = self._open.get(path)
            if isinstance(file, OpenFile):
                if status is not None and (status.st_dev, status.st_ino) == file.inode:
                    file.checked = now
                    file.users += 1
                    self._open.move_to_end(path)
                    return file
                self._retire(self._open.pop(path))
        if file is not None and self.on_replaced is not None:
            self.on_replaced(path)
        fd = _open(path)
        opened = os.fstat(fd)
        return self._keep(path, OpenFile(fd, (opened.st_dev, opened.st_ino), now))

    def _take_object(self, path: str) -> RemoteFile:
        config = self.s3_config()
        with self._lock:
            old = self._open.get(path)
        if isinstance(old, RemoteFile) and old.source.config != config and self.on_replaced is not None:
            self.on_replaced(path)  # what memory knows is of another store
        file = RemoteFile(path, self.known_state(path) if self.known_state else None, config)
        self._keep(path, file)
        return file

    def _keep(self, path: str, file: OpenFile | RemoteFile) -> OpenFile | RemoteFile:
        with self._lock:
            if path in self._open:
                self._retire(self._open.pop(path))
            self._open[path] = file
            while len(self._open) > self.cap:
                self._retire(self._open.popitem(last=False)[1])
        return file

    def take_open(self, path: str) -> OpenFile | RemoteFile | None:
        """Lend the descriptor of a path if that asks nothing of the file system; see `take`."""
        with self._lock:
            file = self._open.get(path)
            if file is None or time.monotonic() - file.checked >= _RECHECK_SECONDS:
                return None
            if isinstance(file, RemoteFile) and file.source.config != self.s3_config():
                return None
            file.users += 1
            self._open.move_to_end(path)
            return file

    def give_back(self, file: OpenFile | RemoteFile) -> None:
        """Return a file that `take` has lent."""
        with self._lock:
            file.users -= 1
            if file.retired and file.users == 0:
                file.close()

    def _retire(self, file: OpenFile | RemoteFile) -> None:
        file.retired = True
        if file.users == 0:
            file.close()


def own_name(path: str, descriptor: int) -> str:
    """Return the name of an open file, links resolved, whatever its path has come to name."""
    try:
        name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - text all the way
    except OSError:  # another system than Linux
        return os.path.realpath(path)
    return path if name == f"{path} (deleted)" else name  # replaced since it was opened


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError.from_os(error, path if path and is_text(path) else ascii(path)) from error
    except ValueError as error:  # no file has such a name: a NUL, half of a pair of surrogates
        raise SourceError("io_error", None, f"{path!a}: {error}", errno.EINVAL) from error


class OpenFile:
    """An open file and how many threads use it.

    Parameters
    ----------
    source : int
        Its descriptor.
    inode : tuple of (int, int)
        Its device, and its number there.
    checked : float
        When its path was last seen to name it, in seconds of the monotonic clock.
    """

    __slots__ = ("_instance", "_state", "checked", "inode", "retired", "source", "users")

    def __init__(self, source: int, inode: tuple[int, int], checked: float) -> None:
        self.source, self.inode, self.checked = source, inode, checked
        self.users = 1
        self.retired = False
        self._state: tuple[int, int, int] | None = None
        self._instance = ""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.source)

    def promise(self, uid: str, state: Fingerprint | None) -> None:
        """Hear what the index says of the file: it is asked itself."""

    def instance(self) -> str:
        """Return the SOP Instance UID of the file, read again whenever the file's state has changed.

        Raises
        ------
        FormatError
            The file is refused.
        """
        state = self._read_state()
        if state != self._state:
            self._instance = read_table(self.source, verify="none").sop_instance_uid
            self._state = state
        return self._instance

    def is_known_as(self, uid: str) -> bool:
        """Whether the file was found to hold a SOP Instance, and has not changed since."""
        return self._instance == uid and self._state == self._read_state()

    def state(self) -> Fingerprint:
        """Return the present state of the file."""
        status = os.fstat(self.source)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, None

    def _read_state(self) -> tuple[int, int, int]:
        status = os.fstat(self.source)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

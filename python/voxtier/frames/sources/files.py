"""Open binary files as sources of the core: fsspec's files, those of archives, BytesIO."""

from __future__ import annotations

import io
import os
import stat
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from voxtier.errors import SourceError
from voxtier.frames.sources.requests.fetching import fetch_together
from voxtier.frames.sources.stores import ObjectState
from voxtier.system.fork import after_fork_in_child

# Bytes that an unknown reader brings in the time that a call takes to begin.
_BRIDGE = 256 << 10
_FIRST_READ = 64 << 10


class OpenFile:
    """An open file that seeks; its position is put back after each read.

    Its bytes are asked of the file itself, never of the path that it was opened by: another file, or another
    version of an object, may be there by now, and an open file may carry headers, a version or a compression.

    Parameters
    ----------
    file : binary file
        With ``read``, ``seek`` and ``tell``.

    Raises
    ------
    TypeError
        The file is open for text.
    """

    def __init__(self, file: Any) -> None:
        if isinstance(file, io.TextIOBase):
            raise TypeError("the file is open for text: open it in binary mode, 'rb'")
        self._file = file
        self._lock = threading.Lock()
        self._get = _pinned(file)

    def open_ranges(self) -> tuple[ObjectState, int, bytes]:
        """Return the file's size, the bytes that a call costs, and the first bytes."""
        with self._lock:
            before = self._file.tell()
            try:
                size = self._file.seek(0, os.SEEK_END)
                size = self._file.tell() if size is None else size
                head = self._read(0, min(size, _FIRST_READ))
            finally:
                self._file.seek(before)
        return ObjectState(size), _BRIDGE, head

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges."""
        if len(ranges) > 1 and self._get is not None:
            return fetch_together(self._fetch_one, ranges)
        with self._lock:
            before = self._file.tell()
            try:
                return [self._read(start, end) for start, end in ranges]
            finally:
                self._file.seek(before)

    def _fetch_one(self, start: int, end: int) -> bytes:
        assert self._get is not None
        found = self._get(start, end)
        if len(found) != end - start:
            raise _ended(end - start - len(found), start + len(found))
        return found

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        parts, left = [], end - start
        while left > 0:
            part = self._file.read(left)
            if not part:
                raise _ended(left, end - left)
            if not isinstance(part, bytes):
                raise TypeError("the file does not return bytes: open it in binary mode, 'rb'")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _ended(missing: int, offset: int) -> SourceError:
    return SourceError("io_error", offset, f"the file ended {missing} bytes too early: open it again")


def _pinned(file: Any) -> Callable[[int, int], bytes] | None:
    """Return how a file of s3fs asks for a range, where it does so by version or tag; None for others.

    Its ``read`` brings 50 MB at once, which for frames that lie apart is far too much. Other files of fsspec
    do not say in their requests what was opened, or cannot be asked by several threads: they are read.
    """
    if type(file).__module__.partition(".")[0] != "s3fs":
        return None
    # An object of a bucket without versions has the version "null", as has the one that replaces it.
    is_pinned = getattr(file, "version_id", None) not in (None, "null") or any(
        "IfMatch" in (getattr(file, name, None) or {}) for name in ("read_kw", "req_kw")
    )
    get: Callable[[int, int], bytes] | None = getattr(file, "_fetch_range", None)
    return get if is_pinned else None


def source_of_file(file: Any) -> Any:
    """Return what the core reads an open file by: a descriptor, memory, or an `OpenFile`."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()
    if type(file).__module__ == "fsspec.implementations.local":
        inner = getattr(file, "f", None)
        file = file if inner is None else inner
    # Not of every file with a descriptor: a file in an archive has that of the archive.
    raw = getattr(file, "raw", file)
    if type(file) in (io.BufferedReader, io.FileIO) and type(raw) is io.FileIO:
        number: int = file.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
    # One lock for all who read the file now: its position is theirs together. An id is not given again while
    # the `OpenFile` holds the file.
    with _opening:
        opened = _opened.get(id(file))
        if opened is None:
            opened = _opened[id(file)] = OpenFile(file)
        return opened


_opened: weakref.WeakValueDictionary[int, OpenFile] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _after_fork() -> None:
    global _opened, _opening
    _opened, _opening = weakref.WeakValueDictionary(), threading.Lock()


after_fork_in_child(_after_fork)

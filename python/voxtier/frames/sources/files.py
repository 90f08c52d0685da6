"""Open binary files as sources of the core: fsspec's files, those of archives, BytesIO."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Sequence
from typing import Any

from voxtier.errors import SourceError
from voxtier.frames.sources.stores import ObjectState

# Bytes that an unknown reader brings in the time that a call takes to begin.
_BRIDGE = 256 << 10
_FIRST_READ = 64 << 10


class OpenFile:
    """An open file that seeks; its position is put back after each read.

    Parameters
    ----------
    file : binary file
        With ``read``, ``seek`` and ``tell``. The file of a file system of fsspec, which says so by ``fs`` and
        ``path``, is asked for several ranges at once.

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
        system: Any = getattr(file, "fs", None)
        self._system = system if hasattr(system, "cat_ranges") else None
        self._path = getattr(file, "path", None)

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
        if len(ranges) > 1 and self._system is not None and isinstance(self._path, str):
            starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
            found: list[bytes] = self._system.cat_ranges(
                [self._path] * len(ranges), starts, ends, on_error="raise"
            )
            return found
        with self._lock:
            before = self._file.tell()
            try:
                return [self._read(start, end) for start, end in ranges]
            finally:
                self._file.seek(before)

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        parts, left = [], end - start
        while left > 0:
            part = self._file.read(left)
            if not part:
                raise SourceError(
                    "io_error", end - left, f"the file ended {left} bytes too early: open it again"
                )
            if not isinstance(part, bytes):
                raise TypeError("the file does not return bytes: open it in binary mode, 'rb'")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def source_of_file(file: Any) -> Any:
    """Return what the core reads an open file by: a descriptor, memory, or an `OpenFile`."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()
    # Not of every file with a descriptor: a file in an archive has that of the archive.
    raw = getattr(file, "raw", file)
    if type(file) in (io.BufferedReader, io.FileIO) and type(raw) is io.FileIO:
        number: int = file.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return number
    return OpenFile(file)

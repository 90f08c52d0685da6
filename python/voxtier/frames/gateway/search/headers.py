"""Headers that searches read, kept in memory, so that the next one reads less."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from itertools import count
from typing import Any, NamedTuple


class File(NamedTuple):
    """What the index says of a file: its state (size, mtime_ns, ctime_ns, inode, etag), the UIDs in it."""

    path: str
    state: tuple[int | str | None, ...]
    study: str
    series: str
    instance: str


class _Kept(NamedTuple):
    """A header as JSON: None for what it lacks of what was asked for; ``all`` in it, if all of it was."""

    text: bytes
    search: int


class KeptHeaders:
    """Headers that were read. Where room is needed, those go that no search has used for longest."""

    most, most_bytes = 20_000, 64 << 20  # headers, and the bytes of their text

    def __init__(self) -> None:
        self.kept: OrderedDict[File, _Kept] = OrderedDict()
        self.bytes = 0
        self.numbers = count()
        self._lock = threading.Lock()

    def get(self, file: File, search: int) -> dict[str, Any]:
        """Return what is kept of a file, nothing where that is nothing; ``search`` has used it now."""
        with self._lock:
            kept = self.kept.get(file)
            if kept is None:
                return {}
            self.kept[file] = kept._replace(search=search)
            self.kept.move_to_end(file)
        header: dict[str, Any] = json.loads(kept.text)
        return header

    def put(self, file: File, header: dict[str, Any], search: int) -> bool:
        """Keep a header.

        A search takes none from what it used itself: the next one would begin where this one began.

        Parameters
        ----------
        file : File
            Whose it is.
        header : dict
            In the DICOM JSON model; None for what it lacks of what was asked for.
        search : int
            The search that read it, by its number.

        Returns
        -------
        bool
            Whether there was room.
        """
        text = json.dumps(header, ensure_ascii=False).encode()
        with self._lock:
            self._drop(file)
            while len(self.kept) >= self.most or self.bytes + len(text) > self.most_bytes:
                oldest = next(iter(self.kept), None)
                if oldest is None or self.kept[oldest].search >= search:
                    return False
                self._drop(oldest)
            self.kept[file] = _Kept(text, search)
            self.bytes += len(text)
        return True

    def _drop(self, file: File) -> None:
        dropped = self.kept.pop(file, None)
        self.bytes -= len(dropped.text) if dropped else 0

"""Whether an array on a local disk is still what was opened."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from voxtier.errors import NotFoundError
from voxtier.volumes.tiledb.session import is_remote

_SETTLED_NS: Final = 2_000_000_000  # a folder's time stamp may repeat within a clock tick of its file system


@dataclass(slots=True)
class Stamp:
    """The state of an array's folder, cheap enough to compare before every read.

    A folder whose times were young when they were noted may have changed again within the same tick of its
    file system's clock: then the names of its entries decide.
    """

    times: tuple[int, int]
    names: tuple[tuple[str, ...], tuple[str, ...]]
    taken: int
    settled: bool

    @staticmethod
    def take(uri: str) -> Stamp | None:
        """Note the state of a local array; None for a remote one."""
        if is_remote(uri):
            return None
        try:
            times, names, now = _times(uri), _names(uri), time.time_ns()
            return Stamp(times, names, now, now - max(times) > _SETTLED_NS)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"there is no volume at {uri}") from None

    def still_holds(self, uri: str) -> bool:
        """Return whether nothing was committed or annotated since."""
        try:
            if _times(uri) != self.times:
                return False
            if self.settled:
                return True
            now = time.time_ns()
            if _names(uri) != self.names:
                return False
            self.taken, self.settled = now, now - max(self.times) > _SETTLED_NS
            return True
        except OSError:
            return False


def _times(uri: str) -> tuple[int, int]:
    return os.stat(f"{uri}/__commits").st_mtime_ns, os.stat(f"{uri}/__meta").st_mtime_ns  # noqa: PTH116


def _names(uri: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(sorted(os.listdir(f"{uri}/__commits"))), tuple(sorted(os.listdir(f"{uri}/__meta")))  # noqa: PTH208

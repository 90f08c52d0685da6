"""Whether a local array is still what was opened: asked before every read, for the price of two ``stat``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from voxtier.errors import NotFoundError
from voxtier.volumes.tiledb.format.names import COMMITS, META
from voxtier.volumes.tiledb.session import is_remote

# A folder's modification time may repeat within a clock tick of its file system.
_SETTLED_NS = 2_000_000_000


@dataclass(slots=True)
class FolderState:
    """Modification times and entries of an array's folders of commits and metadata.

    Times that were young when they were read prove nothing: the folder may have changed again within the same
    tick of its file system's clock. Until they have settled, the names of the entries are compared too.

    Parameters
    ----------
    times : tuple of int
        Modification times of the two folders, in nanoseconds.
    names : tuple of tuple of str
        Sorted entries of the two folders.
    is_settled : bool
        Whether equal times mean equal entries.
    """

    times: tuple[int, int]
    names: tuple[tuple[str, ...], tuple[str, ...]]
    is_settled: bool

    @staticmethod
    def read(uri: str) -> FolderState | None:
        """Return the state of a local array; None for a remote one.

        Raises
        ------
        NotFoundError
            When there is no array.
        """
        if is_remote(uri):
            return None
        try:
            times, names = _times(uri), _names(uri)
            return FolderState(times, names, _have_settled(times))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"there is no volume at {uri}") from None

    def is_current(self, uri: str) -> bool:
        """Return whether the array has had no commit and no new metadata since."""
        try:
            if _times(uri) != self.times:
                return False
            if self.is_settled:
                return True
            settled = _have_settled(self.times)
            if _names(uri) != self.names:
                return False
            self.is_settled = settled
            return True
        except OSError:
            return False


def is_there(uri: str) -> bool:
    """Return whether a local array has its folders; False for a remote one, which is not asked."""
    try:
        return not is_remote(uri) and bool(_times(uri))
    except OSError:
        return False


def _have_settled(times: tuple[int, int]) -> bool:
    return time.time_ns() - max(times) > _SETTLED_NS


# Plain calls of os: a Path costs as much as the system call.
def _times(uri: str) -> tuple[int, int]:
    return os.stat(f"{uri}/{COMMITS}").st_mtime_ns, os.stat(f"{uri}/{META}").st_mtime_ns  # noqa: PTH116


def _names(uri: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(sorted(os.listdir(f"{uri}/{COMMITS}"))), tuple(sorted(os.listdir(f"{uri}/{META}")))  # noqa: PTH208

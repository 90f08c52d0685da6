"""The paths at which the index found SOP Instances; `FrameReader` checks the files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

from voxtier._core import FrameTable
from voxtier.errors import NotFoundError
from voxtier.frames.dicom.table import Fingerprint, state_of
from voxtier.frames.serving.index.index_client import IndexClient

_MOST_UIDS = 100_000


class UidPaths:
    """Resolves SOP Instance UIDs through the index, and remembers the answers.

    Parameters
    ----------
    index : IndexClient or None
        The index; None knows no UID.
    source : str
        Name of the source.
    """

    def __init__(self, index: IndexClient | None, source: str) -> None:
        self._index, self._source = index, source
        self._paths: OrderedDict[str, tuple[str, Fingerprint | None]] = OrderedDict()
        self.after_fork()

    def after_fork(self) -> None:
        """Reset the lock in a child process, whose threads are the parent's."""
        self._lock = threading.Lock()

    def last(self, uid: str) -> str | None:
        """Return the path that served a UID last, without asking the index."""
        with self._lock:
            return self._paths.get(uid, (None, None))[0]

    def state(self, uid: str, path: str) -> Fingerprint | None:
        """Return the state in which the index found an instance in the object at a path."""
        with self._lock:
            last, state = self._paths.get(uid, ("", None))
            return state if last == path else None

    def candidates(self, uid: str) -> Iterator[str]:
        """Yield the path that served a UID last, then those of the index; the caller checks their files.

        Raises
        ------
        NotFoundError
            The index does not hold the UID, or there is no index.
        BackendError
            The index does not answer.
        """
        with self._lock:
            last, _ = self._paths.get(uid, (None, None))
            if last is not None:
                self._paths.move_to_end(uid)
        if last is not None:
            yield last
        if self._index is None:
            raise NotFoundError(f"{uid}: without an index (store=None), give a path instead of a UID")
        found = self._index.ask(lambda store: store.copies_of(uid, self._source), awaits_start=True)
        if not found and last is None:
            raise self.missing(uid)
        for each in found:
            if isinstance(each.found, FrameTable):
                self.remember(uid, each.path, state_of(each.found) if each.found.etag else None)
            yield each.path

    def missing(self, uid: str) -> NotFoundError:
        """Return the error for a UID that the index does not hold, or does not show."""
        return NotFoundError(f"{uid}: source {self._source!r} of the index does not hold this SOP Instance")

    def remember(self, uid: str, path: str, state: Fingerprint | None = None) -> None:
        """Keep a path as the one to try first; beyond 100,000 UIDs the oldest are forgotten.

        Parameters
        ----------
        uid : str
            SOP Instance UID.
        path : str
            Path or address.
        state : Fingerprint or None
            State in which the index found the instance in the object.
        """
        with self._lock:
            self._paths[uid] = path, state
            while len(self._paths) > _MOST_UIDS:
                self._paths.popitem(last=False)

    def forget(self, uid: str, path: str) -> None:
        """Forget the path of a UID, unless it is another one by now."""
        with self._lock:
            if self._paths.get(uid, ("", None))[0] == path:
                del self._paths[uid]

"""An object of a store as a source of the core: its state, its first bytes, ranges of that state."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from voxtier.frames.sources.address import check_key, normal, parse
from voxtier.frames.sources.requests.fetching import fetch_together
from voxtier.frames.sources.requests.read_ahead import read_ahead
from voxtier.frames.sources.stores import ObjectState, covers, differ, store_at
from voxtier.system.s3_config import S3Config, get_s3_config

# Time for which the first bytes serve reads that follow: the object may be replaced meanwhile.
_HEAD_SECONDS = 1.0


class RemoteObject:
    """An object, read in one state: a range of another state is an error of kind ``changed_during_read``.

    Parameters
    ----------
    address : str
        Such as ``s3://bucket/key``.
    config : S3Config or None
        How ``s3://`` is reached; None: as configured now.
    state : ObjectState or None
        The state that is known of it, as from the index; None: that of the first read.
    ahead : bool
        Somebody looks at it: where ranges follow each other, the next ones are asked for before they are.

    Raises
    ------
    SourceError
        The address is of no store that is read, or no client can ask for its key.
    """

    def __init__(
        self,
        address: str,
        config: S3Config | None = None,
        state: ObjectState | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        self.address = normal(address)
        root, self._key = parse(self.address)
        check_key(self.address, self._key)
        self._store = store_at(root, config or get_s3_config())
        self._lock, self._ahead = threading.Lock(), ahead
        self._state, self._head, self._read_at = state, b"", 0.0

    @property
    def config(self) -> S3Config:
        """How ``s3://`` is reached."""
        return self._store.config

    @property
    def state(self) -> ObjectState | None:
        """The state that is read; None before the first read."""
        return self._state

    def expect(self, state: tuple[Any, ...]) -> None:
        """Take a state of the index for that of the object, unless another is known already."""
        with self._lock:
            if self._state is None:
                self._state = ObjectState(*state)

    def open_ranges(self) -> tuple[ObjectState, int, Any]:
        """Return state, the bytes that a request costs, and the first bytes, by one request at most."""
        with self._lock:
            if self._state is None:
                self._state, self._head = self._store.get(self._key, 0, self._store.cost.first_read, None)
                self._read_at = time.monotonic()
            elif self._head and time.monotonic() - self._read_at > _HEAD_SECONDS:
                self._head = b""
            return self._state, self._store.cost.bridge, self._head

    def has(self, state: ObjectState) -> bool:
        """Return whether the object is read in a state, asking for it where none is known."""
        return not differ(self.open_ranges()[0], state)

    def is_current(self) -> bool:
        """Return whether the object still has the state that is read; True where none is known yet."""
        return self._state is None or not differ(self._store.head(self._key), self._state)

    def is_still(self, known: ObjectState) -> bool:
        """Return whether the object has a state that is known of it, by one request.

        It brings no bytes of an unchanged object, and the first ones of another, which are kept.
        """
        with self._lock:
            first = self._store.cost.first_read
            self._state, self._head = self._store.get(self._key, 0, first, None, unless=known)
            self._read_at = time.monotonic()
            return covers(known, self._state)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """Return the bytes of ranges, asked for at the same time."""
        expected = self._state

        def get(start: int, end: int) -> Any:
            return self._store.get(self._key, start, end, expected)[1]

        def get_once(start: int, end: int) -> Any:
            return self._store.get(self._key, start, end, expected, tries=1)[1]

        if not self._ahead or len(ranges) != 1 or expected is None:
            return fetch_together(get, ranges)
        [(start, end)] = ranges
        ahead = None if self._store.gate.is_limited else get_once
        key = self._store, self._key, expected
        usual = self._store.cost.usual_seconds
        return [read_ahead.get(key, expected.size, start, end, get, ahead=ahead, usual=usual)]

    def note_header(self, size: int) -> None:
        """Say how many bytes stood before the pixels: first reads of the store grow or shrink with it."""
        self._store.cost.add_header(size)

    def __repr__(self) -> str:
        return f"RemoteObject({self.address!r})"

"""An object of a store as a reader keeps it: as an open file, in the state that index or memory know."""

from __future__ import annotations

import math

from voxtier._core import read_instance_uid
from voxtier.frames.dicom.table import Fingerprint
from voxtier.frames.sources.objects import RemoteObject
from voxtier.frames.sources.stores import ObjectState
from voxtier.system.s3_config import S3Config


class RemoteFile:
    """An object and how many threads use it.

    Every range is read on condition that the object is still in the state that is known: nothing has to be
    asked before. Ranges of a scroll were asked for up to two seconds before they are given out.

    Parameters
    ----------
    address : str
        Its address.
    state : Fingerprint or None
        The state that memory knows of it.
    config : S3Config
        How ``s3://`` is reached.
    """

    __slots__ = ("_promised", "checked", "retired", "source", "users")

    def __init__(self, address: str, state: Fingerprint | None, config: S3Config) -> None:
        self.source = RemoteObject(address, config, ahead=True)
        if state is not None and (state[4] is not None or state[1] is not None):
            self.source.expect(state)
        self.checked = math.inf
        self.users, self.retired = 1, False
        self._promised: tuple[ObjectState, str] | None = None

    def close(self) -> None:
        """Do nothing: connections belong to the store."""

    def state(self) -> Fingerprint:
        """Return the state that is read: every range was of it."""
        return self.source.open_ranges()[0]

    def promise(self, uid: str, state: Fingerprint | None) -> None:
        """Take the word of the index that the object in a state holds a SOP Instance.

        With an entity tag it holds for these bytes alone.
        """
        if state is not None and state[4] is not None:
            self.source.expect(state)
            self._promised = ObjectState(*state), uid

    def instance(self) -> str:
        """Return the SOP Instance UID of the object in the state that is read.

        Raises
        ------
        FormatError
            The object is refused.
        SourceError
            It cannot be read; `errno` is ENOENT where there is no such object.
        """
        if self._promised is None or self._promised[0] != self.source.state:
            uid = read_instance_uid(self.source)
            self._promised = self.source.open_ranges()[0], uid
        return self._promised[1]

    def is_known_as(self, uid: str) -> bool:
        """Return False: whether the object is still the same, only a request tells."""
        return False

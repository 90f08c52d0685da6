"""What all views of one opened store share: its rows as of one commit, each table read once."""

from __future__ import annotations

import threading

from voxtier.errors import FormatError, NotFoundError
from voxtier.system.fork import after_fork_in_child
from voxtier.volumes.store.snapshots import Snapshot, Store
from voxtier.volumes.tiledb.arrays import open_array
from voxtier.volumes.tiledb.format.names import is_reserved
from voxtier.volumes.tiledb.session import list_folders
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.dataframe import Dataframe
from voxtier.volumes.tiledb.tables.names import ARRAYS


class Rows:
    """The rows of one collection as of one commit, read once and shared by all its views.

    Parameters
    ----------
    uri : str
        Address of the collection.
    store : Store
        The store that it belongs to.
    snapshot : Snapshot
        What is visible in it.
    """

    def __init__(self, uri: str, store: Store, snapshot: Snapshot) -> None:
        self.uri, self.store, self.snapshot = uri, store, snapshot
        self._begin_child()
        after_fork_in_child(self._begin_child)
        self._table: Table | None = None
        self._addresses: list[str] | None = None

    def _begin_child(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[str, Store, Snapshot]:
        return self.uri, self.store, self.snapshot

    def __setstate__(self, state: tuple[str, Store, Snapshot]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def table(self) -> Table:
        """All rows, in the order of their keys."""
        with self._lock:
            if self._table is None:
                self._table = _read_table(f"{self.uri}/obs", self.store, self.snapshot)
            return self._table

    def address(self, row: int) -> str:
        """Return the address of the array of a row: by the name in the row, never by position."""
        if ARRAYS in self.table:
            return f"{self.uri}/volumes/{self.table[ARRAYS][row]}"
        if self._addresses is None:
            self._addresses = self._addresses_by_own_id()
        return self._addresses[row]

    def _addresses_by_own_id(self) -> list[str]:
        """Map the arrays of a RadiObject store by the id in each: its folders follow the ingest's order."""
        session = self.store.session
        addresses: dict[str, str] = {}
        for name in list_folders(f"{self.uri}/volumes", session):
            if is_reserved(name):
                continue
            uri = f"{self.uri}/volumes/{name}"
            obs_id = open_array(uri, session).meta.get("obs_id")
            if obs_id is None:
                raise FormatError("store_changed", None, f"{uri} states no obs_id: its patient is unknown")
            if str(obs_id) in addresses:
                raise FormatError(
                    "store_changed",
                    None,
                    f"{uri} claims {obs_id!r} as {addresses[str(obs_id)]} does: its patient is unknown",
                )
            addresses[str(obs_id)] = uri
        missing = [str(i) for i in self.table["obs_id"] if str(i) not in addresses]
        if missing:
            raise NotFoundError(f"{self.uri}: no array for {', '.join(missing[:5])}")
        return [addresses[str(obs_id)] for obs_id in self.table["obs_id"]]


class Cohort:
    """Subjects and rows of one store as of one commit, each read once and shared by all views.

    Parameters
    ----------
    store : Store
        The store.
    snapshot : Snapshot
        What is visible in it.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store, self.snapshot = store, snapshot
        self._subjects: Table | None = None
        self._rows: dict[str, Rows] = {}

    @property
    def subject_table(self) -> Table:
        """The rows of all subjects."""
        if self._subjects is None:
            uri = f"{self.store.root}/{self.snapshot.subjects}"
            self._subjects = _read_table(uri, self.store, self.snapshot)
        return self._subjects

    @property
    def subjects(self) -> list[str]:
        """Names of all subjects, in the order of their keys."""
        return [str(subject) for subject in self.subject_table["obs_subject_id"]]

    def rows(self, name: str) -> Rows:
        """Return the rows of one collection."""
        if name not in self._rows:
            uri = self.store.collection_uri(self.snapshot.collections[name])
            self._rows.setdefault(name, Rows(uri, self.store, self.snapshot))
        return self._rows[name]


def _read_table(uri: str, store: Store, snapshot: Snapshot) -> Table:
    store.refuse_replaced(snapshot)
    frame = Dataframe(uri, store.session, timestamp=snapshot.commit)
    return store.read_patiently(frame.read_all)

"""What all views of one opened store share: its rows as of one commit, each table read once."""

from __future__ import annotations

import threading

from voxtier.errors import FormatError, NotFoundError
from voxtier.volumes.store.commits import Snapshot, Store
from voxtier.volumes.tiledb import arrays as voxels
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.tables import Dataframe, Table


class Rows:
    """The rows of one collection as of one commit, read once and shared by all its views."""

    def __init__(self, uri: str, store: Store, snapshot: Snapshot) -> None:
        self.uri, self.store, self.snapshot = uri, store, snapshot
        self._lock = threading.Lock()
        self._table: Table | None = None
        self._addresses: list[str] | None = None
        self.reads = 0

    def __getstate__(self) -> tuple[str, Store, Snapshot]:
        return self.uri, self.store, self.snapshot

    def __setstate__(self, state: tuple[str, Store, Snapshot]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def table(self) -> Table:
        """All rows, in the order of their keys."""
        with self._lock:
            if self._table is None:
                self.store.refuse_replaced(self.snapshot)
                commit, session = self.snapshot.commit, self.store.session
                frame = Dataframe(f"{self.uri}/obs", session, timestamp=commit)
                self._table = self.store.patiently(frame.read_all)
                self.reads += 1
            return self._table

    def address(self, row: int) -> str:
        """Return the address of the array of a row: by the name in the row, never by position."""
        if "voxtier_array" in self.table:
            return f"{self.uri}/volumes/{self.table['voxtier_array'][row]}"
        if self._addresses is None:
            self._addresses = self._by_own_ids()
        return self._addresses[row]

    def _by_own_ids(self) -> list[str]:
        """Map the arrays of a RadiObject store by the id in each array.

        Its folders follow the ingest's order.
        """
        session = self.store.session
        found: dict[str, str] = {}
        for name in engine.subfolders(f"{self.uri}/volumes", session):
            if name.startswith("__"):
                continue
            uri = f"{self.uri}/volumes/{name}"
            own = voxels.open_array(uri, session).meta.get("obs_id")
            if own is None or str(own) in found:
                raise FormatError(
                    "bad_table", None,
                    f"{uri}"
                        f" {'states no obs_id' if own is None else f'claims {own!r} as {found[str(own)]} does'}:"  # noqa: E501
                    " whose volume it is cannot be told",
                )  # fmt: skip
            found[str(own)] = uri
        missing = [str(i) for i in self.table["obs_id"] if str(i) not in found]
        if missing:
            raise NotFoundError(f"{self.uri}: no array for {', '.join(missing[:5])}")
        return [found[str(obs_id)] for obs_id in self.table["obs_id"]]


class Cohort:
    """What all views of one opened store share: subjects and rows as of one commit, each read once."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store, self.snapshot = store, snapshot
        self._subjects: Table | None = None
        self._rows: dict[str, Rows] = {}

    @property
    def subject_table(self) -> Table:
        """The rows of all subjects."""
        if self._subjects is None:
            self.store.refuse_replaced(self.snapshot)
            uri = f"{self.store.root}/{self.snapshot.subjects}"
            frame = Dataframe(uri, self.store.session, timestamp=self.snapshot.commit)
            self._subjects = self.store.patiently(frame.read_all)
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

"""The tables that a collection and a cohort show: in the order of the view, changed only through the root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtier.volumes.cohort.selection import Index
from voxtier.volumes.tiledb.tables import Dataframe, Table, as_table

if TYPE_CHECKING:
    from voxtier.volumes.cohort.collection import VolumeCollection
    from voxtier.volumes.cohort.radi_object import RadiObject


class ObservationTable:
    """The rows of a collection (or of its view); ``read`` gives them in the order of the view."""

    def __init__(self, collection: VolumeCollection) -> None:
        self._collection = collection

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the keys."""
        return [name for name in self._collection.table.columns if name not in ("obs_subject_id", "obs_id")]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (keys not counted)."""
        return len(self), len(self.columns)

    def __len__(self) -> int:
        return len(self._collection)

    def __repr__(self) -> str:
        return f"ObservationTable({len(self)} rows: {', '.join(self._collection.table.columns)})"

    def read(self, columns: Sequence[str] | None = None, value_filter: str | None = None) -> Table:
        """Return rows (those that satisfy ``value_filter``) with the keys and all or some columns."""
        table = self._collection.table
        if value_filter is not None:
            table = table.take(np.flatnonzero(table.matching(value_filter)))
        return table if columns is None else table.select(["obs_subject_id", "obs_id", *columns])

    def update(self, df: object) -> None:
        """Change values of rows by key, as one commit."""
        self._write(lambda table: table.update(df))

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        collection = self._collection
        if collection.is_view:
            raise TypeError("a view cannot change rows: use the root")
        store = collection._rows.store
        with store.writing() as change:
            change_table(Dataframe(f"{collection.uri}/obs", store.session, timestamp=change.stamp))
        collection.refresh()


class SubjectTable:
    """The table of the subjects of a view."""

    def __init__(self, radi: RadiObject) -> None:
        self._radi = radi

    @property
    def columns(self) -> list[str]:
        """Names of the columns beside the keys."""
        return [name for name in self.read().columns if name not in ("obs_subject_id", "obs_id")]

    def __len__(self) -> int:
        return len(self._radi)

    def __repr__(self) -> str:
        return f"SubjectTable({len(self)} rows: {', '.join(self.read().columns)})"

    def read(self, columns: Sequence[str] | None = None, value_filter: str | None = None) -> Table:
        """Return the rows in the order of the view."""
        table = self._radi._cohort.subject_table
        places = Index([str(subject) for subject in table["obs_subject_id"]])
        table = table.take([places.get_index(subject) for subject in self._radi.index])
        if value_filter is not None:
            table = table.take(np.flatnonzero(table.matching(value_filter)))
        return table if columns is None else table.select(["obs_subject_id", *columns])

    def update(self, df: object) -> None:
        """Change values of subjects (matched by ``obs_subject_id``), as one commit."""
        changes = as_table(df)
        if "obs_id" not in changes:
            changes = Table({**{n: changes[n] for n in changes.columns}, "obs_id": changes["obs_subject_id"]})
        self._write(lambda frame: frame.update(changes))

    def add_column(self, name: str, dtype: Any, values: object = None) -> None:
        """Add a column, as one commit; ``values`` are one per subject, in the order of the root."""
        self._write(lambda frame: frame.add_column(name, dtype, values))

    def _write(self, change_table: Callable[[Dataframe], None]) -> None:
        self._radi._only_root("change rows of")
        store = self._radi._cohort.store
        with store.writing() as change:
            change_table(Dataframe(f"{store.root}/{change.subjects}", store.session, timestamp=change.stamp))
        self._radi.refresh()

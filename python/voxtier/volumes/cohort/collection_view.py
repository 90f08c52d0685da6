"""Collections and their views as they are read, which share rows and see nothing that was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

import numpy as np

from voxtier.arguments import several
from voxtier.errors import ViewError
from voxtier.system.html import rows_html
from voxtier.system.text import format_count
from voxtier.volumes.cohort.index import Index
from voxtier.volumes.cohort.selection import Sliceable, group_places
from voxtier.volumes.cohort.snapshot_rows import Rows
from voxtier.volumes.store.append import create_collection, read_shape
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import Job
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.names import ARRAYS, OWN_PREFIX, SHAPES
from voxtier.volumes.volume import Volume

_SHOWN = 10  # rows in a notebook


class CollectionView(Sliceable):
    """What can be asked of a `VolumeCollection` or of a view of it.

    Parameters
    ----------
    uri : path or URI
        A collection that stands alone, or one inside a `RadiObject`.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    _volume_type = Volume

    def __init__(self, uri: Uri, ctx: object = None) -> None:
        address, session = as_uri(uri), Session.of(ctx)
        store = Store.of_collection(address, session)
        self._setup(Rows(address, store, store.snapshot()), None, None)

    def _setup(self, rows: Rows, chosen: tuple[int, ...] | None, name: str | None) -> None:
        self._rows, self._chosen, self._name = rows, chosen, name
        self._index: Index | None = None
        self._refresh_cohort: Callable[[], None] | None = None

    @classmethod
    def _view(cls, rows: Rows, chosen: Sequence[int] | None, name: str | None) -> Self:
        view = cls.__new__(cls)
        view._setup(rows, None if chosen is None else tuple(chosen), name)
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        ids = None if self._chosen is None else self.obs_ids
        return _restore_collection, (type(self), self._rows, ids, self._name)

    @classmethod
    def _create(
        cls,
        uri: Uri,
        jobs: Sequence[Job],
        name: str | None,
        ctx: object,
        options: IngestOptions,
        *,
        same_shape: bool = False,
    ) -> Self:
        """Write a new collection that stands alone."""
        store = Store(as_uri(uri), Session.of(ctx), "collection")
        create_collection(store, name or "", jobs, options, same_shape=same_shape)
        return cls(store.root, store.session)

    @property
    def uri(self) -> str:
        """Address of the stored collection (that of the root, for a view)."""
        return self._rows.uri

    @property
    def is_view(self) -> bool:
        """Whether this is a selection of a stored collection."""
        return self._chosen is not None

    @property
    def stands_alone(self) -> bool:
        """Whether this collection is a store of its own, not a part of a `RadiObject`."""
        return not self.is_view and self._rows.store.kind == "collection"

    @property
    def _positions(self) -> Sequence[int]:
        return range(len(self._rows.table)) if self._chosen is None else self._chosen

    @property
    def name(self) -> str | None:
        """Name of the collection."""
        if self._name is None:
            name = self._rows.store.meta_of(self.uri).get("name")
            self._name = None if name is None else str(name)
        return self._name

    @property
    def obs_ids(self) -> list[str]:
        """Observation ids, in the order of this view."""
        return self._column("obs_id")

    @property
    def obs_subject_ids(self) -> list[str]:
        """Subject of each volume, in the order of this view."""
        return self._column("obs_subject_id")

    def _column(self, name: str) -> list[str]:
        column = self._rows.table[name]
        return [str(column[row]) for row in self._positions]

    @property
    def index(self) -> Index:
        """Observation ids by place."""
        if self._index is None:
            self._index = Index(self.obs_ids, "obs_id")
        return self._index

    @property
    def subjects(self) -> Index:
        """Subjects, each once."""
        return Index(list(dict.fromkeys(self.obs_subject_ids)), "obs_subject_id")

    @property
    def table(self) -> Table:
        """The rows of this view, in memory."""
        table = self._rows.table.take(list(self._positions))
        return table.select([name for name in table.columns if not name.startswith(OWN_PREFIX)])

    def to_obs(self) -> Any:
        """Return the rows of this view as a pandas DataFrame."""
        return self.table.to_pandas()

    def get_obs_row_by_obs_id(self, obs_id: str) -> Any:
        """Return the row of a volume as a pandas DataFrame, without rows for one outside this view."""
        places = [self.index.get_index(obs_id)] if obs_id in self.index else []
        return self.table.take(places).to_pandas()

    def __len__(self) -> int:
        return len(self._positions)

    def volume_rows(self) -> Iterator[tuple[Volume, Any]]:
        """Yield each volume with its row, a dict of columns."""
        return zip(self, self.table.rows(), strict=True)

    def __iter__(self) -> Iterator[Volume]:
        return (self._one(place) for place in range(len(self)))

    def _one(self, place: int) -> Volume:
        row = self._positions[place]
        session = self._rows.store.session
        obs_id = str(self._rows.table["obs_id"][row])
        return self._volume_type(self._rows.address(row), session, expected_obs_id=obs_id)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of every volume; None when they differ."""
        shapes = set(self._shapes())
        return shapes.pop() if len(shapes) == 1 else None

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        table = self._rows.table
        if ARRAYS in table and SHAPES in table:
            column, ids = table[SHAPES], table["obs_id"]
            return (read_shape(str(column[row]), f"{self.uri}: {ids[row]}") for row in self._positions)
        return (volume.shape for volume in self)

    @property
    def is_uniform(self) -> bool:
        """Whether all volumes have one shape."""
        return self.shape is not None

    def __repr__(self) -> str:
        shape = self.shape
        parts = [repr(self.name)] if self.name else []
        parts += [
            format_count(len(self), "volume"),
            f"shape={'x'.join(map(str, shape)) if shape else 'mixed'}",
        ]
        return f"{type(self).__name__}({', '.join([*parts, *(['view'] if self.is_view else [])])})"

    def _repr_html_(self) -> str:
        """Return what notebooks show: the first volumes, from their rows alone."""
        ids, subjects = self.obs_ids[:_SHOWN], self.obs_subject_ids[:_SHOWN]
        rows = zip(ids, subjects, map(str, islice(self._shapes(), _SHOWN)), strict=True)
        return rows_html(repr(self), ("volume", "subject", "shape"), rows, len(self) - _SHOWN)

    def _select(self, places: Sequence[int]) -> Self:
        positions = self._positions
        return self._view(self._rows, [positions[place] for place in places], self._name)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str) or (isinstance(key, list) and key and isinstance(key[0], str)):
            return self.loc[key]
        return self.iloc[key]

    def sel(self, *, subject: str | Iterable[str]) -> Self:
        """Return the volumes of one subject or of several, in the order asked for.

        Raises
        ------
        KeyError
            For a subject outside this view.
        """
        wanted = several(subject)
        places = group_places(self.obs_subject_ids)
        missing = [name for name in wanted if name not in places]
        if missing:
            raise KeyError(f"subject {missing[0]!r} is not in this collection")
        return self._select([place for name in wanted for place in places[name]])

    def groupby_subject(self) -> Iterator[tuple[str, Self]]:
        """Yield each subject with its volumes."""
        for subject in self.subjects:
            yield subject, self.sel(subject=[subject])

    def filter(self, expr: str) -> Self:
        """Return the volumes whose row satisfies an expression of `voxtier.volumes.tiledb.tables.filters`."""
        return self._select([int(place) for place in np.flatnonzero(self.table.matching(expr))])

    def copy(self) -> Self:
        """Return another object for the same selection."""
        return self._view(self._rows, self._chosen, self._name)

    def refresh(self) -> None:
        """See what was committed since this object was opened, as does the `RadiObject` it was taken from.

        Raises
        ------
        ViewError
            For a view, which keeps what it selected.
        """
        if self.is_view:
            raise ViewError("a view keeps what it selected: refresh the root and select again")
        store, refresh_cohort = self._rows.store, self._refresh_cohort
        self._setup(Rows(self.uri, store, store.snapshot()), None, self._name)
        if refresh_cohort is not None:
            refresh_cohort()
            self._refresh_cohort = refresh_cohort


def _restore_collection(
    kind: type[CollectionView], rows: Rows, ids: list[str] | None, name: str | None
) -> CollectionView:
    chosen = None
    if ids is not None:
        index = Index([str(obs_id) for obs_id in rows.table["obs_id"]])
        chosen = [index.get_index(obs_id) for obs_id in ids]
    return kind._view(rows, chosen, name)

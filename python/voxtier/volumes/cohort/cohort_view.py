"""Cohorts and their views as they are read: a view's collections hold only its subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np

from voxtier.arguments import several
from voxtier.errors import ViewError
from voxtier.system.html import rows_html
from voxtier.system.text import format_count
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.cohort.index import Index
from voxtier.volumes.cohort.selection import Sliceable, group_places
from voxtier.volumes.cohort.snapshot_rows import Cohort
from voxtier.volumes.store.append import create_cohort
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import Job
from voxtier.volumes.store.snapshots import Snapshot, Store
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables.columns import Table
from voxtier.volumes.tiledb.tables.names import INDEX_COLUMNS
from voxtier.volumes.volume import Volume

Collection = TypeVar("Collection", bound=CollectionView)


class CohortView(Sliceable, Generic[Collection]):
    """What can be asked of a `RadiObject` or of a view of it.

    Parameters
    ----------
    uri : path or URI
        Store of this package or of RadiObject.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    _collection_type: type[Collection]

    def __init__(self, uri: Uri, ctx: object = None) -> None:
        store = Store(as_uri(uri), Session.of(ctx), "radi_object")
        self._setup(Cohort(store, store.snapshot()), None, None)

    def _setup(self, cohort: Cohort, subjects: tuple[str, ...] | None, names: tuple[str, ...] | None) -> None:
        self._cohort, self._subjects, self._names = cohort, subjects, names
        self._index: Index | None = None

    @classmethod
    def _view(cls, cohort: Cohort, subjects: Iterable[str] | None, names: Iterable[str] | None) -> Self:
        view = cls.__new__(cls)
        view._setup(
            cohort, None if subjects is None else tuple(subjects), None if names is None else tuple(names)
        )
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        cohort = self._cohort
        return _restore_cohort, (type(self), cohort.store, cohort.snapshot, self._subjects, self._names)

    @classmethod
    def _create(
        cls,
        uri: Uri,
        jobs: Mapping[str, Sequence[Job]],
        subjects: Table | None,
        ctx: object,
        options: IngestOptions,
        *,
        overwrite: bool = False,
    ) -> Self:
        """Write a new store; one that exists is replaced on request, once the new one is complete."""
        store = Store(as_uri(uri), Session.of(ctx), "radi_object")
        create_cohort(store, jobs, subjects, options, overwrite=overwrite)
        return cls(store.root, store.session)

    @property
    def uri(self) -> str | None:
        """Address of the store; None for a view."""
        return None if self.is_view else self._cohort.store.root

    @property
    def is_view(self) -> bool:
        """Whether this is a selection."""
        return self._subjects is not None or self._names is not None

    @property
    def obs_subject_ids(self) -> list[str]:
        """Subjects, in the order of this view."""
        return list(self.index)

    @property
    def index(self) -> Index:
        """Subjects by place."""
        if self._index is None:
            subjects = self._cohort.subjects if self._subjects is None else self._subjects
            self._index = Index(subjects, "obs_subject_id")
        return self._index

    @property
    def _table(self) -> Table:
        """The rows of the subjects, in the order of this view."""
        table = self._cohort.subject_table
        places = Index([str(subject) for subject in table["obs_subject_id"]])
        return table.take([places.get_index(subject) for subject in self.index])

    def get_obs_row_by_obs_subject_id(self, obs_subject_id: str) -> Any:
        """Return the row of a subject as a pandas DataFrame, without rows for one outside this view."""
        places = [self.index.get_index(obs_subject_id)] if obs_subject_id in self.index else []
        return self._table.take(places).to_pandas()

    @property
    def collection_names(self) -> tuple[str, ...]:
        """Names of the collections of this view."""
        return tuple(self._cohort.snapshot.collections) if self._names is None else self._names

    @property
    def n_collections(self) -> int:
        """Number of collections."""
        return len(self.collection_names)

    @property
    def all_obs_ids(self) -> list[str]:
        """Observation ids of every collection of this view."""
        return [obs_id for name in self.collection_names for obs_id in self.collection(name).obs_ids]

    def collection(self, name: str) -> Collection:
        """Return a collection, restricted to the subjects of this view.

        Raises
        ------
        KeyError
            For a collection outside this view.
        """
        if name not in self.collection_names:
            raise KeyError(f"no collection {name!r}; there are {', '.join(self.collection_names) or 'none'}")
        rows = self._cohort.rows(name)
        if self._subjects is None:
            collection = self._collection_type._view(rows, None, name)
            if not self.is_view:
                collection._refresh_cohort = self.refresh  # it may change what this object shows
            return collection
        places = group_places(rows.table["obs_subject_id"])
        chosen = [place for subject in self._subjects for place in places.get(subject, ())]
        return self._collection_type._view(rows, chosen, name)

    def __getattr__(self, name: str) -> Collection:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.collection(name)
        except KeyError as error:
            raise AttributeError(str(error.args[0])) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.collection_names]

    def get_volume(self, obs_id: str) -> Volume:
        """Return a volume of this view by its observation id.

        Raises
        ------
        KeyError
            When it is not in this view.
        """
        for name in self.collection_names:
            collection = self.collection(name)
            if obs_id in collection:
                volume: Volume = collection.loc[obs_id]
                return volume
        raise KeyError(f"{obs_id!r} is not in this {'view' if self.is_view else 'store'}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __repr__(self) -> str:
        names = ", ".join(self.collection_names) or "none"
        kind = type(self).__name__
        held = f"{format_count(len(self), 'subject')}, {format_count(self.n_collections, 'collection')}"
        text = f"{kind}({held}: [{names}])"
        return text + (" (view)" if self.is_view else "")

    def _repr_html_(self) -> str:
        """Return what notebooks show: the collections with their shapes."""
        collections = [self.collection(name) for name in self.collection_names]
        rows = [
            (each.name, len(each), "x".join(map(str, each.shape or ())) or "mixed") for each in collections
        ]
        return rows_html(repr(self), ("collection", "volumes", "shape"), rows)

    def describe(self) -> str:
        """Return a summary for people: collections with shapes, values of columns with few of them."""
        lines = [f"{self!r}", f"store: {self._cohort.store.root}", ""]
        for name in self.collection_names:
            collection = self.collection(name)
            shape = "x".join(map(str, collection.shape or ())) or "mixed"
            lines.append(f"  {name}: {format_count(len(collection), 'volume')}, shape {shape}")
        table = self._table
        for column in [name for name in table.columns if name not in INDEX_COLUMNS]:
            values, counts = np.unique(np.ma.compressed(table[column]).astype(str), return_counts=True)
            if len(values) <= 10:
                shares = ", ".join(f"{value}: {count}" for value, count in zip(values, counts, strict=True))
                lines.append(f"  column {column}: {shares}")
        return "\n".join(lines)

    def _select(self, places: Sequence[int]) -> Self:
        subjects = self.obs_subject_ids
        return self._view(self._cohort, [subjects[place] for place in places], self._names)

    def _one(self, place: int) -> Self:
        return self._select([place])

    def __getitem__(self, key: str | list[str]) -> Self:
        view: Self = self.loc[key]
        return view

    def sel(self, *, subject: str | Iterable[str]) -> Self:
        """Return the view of one subject or of several."""
        view: Self = self.loc[subject]
        return view

    def filter(self, expr: str) -> Self:
        """Return those whose row satisfies an expression of `voxtier.volumes.tiledb.tables.filters`."""
        return self._select([int(place) for place in np.flatnonzero(self._table.matching(expr))])

    def select_collections(self, names: str | Iterable[str]) -> Self:
        """Return a view with some of the collections, or with one.

        Raises
        ------
        KeyError
            For a collection outside this view.
        """
        chosen = several(names)
        missing = [name for name in chosen if name not in self.collection_names]
        if missing:
            raise KeyError(f"no collection {missing[0]!r}; there are {', '.join(self.collection_names)}")
        return self._view(self._cohort, self._subjects, chosen)

    select = select_collections

    def copy(self) -> Self:
        """Return another object for the same selection."""
        return self._view(self._cohort, self._subjects, self._names)

    def refresh(self) -> None:
        """See what was committed since this object was opened; not for views."""
        self._refuse_view("refresh")
        store = self._cohort.store
        self._setup(Cohort(store, store.snapshot()), None, None)

    def _refuse_view(self, verb: str) -> None:
        if self.is_view:
            raise ViewError(f"cannot {verb} a view: use the root, or materialize the view first")


def _restore_cohort(
    kind: type[CohortView[Any]],
    store: Store,
    snapshot: Snapshot,
    subjects: tuple[str, ...] | None,
    names: tuple[str, ...] | None,
) -> CohortView[Any]:
    return kind._view(Cohort(store, snapshot), subjects, names)

"""Lazy work on views: transforms run volume by volume, so that memory holds one or two, never a cohort."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.cohort_view import CohortView
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.store import foreground
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.store.jobs import Content, Job
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.session import Uri
from voxtier.volumes.volume import Volume

Transform: TypeAlias = Callable[..., NDArray[Any]]
"""``fn(voxels)`` or ``fn(voxels, row)`` gives voxels."""

Collection = TypeVar("Collection", bound=CollectionView)
Radi = TypeVar("Radi", bound=CohortView[Any])

# Metadata that belongs to an array rather than to its image.
_ARRAY_META = (
    "obs_id",
    "tile_orientation",
    "voxtier_row",
    "voxtier_dtype",
    "slice_orientation",
    replicas.META_KEY,
    foreground.META_KEY,
)


@dataclass(frozen=True, slots=True)
class VolumeBatch:
    """Some volumes and the ids that they belong to.

    Parameters
    ----------
    volumes : numpy.ndarray or list of numpy.ndarray
        (N, x, y, z[, t]), a list where shapes differ.
    obs_ids, obs_subject_ids : list of str
        One for each volume.
    """

    volumes: NDArray[Any] | list[NDArray[Any]]
    obs_ids: list[str]
    obs_subject_ids: list[str]


@dataclass(frozen=True, slots=True)
class QueryCount:
    """How much a query will touch: subjects, and volumes by collection name."""

    subjects: int
    volumes: dict[str, int]


def _transform(fns: Sequence[Transform], voxels: NDArray[Any], row: dict[str, Any]) -> NDArray[Any]:
    for fn in fns:
        takes_row = len([p for p in inspect.signature(fn).parameters.values() if p.default is p.empty]) > 1
        voxels = np.asarray(fn(voxels, row) if takes_row else fn(voxels))
    return voxels


def copy_jobs(collection: CollectionView, fns: Sequence[Transform]) -> list[Job]:
    """Return the jobs that copy the volumes of a view.

    Without transforms the stored numbers are copied as they are.
    """
    snapshot = collection._rows.snapshot
    state = (snapshot.meta.get("voxtier_store"), snapshot.commit)
    # What transforms do cannot be told from their names: arrays that they left unfinished are made anew.
    run = uuid.uuid4().hex if fns else None
    jobs = []
    for volume, row in zip(collection, collection.table.rows(), strict=True):

        def load(volume: Volume = volume, row: dict[str, Any] = row) -> Content:
            return _copy(volume, row, fns)

        jobs.append(
            Job(
                obs_id=row["obs_id"],
                subject=row["obs_subject_id"],
                load=load,
                fingerprint=(volume.uri, *state, run),
                label=volume.uri,
                extra={
                    name: value
                    for name, value in row.items()
                    if name not in ("obs_id", "obs_subject_id", "dimensions")
                },
            )
        )
    return jobs


def _copy(volume: Volume, row: dict[str, Any], fns: Sequence[Transform]) -> Content:
    meta = {key: value for key, value in volume.meta.items() if key not in _ARRAY_META}
    if not fns:
        return Content(volume.read(raw=True), meta, {"dimensions": str(volume.shape)})
    image = _transform(fns, volume.read(), row)
    has_grid = image.shape[:3] == volume.shape[:3]
    outdated = ("nifti_", "stored_m") if has_grid else ("nifti_", "stored_m", "orientation_")
    meta = {key: value for key, value in meta.items() if not key.startswith(outdated)}
    return Content(image, meta, {"dimensions": str(image.shape)})


class CollectionQuery(Generic[Collection]):
    """A view of a collection and the transforms that its volumes shall go through.

    Parameters
    ----------
    collection : CollectionView
        The view.
    fns : tuple of callable
        Transforms, in their order.
    """

    def __init__(self, collection: Collection, fns: tuple[Transform, ...] = ()) -> None:
        self._collection, self._fns = collection, fns

    def __len__(self) -> int:
        return len(self._collection)

    def __repr__(self) -> str:
        return f"CollectionQuery({self._collection!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> CollectionQuery[Collection]:
        """Add a transform: ``fn(voxels)`` or ``fn(voxels, row)`` gives voxels."""
        return CollectionQuery(self._collection, (*self._fns, fn))

    def filter(self, expr: str) -> CollectionQuery[Collection]:
        """Keep the volumes whose row satisfies an expression."""
        return CollectionQuery(self._collection.filter(expr), self._fns)

    def filter_subjects(self, ids: Sequence[str]) -> CollectionQuery[Collection]:
        """Keep the volumes of some subjects."""
        return CollectionQuery(self._collection.sel(subject=ids), self._fns)

    def count(self) -> int:
        """Return the number of volumes."""
        return len(self._collection)

    def iter_volumes(self) -> Iterator[Volume]:
        """Yield the volumes, without transforms."""
        return iter(self._collection)

    def iter_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield (obs_id, transformed voxels), one volume at a time."""
        for volume, row in zip(self._collection, self._collection.table.rows(), strict=True):
            yield row["obs_id"], _transform(self._fns, volume.read(), row)

    def iter_batches(self, batch_size: int = 32) -> Iterator[VolumeBatch]:
        """Yield batches of transformed volumes, stacked where their shapes agree.

        Raises
        ------
        ConfigError
            When the batch size is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be >= 1, got {batch_size}")
        subjects = self._collection.obs_subject_ids
        arrays = self.iter_arrays()
        for start in range(0, len(self), batch_size):
            part = [next(arrays) for _ in range(start, min(start + batch_size, len(self)))]
            images = [image for _, image in part]
            stacked = np.stack(images) if len({image.shape for image in images}) == 1 else images
            yield VolumeBatch(stacked, [name for name, _ in part], subjects[start : start + batch_size])

    def to_numpy_stack(self) -> NDArray[Any]:
        """Return all transformed volumes in one array (N, ...)."""
        return np.stack([image for _, image in self.iter_arrays()])

    def materialize(self, uri: Uri, name: str | None = None, ctx: object = None) -> Collection:
        """Write the transformed volumes to a new collection, a few at a time.

        Parameters
        ----------
        uri : path or URI
            Place of the new collection.
        name : str, optional
            Its name, by default that of the view's collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.

        Raises
        ------
        ConfigError
            When there is no volume.
        """
        if not len(self):
            raise ConfigError("there is no volume to materialize")
        collection = self._collection
        jobs = copy_jobs(collection, self._fns)
        return collection._create(uri, jobs, name or collection.name, ctx, IngestOptions())


class Query(Generic[Radi]):
    """A view of a cohort and the transforms that its volumes shall go through.

    Parameters
    ----------
    radi : CohortView
        The view.
    fns : tuple of callable
        Transforms, in their order.
    within : tuple of (str, str)
        Collection name and expression that its rows have to satisfy.
    """

    def __init__(
        self, radi: Radi, fns: tuple[Transform, ...] = (), within: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._radi, self._fns, self._within = radi, fns, within

    def __repr__(self) -> str:
        return f"Query({self._radi!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> Query[Radi]:
        """Add a transform: ``fn(voxels)`` or ``fn(voxels, row)`` gives voxels."""
        return Query(self._radi, (*self._fns, fn), self._within)

    def filter(self, expr: str) -> Query[Radi]:
        """Keep the subjects whose row satisfies an expression."""
        return Query(self._radi.filter(expr), self._fns, self._within)

    def filter_subjects(self, ids: Sequence[str]) -> Query[Radi]:
        """Keep some subjects."""
        return Query(self._radi.sel(subject=list(ids)), self._fns, self._within)

    def filter_collection(self, collection_name: str, expr: str) -> Query[Radi]:
        """Keep the volumes of one collection whose row satisfies an expression, and their subjects."""
        matches = set(self._radi.collection(collection_name).filter(expr).obs_subject_ids)
        subjects = [subject for subject in self._radi.obs_subject_ids if subject in matches]
        return Query(self._radi.loc[subjects], self._fns, (*self._within, (collection_name, expr)))

    def select_collections(self, names: Sequence[str]) -> Query[Radi]:
        """Keep some collections."""
        return Query(self._radi.select_collections(names), self._fns, self._within)

    def collection(self, name: str) -> CollectionQuery[Any]:
        """Return the query of one collection."""
        view = self._radi.collection(name)
        for within, expr in self._within:
            if within == name:
                view = view.filter(expr)
        return CollectionQuery(view, self._fns)

    def count(self) -> QueryCount:
        """Return how many subjects and volumes the query touches."""
        return QueryCount(
            len(self._radi), {name: len(self.collection(name)) for name in self._radi.collection_names}
        )

    def iter_volumes(self, collection_name: str | None = None) -> Iterator[Volume]:
        """Yield the volumes of one collection, or of all."""
        names = self._radi.collection_names if collection_name is None else (collection_name,)
        for name in names:
            yield from self.collection(name).iter_volumes()

    def iter_batches(self, batch_size: int = 32) -> Iterator[dict[str, VolumeBatch]]:
        """Yield batches of subjects: collection name -> their transformed volumes."""
        subjects = self._radi.obs_subject_ids
        for start in range(0, len(subjects), batch_size):
            part = Query(self._radi.loc[subjects[start : start + batch_size]], self._fns, self._within)
            batches = {
                name: list(part.collection(name).iter_batches(10**9)) for name in self._radi.collection_names
            }
            yield {name: batch[0] for name, batch in batches.items() if batch}

    def to_numpy_stack(self, collection_name: str) -> NDArray[Any]:
        """Return all transformed volumes of one collection in one array."""
        return self.collection(collection_name).to_numpy_stack()

    def materialize(self, uri: Uri, ctx: object = None) -> Radi:
        """Write the transformed volumes and their subjects to a new store, a few volumes at a time."""
        radi = self._radi
        jobs = {
            name: copy_jobs(self.collection(name)._collection, self._fns) for name in radi.collection_names
        }
        return radi._create(uri, jobs, radi._table, ctx, IngestOptions())

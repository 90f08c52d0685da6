"""Lazy work on views: transforms run one volume at a time, so that memory holds a volume or two.

Never a cohort.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.store.append import add_volumes
from voxtier.volumes.store.commits import Store
from voxtier.volumes.store.ingest import Content, Job
from voxtier.volumes.tiledb.session import Session, Uri, as_uri

if TYPE_CHECKING:
    from voxtier.volumes.cohort.radi_object import RadiObject
    from voxtier.volumes.volume import Volume

Transform = Callable[..., NDArray[Any]]

_OWN_META = (
    "obs_id",
    "tile_orientation",
    "voxtier_row",
    "voxtier_dtype",
    "slice_orientation",
    "voxtier_replicas",
    "voxtier_foreground",
)


@dataclass(frozen=True, slots=True)
class VolumeBatch:
    """Some volumes and the ids that they belong to."""

    volumes: NDArray[Any] | list[NDArray[Any]]
    obs_ids: list[str]
    obs_subject_ids: list[str]


@dataclass(frozen=True, slots=True)
class QueryCount:
    """How much a query will touch."""

    subjects: int
    volumes: dict[str, int]


def _transformed(fns: Sequence[Transform], voxels: NDArray[Any], row: dict[str, Any]) -> NDArray[Any]:
    for fn in fns:
        takes_row = len([p for p in inspect.signature(fn).parameters.values() if p.default is p.empty]) > 1
        voxels = np.asarray(fn(voxels, row) if takes_row else fn(voxels))
    return voxels


def copy_jobs(collection: VolumeCollection, fns: Sequence[Transform]) -> list[Job]:
    """Return the jobs that copy the volumes of a view.

    Without transforms the stored numbers are copied as they are.
    """
    snapshot = collection._rows.snapshot
    state = (snapshot.meta.get("voxtier_store"), snapshot.commit)
    # what transforms do cannot be told from their names: what they left unfinished is made anew
    made_by = uuid.uuid4().hex if fns else None
    jobs = []
    for volume, row in zip(collection, collection.table.rows(), strict=True):
        extra = {name: value for name, value in row.items() if name not in ("obs_id", "obs_subject_id")}

        def load(volume: Volume = volume, row: dict[str, Any] = row) -> Content:
            meta = {key: value for key, value in volume.meta.items() if key not in _OWN_META}
            if not fns:
                return Content(volume.read(raw=True), meta, {"dimensions": str(volume.shape)})
            image = _transformed(fns, volume.read(), row)
            for key in [key for key in meta if key.startswith(("nifti_", "stored_m"))]:
                del meta[key]
            if image.shape[:3] != volume.shape[:3]:
                meta = {key: value for key, value in meta.items() if not key.startswith("orientation_")}
            return Content(image, meta, {"dimensions": str(image.shape)})

        extra.pop("dimensions", None)
        fingerprint = (volume.uri, *state, made_by)
        jobs.append(Job(row["obs_id"], row["obs_subject_id"], load, fingerprint, volume.uri, extra))
    return jobs


class CollectionQuery:
    """A view of a collection and the transforms that its volumes shall go through."""

    def __init__(self, collection: VolumeCollection, fns: tuple[Transform, ...] = ()) -> None:
        self._collection, self._fns = collection, fns

    def __len__(self) -> int:
        return len(self._collection)

    def __repr__(self) -> str:
        return f"CollectionQuery({self._collection!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> CollectionQuery:
        """Add a transform: ``fn(voxels)`` or ``fn(voxels, row)`` gives voxels."""
        return CollectionQuery(self._collection, (*self._fns, fn))

    def filter(self, expr: str) -> CollectionQuery:
        """Keep the volumes whose row satisfies an expression."""
        return CollectionQuery(self._collection.filter(expr), self._fns)

    def filter_subjects(self, ids: Sequence[str]) -> CollectionQuery:
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
            yield row["obs_id"], _transformed(self._fns, volume.read(), row)

    def iter_batches(self, batch_size: int = 32) -> Iterator[VolumeBatch]:
        """Yield batches of transformed volumes, stacked where their shapes agree."""
        if batch_size < 1:
            raise ConfigError("batch_size must be >= 1")
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

    def materialize(self, uri: Uri, name: str | None = None, ctx: object = None) -> VolumeCollection:
        """Write the transformed volumes to a new collection, a few at a time."""
        if not len(self):
            raise ConfigError("there is no volume to materialize")
        store = Store(as_uri(uri), Session.of(ctx), "collection")
        with store.writing(new=True) as change:
            add_volumes(
                change, "", name or self._collection.name or "", copy_jobs(self._collection, self._fns)
            )
        return VolumeCollection(store.root, store.session)


class Query:
    """A view of a cohort and the transforms that its volumes shall go through."""

    def __init__(
        self, radi: RadiObject, fns: tuple[Transform, ...] = (), within: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._radi, self._fns, self._within = radi, fns, within

    def __repr__(self) -> str:
        return f"Query({self._radi!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> Query:
        """Add a transform: ``fn(voxels)`` or ``fn(voxels, row)`` gives voxels."""
        return Query(self._radi, (*self._fns, fn), self._within)

    def filter(self, expr: str) -> Query:
        """Keep the subjects whose row satisfies an expression."""
        return Query(self._radi.filter(expr), self._fns, self._within)

    def filter_subjects(self, ids: Sequence[str]) -> Query:
        """Keep some subjects."""
        return Query(self._radi.sel(subject=list(ids)), self._fns, self._within)

    def filter_collection(self, collection_name: str, expr: str) -> Query:
        """Keep the volumes of one collection whose row satisfies an expression.

        And the subjects that have one.
        """
        found = set(self._radi.collection(collection_name).filter(expr).obs_subject_ids)
        kept = [subject for subject in self._radi.obs_subject_ids if subject in found]
        return Query(self._radi.loc[kept], self._fns, (*self._within, (collection_name, expr)))

    def select_collections(self, names: Sequence[str]) -> Query:
        """Keep some collections."""
        return Query(self._radi.select_collections(names), self._fns, self._within)

    def collection(self, name: str) -> CollectionQuery:
        """Return the query of one collection."""
        found = self._radi.collection(name)
        for within, expr in self._within:
            if within == name:
                found = found.filter(expr)
        return CollectionQuery(found, self._fns)

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
            yield {name: found[0] for name, found in batches.items() if found}

    def to_numpy_stack(self, collection_name: str) -> NDArray[Any]:
        """Return all transformed volumes of one collection in one array."""
        return self.collection(collection_name).to_numpy_stack()

    def materialize(self, uri: Uri, ctx: object = None) -> RadiObject:
        """Write the transformed volumes and their subjects to a new store, a few volumes at a time."""
        from voxtier.volumes.cohort.radi_object import RadiObject

        queries = {name: self.collection(name) for name in self._radi.collection_names}
        jobs = {name: copy_jobs(query._collection, self._fns) for name, query in queries.items()}
        return RadiObject._create(
            uri, jobs, self._radi.obs_meta.read(), ctx, overwrite=False, on_error="raise", progress=False
        )

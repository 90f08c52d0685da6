"""Lazy work on views: transforms run volume by volume, so that memory holds one or two, never a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import several, whole_number
from voxtier.errors import ConfigError
from voxtier.volumes.cohort.cohort_view import CohortView
from voxtier.volumes.cohort.collection_view import CollectionView
from voxtier.volumes.cohort.queries.transforms import Transform, apply_transforms, copy_jobs
from voxtier.volumes.store.ingest import IngestOptions
from voxtier.volumes.tiledb.creation import plain_voxels
from voxtier.volumes.tiledb.session import Uri
from voxtier.volumes.volume import Volume

Collection = TypeVar("Collection", bound=CollectionView)
Radi = TypeVar("Radi", bound=CohortView[Any])


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

    n_subjects: int
    n_volumes: dict[str, int]


class _Selecting:
    """Selection by place and by name; each gives a narrower query."""

    def _view(self) -> Any:
        raise NotImplementedError

    def _with(self, view: Any) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._view())

    def iloc(self, key: Any) -> Self:
        """Keep what is at some positions: an integer, a slice, a list or a mask."""
        is_place = isinstance(key, (int, np.integer)) and not isinstance(key, (bool, np.bool_))
        return self._with(self._view().iloc[[key] if is_place else key])

    def loc(self, key: str | Iterable[str]) -> Self:
        """Keep what has some ids."""
        return self._with(self._view().loc[several(key)])

    def head(self, n: int = 5) -> Self:
        """Keep the first ones."""
        return self._with(self._view().head(n))

    def tail(self, n: int = 5) -> Self:
        """Keep the last ones."""
        return self._with(self._view().tail(n))

    def sample(self, n: int = 5, seed: int | None = None) -> Self:
        """Keep random ones."""
        return self._with(self._view().sample(n, seed))

    def filter(self, expr: str) -> Self:
        """Keep those whose row satisfies an expression (see `voxtier.volumes.tiledb.tables.filters`)."""
        return self._with(self._view().filter(expr))

    def filter_subjects(self, ids: str | Iterable[str]) -> Self:
        """Keep some subjects."""
        return self._with(self._view().sel(subject=several(ids)))


class CollectionQuery(_Selecting, Generic[Collection]):
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

    def _view(self) -> Collection:
        return self._collection

    def _with(self, view: Collection) -> Self:
        return type(self)(view, self._fns)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._collection!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> Self:
        """Add a transform (see `transforms.Transform`)."""
        return type(self)(self._collection, (*self._fns, fn))

    def count(self) -> int:
        """Return the number of volumes."""
        return len(self)

    def to_obs(self) -> Any:
        """Return the rows of the volumes as a pandas DataFrame."""
        return self._collection.to_obs()

    def iter_volumes(self) -> Iterator[Volume]:
        """Yield the volumes, without transforms."""
        return iter(self._collection)

    def iter_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield (obs_id, transformed voxels), one volume at a time."""
        for volume, row in self._collection.volume_rows():
            image, _ = apply_transforms(self._fns, volume.read(), row)
            yield row["obs_id"], plain_voxels(image, f"{row['obs_id']}: the result of a transform")

    def iter_batches(self, batch_size: int = 32) -> Iterator[VolumeBatch]:
        """Yield batches of transformed volumes, stacked where their shapes agree.

        Raises
        ------
        ConfigError
            When the batch size is below 1.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        subjects = self._collection.obs_subject_ids
        arrays = self.iter_arrays()
        for start in range(0, len(self), batch_size):
            part = [next(arrays) for _ in range(start, min(start + batch_size, len(self)))]
            images = [image for _, image in part]
            stacked = np.stack(images) if len({image.shape for image in images}) == 1 else images
            yield VolumeBatch(stacked, [name for name, _ in part], subjects[start : start + batch_size])

    def to_numpy_stack(self) -> NDArray[Any]:
        """Return all transformed volumes in one array (N, ...).

        Raises
        ------
        ConfigError
            When there is no volume.
        """
        if not len(self):
            raise ConfigError("there is no volume to stack")
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

    write = materialize


class Query(_Selecting, Generic[Radi]):
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

    def _view(self) -> Radi:
        return self._radi

    def _with(self, view: Radi) -> Self:
        return type(self)(view, self._fns, self._within)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._radi!r}, {len(self._fns)} transforms)"

    def map(self, fn: Transform) -> Self:
        """Add a transform (see `transforms.Transform`)."""
        return type(self)(self._radi, (*self._fns, fn), self._within)

    def filter_collection(self, collection_name: str, expr: str) -> Self:
        """Keep the volumes of one collection whose row satisfies an expression, and their subjects."""
        # Of what earlier calls left: one volume has to satisfy all, not two of one subject one each.
        matches = set(self.collection(collection_name).filter(expr)._view().obs_subject_ids)
        subjects = [subject for subject in self._radi.obs_subject_ids if subject in matches]
        return type(self)(self._radi.loc[subjects], self._fns, (*self._within, (collection_name, expr)))

    def select_collections(self, names: str | Iterable[str]) -> Self:
        """Keep some collections."""
        return self._with(self._radi.select_collections(names))

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
            len(self), {name: len(self.collection(name)) for name in self._radi.collection_names}
        )

    def to_obs_meta(self) -> Any:
        """Return the rows of the subjects as a pandas DataFrame."""
        return self._radi._table.to_pandas()

    def iter_volumes(self, collection_name: str | None = None) -> Iterator[Volume]:
        """Yield the volumes of one collection, or of all."""
        names = self._radi.collection_names if collection_name is None else (collection_name,)
        for name in names:
            yield from self.collection(name).iter_volumes()

    def iter_batches(self, batch_size: int = 32) -> Iterator[dict[str, VolumeBatch]]:
        """Yield batches of subjects: collection name -> their transformed volumes.

        Raises
        ------
        ConfigError
            When the batch size is below 1.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        subjects = self._radi.obs_subject_ids
        for start in range(0, len(subjects), batch_size):
            part = self._with(self._radi.loc[subjects[start : start + batch_size]])
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

    write = materialize

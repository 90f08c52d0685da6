"""The origin's queries: ours, with its batches, and with rows as pandas Series."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.queries import eager, lazy
from voxtier.volumes.cohort.queries.lazy import QueryCount
from voxtier.volumes.tiledb.session import Uri
from voxtier.volumes.volume import Volume

__all__ = ["CollectionQuery", "EagerQuery", "LazyQuery", "Query", "QueryCount", "VolumeBatch"]


@dataclass(frozen=True, slots=True)
class VolumeBatch:
    """The volumes of some subjects.

    Parameters
    ----------
    volumes : dict
        Collection name -> (N, x, y, z[, t]), a list where shapes differ.
    subject_ids : tuple of str
        The subjects.
    obs_ids : dict
        Collection name -> observation of each volume.
    """

    volumes: dict[str, Any]
    subject_ids: tuple[str, ...]
    obs_ids: dict[str, tuple[str, ...]]


class LazyQuery(lazy.CollectionQuery[Any]):
    """A view of a collection and the transforms that its volumes shall go through.

    Parameters
    ----------
    collection : CollectionView
        The view.
    fns : tuple of callable
        Transforms, in their order.
    """

    def write(self, uri: Uri | None = None, name: str | None = None, ctx: object = None) -> Any:
        """Write the transformed volumes to a new collection.

        Parameters
        ----------
        uri : path or URI, optional
            Its place, by default beside this one: ``<uri>_<name>``, else ``<uri>_<transform>``, else
            ``<uri>_written``.
        name : str, optional
            Its name.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        if uri is None:
            called = getattr(self._fns[-1], "__name__", "<") if self._fns else "<"
            suffix = name or ("written" if "<" in called else called)
            uri = f"{self._collection.uri}_{suffix}"
        return super().materialize(uri, name, ctx)

    materialize = write


CollectionQuery = LazyQuery


class EagerQuery(eager.EagerQuery[Any]):
    """Results that were computed at once, with the rows of their volumes."""

    def materialize(self, uri: Uri, name: str | None = None, ctx: object = None) -> Any:
        """Write the results, which have to be volumes, to a new collection.

        Parameters
        ----------
        uri : path or URI
            Its place.
        name : str, optional
            Its name, by default that of the view's collection.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        VolumeCollection
            The new collection.
        """
        return self.write(uri, name, ctx)

    def count(self) -> int:
        """Return the number of results."""
        return len(self)

    def to_numpy_stack(self) -> NDArray[Any]:
        """Return all results in one array (N, ...)."""
        if not len(self):
            raise ConfigError("there is no volume to stack")
        return np.stack([value for value, _ in self])


class Query(lazy.Query[Any]):
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

    def iter_volumes(self, collection_name: str | None = None) -> Iterator[Volume]:
        """Yield the volumes of one collection, or of all.

        Raises
        ------
        ConfigError
            For a collection outside this query.
        """
        if collection_name is not None and collection_name not in self._radi.collection_names:
            raise ConfigError(f"collection {collection_name!r} is not in this query")
        return super().iter_volumes(collection_name)

    def iter_batches(self, batch_size: int = 32) -> Iterator[VolumeBatch]:  # type: ignore[override]
        """Yield batches of subjects with their transformed volumes."""
        subjects = self._radi.obs_subject_ids
        for place, batch in enumerate(super().iter_batches(batch_size)):
            yield VolumeBatch(
                {name: part.volumes for name, part in batch.items()},
                tuple(subjects[place * batch_size : (place + 1) * batch_size]),
                {name: tuple(part.obs_ids) for name, part in batch.items()},
            )

    def materialize(self, uri: Uri, streaming: bool = True, ctx: object = None) -> Any:  # type: ignore[override]  # noqa: FBT001, FBT002
        """Write the transformed volumes and their subjects to a new store.

        Parameters
        ----------
        uri : path or URI
            Its place.
        streaming : bool
            Accepted for the origin's sake: memory always holds a few volumes only.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        RadiObject
            The new store.
        """
        return super().materialize(uri, ctx)

    write = materialize  # type: ignore[assignment]

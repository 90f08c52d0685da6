"""Volumes written one by one, as a model or a scanner yields them; visible once the writer closes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes import geometry
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.store.append import add_volumes
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.store.ingest import IngestOptions, write_volumes
from voxtier.volumes.store.jobs import Content, Job
from voxtier.volumes.store.names import refuse_duplicates
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.session import Session, Uri, as_uri


class StreamingWriter:
    """Write a new collection volume by volume; memory holds one of them.

    Parameters
    ----------
    uri : path or URI
        Place of the new collection.
    shape : tuple of int, optional
        Refuse volumes of another shape.
    obs_schema : mapping, optional
        Accepted for the origin's sake; columns follow from the attributes.
    name : str, optional
        Name of the collection.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.

    Examples
    --------
    >>> with StreamingWriter("masks") as writer:  # doctest: +SKIP
    ...     writer.write_volume(mask, "sub-1_seg", "sub-1", model="v3")
    """

    def __init__(
        self,
        uri: Uri,
        shape: tuple[int, ...] | None = None,
        obs_schema: Mapping[str, Any] | None = None,
        name: str | None = None,
        ctx: object = None,
    ) -> None:
        self._store = Store(as_uri(uri), Session.of(ctx), "collection")
        self._shape, self._name = shape, name or ""
        self._stack = ExitStack()
        self._change: Change | None = None
        self._jobs: list[Job] = []
        self._run = uuid.uuid4().hex

    def __enter__(self) -> Self:
        self._change = self._stack.enter_context(change_store(self._store, new=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        change, self._change = self._change, None
        with self._stack:
            if kind is None and change is not None:
                add_volumes(change, "", self._name, self._jobs, IngestOptions())
            elif error is not None:
                self._stack.pop_all().__exit__(kind, error, trace)

    def write_volume(
        self, data: NDArray[Any], obs_id: str, obs_subject_id: str, *, affine: object = None, **attrs: Any
    ) -> None:
        """Write one volume.

        Parameters
        ----------
        data : numpy.ndarray
            (x, y, z[, t]).
        obs_id, obs_subject_id : str
            Whose volume it is.
        affine : array_like, (4, 4), optional
            Index to RAS+ millimetres.
        **attrs : Any
            Columns of its row.

        Raises
        ------
        ConfigError
            Outside the ``with`` block, for another shape, and for an observation that was written.
        IngestError
            When it cannot be stored.
        """
        if self._change is None:
            raise ConfigError("write inside the 'with' block of the writer")
        if self._shape is not None and tuple(data.shape) != tuple(self._shape):
            raise ConfigError(f"{obs_id}: shape {data.shape}, this writer takes {self._shape}")
        refuse_duplicates([obs_id], [job.obs_id for job in self._jobs])
        meta = geometry.affine_meta(affine, obs_id)
        content = Content(data, meta, {"dimensions": str(tuple(data.shape))})
        job = Job(obs_id, obs_subject_id, lambda: content, (self._run,), obs_id, dict(attrs))
        write_volumes([job], f"{self._store.root}/volumes", self._store.session, IngestOptions())
        # Closing finds the array finished and only lists it: the voxels need not stay in memory.
        self._jobs.append(Job(obs_id, obs_subject_id, _refuse, (self._run,), obs_id, dict(attrs)))

    def write_batch(self, volumes: Iterable[tuple[NDArray[Any], str, str, Mapping[str, Any]]]) -> None:
        """Write several (voxels, obs_id, obs_subject_id, attributes)."""
        for data, obs_id, subject, attrs in volumes:
            self.write_volume(data, obs_id, subject, **attrs)

    def close(self) -> VolumeCollection:
        """Return the finished collection."""
        return VolumeCollection(self._store.root, self._store.session)


def _refuse() -> Content:
    raise ConfigError("a volume that was written has disappeared before the writer closed")

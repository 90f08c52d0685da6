"""Volumes written one by one, as a model or a scanner yields them; visible once the writer closes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes import geometry
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.cohort.radi_object import RadiObject
from voxtier.volumes.store.append import add_cohort, add_volumes, begin_collection
from voxtier.volumes.store.commits import Change, change_store
from voxtier.volumes.store.ingest import IngestOptions, write_volumes
from voxtier.volumes.store.jobs import Content, Job
from voxtier.volumes.store.names import refuse_duplicates, refuse_unusable_ids
from voxtier.volumes.store.snapshots import Store
from voxtier.volumes.tiledb.creation import plain_voxels
from voxtier.volumes.tiledb.session import Session, Uri, as_uri
from voxtier.volumes.tiledb.tables.columns import Table, rows_table
from voxtier.volumes.tiledb.tables.names import SHAPES, given_table, refuse_own_names


class _StoreWriter:
    """The ``with`` block of who writes a new store, which becomes visible if it ends without an error."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stack = ExitStack()
        self._change: Change | None = None

    def _finish(self, change: Change) -> None:
        """Add what was written to the change, which is then committed."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self._change is not None:
            raise ConfigError("this writer is open already")
        self._change = self._stack.enter_context(change_store(self._store, new=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        change, self._change = self._change, None
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:  # an error of what follows undoes the change as one of the block does
            if change is not None:  # else `finalize` has ended the block
                self._finish(change)

    def _open_change(self) -> Change:
        if self._change is None:
            raise _outside_block()
        return self._change


def _outside_block() -> ConfigError:
    return ConfigError("write inside the 'with' block of the writer")


class _VolumeWriter:
    """Writes arrays below one group, and keeps the rows that will list them."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self._shape = shape
        self._jobs: list[Job] = []
        self._run = uuid.uuid4().hex

    def _place(self) -> tuple[str, Session]:
        """Return the address of the group of the arrays, and how it is reached; refuse a closed writer."""
        raise NotImplementedError

    def _check(self, obs_id: str, subject: str) -> None:
        refuse_duplicates([obs_id], [job.obs_id for job in self._jobs])

    @property
    def n_written(self) -> int:
        """Number of volumes that were written."""
        return len(self._jobs)

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
            Columns of its row; a tuple or a list is stored as text.

        Raises
        ------
        ConfigError
            Outside the ``with`` block, without an id, for one that no row can hold, for another shape, for
            masked voxels, for an observation that was written, and for a column that is named as voxtier's
            own.
        IngestError
            When it cannot be stored.
        """
        group, session = self._place()
        refuse_own_names(attrs)
        obs_id, obs_subject_id = _id("obs_id", obs_id), _id("obs_subject_id", obs_subject_id)
        refuse_unusable_ids([obs_id, obs_subject_id])
        data = plain_voxels(data, f"{obs_id}: the array")
        if self._shape is not None and tuple(data.shape[: len(self._shape)]) != tuple(self._shape):
            raise ConfigError(f"{obs_id}: shape {data.shape}, this writer takes {self._shape}")
        self._check(obs_id, obs_subject_id)
        meta = geometry.affine_meta(affine, obs_id)
        content = Content(data, meta, {SHAPES: str(tuple(data.shape))})
        arrays = [name for name, value in attrs.items() if getattr(value, "ndim", 0)]
        if arrays:
            raise ConfigError(f"{obs_id}: {arrays[0]} is an array: columns take numbers, text and dates")
        extra = {
            name: str(value) if isinstance(value, (tuple, list)) else value for name, value in attrs.items()
        }
        job = Job(obs_id, obs_subject_id, lambda: content, (self._run,), obs_id, extra)
        write_volumes([job], group, session, IngestOptions())
        # Closing finds the array finished and only lists it: the voxels need not stay in memory.
        self._jobs.append(Job(obs_id, obs_subject_id, _refuse, (self._run,), obs_id, extra))

    def write_batch(self, volumes: Iterable[tuple[NDArray[Any], str, str, Mapping[str, Any]]]) -> None:
        """Write several (voxels, obs_id, obs_subject_id, attributes)."""
        for data, obs_id, subject, attrs in volumes:
            self.write_volume(data, obs_id, subject, **attrs)


def _id(name: str, given: object) -> str:
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):  # of a column of numbers
        given = str(given)
    if not isinstance(given, str):
        raise ConfigError(f"{name} is the text that names the volume or its subject, got {given!r}")
    return given


def _refuse() -> Content:
    raise ConfigError("a volume that was written has disappeared before the writer closed")


class StreamingWriter(_StoreWriter, _VolumeWriter):
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
        _StoreWriter.__init__(self, Store(as_uri(uri), Session.of(ctx), "collection"))
        _VolumeWriter.__init__(self, shape)
        self._name = name or ""

    def _finish(self, change: Change) -> None:
        add_volumes(change, "", self._name, self._jobs, IngestOptions())

    def _place(self) -> tuple[str, Session]:
        store = self._open_change().store
        return f"{store.root}/volumes", store.session

    def close(self) -> VolumeCollection:
        """Return the finished collection."""
        return VolumeCollection(self._store.root, self._store.session)


class RadiObjectWriter(_StoreWriter):
    """Write a new store of several collections volume by volume; all become visible when the block ends.

    Parameters
    ----------
    uri : path or URI
        Place of the new store.
    obs_meta_schema : mapping, optional
        Accepted for the origin's sake; columns follow from `write_obs_meta`.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.

    Examples
    --------
    >>> with RadiObjectWriter("cohort") as writer:  # doctest: +SKIP
    ...     writer.write_obs_meta({"obs_subject_id": ["sub-1"], "age": [52]})
    ...     with writer.add_collection("T1w") as collection:
    ...         collection.write_volume(voxels, "sub-1_T1w", "sub-1")
    """

    def __init__(
        self, uri: Uri, obs_meta_schema: Mapping[str, Any] | None = None, ctx: object = None
    ) -> None:
        super().__init__(Store(as_uri(uri), Session.of(ctx), "radi_object"))
        self._writers: dict[str, CollectionWriter] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def _finish(self, change: Change) -> None:
        jobs = {name: writer._jobs for name, writer in self._writers.items() if writer.is_finished}
        if not any(jobs.values()):
            raise ConfigError("no volume was written")
        add_cohort(change, jobs, self._subjects(), IngestOptions())

    def _subjects(self) -> Table | None:
        return rows_table(list(self._rows.values())) if self._rows else None

    @property
    def collection_names(self) -> list[str]:
        """Names of the collections that were written."""
        return [name for name, writer in self._writers.items() if writer.is_finished]

    def write_obs_meta(self, df: object) -> None:
        """Give rows of subjects; a subject that was given before is replaced.

        Parameters
        ----------
        df : DataFrame, Table or mapping
            Columns, ``obs_subject_id`` among them.

        Raises
        ------
        ConfigError
            Without that column, for a row without a subject, for a column that is named as voxtier's own, and
            outside the ``with`` block.
        """
        self._open_change()
        table = given_table(df)
        if "obs_subject_id" not in table:
            raise ConfigError("obs_meta needs a column 'obs_subject_id'")
        self._rows |= zip(table.ids("obs_subject_id"), table.typed_rows(), strict=True)

    def add_collection(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        obs_schema: Mapping[str, Any] | None = None,
    ) -> CollectionWriter:
        """Return the writer of one collection, for a ``with`` block inside this one.

        Parameters
        ----------
        name : str
            Of the collection.
        shape : tuple of int, optional
            Refuse volumes of another shape.
        obs_schema : mapping, optional
            Accepted for the origin's sake; columns follow from the attributes.

        Returns
        -------
        CollectionWriter
            To be entered.

        Raises
        ------
        ConfigError
            When there is a collection of that name, and outside the ``with`` block.
        """
        change = self._open_change()
        if name in self._writers and self._writers[name].counts:
            raise ConfigError(f"there already is a collection {name!r}")
        self._writers[name] = CollectionWriter(self, name, change.folder_of(name), shape)
        return self._writers[name]

    def finalize(self) -> RadiObject:
        """End the block, if it is open, and return the new store."""
        if self._change is not None:
            self.__exit__(None, None, None)
        return RadiObject(self._store.root, self._store.session)


class CollectionWriter(_VolumeWriter):
    """Writes one collection of a `RadiObjectWriter`, whose `add_collection` makes it.

    Parameters
    ----------
    parent : RadiObjectWriter
        Whose collection it is.
    name, folder : str
        Of the collection.
    shape : tuple of int or None
        Refuse volumes of another shape.
    """

    def __init__(
        self, parent: RadiObjectWriter, name: str, folder: str, shape: tuple[int, ...] | None
    ) -> None:
        super().__init__(shape)
        self._parent, self._name, self._folder = parent, name, folder
        self._is_open = self.is_finished = self._is_begun = False

    @property
    def counts(self) -> bool:
        """Whether its volumes belong to the store: not those of a block that an error ended."""
        return self._is_open or self.is_finished

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open, self.is_finished = False, kind is None

    def _place(self) -> tuple[str, Session]:
        change = self._parent._open_change()
        if not self._is_open:
            raise _outside_block()
        if not self._is_begun:
            begin_collection(change, self._folder, self._name)
            self._is_begun = True
        return f"{change.store.collection_uri(self._folder)}/volumes", change.store.session

    def _check(self, obs_id: str, subject: str) -> None:
        writers = [writer for writer in self._parent._writers.values() if writer.counts]
        others = [job.obs_id for writer in writers for job in writer._jobs]
        refuse_duplicates([obs_id], others)
        if self._parent._rows and subject not in self._parent._rows:
            raise ConfigError(f"{obs_id}: obs_meta has no row for {subject!r}: write_obs_meta() it first")

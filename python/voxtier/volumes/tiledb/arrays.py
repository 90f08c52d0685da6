"""Dense voxel arrays: opened once in a process, read and written.

This module alone translates between the stored order of the dimensions and the API order (see `layout`).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import BackendError, FormatError, NotFoundError
from voxtier.system.fork import abandon, after_fork_in_child
from voxtier.volumes.tiledb.format.direct import open_tiles
from voxtier.volumes.tiledb.format.freshness import FolderState, is_there
from voxtier.volumes.tiledb.format.messages import is_object_gone, translate_errors
from voxtier.volumes.tiledb.format.names import FRAGMENTS, META, SCHEMA
from voxtier.volumes.tiledb.format.recovery import recover_volume
from voxtier.volumes.tiledb.layout import ATTRIBUTE, AXES, Layout, Region
from voxtier.volumes.tiledb.scaling import Scaling, ingested_dtype, stored_number
from voxtier.volumes.tiledb.session import LATEST, Session, is_remote, next_timestamp

_OPEN_ARRAYS = 128  # each may hold one file descriptor
_ATTEMPTS = 10  # consolidations that may come between the steps of one read
_REMOTE_ATTEMPTS = 3  # each costs a dozen requests

_Result = TypeVar("_Result")


class VoxelArray:
    """One array, opened once in this process: its layout, its metadata and its reads.

    Parameters
    ----------
    uri : str
        Address of the array.
    session : Session
        How it is reached.
    is_replica : bool
        It is read as it was opened, or not at all: what lies there later may be half written.

    Attributes
    ----------
    replicas : tuple of VoxelArray or None
        Further tilings of the same voxels; None until `replicas` has looked for them.
    """

    layout: Layout
    meta: dict[str, Any]
    domain: Any

    def __init__(self, uri: str, session: Session, *, is_replica: bool = False) -> None:
        self.uri = uri
        self.session = session
        self.pid = os.getpid()
        self.is_forgotten = False
        self.is_replica = is_replica
        self.credentials = session.credentials() if is_remote(uri) else {}
        self.replicas: tuple[VoxelArray, ...] | None = None
        self._handle: Any = None
        self._is_known = False
        try:
            self._retry(self._open)
        except FormatError:
            if is_remote(uri):
                raise
            recover_volume(uri)
            self._retry(self._open)
        order = self.layout.order
        self._to_api = tuple(order.index(axis) for axis in range(len(order)))
        self._tiles = open_tiles(uri, self.layout, self.domain)
        if self._tiles is not None:
            self._handle = None  # one descriptor less, and a reader that holds up no vacuum

    def _open(self) -> Any:
        """Open the array, note what it is, and return the handle."""
        state = FolderState.read(self.uri)
        with translate_errors(f"open the volume {self.uri}"):
            handle = _opened(self.uri, self.session)
            layout = Layout.of(self.uri, handle.schema)
            meta = dict(handle.meta)
            domain = handle.nonempty_domain()
        if domain is None and not meta:  # one that was made without voxels has metadata
            raise FormatError(
                "store_damaged",
                None,
                f"{self.uri} holds no voxel: who made it was killed, or is still writing; remove it if nobody"
                " is, and make it again",
            )
        if self._is_known and (layout, meta.get("obs_id")) != (self.layout, self.meta.get("obs_id")):
            self.is_forgotten = True
            raise BackendError(f"the volume {self.uri} was replaced while it was read: read it again")
        self.state, self.layout, self.meta, self.domain = state, layout, meta, domain
        self.dtype = ingested_dtype(meta, layout.cell)  # what reads give before scaling
        self.scaling = Scaling.of(meta, self.dtype)
        self.replicas, self._is_known = None, True
        self._handle = handle
        return handle

    def _current_handle(self) -> Any:
        """Return the open handle, a new one where `_retry` dropped it."""
        handle = self._handle
        if handle is None and is_remote(self.uri):
            return self._open()  # nothing else would notice that its metadata has changed too
        if handle is None:
            handle = self._handle = _opened(self.uri, self.session)
        return handle

    def _retry(self, step: Callable[[], _Result]) -> _Result:
        """Take a step again where files vanish under it: another process removes what it has consolidated."""
        for _ in range(_REMOTE_ATTEMPTS if is_remote(self.uri) else _ATTEMPTS):
            try:
                return step()
            except (NotFoundError, BackendError) as error:
                if not (is_there(self.uri) if isinstance(error, NotFoundError) else is_object_gone(error)):
                    raise
                self._handle = None  # opened anew
        return step()

    def to_numbers(self, cells: NDArray[Any], *, raw: bool) -> NDArray[Any]:
        """Return cells in the type that was ingested (``raw``), or as physical numbers."""
        if cells.dtype is not self.dtype and cells.dtype != self.dtype:
            cells = cells.astype(self.dtype)
        return cells if raw or self.scaling.is_identity else self.scaling.apply(cells)

    @property
    def is_direct(self) -> bool:
        """Whether reads decode the tiles themselves."""
        return self._tiles is not None

    @property
    def is_current(self) -> bool:
        """Whether this array belongs to this process and still shows what is on disk."""
        if self.pid != os.getpid():
            return False
        state = self.state
        if state is None:  # remote: a handle with credentials that were replaced may stop working
            return not self.is_forgotten and self.credentials == self.session.credentials()
        return not self.is_forgotten and state.is_current(self.uri)

    def read(self, region: Region) -> NDArray[Any]:
        """Return the cells of a region (API order) from this array's own tiles, without negative strides."""
        stored = tuple([region[axis] for axis in self.layout.order])
        if any([count == 0 for _, count, _ in stored]):  # noqa: C419
            cells = np.empty(tuple(count for _, count, _ in stored), self.layout.cell)
        elif self._tiles is not None:
            cells = self._tiles.read(stored, self.session.config.read)
        else:
            cells = self._read_through_tiledb(lambda handle: _read_region(handle, stored))
        return cells.transpose(self._to_api)

    def _read_through_tiledb(self, step: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
        """Return what a step reads from the open handle: all of it from one state of the array."""

        def read() -> NDArray[Any]:
            with translate_errors(f"read the volume {self.uri}"):
                return step(self._current_handle())

        return read() if self.is_replica else self._retry(read)

    def read_patches(self, starts: NDArray[np.int64], size: tuple[int, ...], fill: float) -> NDArray[Any]:
        """Read boxes of one size from this array's own tiles.

        Parameters
        ----------
        starts : numpy.ndarray of int64, (N, ndim)
            First voxels in API order; they may be negative or reach past the end.
        size : tuple of int
            Voxels of a box along x, y, z[, t].
        fill : float
            Value of cells outside the volume.

        Returns
        -------
        numpy.ndarray
            (N, *size).

        Raises
        ------
        ConfigError
            For a fill that the cells cannot hold.
        """
        stored_number(fill, self.layout.cell, self.dtype)
        order = self.layout.order
        stored_starts = np.ascontiguousarray(starts[:, list(order)])
        stored_size = tuple(size[axis] for axis in order)
        if self._tiles is not None:
            out = self._tiles.read_patches(
                stored_starts, stored_size, fill, self.layout.stored_shape, self.session.config.read
            )
        else:
            shape = (len(starts), *stored_size)
            out = self._read_through_tiledb(lambda handle: self._patches(handle, stored_starts, shape, fill))
        return out.transpose(0, *(1 + axis for axis in self._to_api))

    @property
    def tiles(self) -> _core.TileFile | None:
        """The tiles in the core, of an array that is read without TileDB."""
        return None if self._tiles is None else self._tiles.core

    def read_boxes(
        self,
        starts: NDArray[np.int64],
        out: NDArray[Any],
        fill: float,
        recipe: _core.Recipe,
    ) -> None:
        """Read boxes of one size, converted, into the caller's memory.

        Parameters
        ----------
        starts : numpy.ndarray of int64, (N, ndim)
            First voxels in API order; they may be negative or reach past the end.
        out : numpy.ndarray, (N, x, y, z[, t])
            C-contiguous, of the recipe's type.
        fill : float
            Stored number outside the volume.
        recipe : Recipe
            Of this array (`replicas.recipe`).
        """
        order = self.layout.order
        stored = np.ascontiguousarray(starts[:, list(order)])
        assert self._tiles is not None, "an array with a recipe is read directly"
        outside = stored_number(fill, self.layout.cell, self.dtype)
        self._tiles.read_boxes(stored, out, order, recipe, outside, self.session.config.read)

    def _patches(
        self, handle: Any, corners: NDArray[np.int64], shape: tuple[int, ...], fill: float
    ) -> NDArray[Any]:
        out = np.full(shape, fill, self.layout.cell)
        for patch, corner in zip(out, corners.tolist(), strict=True):
            low = [max(0, start) for start in corner]
            ends = zip(corner, patch.shape, self.layout.stored_shape, strict=True)
            high = [min(size, start + count) for start, count, size in ends]
            if all(end > start for start, end in zip(low, high, strict=True)):
                inside = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
                region = tuple((start, end - start, 1) for start, end in zip(low, high, strict=True))
                patch[inside] = _read_region(handle, region)
        return out


def _read_region(handle: Any, stored: Region) -> NDArray[Any]:
    """Return the cells of a region in the stored order."""
    cells = handle[tuple(slice(start, start + (count - 1) * step + 1) for start, count, step in stored)]
    if isinstance(cells, Mapping):
        cells = cells[ATTRIBUTE]
    if any(step != 1 for _, _, step in stored):
        cells = np.ascontiguousarray(cells[tuple(slice(None, None, step) for _, _, step in stored)])
    return cast(NDArray[Any], cells)


def _opened(uri: str, session: Session) -> Any:
    """Open an array as of the end of time: the clock of who wrote it may be ahead of this machine's."""
    return tiledb.open(uri, "r", ctx=session.context(), timestamp=LATEST)


_open: OrderedDict[tuple[str, Session], VoxelArray] = OrderedDict()
_open_lock = threading.Lock()


def _after_fork() -> None:
    global _open, _open_lock
    abandon(_open)  # never closed here: see session
    _open, _open_lock = OrderedDict(), threading.Lock()


after_fork_in_child(_after_fork)


def open_array(uri: str, session: Session) -> VoxelArray:
    """Return the open array of this process, opened again when a local array has changed on disk.

    A remote array keeps the state in which it was opened (one request a read) until `forget` is called, or
    until another process has removed what that state consists of.
    """
    key = (uri, session)
    with _open_lock:
        array = _open.get(key)
        if array is not None:
            _open.move_to_end(key)
    if array is not None and array.is_current:
        return array
    array = VoxelArray(uri, session)
    with _open_lock:
        _open[key] = array
        while len(_open) > _OPEN_ARRAYS:
            _open.popitem(last=False)
    return array


def forget(uri: str) -> None:
    """Drop this process's open handles of an array, so that the next read sees what is there now."""
    with _open_lock:
        for key in [key for key in _open if key[0] == uri]:
            _open.pop(key).is_forgotten = True


def write_voxels(uri: str, voxels: NDArray[Any], meta: Mapping[str, Any], session: Session) -> list[str]:
    """Write the whole of a new array in one fragment; the metadata becomes visible after the voxels.

    Parameters
    ----------
    uri : str
        Address of an array of this shape that nothing was written to.
    voxels : numpy.ndarray
        (x, y, z[, t]).
    meta : mapping
        Metadata to set.
    session : Session
        How it is reached.

    Returns
    -------
    list of str
        Name of the fragment.
    """
    session = session.for_small_writes(uri, _written_at_most(voxels))
    return _write(uri, (0,) * voxels.ndim, voxels, meta, session, None)


def write_region(uri: str, start: Sequence[int], voxels: NDArray[Any], session: Session) -> list[str]:
    """Write a box: one more fragment.

    Parameters
    ----------
    uri : str
        Address of the array.
    start : sequence of int
        First voxel along x, y, z[, t].
    voxels : numpy.ndarray
        (x, y, z[, t]).
    session : Session
        How it is reached.

    Returns
    -------
    list of str
        Name of the fragment.
    """
    timestamp = next_timestamp(uri, (FRAGMENTS, SCHEMA), session)
    if not is_remote(uri):  # there an object has whole tiles, however small the box is
        session = session.for_small_writes(uri, _written_at_most(voxels))
    return _write(uri, start, voxels, {}, session, timestamp)


def _written_at_most(voxels: NDArray[Any]) -> int:
    return 2 * voxels.nbytes + (1 << 20)


def _write(
    uri: str,
    start: Sequence[int],
    voxels: NDArray[Any],
    meta: Mapping[str, Any],
    session: Session,
    timestamp: int | None,
) -> list[str]:
    context = session.context()
    with (
        translate_errors(f"write the volume {uri}"),
        tiledb.open(uri, "w", ctx=context, timestamp=timestamp) as array,
    ):
        order = tuple(AXES.index(array.domain.dim(i).name) for i in range(array.ndim))
        cells = np.ascontiguousarray(voxels.transpose(order), dtype=array.attr(ATTRIBUTE).dtype)
        array[tuple(slice(start[axis], start[axis] + voxels.shape[axis]) for axis in order)] = cells
        names = [fragment.rpartition("/")[2] for fragment in array.last_write_info]
        _set_meta(array, meta)
    forget(uri)
    return names


def _set_meta(array: Any, meta: Mapping[str, Any]) -> None:
    for key, value in meta.items():
        is_wide = isinstance(value, int) and value > np.iinfo(np.int64).max
        array.meta[key] = np.uint64(value) if is_wide else value  # Python's integers are signed in TileDB


def write_meta(uri: str, meta: Mapping[str, Any], session: Session) -> None:
    """Change metadata of an array.

    Parameters
    ----------
    uri : str
        Address of the array.
    meta : mapping
        Metadata to set; other keys keep their values.
    session : Session
        How it is reached.
    """
    context, timestamp = session.context(), next_timestamp(uri, (META, SCHEMA), session)
    with (
        translate_errors(f"write metadata of {uri}"),
        tiledb.open(uri, "w", ctx=context, timestamp=timestamp) as array,
    ):
        _set_meta(array, meta)
    forget(uri)

"""Which arrays the core may decode by itself, and the calls into it.

Only a local array with exactly one committed fragment that covers the whole domain, of the format version and
filters that the core knows, is read directly; everything else goes through TileDB. ``VOXTIER_DIRECT=0`` sends
everything through TileDB.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.system.fork import after_fork_in_child
from voxtier.volumes.config import ReadConfig
from voxtier.volumes.tiledb.format import VERSION, node_cache
from voxtier.volumes.tiledb.format.names import COMMITS, FRAGMENTS, SCHEMA
from voxtier.volumes.tiledb.layout import Layout, Region
from voxtier.volumes.tiledb.session import is_remote

FILTERS = {"ByteShuffleFilter": "byteshuffle", "ZstdFilter": "zstd", "LZ4Filter": "lz4", "GzipFilter": "gzip"}
"""Name of a filter in the core by its class in ``tiledb``."""

_TILES = "a0.tdb"  # the first attribute; a volume has no other
_SCRATCH_MB = 2  # a thread's buffers: one task's stored bytes and two chunks
_LINE = 64
_LONG = 64 << 10


def open_tiles(uri: str, layout: Layout, domain: Any) -> DirectTiles | None:
    """Open the tiles of an array for decoding in the core.

    Parameters
    ----------
    uri : str
        Address of the array.
    layout : Layout
        Its shape, tiles and filters.
    domain : tuple of (int, int) or None
        First and last cell that was written along each stored dimension (``nonempty_domain``).

    Returns
    -------
    DirectTiles or None
        None where TileDB has to read.
    """
    if os.environ.get("VOXTIER_DIRECT") == "0" or is_remote(uri) or layout.cell.kind not in "iuf":
        return None
    if any(name not in FILTERS for name in layout.filters):
        return None
    path = _single_fragment(uri) if layout.covers(domain) else None
    if path is None:
        return None
    try:
        filters = [FILTERS[name] for name in layout.filters]
        tiles = _core.TileFile(
            os.fspath(path), list(layout.stored_shape), list(layout.extents), layout.cell.itemsize, filters
        )
    except (FormatError, SourceError):
        return None  # framing that is not understood here: TileDB judges it
    return DirectTiles(tiles, layout.cell)


def _single_fragment(uri: str) -> Path | None:
    """Return the tile file of an array with one committed write and nothing deleted or ignored."""
    try:
        commits = os.listdir(f"{uri}/{COMMITS}")  # noqa: PTH208
        fragments = os.listdir(f"{uri}/{FRAGMENTS}")  # noqa: PTH208
        schemas = [name for name in os.listdir(f"{uri}/{SCHEMA}") if not name.startswith("__enum")]  # noqa: PTH208
        if len(commits) != 1 or len(fragments) != 1 or len(schemas) != 1:
            return None
        name = fragments[0]
        if not name.endswith(f"_{VERSION}") or not _is_commit_of(name, Path(uri, COMMITS, commits[0])):
            return None
    except OSError:
        return None
    return Path(uri, FRAGMENTS, name, _TILES)


def _is_commit_of(fragment: str, commit: Path) -> bool:
    """Return whether a commit file is that of this fragment, or (consolidated) lists it and nothing else."""
    if commit.suffix != ".con":
        return commit.name == fragment + ".wrt"
    line = f"{COMMITS}/{fragment}.wrt\n".encode()
    with commit.open("rb") as file:
        return file.read(len(line) + 1) == line


class DirectTiles:
    """Reads of one array through the core; regions and results are in stored order."""

    __slots__ = ("_cell", "_tiles")

    @property
    def core(self) -> _core.TileFile:
        """The object of the core that reads them."""
        return self._tiles

    def __init__(self, tiles: _core.TileFile, cell: np.dtype[Any]) -> None:
        self._tiles, self._cell = tiles, cell

    def read(self, region: Region, read: ReadConfig) -> NDArray[Any]:
        """Return the cells of a region."""
        apply_budget(read)
        raw, out = _empty([count for _, count, _ in region], self._cell)
        self._tiles.read(region, raw, threads=read.concurrency, keep=read.tile_cache_size_mb > 0)
        return out

    def read_patches(
        self,
        starts: NDArray[np.int64],
        size: tuple[int, ...],
        fill: float,
        shape: tuple[int, ...],
        read: ReadConfig,
    ) -> NDArray[Any]:
        """Read boxes of one size.

        Parameters
        ----------
        starts : numpy.ndarray of int64, (N, ndim)
            First cells; they may be negative or reach past the end.
        size : tuple of int
            Cells of a box along each stored dimension.
        fill : float
            Value of cells outside the array.
        shape : tuple of int
            Shape of the array in stored order.
        read : ReadConfig
            Threads and memory.

        Returns
        -------
        numpy.ndarray
            (N, *size).
        """
        apply_budget(read)
        raw, out = _empty((len(starts), *size), self._cell)
        outside = ((starts < 0) | (starts + size > shape)).any(axis=1)
        out[outside] = fill
        self._tiles.read_patches(
            starts.reshape(-1), list(size), raw, threads=read.concurrency, keep=read.tile_cache_size_mb > 0
        )
        return out

    def read_boxes(
        self,
        starts: NDArray[np.int64],
        out: NDArray[Any],
        order: Sequence[int],
        recipe: _core.Recipe,
        fill: bytes,
        read: ReadConfig,
    ) -> None:
        """Read boxes of one size, converted, into the caller's memory.

        Parameters
        ----------
        starts : numpy.ndarray of int64, (N, ndim)
            First cells in stored order; they may be negative or reach past the end.
        out : numpy.ndarray, (N, ...)
            C-contiguous, in API order.
        order : sequence of int
            API axis of each stored dimension.
        recipe : Recipe
            From stored cells to numbers of ``out``.
        fill : bytes
            Stored number outside the array.
        read : ReadConfig
            Threads and memory.
        """
        apply_budget(read)
        # Not by the strides: numpy gives an axis of one cell any stride, and calls the array contiguous.
        steps = [math.prod(out.shape[2 + axis :]) for axis in order]
        self._tiles.read_boxes(
            starts.reshape(-1),
            [out.shape[1 + axis] for axis in order],
            out.reshape(-1).view(np.uint8),
            recipe,
            steps=steps,
            fill=fill,
            threads=read.concurrency,
            keep=read.tile_cache_size_mb > 0,
        )


def _empty(shape: Sequence[int], cell: np.dtype[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return new memory as bytes and as an array, on a cache line where it is long.

    numpy aligns to 16 bytes; rows that cross one cache line more than they need take a third longer to fill.
    """
    count = math.prod(shape) * cell.itemsize
    if count < _LONG:
        out = np.empty(shape, cell)
        return out.reshape(-1).view(np.uint8), out
    raw = np.empty(count + _LINE, np.uint8)
    skip = -raw.__array_interface__["data"][0] % _LINE
    raw = raw[skip : skip + count]
    return raw, raw.view(cell).reshape(shape)


_OWN_PART = 8  # of the budget: what a process may hold for itself beside the blocks of the node

# Process id, options, number of workers and reserved bytes that the core's budget was last set for.
_applied: tuple[int, ReadConfig, int, int] | None = None
_workers = 0  # of the DataLoader that this process works for
_reserved = 0
_lock = threading.Lock()


def _begin_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_begin_child)


def apply_budget(read: ReadConfig) -> None:
    """Give the core its byte budget if it changed: the cache's cap, within what reads in flight leave."""
    global _applied
    if (
        _applied is not None
        and _applied[1] is read
        and _applied[0] == os.getpid()
        and _applied[2:] == (_workers, _reserved)
    ):
        return
    with _lock:
        _core.set_tile_budget(_own_budget(read))
        _applied = (os.getpid(), read, _workers, _reserved)


def _own_budget(read: ReadConfig) -> int:
    budget = _left(read)
    if _workers and join_node(read, every_read=True) is None:
        return budget // _OWN_PART
    return budget // max(1, _workers)


def _left(read: ReadConfig) -> int:
    left = (read.memory_budget_mb - _SCRATCH_MB * read.concurrency << 20) - _reserved
    return max(0, min(read.tile_cache_size_mb << 20, left))


def join_node(read: ReadConfig, *, every_read: bool = False) -> str | None:
    """Hold decoded blocks once for all processes of the user, from now on.

    Parameters
    ----------
    read : ReadConfig
        Whether and how many.
    every_read : bool
        Whether all reads of this process do so, or only those of `batches`.

    Returns
    -------
    str or None
        Why not: each process then holds its own.
    """
    if not read.share_cache:
        return "switched off (share_cache=False)"
    if read.tile_cache_size_mb == 0:
        return "there is no cache (tile_cache_size_mb=0)"
    return node_cache.join(_left(read), every_read=every_read)


def share_budget(workers: int) -> None:
    """Tell this process that it is one of so many: they share blocks, or each gets its part of the budget."""
    global _workers
    _workers = max(1, workers)


def reserve(change: int) -> None:
    """Take bytes of the memory budget away from decoded blocks, or (negative) give them back."""
    global _reserved
    with _lock:
        _reserved = max(0, _reserved + change)


def cache_stats() -> dict[str, int]:
    """Return the counters of this process's cache of decoded blocks.

    Returns
    -------
    dict
        ``hits``, ``misses``, ``evictions``, ``entries`` and, in bytes, ``bytes_read``, ``bytes_decoded``,
        ``bytes_held``, ``budget``; of the blocks that are shared with other processes ``shared_bytes``,
        ``shared_budget`` and ``shared_evictions``.
    """
    return _core.tile_stats()


def clear_cache() -> None:
    """Forget every decoded block and counter of this process."""
    _core.clear_tile_cache()

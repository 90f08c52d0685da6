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
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import FormatError, SourceError
from voxtier.volumes.config import ReadConfig
from voxtier.volumes.tiledb.session import is_remote

if TYPE_CHECKING:
    from voxtier.volumes.tiledb.layout import Layout, Region

_FORMAT: Final = "_22"
_FILTERS: Final = {
    "ByteShuffleFilter": "byteshuffle",
    "ZstdFilter": "zstd",
    "LZ4Filter": "lz4",
    "GzipFilter": "gzip",
}
_SCRATCH_MB: Final = 2  # a thread's buffers: one task's stored bytes and two chunks
_LINE: Final = 64
_LONG: Final = 64 << 10

_applied: tuple[int, ReadConfig, int] | None = None
_lock = threading.Lock()


def open_tiles(uri: str, layout: Layout, domain: Any) -> DirectTiles | None:
    """Return a reader of the array's tiles, or None where TileDB has to read."""
    if os.environ.get("VOXTIER_DIRECT") == "0" or is_remote(uri) or layout.cell.kind not in "iuf":
        return None
    if any(name not in _FILTERS for name in layout.filters):
        return None
    whole = tuple((0, size - 1) for size in layout.stored_shape)
    if domain is None or tuple((int(low), int(high)) for low, high in domain) != whole:
        return None
    path = _only_fragment(uri)
    if path is None:
        return None
    try:
        filters = [_FILTERS[name] for name in layout.filters]
        tiles = _core.TileFile(
            os.fspath(path), list(layout.stored_shape), list(layout.extents), layout.cell.itemsize, filters
        )
    except (FormatError, SourceError):
        return None  # framing that is not understood here: TileDB judges it
    return DirectTiles(tiles, layout.cell)


def _only_fragment(uri: str) -> Path | None:
    """Return the tile file of an array with one committed write and nothing deleted or ignored."""
    try:
        commits = os.listdir(f"{uri}/__commits")  # noqa: PTH208
        fragments = os.listdir(f"{uri}/__fragments")  # noqa: PTH208
        schemas = [name for name in os.listdir(f"{uri}/__schema") if not name.startswith("__enum")]  # noqa: PTH208
        if len(commits) != 1 or len(fragments) != 1 or len(schemas) != 1:
            return None
        name = fragments[0]
        if not name.endswith(_FORMAT) or not _commits_only(Path(uri, "__commits", commits[0]), name):
            return None
    except OSError:
        return None
    return Path(uri) / "__fragments" / name / "a0.tdb"


def _commits_only(commit: Path, fragment: str) -> bool:
    """Return whether a commit file is that of this fragment, or (consolidated) lists it and nothing else."""
    if commit.suffix != ".con":
        return commit.name == fragment + ".wrt"
    line = f"__commits/{fragment}.wrt\n".encode()
    with commit.open("rb") as file:
        return file.read(len(line) + 1) == line


class DirectTiles:
    """Reads of one array through the core; regions and results are in stored order."""

    __slots__ = ("_cell", "_tiles")

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
        """Return (N, *size); cells outside the array are ``fill``."""
        apply_budget(read)
        raw, out = _empty((len(starts), *size), self._cell)
        outside = ((starts < 0) | (starts + size > shape)).any(axis=1)
        out[outside] = fill
        self._tiles.read_patches(
            starts.reshape(-1),
            list(size),
            raw,
            threads=read.concurrency,
            keep=read.tile_cache_size_mb > 0,
        )
        return out


def _empty(shape: Sequence[int], cell: np.dtype[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return new memory as bytes and as an array, on a cache line where it is long.

    Rows that cross lines which they need not cross cost a third more time (numpy aligns to 16 bytes).
    """
    count = math.prod(shape) * cell.itemsize
    if count < _LONG:
        out = np.empty(shape, cell)
        return out.reshape(-1).view(np.uint8), out
    raw = np.empty(count + _LINE, np.uint8)
    skip = -raw.__array_interface__["data"][0] % _LINE
    raw = raw[skip : skip + count]
    return raw, raw.view(cell).reshape(shape)


def apply_budget(read: ReadConfig) -> None:
    """Give the core its byte budget when it changed.

    The cache's cap, within what the reads in flight leave.
    """
    global _applied
    share = _shares()
    if _applied is not None and _applied[1] is read and _applied[0] == os.getpid() and _applied[2] == share:
        return
    with _lock:
        left = read.memory_budget_mb - _SCRATCH_MB * read.concurrency
        _core.set_tile_budget((max(0, min(read.tile_cache_size_mb, left)) << 20) // share)
        _applied = (os.getpid(), read, share)


_worker_share = 1


def _shares() -> int:
    return _worker_share


def share_budget(workers: int) -> None:
    """Tell this process that it is one of so many: each gets its part of the byte budget."""
    global _worker_share
    _worker_share = max(1, workers)


def cache_stats() -> dict[str, int]:
    """Return the true counters of this process.

    Hits, misses, bytes_read, bytes_decoded, evictions, bytes_held.
    """
    return _core.tile_stats()


def clear_cache() -> None:
    """Forget every decoded block and counter of this process."""
    _core.clear_tile_cache()

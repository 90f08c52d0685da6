"""Dense voxel arrays: creation, reads, fragments. The second door to TileDB.

A volume is a stock TileDB array with one attribute, ``voxels``. Its dimensions are stored so that the thin
axis of a tile varies slowest (cells of one slice then lie together); the names of the dimensions say which
is which, and this module alone translates between that order and the order (x, y, z[, t]) above it.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError, VoxtierError
from voxtier.volumes.config import (
    CompressionConfig,
    Compressor,
    SliceOrientation,
    TileConfig,
    WriteConfig,
)
from voxtier.volumes.tiledb.format import direct
from voxtier.volumes.tiledb.format import schema_copies as schemas
from voxtier.volumes.tiledb.format.freshness import Stamp
from voxtier.volumes.tiledb.format.recovery import mend_volume
from voxtier.volumes.tiledb.layout import CHUNK_BYTES, Layout, Region
from voxtier.volumes.tiledb.scaling import Scaling, kept_dtype
from voxtier.volumes.tiledb.session import LATEST, Session, is_remote, object_kind, translated

ATTRIBUTE: Final = "voxels"
AXES: Final = "xyzt"
META_KEY: Final = "voxtier_replicas"  # see `replicas`

_STORED_ORDER: Final = {
    SliceOrientation.AXIAL: "zyx",
    SliceOrientation.ISOTROPIC: "zyx",
    SliceOrientation.SAGITTAL: "xzy",
    SliceOrientation.CORONAL: "yzx",
}
# TileDB has no such cells: kept in the next wider type, given back as they came
_STORED_AS: Final[dict[np.dtype[Any], np.dtype[Any]]] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.bool_): np.dtype(np.uint8),
}
_OPEN_ARRAYS: Final = 128  # each may hold one file descriptor


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a volume as integers, or refuse it."""
    sizes = tuple(int(size) for size in shape)
    if len(sizes) not in (3, 4) or any(size < 1 for size in sizes):
        raise ConfigError(f"a volume has 3 or 4 dimensions of at least 1 voxel, got the shape {sizes}")
    if any(size > 2**31 - 2 for size in sizes):
        raise ConfigError(f"a dimension of {max(sizes)} voxels does not fit the int32 coordinates")
    return sizes


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the cells on disk (little-endian), or refuse the type by name."""
    native: np.dtype[Any] = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    native = _STORED_AS.get(native, native)
    if native.kind not in "iufc" or native.itemsize > 8 or native == np.dtype(np.complex128):
        raise ConfigError(
            f"voxels of type {dtype} cannot be stored: use integers, float16 to float64 or complex64"
        )
    return native


def create_array(
    uri: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    write: WriteConfig,
    session: Session,
    *,
    free: bool = False,
) -> None:
    """Create an empty array with the tiles and the compression of ``write``; ``free``: nothing lies there."""
    cell, sizes = stored_dtype(dtype), checked_shape(shape)
    kind = (sizes, cell.str, write.tile, write.compression)
    plain = free and session.is_plain and not is_remote(uri)
    if plain and schemas.create_another(kind, uri):
        return
    filters = _filters(write.compression, cell, session.for_small(uri, 0).context())
    _create(uri, sizes, cell, write.tile, filters, session, free=free)
    if plain:
        schemas.remember(kind, uri)


def create_like(uri: str, model: str, orientation: SliceOrientation, session: Session) -> None:
    """Create an empty array for the voxels of another one, compressed as they are there, in other tiles."""
    with translated(f"open the volume {model}"):
        schema = tiledb.ArraySchema.load(model, ctx=session.context())
    layout = _layout(model, schema)
    tile = TileConfig(orientation, t=(*layout.api_extents, 1)[3])
    _create(uri, layout.shape, layout.cell, tile, list(schema.attr(ATTRIBUTE).filters), session)


def _create(
    uri: str,
    shape: tuple[int, ...],
    cell: np.dtype[Any],
    tile: TileConfig,
    filter_list: list[tiledb.Filter],
    session: Session,
    *,
    free: bool = False,
) -> None:
    sizes = dict(zip(AXES, shape, strict=False))
    extents = dict(zip(AXES, _extents(shape, tile, compressed=bool(filter_list)), strict=False))
    order = ("t" if "t" in sizes else "") + _STORED_ORDER[tile.orientation]
    if not free and object_kind(uri, session) is not None:
        raise ConfigError(f"{uri} already exists: choose another place or remove it first")
    ctx = session.for_small(uri, 0).context()
    with translated(f"create the volume {uri}"):
        domain = tiledb.Domain(
            *(
                tiledb.Dim(
                    name=name, domain=(0, sizes[name] - 1), tile=extents[name], dtype=np.int32, ctx=ctx
                )
                for name in order
            ),
            ctx=ctx,
        )
        filters = tiledb.FilterList(filter_list, ctx=ctx)
        attribute = tiledb.Attr(name=ATTRIBUTE, dtype=cell, filters=filters, ctx=ctx)
        schema = tiledb.ArraySchema(domain=domain, attrs=[attribute], sparse=False, ctx=ctx)
        tiledb.Array.create(uri, schema, ctx=ctx)


def _extents(shape: tuple[int, ...], tile: TileConfig, *, compressed: bool) -> tuple[int, ...]:
    extents = list(min(e, s) for e, s in zip(tile.extents_for_shape(shape), shape, strict=True))  # noqa: C400
    if not compressed:
        # edge tiles are stored whole: without compression a shorter extent saves up to 40 % of the file
        explicit = (tile.x, tile.y, tile.z, tile.t)
        for axis, size in enumerate(shape):
            if explicit[axis] is None:
                tiles = -(-size // extents[axis])
                extents[axis] = -(-size // tiles)
    return tuple(extents)


def _filters(compression: CompressionConfig, cell: np.dtype[Any], ctx: tiledb.Ctx) -> list[tiledb.Filter]:
    algorithm, level = compression.algorithm, compression.level
    if algorithm is Compressor.NONE:
        return []
    compressor = {
        Compressor.ZSTD: tiledb.ZstdFilter,
        Compressor.LZ4: tiledb.LZ4Filter,
        Compressor.GZIP: tiledb.GzipFilter,
    }[algorithm]
    shuffle = [tiledb.ByteShuffleFilter(ctx=ctx)] if cell.itemsize > 1 else []
    return [*shuffle, compressor(level=level, ctx=ctx)]


def _layout(uri: str, schema: tiledb.ArraySchema) -> Layout:
    domain = schema.domain
    dimensions = [domain.dim(index) for index in range(domain.ndim)]
    names = [dimension.name for dimension in dimensions]
    if (
        schema.sparse
        or sorted(names) not in (sorted("xyz"), sorted("xyzt"))
        or not schema.has_attr(ATTRIBUTE)
    ):
        raise FormatError(
            "bad_table",
            None,
            f"{uri} is no volume: dimensions {names}, wanted x, y, z[, t] and '{ATTRIBUTE}'",
        )
    if any(int(dimension.domain[0]) != 0 for dimension in dimensions):
        raise FormatError("bad_table", None, f"{uri}: the dimensions of a volume start at 0")
    sizes = {dimension.name: int(dimension.domain[1]) + 1 for dimension in dimensions}
    attribute = schema.attr(ATTRIBUTE)
    plain = schema.cell_order == "row-major" and schema.tile_order == "row-major" and schema.nattr == 1
    extents = tuple(int(dimension.tile) for dimension in dimensions)
    cell = np.dtype(attribute.dtype)
    return Layout(
        shape=tuple(sizes[name] for name in AXES[: len(names)]),
        order=tuple(AXES.index(name) for name in names),
        extents=extents,
        cell=cell,
        filters=tuple(type(item).__name__ for item in attribute.filters) if plain else ("not-plain",),
        chunk_bytes=CHUNK_BYTES if attribute.filters.chunksize else math.prod(extents) * cell.itemsize,
    )


def write_all(uri: str, voxels: NDArray[Any], meta: Mapping[str, Any], session: Session) -> None:
    """Write the whole array in one fragment; the metadata becomes visible after the voxels."""
    ctx = session.for_small(uri, 2 * voxels.nbytes + (1 << 20)).context()
    with translated(f"write the volume {uri}"), tiledb.open(uri, "w", ctx=ctx) as array:
        order = tuple(AXES.index(array.domain.dim(i).name) for i in range(array.ndim))
        cells = np.ascontiguousarray(voxels.transpose(order), dtype=array.attr(ATTRIBUTE).dtype)
        array[:] = cells
        for key, value in meta.items():
            array.meta[key] = value
    forget(uri)


def write_region(uri: str, start: Sequence[int], voxels: NDArray[Any], session: Session) -> None:
    """Write a box whose first voxel is ``start`` (x, y, z[, t]): one more fragment."""
    ctx = session.context()
    with translated(f"write the volume {uri}"), tiledb.open(uri, "w", ctx=ctx) as array:
        order = tuple(AXES.index(array.domain.dim(i).name) for i in range(array.ndim))
        cells = np.ascontiguousarray(voxels.transpose(order), dtype=array.attr(ATTRIBUTE).dtype)
        box = tuple(slice(start[axis], start[axis] + voxels.shape[axis]) for axis in order)
        array[box] = cells
    forget(uri)


def write_meta(uri: str, meta: Mapping[str, Any], session: Session) -> None:
    """Change metadata of an array."""
    with translated(f"write metadata of {uri}"), tiledb.open(uri, "w", ctx=session.context()) as array:
        for key, value in meta.items():
            array.meta[key] = value
    forget(uri)


def _opened(uri: str, session: Session) -> Any:
    """Open an array as of the end of time: the clock of who wrote it may be ahead of this machine's."""
    return tiledb.open(uri, "r", ctx=session.context(), timestamp=LATEST)


class VoxelArray:
    """One array, opened once in this process: its layout, its metadata and its reads."""

    def __init__(self, uri: str, session: Session) -> None:
        self.uri = uri
        self.session = session
        self.pid = os.getpid()
        self.forgotten = False
        self.credentials = session.credentials() if is_remote(uri) else {}
        self._handle: Any = None
        try:
            self._open()
        except FormatError:
            if is_remote(uri):
                raise
            mend_volume(uri)
            self._open()
        self.kept = kept_dtype(self.meta, self.layout.cell)  # what reads give before scaling
        self.scaling = Scaling.of(self.meta, self.kept)
        order = self.layout.order
        self._back = tuple(order.index(axis) for axis in range(len(order)))
        self._tiles: direct.DirectTiles | None = direct.open_tiles(uri, self.layout, self.domain)
        if self._tiles is not None:
            self._handle = None  # one descriptor less, and a reader that holds up no vacuum
        self._replicas: tuple[VoxelArray, ...] | None = None if META_KEY in self.meta else ()

    def _open(self) -> None:
        self.stamp = Stamp.take(self.uri)
        with translated(f"open the volume {self.uri}"):
            self._handle = _opened(self.uri, self.session)
            self.layout = _layout(self.uri, self._handle.schema)
            self.meta: dict[str, Any] = dict(self._handle.meta)
            self.domain = self._handle.nonempty_domain()

    def finished(self, cells: NDArray[Any], *, raw: bool) -> NDArray[Any]:
        """Return cells that were read in the type that was ingested, or scaled."""
        if cells.dtype is not self.kept and cells.dtype != self.kept:
            cells = cells.astype(self.kept)
        return cells if raw or self.scaling.is_identity else self.scaling.apply(cells)

    @property
    def is_direct(self) -> bool:
        """Whether reads decode the tiles themselves."""
        return self._tiles is not None

    def read(self, region: Region) -> NDArray[Any]:
        """Return the voxels of a region (API order), of the stored type, without negative strides."""
        chosen = self if self._replicas == () else self.cheapest(region)
        if chosen is not self:
            with suppress(VoxtierError):  # a replica that fails is no loss: the volume itself answers
                return chosen.own_cells(region)
        return self.own_cells(region)

    def cheapest(self, region: Region) -> VoxelArray:
        """Return the tiling that decodes the fewest cells for this region: this one, or a replica."""
        if self._replicas is None:
            from voxtier.volumes.tiledb.replicas import current

            self._replicas = tuple(current(self).values())
        return min((self, *self._replicas), key=lambda array: array.layout.decoded_cells(region))

    def own_cells(self, region: Region) -> NDArray[Any]:
        """Return the voxels of a region from this array's own tiles."""
        stored = tuple([region[axis] for axis in self.layout.order])
        if any([count == 0 for _, count, _ in stored]):  # noqa: C419
            cells = np.empty(tuple(count for _, count, _ in stored), self.layout.cell)
        elif self._tiles is not None:
            cells = self._tiles.read(stored, self.session.config.read)
        else:
            cells = self._read_through_tiledb(stored)
        return cells.transpose(self._back)

    def _read_through_tiledb(self, stored: Region) -> NDArray[Any]:
        box = tuple(slice(start, start + (count - 1) * step + 1) for start, count, step in stored)
        with translated(f"read the volume {self.uri}"):
            if self._handle is None:
                self._handle = _opened(self.uri, self.session)
            cells = cast(NDArray[Any], self._handle[box])
        if isinstance(cells, Mapping):
            cells = cells[ATTRIBUTE]
        if any(step != 1 for _, _, step in stored):
            cells = np.ascontiguousarray(cells[tuple(slice(None, None, step) for _, _, step in stored)])
        return cells

    def read_patches(self, starts: NDArray[np.int64], size: tuple[int, ...], fill: float) -> NDArray[Any]:
        """Return boxes of one size, (N, *size) in API order; outside the volume lies ``fill``."""
        if self._replicas != () and len(starts):
            box = zip(starts[0], size, self.layout.shape, strict=True)
            chosen = self.cheapest(tuple((min(max(0, int(s)), n - 1), min(c, n), 1) for s, c, n in box))
            if chosen is not self:
                with suppress(VoxtierError):
                    return chosen.read_patches(starts, size, fill)
        order = self.layout.order
        stored_starts = np.ascontiguousarray(starts[:, list(order)])
        stored_size = tuple(size[axis] for axis in order)
        if self._tiles is not None:
            out = self._tiles.read_patches(
                stored_starts, stored_size, fill, self.layout.stored_shape, self.session.config.read
            )
        else:
            out = np.full((len(starts), *stored_size), fill, self.layout.cell)
            shape = self.layout.stored_shape
            for patch, corner in zip(out, stored_starts, strict=True):
                low = [max(0, int(s)) for s in corner]
                high = [min(n, int(s) + c) for s, c, n in zip(corner, stored_size, shape, strict=True)]
                if all(hi > lo for lo, hi in zip(low, high, strict=True)):
                    inside = self._read_through_tiledb(
                        tuple((lo, hi - lo, 1) for lo, hi in zip(low, high, strict=True))
                    )
                    patch[
                        tuple(
                            slice(lo - int(s), hi - int(s))
                            for lo, hi, s in zip(low, high, corner, strict=True)
                        )
                    ] = inside
        return out.transpose(0, *(1 + axis for axis in self._back))


_open: OrderedDict[tuple[str, Session], VoxelArray] = OrderedDict()
_open_lock = threading.Lock()
_inherited: list[object] = []


def _after_fork() -> None:
    global _open, _open_lock
    _inherited.append(_open)  # never closed here: see engine
    _open, _open_lock = OrderedDict(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def open_array(uri: str, session: Session) -> VoxelArray:
    """Return the open array of this process, opened again when a local array has changed on disk.

    A remote array keeps the state in which it was opened (one request a read) until `forget` is called.
    """
    key = (uri, session)
    with _open_lock:
        array = _open.get(key)
        if array is not None:
            _open.move_to_end(key)
    if array is not None and is_current(array):
        return array
    array = VoxelArray(uri, session)
    with _open_lock:
        _open[key] = array
        while len(_open) > _OPEN_ARRAYS:
            _open.popitem(last=False)
    return array


def is_current(array: VoxelArray) -> bool:
    """Return whether an open array belongs to this process and still shows what is on disk."""
    if array.pid != os.getpid():
        return False
    stamp = array.stamp
    if stamp is None:  # remote: credentials that were replaced need a new handle, the old ones may expire
        return not array.forgotten and array.credentials == array.session.credentials()
    return not array.forgotten and stamp.still_holds(array.uri)


def forget(uri: str) -> None:
    """Drop this process's open handles of an array, so that the next read sees what is there now."""
    with _open_lock:
        for key in [key for key in _open if key[0] == uri]:
            _open.pop(key).forgotten = True


@dataclass(frozen=True, slots=True)
class Fragment:
    """One write of an array: its name, the milliseconds it spans, its bytes and the box that it covers."""

    name: str
    first_ms: int
    last_ms: int
    bytes: int
    box: tuple[tuple[int, int], ...]  # x, y, z[, t], inclusive
    to_vacuum: bool


def fragments(uri: str, session: Session) -> list[Fragment]:
    """List the fragments of an array, those that consolidation has replaced included."""
    ctx = session.context()
    with translated(f"list the fragments of {uri}"):
        order = open_array(uri, session).layout.order
        found = tiledb.array_fragments(uri, ctx=ctx)
        live = [_fragment(uri, f.uri, f.timestamp_range, f.nonempty_domain, order) for f in found]
        dead = [Fragment(gone.rsplit("/", 1)[-1], 0, 0, 0, (), to_vacuum=True) for gone in found.to_vacuum]
    return live + dead


def _fragment(
    uri: str,
    fragment_uri: str,
    span: Any,
    box: Any,
    order: tuple[int, ...],
) -> Fragment:
    name = fragment_uri.rsplit("/", 1)[-1]
    folder = f"{uri}/__fragments/{name}"
    size = 0 if is_remote(uri) else sum(entry.stat().st_size for entry in Path(folder).iterdir())
    by_axis = tuple((int(box[order.index(a)][0]), int(box[order.index(a)][1])) for a in range(len(order)))
    return Fragment(name, int(span[0]), int(span[1]), size, by_axis, to_vacuum=False)


def consolidate(uri: str, session: Session, *, memory_mb: int | None = None) -> None:
    """Merge all fragments into one and remove what it replaces, in the order that is safe at every step.

    Fragments are merged and vacuumed first; only then are the small files (fragment metadata, commits, array
    metadata) merged and vacuumed, so that no list of commits ever names a fragment that is gone. Commits are
    merged only where several fragments remain: the plain commit of a single one is what direct reads ask for.
    ``memory_mb``
    bounds the buffers and defaults to the memory budget.
    """
    mend_volume(uri)
    budget = (memory_mb or session.config.read.memory_budget_mb) << 20
    _merge(uri, session, ("fragments",), {"sm.mem.total_budget": str(budget)})
    with translated(f"list the fragments of {uri}"):
        several = len(tiledb.array_fragments(uri, ctx=session.context())) > 1
    _merge(uri, session, ("fragment_meta", *(["commits"] if several else []), "array_meta"), {})
    forget(uri)


def _merge(uri: str, session: Session, modes: tuple[str, ...], keys: dict[str, str]) -> None:
    ctx = session.context()
    for step in (tiledb.consolidate, tiledb.vacuum):
        for mode in modes:
            config = tiledb.Config(
                {**ctx.config().dict(), **keys, "sm.consolidation.mode": mode, "sm.vacuum.mode": mode}
            )
            with translated(f"{step.__name__} the {mode} of {uri}"):
                step(uri, config=config, ctx=ctx)


def vacuum(uri: str, session: Session) -> None:
    """Remove what earlier consolidations have replaced."""
    ctx = session.context()
    for mode in ("fragments", "fragment_meta", "commits", "array_meta"):
        config = tiledb.Config({**ctx.config().dict(), "sm.vacuum.mode": mode})
        with translated(f"vacuum the {mode} of {uri}"):
            tiledb.vacuum(uri, config=config, ctx=ctx)
    forget(uri)

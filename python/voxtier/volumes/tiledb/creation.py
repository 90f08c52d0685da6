"""New voxel arrays: which shapes and types are stored, in which tiles, with which compression."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tiledb
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.volumes.config import CompressionConfig, Compressor, SliceOrientation, TileConfig, WriteConfig
from voxtier.volumes.tiledb.format import schema_copies
from voxtier.volumes.tiledb.format.messages import translate_errors
from voxtier.volumes.tiledb.layout import ATTRIBUTE, AXES, Layout
from voxtier.volumes.tiledb.places import refuse_occupied
from voxtier.volumes.tiledb.session import Session, is_remote

_STORED_ORDER = {
    SliceOrientation.AXIAL: "zyx",
    SliceOrientation.ISOTROPIC: "zyx",
    SliceOrientation.SAGITTAL: "xzy",
    SliceOrientation.CORONAL: "yzx",
}
_MOST_TILE_BYTES = 64 << 20  # of extents that follow from a shape: a write of one voxel holds its tile twice
_MOST_GIVEN_BYTES = 1 << 30  # of extents that a caller gave; TileDB ends the process where memory is short
# TileDB has no such cells: stored in the next wider type, given back as they came.
_STORED_AS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.bool_): np.dtype(np.uint8),
}


def _checked_shape(shape: Iterable[SupportsIndex]) -> tuple[int, ...]:
    sizes = tuple(whole_number("each size of a shape", size) for size in shape)
    if len(sizes) not in (3, 4) or any(size < 1 for size in sizes):
        raise ConfigError(f"a volume has 3 or 4 dimensions of at least 1 voxel, got the shape {sizes}")
    if any(size > 2**31 - 2 for size in sizes):
        raise ConfigError(f"a dimension of {max(sizes)} voxels does not fit the int32 coordinates")
    return sizes


def _stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of the cells on disk (little-endian), or refuse the type by name."""
    native: np.dtype[Any] = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    native = _STORED_AS.get(native, native)
    if native.kind not in "iufc" or native.itemsize > 8 or native == np.dtype(np.complex128):
        raise ConfigError(
            f"voxels of type {dtype} cannot be stored: use integers, float16 to float64 or complex64"
        )
    return native


def plain_voxels(voxels: object, what: str) -> NDArray[Any]:
    """Return voxels as an array that has a number in each of them.

    Parameters
    ----------
    voxels : array_like
        What was given.
    what : str
        What they are, for the message.

    Returns
    -------
    numpy.ndarray
        The same numbers.

    Raises
    ------
    ConfigError
        For voxels that are masked: what lies under a mask would be stored as if it were an image.
    """
    if np.ma.is_masked(voxels):
        raise ConfigError(
            f"{what} has masked voxels, and a volume has a number everywhere: say which, with .filled(value)"
        )
    return np.asarray(voxels)


def cast_numbers(numbers: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Return numbers in another type; floats may be rounded to its precision.

    Parameters
    ----------
    numbers : numpy.ndarray
        Of any type.
    dtype : numpy.dtype
        The type that is wanted.
    where : str
        What they belong to, for the message.

    Returns
    -------
    numpy.ndarray
        The same numbers.

    Raises
    ------
    ConfigError
        For numbers that the type cannot hold: numpy would wrap or cut them, or make infinities of them.
    """
    if not numbers.size or np.can_cast(numbers.dtype, dtype, "safe"):
        return numbers.astype(dtype, copy=False)
    if _can_hold(dtype, numbers):
        with np.errstate(over="ignore"):
            cast = numbers.astype(dtype)
        if dtype.kind not in "fc" or not np.isfinite(numbers[~np.isfinite(cast)]).any():
            return cast
    raise ConfigError(
        f"{where}: {dtype} cannot hold these numbers of {numbers.dtype}: scale, clip or round them first, or"
        " choose a wider type"
    )


def _can_hold(dtype: np.dtype[Any], numbers: NDArray[Any]) -> bool:
    """Return whether a type holds numbers, but for those that are too great for its floats."""
    if dtype.kind not in "biu":
        return np.can_cast(numbers.dtype, dtype, "same_kind")
    if numbers.dtype.kind not in "iuf":
        return False
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # Python compares 64-bit integers with floats exactly; NaN is inside no limits.
    if not int(limits[0]) <= numbers.min().item() <= numbers.max().item() <= int(limits[1]):
        return False
    return numbers.dtype.kind != "f" or bool((np.trunc(numbers) == numbers).all())


def array_meta(write: WriteConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the metadata that reads of a new array need: what its tiles suit, and the type of its voxels."""
    meta = {"tile_orientation": write.tile.orientation.value}
    if _stored_dtype(dtype) != dtype.newbyteorder("<"):
        meta["voxtier_dtype"] = dtype.newbyteorder("=").str
    return meta


def create_array(
    uri: str,
    shape: Iterable[SupportsIndex],
    dtype: np.dtype[Any],
    write: WriteConfig,
    session: Session,
    *,
    is_free: bool = False,
) -> None:
    """Create an empty array.

    Parameters
    ----------
    uri : str
        Address of the array.
    shape : sequence of int
        Voxels along x, y, z[, t].
    dtype : numpy.dtype
        Type of the voxels.
    write : WriteConfig
        Tiles and compression.
    session : Session
        How it is reached.
    is_free : bool
        Whether the caller knows that nothing lies at the address.

    Raises
    ------
    ConfigError
        For a shape or a type that cannot be stored, and when something lies at the address.
    """
    cell, sizes = _stored_dtype(dtype), _checked_shape(shape)
    kind = (sizes, cell.str, write.tile, write.compression)
    may_copy = is_free and session.is_plain and not is_remote(uri)
    if may_copy and schema_copies.create_from_copy(kind, uri):
        return
    filters = _filters(write.compression, cell, session.for_small_writes(uri, 0).context())
    _create(uri, sizes, cell, write.tile, filters, session, is_free=is_free)
    if may_copy:
        schema_copies.remember(kind, uri)


def create_like(uri: str, model: str, orientation: SliceOrientation, session: Session) -> None:
    """Create an empty array for the voxels of another one, compressed as they are there, in other tiles.

    Parameters
    ----------
    uri, model : str
        Addresses of the new array and of the other one.
    orientation : SliceOrientation
        What the tiles of the new array suit.
    session : Session
        How both are reached.
    """
    with translate_errors(f"open the volume {model}"):
        schema = tiledb.ArraySchema.load(model, ctx=session.context())
    layout = Layout.of(model, schema)
    tile = TileConfig(orientation, t=(*layout.api_extents, 1)[3])
    _create(uri, layout.shape, layout.cell, tile, list(schema.attr(ATTRIBUTE).filters), session)


def _create(
    uri: str,
    shape: tuple[int, ...],
    cell: np.dtype[Any],
    tile: TileConfig,
    filters: list[tiledb.Filter],
    session: Session,
    *,
    is_free: bool = False,
) -> None:
    sizes = dict(zip(AXES, shape, strict=False))
    extents = dict(zip(AXES, _extents(shape, cell, tile, is_compressed=bool(filters)), strict=False))
    order = ("t" if "t" in sizes else "") + _STORED_ORDER[tile.orientation]
    if not is_free:
        refuse_occupied(uri, session)
    ctx = session.for_small_writes(uri, 0).context()
    with translate_errors(f"create the volume {uri}"):
        dimensions = [
            tiledb.Dim(name=name, domain=(0, sizes[name] - 1), tile=extents[name], dtype=np.int32, ctx=ctx)
            for name in order
        ]
        attribute = tiledb.Attr(
            name=ATTRIBUTE, dtype=cell, filters=tiledb.FilterList(filters, ctx=ctx), ctx=ctx
        )
        domain = tiledb.Domain(*dimensions, ctx=ctx)
        schema = tiledb.ArraySchema(domain=domain, attrs=[attribute], sparse=False, ctx=ctx)
        tiledb.Array.create(uri, schema, ctx=ctx)


def _extents(
    shape: tuple[int, ...], cell: np.dtype[Any], tile: TileConfig, *, is_compressed: bool
) -> tuple[int, ...]:
    extents = [min(pair) for pair in zip(tile.extents_for_shape(shape), shape, strict=True)]
    free = [axis for axis, given in enumerate((tile.x, tile.y, tile.z)) if given is None]
    while _tile_bytes(extents, cell) > _MOST_TILE_BYTES and any(extents[axis] > 1 for axis in free):
        longest = max(free, key=lambda axis: extents[axis])
        extents[longest] = -(-extents[longest] // 2)
    size = _tile_bytes(extents, cell)
    if size > _MOST_GIVEN_BYTES:
        raise ConfigError(
            f"tiles of {'x'.join(map(str, extents))} voxels of {cell} have {size} bytes, and at most"
            f" {_MOST_GIVEN_BYTES} are written: give smaller extents (TileConfig)"
        )
    if not is_compressed:
        # Edge tiles are stored whole: without compression a shorter extent saves up to 40 % of the file.
        for axis in free:
            tiles = -(-shape[axis] // extents[axis])
            extents[axis] = -(-shape[axis] // tiles)
    return tuple(extents)


def _tile_bytes(extents: Sequence[int], cell: np.dtype[Any]) -> int:
    return math.prod(extents) * cell.itemsize


def compressor_filter(compression: CompressionConfig, ctx: tiledb.Ctx) -> tiledb.Filter | None:
    """Return the compressor as a filter of TileDB, None for no compression."""
    if compression.algorithm is Compressor.NONE:
        return None
    kind = {
        Compressor.ZSTD: tiledb.ZstdFilter,
        Compressor.LZ4: tiledb.LZ4Filter,
        Compressor.GZIP: tiledb.GzipFilter,
    }[compression.algorithm]
    return kind(level=compression.level, ctx=ctx)


def _filters(compression: CompressionConfig, cell: np.dtype[Any], ctx: tiledb.Ctx) -> list[tiledb.Filter]:
    compressor = compressor_filter(compression, ctx)
    if compressor is None:
        return []
    shuffle = [tiledb.ByteShuffleFilter(ctx=ctx)] if cell.itemsize > 1 else []
    return [*shuffle, compressor]

"""How the cells of a volume lie in its array, and what a read of them costs.

A volume is a stock TileDB array with one attribute, ``voxels``. Its dimensions are stored so that the thin
axis of a tile varies slowest (cells of one slice then lie together); the names of the dimensions say which is
which. Above this folder axes are always (x, y, z[, t]): "API order" here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiledb

from voxtier.errors import FormatError
from voxtier.volumes.tiledb.format import CHUNK_BYTES

ATTRIBUTE = "voxels"
AXES = "xyzt"

Region = tuple[tuple[int, int, int], ...]
"""Per axis: start, count, step (> 0)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is stored.

    Parameters
    ----------
    shape : tuple of int
        Cells along x, y, z[, t].
    order : tuple of int
        API axis of each stored dimension.
    extents : tuple of int
        Cells of a tile along each stored dimension.
    cell : numpy.dtype
        Type of a cell.
    filters : tuple of str
        Names of the filters, as classes of ``tiledb``; ``("not-plain",)`` for an array whose cells or tiles
        are not in row-major order, or that has further attributes.
    chunk_bytes : int
        Bytes of cells that are filtered together, and so decode alone.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    extents: tuple[int, ...]
    cell: np.dtype[Any]
    filters: tuple[str, ...]
    chunk_bytes: int

    @staticmethod
    def of(uri: str, schema: tiledb.ArraySchema) -> Layout:
        """Return the layout that a schema states.

        Raises
        ------
        FormatError
            ``not_a_volume`` for an array of other dimensions or attributes; ``uri`` names it.
        """
        domain = schema.domain
        dimensions = [domain.dim(index) for index in range(domain.ndim)]
        names = [dimension.name for dimension in dimensions]
        is_volume = sorted(names) in (sorted("xyz"), sorted("xyzt")) and schema.has_attr(ATTRIBUTE)
        if schema.sparse or not is_volume:
            raise FormatError(
                "not_a_volume",
                None,
                f"{uri} has dimensions {names}; a volume has x, y, z[, t] and the attribute {ATTRIBUTE!r}",
            )
        if any(int(dimension.domain[0]) != 0 for dimension in dimensions):
            raise FormatError("not_a_volume", None, f"{uri}: the dimensions of a volume start at 0")
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

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in stored order."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def api_extents(self) -> tuple[int, ...]:
        """Tile extents as x, y, z[, t]."""
        return tuple(self.extents[self.order.index(axis)] for axis in range(len(self.order)))

    def covers(self, domain: Any) -> bool:
        """Return whether a domain, first and last cell along each stored dimension or None, is the whole."""
        every = tuple((0, size - 1) for size in self.stored_shape)
        return domain is not None and tuple((int(low), int(high)) for low, high in domain) == every

    def decoded_cells(self, region: Region) -> int:
        """Return about how many cells a read of this region (API order) decodes.

        Whole tiles; along the first dimension in which a tile is thick, only the chunks that are touched.
        """
        cells, inner, is_past_thick = 1, math.prod(self.extents), False
        for extent, axis in zip(self.extents, self.order, strict=True):
            start, count, step = region[axis]
            last = start + (count - 1) * step
            tiles = min(last // extent - start // extent + 1, count)
            inner //= extent
            along = tiles * extent
            if not is_past_thick and tiles == 1:
                planes = max(1, self.chunk_bytes // max(1, self.cell.itemsize * inner))
                along = min(extent, last - start + planes)
            is_past_thick = is_past_thick or extent > 1
            cells *= along
        return cells

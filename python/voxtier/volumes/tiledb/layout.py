"""How the cells of a volume lie in its array, and what a read of them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

CHUNK_BYTES: Final = 64 << 10
"""Cells that TileDB filters together, whatever size a filter list asks for; but 0 makes it a whole tile."""

Region = tuple[tuple[int, int, int], ...]  # per axis: start, count, step (> 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is stored. ``order[d]`` is the API axis of stored dimension ``d``."""

    shape: tuple[int, ...]  # x, y, z[, t]
    order: tuple[int, ...]
    extents: tuple[int, ...]  # stored order
    cell: np.dtype[Any]
    filters: tuple[str, ...]
    chunk_bytes: int  # of cells that are filtered together, and so decode alone

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in stored order."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def api_extents(self) -> tuple[int, ...]:
        """Tile extents as x, y, z[, t]."""
        return tuple(self.extents[self.order.index(axis)] for axis in range(len(self.order)))

    def decoded_cells(self, region: Region) -> int:
        """Return about how many cells a read of this region (API order) decodes.

        Whole tiles; along the first dimension in which a tile is thick, only the chunks that are touched.
        """
        cells, rest, whole = 1, math.prod(self.extents), False
        for extent, axis in zip(self.extents, self.order, strict=True):
            start, count, step = region[axis]
            last = start + (count - 1) * step
            tiles = min(last // extent - start // extent + 1, count)
            rest //= extent
            along = tiles * extent
            if not whole and tiles == 1:
                planes = max(1, self.chunk_bytes // max(1, self.cell.itemsize * rest))
                along = min(extent, last - start + planes)
            whole = whole or extent > 1
            cells *= along
        return cells

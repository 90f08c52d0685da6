"""Which volumes the core can read by itself, number by number, for a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from voxtier import _core
from voxtier.volumes.reading.reader import VolumeReader
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.scaling import Normalize, stored_number
from voxtier.volumes.tiledb.session import is_remote

Part = tuple[_core.TileFile, _core.Recipe, bytes, tuple[int, int, int]]
"""Tiles, the steps to the numbers wanted, the stored number outside, the axis of each stored dimension."""


def read_part(
    volume: VolumeReader,
    size: Sequence[int],
    dtype: np.dtype[Any],
    fill: float,
    normalize: Normalize | None,
    *,
    is_stored: bool,
) -> Part | str:
    """Return what the core needs to read patches of a volume, or why it cannot.

    Parameters
    ----------
    volume : VolumeReader
        The volume.
    size : sequence of int
        Voxels of a patch along x, y, z.
    dtype : numpy.dtype
        Of the numbers wanted.
    fill : float
        Stored number outside the volume.
    normalize : Normalize or None
        Further step.
    is_stored : bool
        Whether the stored numbers are wanted.

    Returns
    -------
    tuple or str
        Tiles, recipe, fill and axes; or the reason, for `Batches.explain`.
    """
    array = volume.array
    if is_remote(volume.uri):
        return "remote"
    if len(array.layout.shape) != 3:
        return "4-D"
    tiling = replicas.cheapest_for(array, (0, 0, 0), size)
    if tiling.tiles is None:
        return "several fragments, or filters that the core does not read"
    recipe = replicas.recipe(tiling, array, dtype, normalize, raw=is_stored)
    if recipe is None:
        return f"numbers of {array.dtype} cannot become {dtype} in the core"
    order = tiling.layout.order
    outside = stored_number(fill, tiling.layout.cell, array.dtype)
    return tiling.tiles, recipe, outside, (order[0], order[1], order[2])


def scaling_of(volume: VolumeReader) -> tuple[float, float]:
    """Return slope and intercept from stored to physical numbers."""
    scaling = volume.array.scaling
    return scaling.slope, scaling.inter

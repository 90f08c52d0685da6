"""Items in the origin's form: tensors of torch, with the place of the patch or the slice in the volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.training.datasets import DatasetConfig, LoadingMode


def named(collections: VolumeCollection | Sequence[VolumeCollection]) -> dict[str, VolumeCollection]:
    """Return collections by their names.

    Raises
    ------
    ConfigError
        Without a collection, and for two of one name.
    """
    views = [collections] if isinstance(collections, VolumeCollection) else list(collections)
    by_name = {view.name or f"collection_{place}": view for place, view in enumerate(views)}
    if len(by_name) < len(views):
        raise ConfigError(f"two of the collections have one name: {', '.join(by_name)}")
    if not views:
        raise ConfigError("a dataset needs at least one collection")
    return by_name


def tensor(array: Any) -> torch.Tensor:
    """Return a tensor of an array; 16 and 32 bit unsigned numbers, are widened."""
    voxels = np.ascontiguousarray(array)
    wider = {"u2": np.int32, "u4": np.int64}.get(voxels.dtype.str[1:])
    return torch.from_numpy(voxels if wider is None else voxels.astype(wider))


def as_origin(item: dict[str, Any], number: int, config: DatasetConfig) -> dict[str, Any]:
    """Return an item of our datasets as the origin's are.

    Parameters
    ----------
    item : dict
        With arrays.
    number : int
        Of the item in the dataset.
    config : DatasetConfig
        How volumes became items.

    Returns
    -------
    dict
        With tensors, and ``patch_idx`` or ``slice_idx``.
    """
    start = tuple(int(place) for place in item.pop("patch_start"))
    for name in ("image", "mask"):
        if name in item:
            item[name] = tensor(item[name])
    if config.loading_mode is LoadingMode.PATCH:
        item |= {"patch_idx": number % config.patches_per_volume, "patch_start": start}
    elif config.loading_mode is LoadingMode.SLICE_2D:
        item["slice_idx"] = start[2]
    return item


def as_label(label: Any) -> Any:
    """Return a number as a tensor, anything else as it is."""
    return torch.tensor(label) if isinstance(label, (int, float, np.integer, np.floating)) else label

"""The origin's datasets of patches: random ones, and every patch of a grid over each volume."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.compat.ml.config import DatasetConfig, LoadingMode
from voxtier.volumes.compat.ml.datasets.collection_dataset import VolumeCollectionDataset
from voxtier.volumes.compat.ml.datasets.items import tensor
from voxtier.volumes.compat.ml.utils.validation import validate_uniform_shapes
from voxtier.volumes.training import datasets
from voxtier.volumes.training.sampling import Start, as_size, grid_starts

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""


class PatchVolumeDataset(VolumeCollectionDataset):
    """Random patches of one collection.

    Parameters
    ----------
    collection : VolumeCollection
        The volumes.
    patch_size : tuple of int
        (x, y, z), no larger than the volumes.
    patches_per_volume : int
        Items per volume and epoch.
    transform : callable, optional
        Applied to the item.

    Raises
    ------
    ConfigError
        When a patch is larger than the volumes.
    """

    def __init__(
        self,
        collection: VolumeCollection,
        patch_size: tuple[int, int, int],
        patches_per_volume: int = 1,
        transform: Transform | None = None,
    ) -> None:
        config = DatasetConfig(LoadingMode.PATCH, patch_size, patches_per_volume)
        super().__init__(collection, config, transform=transform)
        if any(wanted > there for wanted, there in zip(config.size, self.volume_shape, strict=True)):
            raise ConfigError(f"a patch of {config.size} is larger than the volumes, {self.volume_shape}")

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """(x, y, z) of a patch."""
        return self.config.size


class GridPatchDataset(Dataset[Any]):
    """Every patch of a regular grid over each volume, which covers every voxel.

    Parameters
    ----------
    collection : VolumeCollection
        The volumes.
    patch_size : tuple of int
        (x, y, z).
    stride : tuple of int, optional
        Voxels from patch to patch, by default the size.
    transform : callable, optional
        Applied to the item.
    """

    def __init__(
        self,
        collection: VolumeCollection,
        patch_size: tuple[int, int, int],
        stride: tuple[int, int, int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        shape = validate_uniform_shapes({collection.name or "volumes": collection})
        size = as_size(patch_size)
        step = size if stride is None else as_size(stride, "stride")
        self._positions = grid_starts(shape, size, step)
        self._grids = [datasets.GridPatchDataset(volume, size, step) for volume in collection]
        self._obs_ids, self._transform = collection.obs_ids, transform

    def __len__(self) -> int:
        return len(self._grids) * len(self._positions)

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"item {idx} of {len(self)}")
        place, patch = divmod(operator.index(idx) % len(self), len(self._positions))
        item = self._grids[place][patch]
        item |= {
            "image": tensor(item["image"]),
            "idx": place,
            "patch_idx": patch,
            "patch_start": tuple(int(start) for start in item["patch_start"]),
            "obs_id": self._obs_ids[place],
        }
        return item if self._transform is None else self._transform(item)

    @property
    def grid_positions(self) -> list[Start]:
        """First voxel of each patch of a volume."""
        return list(self._positions)

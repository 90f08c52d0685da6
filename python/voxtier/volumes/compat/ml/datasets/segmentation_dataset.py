"""The origin's dataset of images and masks: ours, with its two transforms and its choice of patches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.volumes.cohort.collection import VolumeCollection
from voxtier.volumes.compat.ml.config import DatasetConfig
from voxtier.volumes.compat.ml.datasets.items import as_origin
from voxtier.volumes.compat.ml.utils.validation import (
    validate_collection_alignment,
    validate_uniform_shapes,
)
from voxtier.volumes.training import datasets
from voxtier.volumes.training.sampling import ForegroundSampler, Start
from voxtier.volumes.volume import Volume

Transform = Callable[[dict[str, Any]], Any]
"""Takes an item and gives one."""


@dataclass(frozen=True, slots=True)
class ForegroundFraction:
    """Patches around foreground voxels, of which so large a part is foreground.

    Parameters
    ----------
    threshold : float
        Least part of a patch that is not 0, 0 to 1.
    max_retries : int
        Patches that are looked at (>= 1); if none suffices, the one with most foreground is taken.
    """

    threshold: float
    max_retries: int
    _around: ForegroundSampler = field(default_factory=lambda: ForegroundSampler(p_pos=1.0), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"foreground_threshold is 0 to 1, got {self.threshold}")
        retries = whole_number("foreground_max_retries", self.max_retries, 1)
        object.__setattr__(self, "max_retries", retries)

    def start(
        self, volume: Volume, mask: Volume | None, size: Sequence[int], rng: np.random.Generator
    ) -> Start:
        """Draw the first voxel of a patch.

        Parameters
        ----------
        volume : Volume
            The image.
        mask : Volume or None
            Its segmentation.
        size : sequence of int
            Voxels of the patch along x, y, z.
        rng : numpy.random.Generator
            Random numbers of the item.

        Returns
        -------
        tuple of int
            Along x, y, z.
        """
        best: tuple[float, Start] | None = None
        for _ in range(self.max_retries):
            start = self._around.start(volume, mask, size, rng)
            assert mask is not None
            part = float(np.count_nonzero(mask.read_patches(np.array([start]), size)) / np.prod(size))
            if best is None or part > best[0]:
                best = part, start
            if part >= self.threshold:
                break
        assert best is not None
        return best[1]


_IMAGE_STREAM = 3  # after places, transforms and augmentation


class SegmentationDataset(datasets.SegmentationDataset, Dataset[Any]):
    """Images with their segmentations: one start for both, shape and place checked at construction.

    Parameters
    ----------
    image, mask : VolumeCollection
        The images, and their segmentations, matched by subject.
    config : DatasetConfig, optional
        How volumes become items, by default whole.
    image_transform : callable, optional
        Applied to the item last; made for its ``image``.
    spatial_transform : callable, optional
        Applied to the item first; made for ``image`` and ``mask``.
    foreground_sampling : bool
        Take patches around voxels of the mask that are not 0.
    foreground_threshold, foreground_max_retries : float, int
        See `ForegroundFraction`.
    """

    def __init__(
        self,
        image: VolumeCollection,
        mask: VolumeCollection,
        config: datasets.DatasetConfig | None = None,
        image_transform: Transform | None = None,
        spatial_transform: Transform | None = None,
        foreground_sampling: bool = False,  # noqa: FBT001, FBT002
        foreground_threshold: float = 0.01,
        foreground_max_retries: int = 10,
    ) -> None:
        views = {"image": image, "mask": mask}
        validate_collection_alignment(views)
        self._shape = validate_uniform_shapes(views)
        chosen = config or DatasetConfig()
        if foreground_sampling:
            sampler = ForegroundFraction(foreground_threshold, foreground_max_retries)
            chosen = replace(chosen, sampler=sampler)
        super().__init__(image, mask, chosen)
        # Apart: MONAI's set_rnd gives all elements of a list one seed.
        self._spatial_transform, self._image_transform = spatial_transform, image_transform

    def __getitem__(self, idx: int) -> Any:
        item = as_origin(super().__getitem__(idx), operator.index(idx) % len(self), self.config)
        if self._spatial_transform is not None:
            item = self.apply(self._spatial_transform, item, idx)
        if self._image_transform is not None:  # random numbers of its own, not those of the other once more
            item = self.apply(self._image_transform, item, idx, stream=_IMAGE_STREAM)
        return item

    @property
    def volume_shape(self) -> tuple[int, ...]:
        """Voxels of each volume along x, y, z."""
        return self._shape

    @property
    def n_volumes(self) -> int:
        """Number of images."""
        return len(self.obs_ids)

"""Patches around voxels of classes that are drawn by ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from voxtier.errors import ConfigError
from voxtier.volumes.training.sampling import ForegroundSampler, RandomSampler, Start
from voxtier.volumes.volume import Volume


@dataclass(slots=True)
class ClassSampler:
    """A class is drawn by its ratio among those that the mask has, then one of its voxels is the centre.

    Voxels are found by the counts that were noted at ingest, as `ForegroundSampler` does: no mask is scanned.

    Parameters
    ----------
    ratios : mapping of int to float
        Class of the mask -> ratio (>= 0); class 0 means any place.

    Raises
    ------
    ConfigError
        For ratios that are negative, not finite, or all 0.
    """

    ratios: Mapping[int, float]
    _samplers: dict[int, ForegroundSampler] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = np.array(list(self.ratios.values()), np.float64)
        if not len(values) or not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ConfigError(f"ratios are numbers >= 0, not all 0, got {dict(self.ratios)}")
        self._samplers = {label: ForegroundSampler(1.0, label) for label in self.ratios if label != 0}

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
            Along x, y, z; any place where the mask has none of the classes.

        Raises
        ------
        ConfigError
            Without a mask.
        """
        if mask is None:
            raise ConfigError("patches by class need a mask")
        present = {
            label: ratio
            for label, ratio in sorted(self.ratios.items())
            if label == 0 or self._samplers[label].counts(mask).any()
        }
        ends = np.cumsum([*present.values(), 0.0])
        if not ends[-1] > 0:
            return RandomSampler().start(volume, mask, size, rng)
        place = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
        label = [*present][min(place, len(present) - 1)]
        sampler = self._samplers.get(label, RandomSampler())
        return sampler.start(volume, mask, size, rng)

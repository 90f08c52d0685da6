"""Where nnU-Net v2 lets patches begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from voxtier.errors import ConfigError
from voxtier.volumes.training.sampling import ForegroundSampler, RandomSampler, Start, check_probability
from voxtier.volumes.volume import Volume


@dataclass(slots=True)
class RegionSampler:
    """With probability ``p_pos`` a region that the case has is drawn, each alike, then one of its voxels.

    Parameters
    ----------
    p_pos : float
        nnU-Net's ``oversample_foreground_percent``.
    regions : sequence of tuple of int
        The classes of each region; one class for a training without regions.

    Raises
    ------
    ConfigError
        For a probability outside 0 to 1, and without regions.
    """

    reads_mask: ClassVar[bool] = True
    p_pos: float
    regions: Sequence[tuple[int, ...]]
    _samplers: dict[int, ForegroundSampler] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_probability(self.p_pos)
        self.regions = [tuple(region) for region in self.regions]
        if not self.regions or not all(self.regions):
            raise ConfigError("there is no region, or one without classes")
        labels = {label for region in self.regions for label in region}
        self._samplers = {label: ForegroundSampler(1.0, label) for label in sorted(labels)}

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
            Along x, y, z; any place where the case has none of the regions.

        Raises
        ------
        ConfigError
            Without a mask.
        """
        if mask is None:
            raise ConfigError("patches by region need a mask")
        if rng.random() >= self.p_pos:
            return RandomSampler().start(volume, mask, size, rng)
        totals = {label: int(sampler.counts(mask).sum()) for label, sampler in self._samplers.items()}
        present = [region for region in self.regions if any(totals[label] for label in region)]
        if not present:
            return RandomSampler().start(volume, mask, size, rng)
        region = present[int(rng.integers(len(present)))]
        ends = np.cumsum([totals[label] for label in region])
        label = region[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
        return self._samplers[label].start(volume, mask, size, rng)

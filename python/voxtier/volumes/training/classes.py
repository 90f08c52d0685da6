"""Patches around voxels of classes that are drawn by ratio, and around lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.arguments import whole_number
from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.store.foreground import BLOCK, Findings, Lesions, as_classes, find_lesions, read_lesions
from voxtier.volumes.training.matching import read_classes
from voxtier.volumes.training.sampling import (
    ForegroundSampler,
    RandomSampler,
    Start,
    check_probability,
    start_around,
)
from voxtier.volumes.volume import Volume

_Parts = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Parts of lesions, and where those of each begin and end."""


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

    reads_mask: ClassVar[bool] = True
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
            Without a mask, and for one of several points in time.
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


@dataclass(slots=True)
class LesionSampler:
    """With probability ``p_pos`` a lesion is drawn, each alike; one of its voxels is the centre.

    A lesion is a connected component of one class: voxels that touch, be it by a corner. Lesions are noted
    when a mask is ingested, else found once per process; a draw reads one block of 16 voxels cubed.

    Parameters
    ----------
    p_pos : float
        0 to 1; any place otherwise, and in masks without lesions.
    label : int or None
        One class of the mask, 1 to 255; None means any of them.

    Raises
    ------
    ConfigError
        For a probability or a class outside its domain.
    """

    reads_mask: ClassVar[bool] = True
    p_pos: float = 0.5
    label: int | None = None
    _lesions: Findings[_Parts] = field(default_factory=Findings, init=False, repr=False, compare=False)

    __copy__ = replace  # a copy finds for itself

    def __post_init__(self) -> None:
        check_probability(self.p_pos)
        if self.label is not None:
            self.label = whole_number("the class of lesions", self.label, 1, 255)

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

        Raises
        ------
        ConfigError
            Without a mask, and for one of millions of pieces or several points in time.
        FormatError
            When the mask is not the one whose lesions were noted.
        """
        if mask is None:
            raise ConfigError("patches by lesion need a mask")
        if rng.random() >= self.p_pos:
            return RandomSampler().start(volume, mask, size, rng)
        parts, ends = self._of(mask)
        if len(ends) < 2:
            return RandomSampler().start(volume, mask, size, rng)
        lesion = int(rng.integers(len(ends) - 1))
        own = parts[ends[lesion] : ends[lesion + 1]]
        voxels = np.cumsum(own[:, 3], dtype=np.int64)
        drawn = int(rng.integers(voxels[-1]))
        place = int(np.searchsorted(voxels, drawn, side="right"))
        blocks = [-(-n // BLOCK) for n in mask.shape[:3]]
        corner = np.array(np.unravel_index(int(own[place, 1]), blocks)) * BLOCK
        inside = as_classes(read_classes(mask, tuple(slice(int(c), int(c) + BLOCK) for c in corner)))
        before = int(voxels[place - 1]) if place else 0
        found = _core.component_voxel(inside.reshape(-1), inside.shape, int(own[place, 2]), drawn - before)
        if found is None:
            raise FormatError("store_changed", None, f"{mask.uri}: its lesions are not those of the ingest")
        return start_around([*map(int, np.add(found, corner))], volume.shape[:3], size)

    def _of(self, mask: Volume) -> _Parts:
        return self._lesions.get(mask.array, self.label, lambda: self._find(mask))

    def _find(self, mask: Volume) -> _Parts:
        lesions = None
        if mask.array.scaling.is_identity:
            lesions = read_lesions(mask.uri, mask.meta, mask.shape, mask.session)
        lesions = lesions or find_lesions(read_classes(mask))
        if lesions is None:
            raise ConfigError(f"{mask.uri} falls into millions of pieces: it has no lesions to draw")
        return self._chosen(lesions)

    def _chosen(self, lesions: Lesions) -> _Parts:
        parts = lesions.parts
        if self.label is not None:
            parts = parts[lesions.classes[parts[:, 0]] == self.label]
        begins = np.flatnonzero(np.diff(parts[:, 0], prepend=np.uint32(2**32 - 1)))
        return parts, np.append(begins, len(parts)) if len(parts) else np.zeros(1, np.int64)

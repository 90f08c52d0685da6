"""Where patches begin: at random, by a mask or a map, on a grid; and a volume made of patches again."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError, FormatError
from voxtier.volumes.store.foreground import BLOCK, Counts, Findings, count_blocks, read_counts
from voxtier.volumes.tiledb.creation import plain_voxels
from voxtier.volumes.training.matching import check_label, read_classes
from voxtier.volumes.volume import Volume

Start = tuple[int, ...]
"""First voxel of a patch along x, y, z; negative where a volume is smaller than its patch."""


Size = SupportsIndex | Iterable[SupportsIndex]
"""Voxels along x, y, z; one number means a cube."""


def as_size(size: Size, what: str = "patch_size") -> tuple[int, int, int]:
    """Return voxels along x, y, z.

    Raises
    ------
    ConfigError
        For anything but a positive whole number or three of them.
    """
    try:
        sizes: list[Any] = list(size)  # type: ignore[arg-type]
    except TypeError:  # one number, or an array without dimensions
        sizes = [size] * 3
    try:
        x, y, z = (whole_number(what, number, 1) for number in sizes)
    except ValueError:
        raise ConfigError(f"{what} is one number or (x, y, z), each >= 1, got {size!r}") from None
    return x, y, z


def _random_start(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> Start:
    """Return a random first voxel; a volume that is shorter than the patch is centred in it."""
    starts = []
    for length, wanted in zip(shape, size, strict=True):
        room = length - wanted
        starts.append(int(rng.integers(0, room + 1)) if room >= 0 else -(-room // 2))
    return tuple(starts)


def start_around(voxel: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> Start:
    """Return the first voxel of a patch around a voxel, moved into the volume where that is possible.

    Parameters
    ----------
    voxel : sequence of int
        The centre.
    shape : sequence of int
        Voxels of the volume along x, y, z.
    size : sequence of int
        Voxels of the patch.

    Returns
    -------
    tuple of int
        Along x, y, z.
    """
    starts = []
    for centre, length, wanted in zip(voxel, shape, size, strict=True):
        room = length - wanted
        starts.append(min(max(operator.index(centre) - wanted // 2, 0), room) if room >= 0 else -(-room // 2))
    return tuple(starts)


def check_probability(p_pos: float) -> None:
    """Refuse what is no probability of a foreground patch."""
    if not 0 <= p_pos <= 1:
        raise ConfigError(f"p_pos must be 0 to 1, got {p_pos}")


@runtime_checkable
class Sampler(Protocol):
    """Chooses the first voxel of a patch."""

    def start(
        self, volume: Volume, mask: Volume | None, size: Sequence[int], rng: np.random.Generator
    ) -> Start:
        """Return the first voxel of a patch.

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


@dataclass(frozen=True, slots=True)
class RandomSampler:
    """Every place is equally likely."""

    def start(
        self, volume: Volume, mask: Volume | None, size: Sequence[int], rng: np.random.Generator
    ) -> Start:
        """Draw the first voxel of a patch, each with one probability.

        Parameters
        ----------
        volume : Volume
            The image.
        mask : Volume or None
            Not used.
        size : sequence of int
            Voxels of the patch along x, y, z.
        rng : numpy.random.Generator
            Random numbers of the item.

        Returns
        -------
        tuple of int
            Along x, y, z.
        """
        return _random_start(volume.shape[:3], size, rng)


@dataclass(slots=True)
class ForegroundSampler:
    """A foreground voxel of the mask is the centre with probability ``p_pos``, else any place.

    The mask's classes are counted in blocks of 16 voxels cubed when it is ingested (see `store.foreground`),
    else once per process, as is a mask that is scaled or was written to since; a draw picks a block by its
    count, then reads that block alone.

    Parameters
    ----------
    p_pos : float
        0 to 1.
    label : int or None
        One class of the mask as patches hold it, that is, scaled; None means any voxel that is not 0.
    """

    reads_mask: ClassVar[bool] = True

    p_pos: float = 0.5
    label: int | None = None
    _counts: Findings[Counts] = field(default_factory=Findings, init=False, repr=False, compare=False)

    __copy__ = replace  # a copy finds for itself

    def __post_init__(self) -> None:
        check_probability(self.p_pos)
        if self.label is not None:
            check_label(self.label)

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
            Without a mask, and for one of several points in time.
        FormatError
            When the mask is written to meanwhile.
        """
        if mask is None:
            raise ConfigError("foreground patches need a mask")
        if rng.random() >= self.p_pos:
            return _random_start(volume.shape[:3], size, rng)
        counts = self.counts(mask)
        total = int(counts.sum())
        if total == 0:
            return _random_start(volume.shape[:3], size, rng)
        drawn = int(rng.integers(total))
        cumulative = np.cumsum(counts.ravel())
        block = int(np.searchsorted(cumulative, drawn, side="right"))
        corner = np.array(np.unravel_index(block, counts.shape)) * BLOCK
        inside = self._is_foreground(read_classes(mask, tuple(slice(int(c), int(c) + BLOCK) for c in corner)))
        places = np.argwhere(inside)
        drawn -= int(cumulative[block - 1]) if block else 0
        if drawn >= len(places):
            raise FormatError("store_changed", None, f"{mask.uri} was written to while it was sampled")
        return start_around(places[drawn] + corner, volume.shape[:3], size)

    def counts(self, mask: Volume) -> Counts:
        """Return how many voxels of the foreground each block of 16 cubed has."""
        return self._counts.get(mask.array, self.label, lambda: self._block_counts(mask))

    def _is_foreground(self, voxels: NDArray[Any]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = voxels != 0 if self.label is None else voxels == self.label
        return inside

    def _block_counts(self, mask: Volume) -> Counts:
        if self.label != 0 and mask.array.scaling.is_identity:
            counts = read_counts(mask.uri, mask.meta, mask.shape, self.label, mask.session)
            if counts is not None:
                return counts
        every = slice(None)
        slabs = [  # one slab in memory at a time
            count_blocks(self._is_foreground(read_classes(mask, (every, every, slice(z, z + BLOCK)))))
            for z in range(0, mask.shape[2], BLOCK)
        ]
        return np.concatenate(slabs, axis=2)


@dataclass(frozen=True, slots=True)
class WeightedSampler:
    """The centre is drawn by a probability map.

    Parameters
    ----------
    weights : numpy.ndarray
        Of the volume's shape, any scale, >= 0.

    Raises
    ------
    ConfigError
        For a weight below 0.
    """

    weights: NDArray[Any]

    def __post_init__(self) -> None:
        if (self.weights < 0).any():
            raise ConfigError(f"the weights must be 0 or more, got {self.weights.min()}")

    def start(
        self, volume: Volume, mask: Volume | None, size: Sequence[int], rng: np.random.Generator
    ) -> Start:
        """Draw the first voxel of a patch around a voxel of the map.

        Parameters
        ----------
        volume : Volume
            The image.
        mask : Volume or None
            Not used.
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
            For a map of another shape than the volume's, or without a positive finite sum.
        """
        if self.weights.shape != volume.shape[:3]:
            raise ConfigError(f"the map has the shape {self.weights.shape}, the volume {volume.shape[:3]}")
        cumulative = np.cumsum(self.weights.ravel(), dtype=np.float64)
        if not cumulative[-1] > 0 or not np.isfinite(cumulative[-1]):
            raise ConfigError("the weights must be finite and not all 0")
        place = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        voxel = [int(index) for index in np.unravel_index(place, self.weights.shape)]
        return start_around(voxel, volume.shape[:3], size)


def grid_starts(shape: Sequence[int], size: Size, stride: Size | None = None) -> list[Start]:
    """Return first voxels of patches that cover every voxel; the last of an axis is moved in, not cut.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the volume along x, y, z.
    size : int or sequence of int
        Voxels of a patch along x, y, z; one number means a cube.
    stride : int or sequence of int, optional
        Voxels from patch to patch, by default the size.

    Returns
    -------
    list of tuple of int
        Along x, y, z, z fastest.

    Raises
    ------
    ConfigError
        For a stride below 1 or above the size.
    """
    sizes = as_size(size)
    steps = sizes if stride is None else as_size(stride, "stride")
    if any(step > wanted for step, wanted in zip(steps, sizes, strict=True)):
        raise ConfigError(f"strides {steps} must be 1 up to the patch {sizes}: else voxels are left out")
    axes = []
    for length, wanted, step in zip(shape, sizes, steps, strict=True):
        room = max(length - wanted, 0)
        axes.append(sorted({*range(0, room, step), room}))
    return list(itertools.product(*axes))


class GridAggregator:
    """Put patches back into a volume; overlaps are averaged.

    Parameters
    ----------
    shape : sequence of int
        (x, y, z) of the volume.
    channels : int, optional
        Leading channel axis of the patches; 0 means none.
    """

    def __init__(self, shape: Sequence[int], channels: int = 0) -> None:
        lead = (channels,) if channels else ()
        self._sum = np.zeros((*lead, *shape), np.float64)
        self._count = np.zeros(tuple(shape), np.int32)

    def add(self, patch: NDArray[Any], start: Iterable[SupportsIndex]) -> None:
        """Add one patch; what lies outside the volume is dropped.

        Parameters
        ----------
        patch : numpy.ndarray
            (x, y, z), or (channels, x, y, z) where there are channels.
        start : sequence of int
            First voxel along x, y, z; it may be negative.

        Raises
        ------
        ConfigError
            For a patch of other dimensions or channels, and for masked voxels.
        """
        patch = plain_voxels(patch, "the patch")
        lead_shape = self._sum.shape[:-3]
        if patch.ndim != self._sum.ndim or patch.shape[:-3] != lead_shape:
            axes = ", ".join([*map(str, lead_shape), "x", "y", "z"])
            raise ConfigError(f"a patch of this volume is ({axes}), got the shape {patch.shape}")
        outer, inner = [], []
        starts = map(operator.index, start)
        for begin, count, length in zip(starts, patch.shape[-3:], self._count.shape, strict=True):
            low = min(max(begin, 0), length)
            high = max(low, min(begin + count, length))  # a patch may lie wholly outside
            outer.append(slice(low, high))
            inner.append(slice(low - begin, high - begin))
        lead = (slice(None),) * (patch.ndim - 3)
        self._sum[(*lead, *outer)] += patch[(*lead, *inner)]
        self._count[tuple(outer)] += 1

    def result(self) -> NDArray[np.float64]:
        """Return the volume.

        Raises
        ------
        ConfigError
            When no patch covered some voxel.
        """
        if (self._count == 0).any():
            raise ConfigError(f"{int((self._count == 0).sum())} voxels were covered by no patch")
        mean: NDArray[np.float64] = self._sum / self._count
        return mean

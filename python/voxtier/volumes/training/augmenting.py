"""What happens to a patch on its way: rotation, scale, mirror, intensities; drawn here, done by the core.

The preset `Augmentation()` has the distribution of nnU-Net's default training transforms (batchgeneratorsv2);
only the resampling of masks may be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError

Range = tuple[float, float]
View = tuple[
    list[list[float]] | None,
    tuple[bool, bool, bool],
    bool,
    list[tuple[int, str, tuple[float, float, float]]],
]
"""Matrix, mirrored axes, whether the heaviest class is taken, and changes: channel, name, numbers."""

_CONTRAST, _GAMMA = (0.75, 1.25), (0.7, 1.5)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Probabilities (``p_...``) and ranges of the changes of a patch.

    A patch is turned around its centre, so that a voxel of the result lies at ``centre + matrix @ (voxel -
    middle)`` in the volume; it is read from the tiles that it touches and sampled once.

    Parameters
    ----------
    p_rotation, rotation : float, (float, float)
        About each axis, in radians.
    p_scale, scale : float, (float, float)
        Of all axes; above 1 the patch shows more of the volume.
    mirror : tuple of bool
        Axes x, y, z that are mirrored with probability 1/2.
    flat_axis : int, optional
        Axis (0, 1, 2 for x, y, z) about which alone patches are turned; along it they are neither scaled nor
        of lower resolution: patches of thick slices.
    labels : {"nearest", "heaviest"}
        The class of a voxel of the mask: that of the nearest voxel, or the one with the most weight among
        the eight neighbours (linear interpolation class by class).
    p_noise, noise : float, (float, float)
        Standard deviation of normal noise.
    p_blur, blur : float, (float, float)
        Width of a normal kernel in voxels, along each axis; each channel with probability 1/2.
    p_brightness, p_contrast : float
        Factors of 0.75 to 1.25; contrast keeps the range.
    p_low_resolution, low_resolution : float, (float, float)
        Part of the voxels that are kept along each axis; each channel with probability 1/2.
    p_gamma_inverted, p_gamma : float
        Powers of 0.7 to 1.5 that keep mean and deviation, of the negated image and of the image.

    Raises
    ------
    ConfigError
        For a probability or a range outside its domain.
    """

    p_rotation: float = 0.2
    rotation: Range = (-math.pi / 6, math.pi / 6)
    p_scale: float = 0.2
    scale: Range = (0.7, 1.4)
    mirror: tuple[bool, bool, bool] = (True, True, True)
    flat_axis: int | None = None
    labels: Literal["nearest", "heaviest"] = "heaviest"
    p_noise: float = 0.1
    noise: Range = (0.0, 0.1)
    p_blur: float = 0.2
    blur: Range = (0.5, 1.0)
    p_brightness: float = 0.15
    p_contrast: float = 0.15
    p_low_resolution: float = 0.25
    low_resolution: Range = (0.5, 1.0)
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name.startswith("p_") and not 0 <= value <= 1:
                raise ConfigError(f"{name} is a probability, got {value!r}")
        ranges = {"rotation": -100.0, "scale": 1e-3, "noise": 0.0, "blur": 0.0, "low_resolution": 1e-3}
        for name, least in ranges.items():
            low, high = getattr(self, name)
            if not least <= low <= high < 100:
                raise ConfigError(f"{name} is a range from {least} to 100, got {getattr(self, name)!r}")
        if self.flat_axis is not None:
            object.__setattr__(self, "flat_axis", whole_number("flat_axis", self.flat_axis, 0, 2))
        if self.labels not in ("nearest", "heaviest"):
            raise ConfigError(f"labels is nearest or heaviest, got {self.labels!r}")

    def draw(self, rng: np.random.Generator, channels: int) -> View:
        """Draw what happens to one patch.

        Parameters
        ----------
        rng : numpy.random.Generator
            Random numbers of the item.
        channels : int
            Of the image.

        Returns
        -------
        tuple
            As the core takes it.
        """
        matrix = self._matrix(rng)
        changes = self._changes(rng, channels)
        mirrors = [axis and bool(rng.random() < 0.5) for axis in self.mirror]
        x, y, z = mirrors
        if matrix is None:
            return None, (x, y, z), self.labels == "heaviest", changes
        signs = np.where(mirrors, -1.0, 1.0)  # a mirrored voxel is one of the turned patch
        return (matrix * signs).tolist(), (False, False, False), self.labels == "heaviest", changes

    def _matrix(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        matrix = np.eye(3)
        is_turned, is_scaled = rng.random() < self.p_rotation, rng.random() < self.p_scale
        if is_turned:
            angles = (rng.uniform(*self.rotation) if self._turns(axis) else 0.0 for axis in range(3))
            matrix = rotation_matrix([*angles])
        if is_scaled:
            factor = rng.uniform(*self.scale)
            matrix = matrix * [1.0 if axis == self.flat_axis else factor for axis in range(3)]
        return matrix if is_turned or is_scaled else None

    def _turns(self, axis: int) -> bool:
        return self.flat_axis is None or axis == self.flat_axis

    def _changes(
        self, rng: np.random.Generator, channels: int
    ) -> list[tuple[int, str, tuple[float, float, float]]]:
        changes: list[tuple[int, str, tuple[float, float, float]]] = []

        def add(p: float, name: str, draw: Any, per_channel: float = 1.0) -> None:
            if rng.random() < p:
                is_drawn = (per_channel == 1.0 or rng.random() < per_channel for _ in range(channels))
                changes.extend((channel, name, draw()) for channel, yes in enumerate(is_drawn) if yes)

        deviation = rng.uniform(*self.noise)  # one for all channels
        add(self.p_noise, "noise", lambda: (deviation, 0.0, 0.0))
        add(self.p_blur, "blur", lambda: tuple(rng.uniform(*self.blur) for _ in range(3)), 0.5)
        add(self.p_brightness, "multiply", lambda: (_around_one(rng, _CONTRAST), 0.0, 0.0))
        add(self.p_contrast, "contrast", lambda: (_around_one(rng, _CONTRAST), 0.0, 0.0))
        add(self.p_low_resolution, "low_resolution", self._resolution(rng), 0.5)
        add(self.p_gamma_inverted, "gamma", lambda: (_around_one(rng, _GAMMA), 1.0, 0.0))
        add(self.p_gamma, "gamma", lambda: (_around_one(rng, _GAMMA), 0.0, 0.0))
        return changes

    def _resolution(self, rng: np.random.Generator) -> Any:
        def draw() -> tuple[float, ...]:
            part = rng.uniform(*self.low_resolution)
            return tuple(1.0 if axis == self.flat_axis else part for axis in range(3))

        return draw


def place_matrix(view: View, size: Sequence[int]) -> NDArray[np.float64]:
    """Return where the voxels of a changed patch lie, in voxels of the unchanged one.

    Parameters
    ----------
    view : tuple
        As `Augmentation.draw` gives it.
    size : sequence of int
        Voxels of the patch along x, y, z.

    Returns
    -------
    numpy.ndarray, (4, 4)
        Index in the changed patch -> index in the unchanged one.
    """
    matrix, mirrors, _, _ = view
    placed = np.eye(4)
    placed[:3, :3] = (np.eye(3) if matrix is None else np.array(matrix)) * np.where(mirrors, -1.0, 1.0)
    middle = (np.array(size) - 1) / 2  # it stays where it is
    placed[:3, 3] = middle - placed[:3, :3] @ middle
    return placed


def rotation_matrix(angles: Sequence[float]) -> NDArray[np.float64]:
    """Return the rotation about x, then y, then z, by angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[j, i], turn[i, j] = math.sin(angle), -math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _around_one(rng: np.random.Generator, ends: Range) -> float:
    """Draw below or above 1 with equal probability."""
    low, high = ends
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))

"""From stored numbers to physical ones, and the type that each has."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Complex, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import ConfigError, FormatError


@dataclass(frozen=True, slots=True)
class Normalize:
    """Clip physical numbers to ``low`` to ``high``, then subtract ``mean`` and divide by ``std``.

    Parameters
    ----------
    mean, std : float
        Of the intensities that the training expects; ``std`` > 0.
    low, high : float
        Ends of the window that is kept.
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        with np.errstate(over="ignore", under="ignore"):
            mean, std = np.float32(self.mean), np.float32(self.std)  # as `apply` and the core take them
        if not (std > 0 and np.isfinite(std) and np.isfinite(mean) and self.low <= self.high):
            raise ConfigError(
                f"normalising needs mean and std > 0 that are numbers in 32 bits, and low <= high, got {self}"
            )

    def apply(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Return normalised numbers; each step rounds to 32 bits."""
        clipped = np.clip(numbers.astype(np.float32), np.float32(self.low), np.float32(self.high))
        normal: NDArray[np.float32] = (clipped - np.float32(self.mean)) / np.float32(self.std)
        return normal


def ingested_dtype(meta: Mapping[str, Any], cell: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that was ingested: that of the cells, unless TileDB has no such cells."""
    name = meta.get("voxtier_dtype")
    return cell if name is None else np.dtype(str(name))


class Scaling:
    """Stored number -> physical number: slope * stored + inter.

    Parameters
    ----------
    slope, inter : float
        As the image's header states them.
    stored : numpy.dtype
        Type of the stored numbers.
    ends : tuple of (int, int), optional
        Least and greatest stored number, where known; else those of the type. 0 counts as one of them:
        patches that reach out of a volume are filled with it.
    """

    __slots__ = ("dtype", "inter", "is_identity", "slope")

    def __init__(
        self, slope: float, inter: float, stored: np.dtype[Any], ends: tuple[int, int] | None
    ) -> None:
        self.slope, self.inter, self.dtype = slope, inter, stored
        self.is_identity = slope == 1.0 and inter == 0.0
        if self.is_identity:
            return
        if stored.kind not in "iu":
            return
        bounds = ends or (int(np.iinfo(stored).min), int(np.iinfo(stored).max))
        bounds = min(0, bounds[0]), max(0, bounds[1])
        if slope.is_integer() and inter.is_integer():
            whole = self._whole_dtype(stored, *bounds)
            if whole is not None:
                self.dtype = whole
                return
        # float32 has 24 bits: beyond, neighbouring stored numbers would become one.
        reach = max(abs(slope * end + inter) for end in bounds)
        is_fine = reach < min(abs(slope) * 2**24, float(np.finfo(np.float32).max))
        self.dtype = np.dtype(np.float32 if is_fine else np.float64)

    @classmethod
    def of(cls, meta: Mapping[str, Any], stored: np.dtype[Any]) -> Scaling:
        """Return the scaling that an array's metadata states."""
        ends = None
        if "stored_min" in meta and "stored_max" in meta:
            ends = int(meta["stored_min"]), int(meta["stored_max"])
        return cls(
            float(meta.get("nifti_scl_slope", 1.0)), float(meta.get("nifti_scl_inter", 0.0)), stored, ends
        )

    def number(self, stored: float) -> float:
        """Return the physical number of one stored number."""
        return self.slope * stored + self.inter

    def _whole_dtype(self, stored: np.dtype[Any], *bounds: int) -> np.dtype[Any] | None:
        """Return the type for the whole numbers of these stored ones: their own, or a wider signed one."""
        low, high = sorted(int(self.slope) * end + int(self.inter) for end in bounds)
        for name in (stored.str, "i2", "i4", "i8"):
            limits = np.iinfo(name)
            is_wide = np.dtype(name).itemsize >= stored.itemsize
            if is_wide and limits.min <= low and high <= limits.max:
                return np.dtype(name)
        return None

    def _dtype_of(self, cells: NDArray[Any]) -> np.dtype[Any]:
        """Return ``dtype``, or a wider one where cells reach past the ends, as a fill may."""
        ends = int(cells.min()), int(cells.max())
        low, high = sorted(int(self.slope) * end + int(self.inter) for end in ends)
        limits = np.iinfo(self.dtype)
        if limits.min <= low and high <= limits.max:
            return self.dtype
        return self._whole_dtype(cells.dtype, *ends) or np.dtype(np.int64)

    def apply(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Return physical numbers, of a type wider than ``dtype`` where a fill needs it."""
        if self.is_identity:
            return cells
        if self.dtype.kind in "iu":
            wide = cells.astype(np.int64) * int(self.slope) + int(self.inter)
            return wide.astype(self._dtype_of(cells) if cells.size else self.dtype)
        slope, inter = self.dtype.type(self.slope), self.dtype.type(self.inter)
        scaled: NDArray[Any] = cells.astype(self.dtype) * slope + inter
        return scaled

    def classes(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Return physical numbers; those of the stored numbers that are nearest to a whole one become it.

        A program that saves a mask of classes 0, 1, 2 as bytes with a slope of 2/255 stores 1 as 128, which
        is 1.004.
        """
        if self.is_identity:
            return cells
        numbers = cells.astype(np.float64) * self.slope + self.inter
        whole = np.rint(numbers)
        step = (
            min(abs(self.slope), 0.998) if cells.dtype.kind in "iu" else 0.0
        )  # below 1: one class is nearest
        # Slope and intercept were rounded to 32 bits.
        error = step / 2 + 2.0**-21 * (np.abs(whole) + abs(self.inter))
        found: NDArray[Any] = np.where(np.abs(numbers - whole) <= error, whole, numbers)
        return found


def stored_number(value: float, cell: np.dtype[Any], ingested: np.dtype[Any]) -> bytes:
    """Return a stored number as the bytes of a cell.

    Parameters
    ----------
    value : float
        The number.
    cell, ingested : numpy.dtype
        Type of the cells, and of what was ingested (`ingested_dtype`), which may hold less.

    Returns
    -------
    bytes
        Of one cell.

    Raises
    ------
    ConfigError
        When it cannot be stored.
    """
    with suppress(OverflowError, TypeError, ValueError):
        number = np.asarray(value).item()  # of Python: compared exactly
        if _can_hold(ingested, number):
            return np.full(1, number, cell).tobytes()
    raise ConfigError(
        f"fill={value} is no number that cells of {ingested} hold (a mask has a fill of its own: mask_fill=)"
    )


def _can_hold(dtype: np.dtype[Any], number: Any) -> bool:
    """Return whether a type holds a number; floats may round it, but not to infinity."""
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        real: Any = number if isinstance(number, Real) else math.nan
        return bool(low <= real <= high and real == math.floor(real))
    if not isinstance(number, Complex):
        return False
    with np.errstate(over="ignore"):
        return cmath.isfinite(dtype.type(number)) or not cmath.isfinite(number)


def refuse_fill(fill: float, scaling: Scaling, out: np.dtype[Any]) -> None:
    """Refuse a stored number outside a volume whose physical number an output of whole numbers cannot hold.

    Parameters
    ----------
    fill : float
        The stored number.
    scaling : Scaling
        Of the volume.
    out : numpy.dtype
        Type of the output.

    Raises
    ------
    ConfigError
        Names both numbers.
    """
    if out.kind not in "iu" or scaling.is_identity:
        return
    limits, number = np.iinfo(out), scaling.number(fill)
    if not limits.min <= number <= limits.max:
        raise ConfigError(
            f"fill={fill} is {number:g} after the scaling of the volume, which {out} cannot hold: choose"
            " another fill (a mask has its own: mask_fill=), or a wider type"
        )


def make_recipe(
    cell: np.dtype[Any], out: np.dtype[Any], scaling: Scaling | None, normalize: Normalize | None
) -> _core.Recipe | None:
    """Return how the core makes numbers of a type from cells, in the bits that numpy gives.

    Parameters
    ----------
    cell, out : numpy.dtype
        Type of the stored cells, and of the output.
    scaling : Scaling or None
        From stored to physical numbers; None leaves them as stored.
    normalize : Normalize or None
        Further step, to ``float32``.

    Returns
    -------
    Recipe or None
        None where the steps need numpy.
    """
    options: dict[str, Any] = {}
    if normalize is not None:
        options["normalize"] = (normalize.low, normalize.high, normalize.mean, normalize.std)
    if scaling is not None and not scaling.is_identity:
        if scaling.dtype.kind in "iu" and scaling.dtype.itemsize > 4:
            return None  # whole numbers beyond what 64-bit floats hold
        bits = 32 if scaling.dtype == np.float32 else 64
        options |= {"slope": scaling.slope, "inter": scaling.inter, "bits": bits}
    try:
        return _core.Recipe(cell.name, out.name, **options)
    except FormatError:
        return None

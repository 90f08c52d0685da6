"""From stored numbers to physical ones, and the type that each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        if not (self.std > 0 and np.isfinite(self.std) and np.isfinite(self.mean) and self.low <= self.high):
            raise ConfigError(f"normalising needs std > 0 and low <= high, got {self}")

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
        Least and greatest stored number, where known; else those of the type.
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
        if slope.is_integer() and inter.is_integer():
            low, high = sorted(int(slope) * end + int(inter) for end in bounds)
            for name in (stored.str, "i2", "i4", "i8"):
                limits = np.iinfo(name)
                is_wide = np.dtype(name).itemsize >= stored.itemsize
                if is_wide and limits.min <= low and high <= limits.max:
                    self.dtype = np.dtype(name)
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

    def apply(self, cells: NDArray[Any]) -> NDArray[Any]:
        """Return physical numbers."""
        if self.is_identity:
            return cells
        if self.dtype.kind in "iu":
            wide = cells.astype(np.int64) * int(self.slope) + int(self.inter)
            return wide.astype(self.dtype)
        slope, inter = self.dtype.type(self.slope), self.dtype.type(self.inter)
        scaled: NDArray[Any] = cells.astype(self.dtype) * slope + inter
        return scaled


def stored_number(value: float, cell: np.dtype[Any]) -> bytes:
    """Return a stored number as the bytes of a cell.

    Raises
    ------
    ConfigError
        When cells cannot hold it.
    """
    try:
        return np.full(1, value, cell).tobytes()
    except (OverflowError, ValueError):
        raise ConfigError(
            f"fill={value} is no number that cells of {cell} hold (a mask has a fill of its own: mask_fill=)"
        ) from None


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

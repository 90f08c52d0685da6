"""From stored numbers to physical ones, and the type that each has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


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

"""Statistics of voxels in memory, in 64-bit floats: narrower types overflow or wrap on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError

NanPolicy: TypeAlias = Literal["omit", "propagate", "raise"]


def describe(
    voxels: NDArray[Any], percentiles: Iterable[float] | None, nan_policy: NanPolicy, name: str
) -> dict[str, float]:
    """Return what `VolumeReader.get_statistics` does.

    Parameters
    ----------
    voxels : numpy.ndarray
        Of any shape.
    percentiles : sequence of float or None
        0 to 100.
    nan_policy : {"omit", "propagate", "raise"}
        What happens to NaN voxels.
    name : str
        Of the volume, for messages.

    Returns
    -------
    dict
        Name -> number.

    Raises
    ------
    ConfigError
        For percentiles outside 0 to 100 and another policy.
    FormatError
        For NaN voxels under ``raise``, and when there are no real numbers.
    """
    wanted = [50.0, *_percentiles(percentiles)]
    if nan_policy not in ("omit", "propagate", "raise"):
        raise ConfigError(f"nan_policy is omit, propagate or raise, got {nan_policy!r}")
    flat = _real(voxels, name)
    missing = int(np.isnan(flat).sum()) if flat.dtype.kind == "f" else 0
    statistics: dict[str, float] = {}
    if missing and nan_policy == "raise":
        raise FormatError("bad_values", None, f"{name}: {missing} voxels are NaN")
    if missing and nan_policy == "omit":
        flat = flat[~np.isnan(flat)]
        statistics["nan_count"] = float(missing)
    if flat.size == 0:
        raise FormatError("bad_values", None, f"{name}: no real numbers to describe")
    with np.errstate(invalid="ignore"):  # infinite voxels have no deviation
        statistics |= {
            "mean": float(flat.mean(dtype=np.float64)),
            "std": float(flat.std(dtype=np.float64)),
            "min": float(flat.min()),
            "max": float(flat.max()),
        }
        # numpy interpolates in the type of the voxels: 127 - -128 is -1 in int8.
        values = np.percentile(flat.astype(np.float64), wanted, overwrite_input=True)
    statistics["median"] = float(values[0])
    return statistics | {_key(p): float(value) for p, value in zip(wanted[1:], values[1:], strict=True)}


def _percentiles(given: Any) -> list[float]:
    """Return percentiles as Python's numbers; narrow floats as they print: 99.9, not 99.9000015."""
    try:
        if isinstance(given, str):
            raise TypeError
        several = () if given is None else given
        numbers = [float(str(p)) if isinstance(p, np.floating) else float(p) for p in several]
    except (TypeError, ValueError):
        raise ConfigError(f"percentiles are numbers from 0 to 100, got {given!r}") from None
    if not all(0 <= p <= 100 for p in numbers):
        raise ConfigError(f"percentiles are numbers from 0 to 100, got {numbers}")
    return numbers


def _key(percentile: float) -> str:
    """Return the name of a percentile with all its digits: 99.99999 is not 100."""
    short = f"{percentile:g}"
    return f"p{short}" if float(short) == percentile else f"p{percentile!r}"


def count(
    voxels: NDArray[Any], bins: int, value_range: tuple[float, float] | None, name: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return counts and edges of bins; voxels that are not finite are left out.

    Parameters
    ----------
    voxels : numpy.ndarray
        Of any shape.
    bins : int
        How many.
    value_range : (float, float) or None
        First and last edge; None takes the least and the greatest voxel.
    name : str
        Of the volume, for messages.

    Returns
    -------
    numpy.ndarray
        Counts.
    numpy.ndarray
        Edges.

    Raises
    ------
    FormatError
        When there are no real numbers.
    """
    flat = _real(voxels, name)
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if flat.dtype.kind in "bf":
        flat = flat.astype(np.float64, copy=False)  # the range of narrow floats overflows their type
    return np.histogram(flat, bins=bins, range=value_range)


def _real(voxels: NDArray[Any], name: str) -> NDArray[Any]:
    if voxels.dtype.kind == "c":
        raise FormatError(
            "bad_values", None, f"{name}: complex voxels are no real numbers to describe: take np.abs of them"
        )
    return voxels.ravel(order="K")

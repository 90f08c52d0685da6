"""The regular grid of a stack of slices, held against every slice in millimetres.

A slice may lie off its place by a tenth of a millimetre at any of its corners, along and across the normal,
and by a quarter of a voxel where voxels are small; beyond that the stack is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import NoStackError
from voxtier.volumes.formats.dicom.slices import Slice
from voxtier.volumes.geometry import LPS_TO_RAS, Affine, checked_affine

OnGap = Literal["error", "keep", "fill"]
"""Missing slices are refused, closed up, or filled with the least value of the volume."""

_OFF_PLACE = 0.1  # mm
_STEEPEST = 45.0  # degrees between the normal and the line of the slices; gantries tilt by 30 at most
_MOST_MISSING = 100  # times the slices that are there


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the slices of a stack lie.

    Parameters
    ----------
    step : numpy.ndarray, (3,)
        From slice to slice in mm, LPS.
    slots : tuple of int
        Place of each slice; it skips the places of missing ones that are to be filled.
    missing : tuple of int
        Places without a slice.
    """

    step: NDArray[np.float64]
    slots: tuple[int, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices on one regular grid, in its order.

    Parameters
    ----------
    slices : tuple of Slice
        Along the normal.
    grid : Grid
        Where they lie.
    key : dict
        Values of the attributes that tell this stack from others of its series.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    key: dict[str, tuple[float, ...] | None]


def sort_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Return slices of one orientation by their distance along the normal they share."""
    normal = _mean_normal(slices)
    return sorted(
        slices,
        key=lambda item: (
            float(normal @ np.array(item.position)),
            item.position,
            sorted(item.tags.items()),
            item.sop_instance_uid,
            item.frame or 0,
        ),
    )


def _mean_normal(slices: Sequence[Slice]) -> NDArray[np.float64]:
    orientation = np.array([item.orientation for item in slices]).mean(axis=0)
    normal: NDArray[np.float64] = np.cross(orientation[:3], orientation[3:])
    return normal / float(np.linalg.norm(normal))


def same_place(slices: Sequence[Slice]) -> float:
    """Return the millimetres up to which two slices lie at one place."""
    return min(0.01, 0.1 * min(min(item.pixel_spacing) for item in slices))


def lay_out(stack: Sequence[Slice], on_gap: OnGap) -> Grid:
    """Return the grid of a stack.

    Parameters
    ----------
    stack : sequence of Slice
        Sorted by `sort_slices`.
    on_gap : {"error", "keep", "fill"}
        What becomes of missing slices.

    Returns
    -------
    Grid
        Regular within the tolerance.

    Raises
    ------
    NoStackError
        Names the slice that lies off the grid.
    """
    if len(stack) == 1:
        return Grid(stack[0].normal * (stack[0].through_plane or 1.0), (0,), ())
    positions = np.array([item.position for item in stack])
    distances = positions @ _mean_normal(stack)
    slots = _slots(stack, np.diff(distances))
    step = (positions[-1] - positions[0]) / slots[-1]
    _check_tilt(stack, step)
    _check_corners(stack, positions, slots, step)
    missing = tuple(sorted(set(range(slots[-1] + 1)) - set(slots)))
    if missing and on_gap == "error":
        gaps = [f"{b - a - 1} after slice {i + 1}" for i, (a, b) in enumerate(pairwise(slots)) if b - a > 1]
        are_few = 2 * len(gaps) < len(stack)
        what = "missing slices" if are_few else "irregular spacing or missing slices"
        raise NoStackError(
            "gaps" if are_few else "off_grid",
            f"{what} ({'; '.join(gaps[:5])}, spacing {np.linalg.norm(step):.4g} mm);"
            " on_gap='fill' (--on-gap fill) inserts empty slices, 'keep' closes the gap",
        )
    return Grid(step, tuple(range(len(stack))) if on_gap == "keep" else slots, missing)


def _slots(stack: Sequence[Slice], steps: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the place of each slice on a regular grid of the median spacing, or of the least one."""
    if (steps <= same_place(stack)).any():
        at = int(np.argmin(steps))
        raise NoStackError("one_place", f"{_named(stack, at)} and {_named(stack, at + 1)} lie at one place")
    median = float(np.median(steps))
    for spacing in (
        median,
        float(steps.min()),
    ):  # the median is no spacing where half of the slices are missing
        multiples = np.maximum(np.rint(steps / spacing), 1.0)
        tolerance = max(min(0.01, 0.1 * spacing), 0.01 * spacing)
        is_odd = np.abs(steps - multiples * spacing) > np.maximum(tolerance, 0.01 * multiples * spacing)
        if not is_odd.any() and multiples.sum() <= _MOST_MISSING * len(stack):
            return (0, *(int(slot) for slot in np.cumsum(multiples)))
    at = int(np.argmax(np.abs(steps - median)))
    raise NoStackError(
        "off_grid",
        f"irregular spacing: {steps[at]:.4g} mm after {_named(stack, at)} of {len(stack)},"
        f" the median is {median:.4g} mm (tolerance {max(min(0.01, 0.1 * median), 0.01 * median):.3g})",
    )


def _check_tilt(stack: Sequence[Slice], step: NDArray[np.float64]) -> None:
    tilt = tilt_degrees(stack[0], step)
    if tilt > _STEEPEST:
        raise NoStackError(
            "off_grid",
            f"its {len(stack)} slices lie beside each other, {tilt:.0f} degrees off their normal:"
            " they are no stack",
        )


def _check_corners(
    stack: Sequence[Slice],
    positions: NDArray[np.float64],
    slots: tuple[int, ...],
    step: NDArray[np.float64],
) -> None:
    """Refuse a stack of which a corner lies elsewhere than the affine says."""
    normal = stack[0].normal
    offsets = positions - (positions[0] + np.array(slots)[:, None] * step)
    edges = slice_edges(stack)
    turned = edges - edges[0]
    errors = np.stack([offsets, *(offsets + turned[:, n] for n in range(3))])
    along = np.abs(errors @ normal)
    across = np.linalg.norm(errors - (errors @ normal)[..., None] * normal, axis=-1)
    most_along = min(_OFF_PLACE, 0.25 * abs(float(step @ normal)))
    most_across = min(_OFF_PLACE, 0.25 * min(stack[0].pixel_spacing))
    for what, error, most in (("beside the line of the others", across, most_across),
                              ("off its place along the normal", along, most_along)):  # fmt: skip
        if error.max() > most:
            at = int(error.max(axis=0).argmax())
            worst = float(error[:, at].max())
            turn = "; it is turned against them" if error[0, at] <= most else ""
            raise NoStackError(
                "off_grid",
                f"{_named(stack, at)} lies {worst:.3g} mm {what} (tolerance {most:.2g} mm){turn}",
            )


def slice_edges(stack: Sequence[Slice]) -> NDArray[np.float64]:
    """Return for each slice the way from its first pixel to its other corners: (slices, 3 corners, 3) mm."""
    orientation = np.array([item.orientation for item in stack])
    spacing = np.array([item.pixel_spacing for item in stack])
    rows, columns = stack[0].size
    along_row = orientation[:, :3] * (spacing[:, 1:] * (columns - 1))
    along_column = orientation[:, 3:] * (spacing[:, :1] * (rows - 1))
    return np.stack([along_row, along_column, along_row + along_column], axis=1)


def _named(stack: Sequence[Slice], at: int) -> str:
    return f"slice {at + 1} ({stack[at].path.name})"


def tilt_degrees(first: Slice, step: NDArray[np.float64]) -> float:
    """Return the angle between the normal and the line of the slices."""
    along = abs(float(first.normal @ step)) / float(np.linalg.norm(step))
    return float(np.degrees(np.arccos(min(1.0, along))))


def make_affine(stack: Stack, name: str) -> tuple[Affine, dict[str, Any]]:
    """Return the affine of a stack (index to RAS+ mm, 4 x 4), and the metadata that tells of it."""
    first, grid = stack.slices[0], stack.grid
    lps = np.eye(4)
    lps[:3, 0] = first.pixel_spacing[1] * np.array(first.orientation[:3])
    lps[:3, 1] = first.pixel_spacing[0] * np.array(first.orientation[3:])
    lps[:3, 2] = grid.step
    lps[:3, 3] = first.position
    meta: dict[str, Any] = {}
    tilt = tilt_degrees(first, grid.step)
    if tilt > 0.05:
        meta["gantry_tilt_degrees"] = round(tilt, 3)
    if len(stack.slices) == 1:
        meta["slice_spacing_source"] = "header" if first.through_plane else "assumed 1 mm"
    if grid.missing:
        meta["missing_slices"] = ",".join(map(str, grid.missing))
    return checked_affine(LPS_TO_RAS @ lps, name), meta


def is_same_grid(stack: Stack, other: Stack) -> bool:
    """Return whether every corner of two stacks lies at the same place, within the tolerance."""
    first, second = stack.slices[0], other.slices[0]
    if stack.grid.slots != other.grid.slots or first.size != second.size:
        return False
    if max(abs(a - b) for a, b in zip(first.position, second.position, strict=True)) > 2 * _OFF_PLACE:
        return False  # most are told apart here
    normal = other.slices[0].normal
    offsets = np.array([item.position for item in stack.slices]) - [item.position for item in other.slices]
    turned = slice_edges(stack.slices) - slice_edges(other.slices)
    errors = np.concatenate([offsets[:, None], offsets[:, None] + turned], axis=1)
    along = np.abs(errors @ normal)
    across = np.linalg.norm(errors - (errors @ normal)[..., None] * normal, axis=-1)
    spacing = float(np.linalg.norm(other.grid.step))
    is_near = along.max() <= min(_OFF_PLACE, 0.25 * spacing)
    return bool(is_near and across.max() <= min(_OFF_PLACE, 0.25 * min(other.slices[0].pixel_spacing)))

"""DICOM series -> volume: ordered along the slice normal, checked, in Hounsfield units where CT.

The affine follows PS3.3 C.7.6.2.1.1 (Image Position and Orientation), converted from LPS to RAS+.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from voxtier.volumes.formats.dicom.attributes import find_numbers, find_text
from voxtier.volumes.formats.dicom.grid import OnGap, Stack, make_affine
from voxtier.volumes.formats.dicom.pixels import read_voxels
from voxtier.volumes.formats.dicom.series import DicomPath, find_series
from voxtier.volumes.formats.dicom.slices import ROW, Slice
from voxtier.volumes.formats.dicom.tags import CLOCKS
from voxtier.volumes.formats.image import Image
from voxtier.volumes.geometry import TIME_STEP, OrientationInfo

_SAME_STEP = 0.01  # steps in time that differ by this share are one: scanners round their clocks

ROW_FLOATS = ("kvp", "exposure", "repetition_time", "echo_time", "magnetic_field_strength")
"""Columns of numbers of a row of observations; any other is text."""


def read_series(path: DicomPath, *, on_gap: OnGap = "error") -> list[Image]:
    """Read every volume of a folder (not of its subfolders) or of some files.

    Warns of each file that is left out because it is no part of a scan.

    Raises
    ------
    FormatError
        For a series that cannot become a volume without guessing; names the tag or the slices.
    """
    found = find_series(path, on_gap=on_gap)
    for _, error in found.refused:
        raise error
    found.warn()
    return [assemble(volume) for volume in found.volumes]


def assemble(stacks: Sequence[Stack]) -> Image:
    """Make one of the volumes that `find_series` found.

    Raises
    ------
    FormatError
        When its pixels cannot be decoded.
    """
    first = stacks[0].slices[0]
    series = first.kind.series
    affine, meta = make_affine(stacks[0], f"series {series or first.path.name}")
    voxels = read_voxels(stacks)
    is_stated = (len(stacks[0].slices) > 1 or first.tile is not None) and not stacks[0].grid.missing
    orientation = OrientationInfo(affine, "dicom_iop", "header" if is_stated else "inferred")
    meta |= {"photometric_interpretation": first.kind.photometric, "series_instance_uid": series}
    padding = find_numbers(first.header, "PixelPaddingValue")
    if padding is not None:
        meta["pixel_padding_value"] = padding[0] * first.slope + first.intercept
    if first.scale.unit is not None:
        meta["measurement_unit"] = first.scale.unit
        if first.scale.quantity:
            meta["measurement_quantity"] = first.scale.quantity
    meta |= _time_meta(stacks)
    return Image(voxels, orientation, meta, _row(first))


def _time_meta(stacks: Sequence[Stack]) -> dict[str, str]:
    """Return which attributes tell the time points apart, and their values in order."""
    if len(stacks) == 1:
        return {}
    names = list(dict.fromkeys(name for stack in stacks for name in stack.key))
    names = [name for name in names if len({stack.key.get(name) for stack in stacks}) > 1]
    values = [[stack.key.get(name) for name in names] for stack in stacks]
    meta = {"time_tag": ",".join(names), "time_values": json.dumps(values)}
    # Where numbers tell the points apart, the clocks beside them say when these were.
    clocks = [name for name in CLOCKS if name in names] or list(CLOCKS)
    steps = (_regular_step(stacks, clock) for clock in clocks)
    step = next((step for step in steps if step is not None), None)
    return meta if step is None else meta | {TIME_STEP: repr(step)}


def _regular_step(stacks: Sequence[Stack], clock: str) -> float | None:
    """Return the seconds from one time point to the next; None where a clock states no regular ones."""
    if any(clock not in item.tags for stack in stacks for item in stack.slices):
        return None
    begins = np.array([min(item.tags[clock] for item in stack.slices)[0] for stack in stacks])
    steps = np.diff(begins) * CLOCKS[clock]
    step = float(steps.mean())
    return step if step > 0 and np.abs(steps - step).max() <= _SAME_STEP * step else None


def _row(first: Slice) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for keyword, column in ROW.items():
        if column in ROW_FLOATS:
            values = (first.tags.get(name) for name in (keyword, f"Effective{keyword}"))
            stated = find_numbers(first.header, keyword) or next((value for value in values if value), None)
            row[column] = stated[0] if stated else float("nan")
        else:
            row[column] = find_text(first.header, keyword)
    return row

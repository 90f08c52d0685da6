"""DICOM series -> volume: ordered along the slice normal, checked, in Hounsfield units where CT.

The affine follows PS3.3 C.7.6.2.1.1 (Image Position and Orientation), converted from LPS to RAS+. Slices on
no regular grid are refused; `dicom_slices` says which slices make a volume.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.volumes.formats.dicom_slices import SPLITTING, Slice, find_series, import_pydicom, refusal
from voxtier.volumes.geometry import LPS_TO_RAS, Affine, OrientationInfo, checked_affine

__all__ = ["DicomImage", "OnGap", "assemble", "find_series", "read_series"]

OnGap = Literal["error", "keep", "fill"]
"""Missing slices are refused, closed up, or filled with the least value of the volume."""

_ROW = {
    "Modality": "modality",
    "SeriesDescription": "series_description",
    "KVP": "kvp",
    "Exposure": "exposure",
    "RepetitionTime": "repetition_time",
    "EchoTime": "echo_time",
    "MagneticFieldStrength": "magnetic_field_strength",
}
_NUMBERS = ("kvp", "exposure", "repetition_time", "echo_time", "magnetic_field_strength")


@dataclass(frozen=True, slots=True)
class DicomImage:
    """One volume of a series.

    Parameters
    ----------
    series_instance_uid : str
        The series.
    voxels : numpy.ndarray
        Rescaled, (column, row, slice[, time]).
    orientation : OrientationInfo
        Affine of the voxels.
    meta : dict
        Metadata of the volume that is made of it.
    row : dict
        Columns of its row of observations.
    """

    series_instance_uid: str
    voxels: NDArray[Any]
    orientation: OrientationInfo
    meta: dict[str, Any]
    row: dict[str, Any]


def read_series(path: str | PathLike[str], *, on_gap: OnGap = "error") -> list[DicomImage]:
    """Read every volume of a folder (not of its subfolders) or of one file.

    Raises
    ------
    FormatError
        For a series that cannot become a volume without guessing; names the tag or the slices.
    """
    return [assemble(group, on_gap=on_gap) for group in find_series(path)]


def assemble(slices: list[Slice], *, on_gap: OnGap = "error") -> DicomImage:
    """Make the volume of the slices of one group (see `find_series`).

    Raises
    ------
    FormatError
        When the slices do not lie on a regular grid, or their pixels cannot be decoded.
    """
    first = slices[0]
    name = f"series {first.group[0] or first.path.name}"
    stacks, tag = _split(slices, name)
    steps = [_steps(stack, name, on_gap) for stack in stacks]
    if any(step.slots != steps[0].slots for step in steps):
        raise refusal("bad_geometry", name, "its time points lie at different positions")
    affine, meta = _affine(stacks[0], steps[0], name)
    image, pixel_meta = _pixels(stacks, steps[0])
    is_stated = len(stacks[0]) > 1 and not steps[0].missing
    orientation = OrientationInfo(affine, "dicom_iop", "header" if is_stated else "inferred")
    meta |= pixel_meta | {"series_instance_uid": first.group[0]}
    if tag is not None:
        meta["time_tag"] = tag
    return DicomImage(first.group[0], image, orientation, meta, _row(first.header))


def _row(header: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for keyword, column in _ROW.items():
        value = header.get(keyword)
        if column in _NUMBERS:
            row[column] = float("nan") if value in (None, "") else float(value)
        else:
            row[column] = "" if value is None else str(value)
    return row


def _split(slices: list[Slice], name: str) -> tuple[list[list[Slice]], str | None]:
    """Split repeated positions into time points (or echoes) by the first tag that tells them apart."""
    positions = defaultdict(list)
    for item in slices:
        positions[round(item.distance, 3)].append(item)
    repeats = max(len(items) for items in positions.values())
    if repeats == 1:
        return [slices], None
    for tag in SPLITTING:
        stacks: dict[float, list[Slice]] = defaultdict(list)
        for item in slices:
            if tag in item.splitting:
                stacks[item.splitting[tag]].append(item)
        has_all = sum(map(len, stacks.values())) == len(slices)
        is_apart = all(
            len({round(item.distance, 3) for item in stack}) == len(stack) for stack in stacks.values()
        )
        if has_all and is_apart and len(stacks) == repeats:
            return [stacks[value] for value in sorted(stacks)], tag
    raise refusal(
        "bad_geometry",
        name,
        f"{len(slices)} slices at {len(positions)} positions, and no tag of {', '.join(SPLITTING)}"
        " tells them apart",
    )


@dataclass(frozen=True, slots=True)
class _Steps:
    step: NDArray[np.float64]  # mm from slice to slice, LPS
    slots: tuple[int, ...]  # place of each slice; gaps when slots are filled
    missing: tuple[int, ...]


def _steps(stack: list[Slice], name: str, on_gap: OnGap) -> _Steps:
    if len(stack) == 1:
        return _Steps(stack[0].normal * (stack[0].through_plane or 1.0), (0,), ())
    slots = _slots(stack, name)
    missing = tuple(sorted(set(range(slots[-1] + 1)) - set(slots)))
    if missing and on_gap == "error":
        spacing = float(np.median(np.diff([item.distance for item in stack])))
        gaps = [f"{b - a - 1} after slice {i + 1}" for i, (a, b) in enumerate(pairwise(slots)) if b - a > 1]
        raise refusal(
            "bad_geometry",
            name,
            f"missing slices ({'; '.join(gaps)}, spacing {spacing:.4g} mm);"
            " on_gap='fill' inserts empty slices, 'keep' closes the gap",
        )
    positions = np.array([item.position for item in stack])
    step = (positions[-1] - positions[0]) / slots[-1]
    drift = positions - (positions[0] + np.array(slots)[:, None] * step)
    normal = stack[0].normal
    in_plane = np.linalg.norm(drift - np.outer(drift @ normal, normal), axis=1)
    if in_plane.max() > 0.1:
        raise refusal(
            "bad_geometry",
            name,
            f"slice {int(in_plane.argmax()) + 1} lies {in_plane.max():.3g} mm beside the line of the others",
        )
    return _Steps(step, tuple(range(len(stack))) if on_gap == "keep" else slots, missing)


def _slots(stack: list[Slice], name: str) -> tuple[int, ...]:
    """Return the place of each slice on a regular grid of the median spacing."""
    distances = np.diff([item.distance for item in stack])
    median = float(np.median(distances))
    tolerance = max(0.01, 0.01 * median)
    multiples = np.maximum(np.rint(distances / median).astype(int), 1)
    is_odd = np.abs(distances - multiples * median) > np.maximum(tolerance, 0.01 * multiples * median)
    if is_odd.any():
        at = int(np.argmax(is_odd))
        raise refusal(
            "bad_geometry",
            name,
            f"irregular spacing: {distances[at]:.4g} mm after slice {at + 1} of {len(stack)},"
            f" the median is {median:.4g} mm (tolerance {tolerance:.3g})",
        )
    return (0, *(int(slot) for slot in np.cumsum(multiples)))


def _affine(stack: list[Slice], steps: _Steps, name: str) -> tuple[Affine, dict[str, Any]]:
    first = stack[0]
    lps = np.eye(4)
    lps[:3, 0] = first.pixel_spacing[1] * np.array(first.orientation[:3])
    lps[:3, 1] = first.pixel_spacing[0] * np.array(first.orientation[3:])
    lps[:3, 2] = steps.step
    lps[:3, 3] = first.position
    meta: dict[str, Any] = {}
    along = abs(float(first.normal @ steps.step)) / float(np.linalg.norm(steps.step))
    tilt = float(np.degrees(np.arccos(min(1.0, along))))
    if tilt > 0.05:
        meta["gantry_tilt_degrees"] = round(tilt, 3)
    if len(stack) == 1:
        meta["slice_spacing_source"] = "header" if first.through_plane else "assumed 1 mm"
    if steps.missing:
        meta["missing_slices"] = ",".join(map(str, steps.missing))
    return checked_affine(LPS_TO_RAS @ lps, name), meta


def _pixels(stacks: list[list[Slice]], steps: _Steps) -> tuple[NDArray[Any], dict[str, Any]]:
    slices = [item for stack in stacks for item in stack]
    first = slices[0]
    frames = _Frames()
    raw = [frames.read(item) for item in slices]
    dtype = _rescaled_dtype(slices, raw)
    fill = 0.0
    if steps.missing:
        fill = min(float(p.min()) * s.slope + s.intercept for p, s in zip(raw, slices, strict=True))
    stored = np.full((len(stacks), steps.slots[-1] + 1, *first.size), fill, dtype)
    for index, (pixels, item) in enumerate(zip(raw, slices, strict=True)):
        time, place = divmod(index, len(stacks[0]))
        rescaled: NDArray[Any]
        if dtype.kind == "f":
            rescaled = pixels.astype(np.float64) * item.slope + item.intercept
        else:
            rescaled = pixels.astype(np.int64) * int(item.slope) + int(item.intercept)
        stored[time, steps.slots[place]] = rescaled
    photometric = first.header.get("PhotometricInterpretation", "")
    meta: dict[str, Any] = {"photometric_interpretation": str(photometric)}
    padding = first.header.get("PixelPaddingValue")
    if padding is not None:
        meta["pixel_padding_value"] = float(padding) * first.slope + first.intercept
    volume = stored.transpose(3, 2, 1, 0)  # i = column, j = row, k = slice, t
    return (volume if len(stacks) > 1 else volume[..., 0]), meta


def _rescaled_dtype(slices: list[Slice], raw: list[NDArray[Any]]) -> np.dtype[Any]:
    """Return the narrowest type of the rescaled pixels: integer where one integral scale fits all slices."""
    scales = {(item.slope, item.intercept) for item in slices}
    slope, intercept = next(iter(scales))
    is_integral = slope.is_integer() and intercept.is_integer() and raw[0].dtype.kind in "iu"
    if len(scales) == 1 and is_integral:
        ends = sorted(
            int(value * slope + intercept)
            for value in (min(int(item.min()) for item in raw), max(int(item.max()) for item in raw))
        )
        candidates: list[np.dtype[Any]] = [np.dtype("i2"), np.dtype("i4")]
        if (slope, intercept) == (1.0, 0.0):
            candidates = [raw[0].dtype]
        for candidate in candidates:
            limits = np.iinfo(candidate)
            if limits.min <= ends[0] and ends[1] <= limits.max:
                return candidate
    return np.dtype(np.float32)


class _Frames:
    """Decoded pixels; a multi-frame file is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._pixels: NDArray[Any] = np.empty(0)

    def read(self, item: Slice) -> NDArray[Any]:
        if self._path != item.path:
            self._path, self._pixels = item.path, _decode(item.path)
        pixels = self._pixels if item.frame is None or self._pixels.ndim == 2 else self._pixels[item.frame]
        if pixels.shape != item.size:
            raise refusal(
                "undecodable_pixels",
                item.path.name,
                f"pixels of shape {pixels.shape}, Rows and Columns say {item.size}",
            )
        return pixels


def _decode(path: Path) -> NDArray[Any]:
    pydicom = import_pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            pixels: NDArray[Any] = dataset.pixel_array
    except Exception as error:  # pydicom names the missing decoder in its own words
        raise refusal("undecodable_pixels", path.name, f"pixels cannot be decoded: {error}") from None
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated = pixels.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored", allocated))
    high = int(dataset.get("HighBit", stored - 1))
    if not 0 < stored <= high + 1 <= allocated:
        raise refusal(
            "bad_header", path.name, f"Bits Stored {stored} and High Bit {high} in {allocated} bits"
        )
    if stored == allocated:
        return pixels
    # Overlay bits above, and pixels that do not start at bit 0: shift up to the sign bit, then back down.
    up = np.left_shift(pixels, allocated - 1 - high)
    values: NDArray[Any] = np.right_shift(up, allocated - stored)
    return values

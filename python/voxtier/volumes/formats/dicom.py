"""DICOM series -> volume: grouped, ordered along the slice normal, checked, in Hounsfield units where CT.

Positions and orientations come from Image Position and Orientation (Patient) alone (PS3.3 C.7.6.2); file
names,
Instance Number, Slice Thickness and Spacing Between Slices never order or space slices. Enhanced multi-frame
objects are read through their functional groups (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError, MissingExtraError, NotFoundError, SourceError
from voxtier.volumes.geometry import LPS_TO_RAS, Affine, OrientationInfo, axcodes, checked_affine

OnGap = Literal["error", "keep", "fill"]

_SPLITTING: Final = (
    "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "AcquisitionNumber", "TriggerTime",
)  # fmt: skip
_ROW: Final = {
    "Modality": "modality",
    "SeriesDescription": "series_description",
    "KVP": "kvp",
    "Exposure": "exposure",
    "RepetitionTime": "repetition_time",
    "EchoTime": "echo_time",
    "MagneticFieldStrength": "magnetic_field_strength",
}
_NUMBERS: Final = ("kvp", "exposure", "repetition_time", "echo_time", "magnetic_field_strength")


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2-D image of a series: a file, or a frame of a multi-frame file."""

    path: Path
    frame: int | None
    sop_instance_uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]  # between rows, between columns
    size: tuple[int, int]  # rows, columns
    slope: float
    intercept: float
    splitting: dict[str, float]
    through_plane: float | None  # Spacing Between Slices or Slice Thickness: for a single slice only
    group: tuple[Any, ...]
    header: Any


@dataclass(frozen=True, slots=True)
class DicomImage:
    """One volume of a series, and what its metadata and its observation row say."""

    series_instance_uid: str
    voxels: NDArray[Any]
    orientation: OrientationInfo
    meta: dict[str, Any]
    row: dict[str, Any]


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "volumes") from None
    return pydicom


def read_series(path: str | PathLike[str], *, on_gap: OnGap = "error") -> list[DicomImage]:
    """Read every volume of a folder (not of its subfolders) or of one file.

    Raises
    ------
    FormatError
        For a series that cannot become a volume without guessing; names the tag or the slices.
    """
    return [assemble(group, on_gap=on_gap) for group in find_series(path)]


def find_series(path: str | PathLike[str]) -> list[list[Slice]]:
    """Return the slices of each volume, by headers alone, each list sorted along its normal."""
    folder = Path(path)
    if not folder.exists():
        raise SourceError("io_error", None, f"there is no file or folder {folder}", 2)
    files = sorted(entry for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else [folder]
    slices: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    seen: set[tuple[str, int | None]] = set()
    for file in files:
        for item in _slices_of(file):
            identity = (item.sop_instance_uid, item.frame)
            if identity not in seen:  # the same object twice in a folder counts once
                seen.add(identity)
                slices[item.group].append(item)
    if not slices:
        raise NotFoundError(f"no DICOM image with a position in the patient in {folder}")
    return [
        sorted(group, key=_distance) for _, group in sorted(slices.items(), key=lambda pair: str(pair[0]))
    ]


def _slices_of(file: Path) -> Iterable[Slice]:
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        return []
    except OSError as error:
        raise SourceError.from_os(error, file) from None
    except Exception as error:
        raise FormatError("not_dicom", None, f"{file.name}: {error}") from None
    if "Rows" not in header:  # DICOMDIR, structured reports, presentation states
        return []
    if "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header:
        return _enhanced(file, header)
    return [_classic(file, header)]


def _classic(file: Path, header: Any) -> Slice:
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise FormatError(
            "invalid_argument",
            None,
            f"{file.name}: several frames without functional groups have no positions",
        )
    return _slice(file, None, header, header, header, header, header)


def _enhanced(file: Path, header: Any) -> list[Slice]:
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != int(header.get("NumberOfFrames", 1) or 1):
        raise FormatError(
            "invalid_argument",
            None,
            f"{file.name}: {len(frames)} functional groups for {header.get('NumberOfFrames')} frames",
        )

    def macro(frame: Any, name: str) -> Any:
        return _first(frame, name) or _first(shared, name) or {}

    return [
        _slice(
            file, index, header,
            macro(frame, "PlanePositionSequence"),
            macro(frame, "PlaneOrientationSequence"),
            macro(frame, "PixelMeasuresSequence"),
            macro(frame, "PixelValueTransformationSequence"),
            macro(frame, "FrameContentSequence"),
        )
        for index, frame in enumerate(frames)
    ]  # fmt: skip


def _first(dataset: Any, name: str) -> Any:
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def _slice(
    file: Path,
    frame: int | None,
    header: Any,
    place: Any,
    turn: Any,
    measures: Any,
    values: Any,
    content: Any = None,
) -> Slice:
    where = file.name if frame is None else f"{file.name}, frame {frame + 1}"
    content = header if content is None else content
    position = _numbers(place, "ImagePositionPatient", 3, where)
    orientation = _directions(_numbers(turn, "ImageOrientationPatient", 6, where), where)
    spacing = _numbers(measures, "PixelSpacing", 2, where)
    if min(spacing) <= 0:
        raise FormatError("invalid_argument", None, f"{where}: Pixel Spacing {spacing} must be positive")
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise FormatError("invalid_argument", None, f"{where}: colour images are not volumes")
    if _first(header, "ModalityLUTSequence") is not None:
        raise FormatError(
            "invalid_argument", None, f"{where}: a Modality LUT is not supported; only rescale is"
        )
    splitting = {}
    for name in _SPLITTING:
        value = content.get(name, header.get(name) if frame is None else None)
        value = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
        if value not in (None, ""):
            splitting[name] = float(value)
    through = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    group = (
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("FrameOfReferenceUID", "")),
        int(header.Rows),
        int(header.Columns),
        tuple(round(value, 4) for value in spacing),
        tuple(round(value, 3) + 0.0 for value in orientation),
        "\\".join(map(str, header.get("ImageType", ()) or ())),
        str(content.get("StackID", "")) if frame is not None else "",
    )
    return Slice(
        file, frame, str(header.get("SOPInstanceUID", file)),
        (position[0], position[1], position[2]), orientation, (spacing[0], spacing[1]),
        (int(header.Rows), int(header.Columns)),
        _number(values, "RescaleSlope", 1.0, where), _number(values, "RescaleIntercept", 0.0, where),
        splitting, None if through in (None, "") else abs(float(through)), group, header,
    )  # fmt: skip


def _numbers(dataset: Any, name: str, count: int, where: str) -> tuple[float, ...]:
    found = dataset.get(name)
    try:
        values = tuple(float(value) for value in found)
    except (TypeError, ValueError):
        raise FormatError("invalid_argument", None, f"{where}: {name} is missing or no numbers") from None
    if len(values) != count or not np.isfinite(values).all():
        raise FormatError(
            "invalid_argument", None, f"{where}: {name} needs {count} finite numbers, has {values}"
        )
    return values


def _number(dataset: Any, name: str, default: float, where: str) -> float:
    found = dataset.get(name)
    value = default if found in (None, "") else float(found)
    if not np.isfinite(value) or (name == "RescaleSlope" and value == 0):
        raise FormatError("invalid_argument", None, f"{where}: {name} is {value}")
    return value


def _directions(cosines: tuple[float, ...], where: str) -> tuple[float, ...]:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise FormatError(
            "invalid_argument",
            None,
            f"{where}: Image Orientation {cosines} is not two orthogonal unit vectors",
        )
    return tuple(float(v) for v in (*(row / lengths[0]), *(column / lengths[1])))


def _normal(item: Slice) -> NDArray[np.float64]:
    return np.cross(item.orientation[:3], item.orientation[3:])


def _distance(item: Slice) -> float:
    return float(_normal(item) @ np.array(item.position))


def assemble(slices: list[Slice], *, on_gap: OnGap = "error") -> DicomImage:
    """Make the volume of the slices of one group (see `find_series`)."""
    name = f"series {slices[0].group[0] or slices[0].path.name}"
    stacks, tag = _split(slices, name)
    steps = [_checked_steps(stack, name, on_gap) for stack in stacks]
    if any(step.slots != steps[0].slots for step in steps):
        raise FormatError("invalid_argument", None, f"{name}: its time points lie at different positions")
    affine, notes = _affine(stacks[0], steps[0], name)
    image, pixel_notes = _pixels(stacks, steps[0], name)
    info = OrientationInfo(
        axcodes(affine), affine, "dicom_iop",
        "header" if len(stacks[0]) > 1 and not steps[0].missing else "inferred",
    )  # fmt: skip
    first = slices[0]
    row: dict[str, Any] = {}
    for keyword, column in _ROW.items():
        value = first.header.get(keyword)
        if column in _NUMBERS:
            row[column] = float("nan") if value in (None, "") else float(value)
        else:
            row[column] = "" if value is None else str(value)
    meta: dict[str, Any] = {**notes, **pixel_notes, "series_instance_uid": first.group[0]}
    if tag is not None:
        meta["time_tag"] = tag
    return DicomImage(first.group[0], image, info, meta, row)


def _split(slices: list[Slice], name: str) -> tuple[list[list[Slice]], str | None]:
    """Split repeated positions into time points (or echoes) by the first tag that tells them apart."""
    places = defaultdict(list)
    for item in slices:
        places[round(_distance(item), 3)].append(item)
    repeats = max(len(items) for items in places.values())
    if repeats == 1:
        return [slices], None
    for tag in _SPLITTING:
        stacks: dict[float, list[Slice]] = defaultdict(list)
        for item in slices:
            if tag in item.splitting:
                stacks[item.splitting[tag]].append(item)
        whole = sum(map(len, stacks.values())) == len(slices)
        apart = all(len({round(_distance(s), 3) for s in stack}) == len(stack) for stack in stacks.values())
        if whole and apart and len(stacks) == repeats:
            return [stacks[value] for value in sorted(stacks)], tag
    raise FormatError(
        "invalid_argument", None,
        f"{name}: {len(slices)} slices at {len(places)} positions, and no tag of"
            f" {', '.join(_SPLITTING)} tells them apart",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Steps:
    step: NDArray[np.float64]  # mm from slice to slice, LPS
    slots: tuple[int, ...]  # place of each slice; gaps when slots are filled
    missing: tuple[int, ...]


def _checked_steps(stack: list[Slice], name: str, on_gap: OnGap) -> _Steps:
    places = np.array([item.position for item in stack])
    count = len(stack)
    if count == 1:
        return _Steps(_normal(stack[0]) * (stack[0].through_plane or 1.0), (0,), ())
    distances = np.diff([_distance(item) for item in stack])
    median = float(np.median(distances))
    tolerance = max(0.01, 0.01 * median)
    multiples = np.maximum(np.rint(distances / median).astype(int), 1)
    odd = np.abs(distances - multiples * median) > np.maximum(tolerance, 0.01 * multiples * median)
    if odd.any():
        at = int(np.argmax(odd))
        raise FormatError(
            "invalid_argument", None,
            f"{name}: irregular spacing: {distances[at]:.4g} mm after slice {at + 1} of {count},"
            f" the median is {median:.4g} mm (tolerance {tolerance:.3g})",
        )  # fmt: skip
    slots = (0, *(int(slot) for slot in np.cumsum(multiples)))
    missing = tuple(sorted(set(range(slots[-1] + 1)) - set(slots)))
    if missing and on_gap == "error":
        gaps = [f"{m - 1} after slice {i + 1}" for i, m in enumerate(multiples) if m > 1]
        raise FormatError(
            "invalid_argument", None,
            f"{name}: missing slices ({'; '.join(gaps)}, spacing {median:.4g} mm);"
            " on_gap='fill' inserts empty slices, 'keep' closes the gap",
        )  # fmt: skip
    step = (places[-1] - places[0]) / slots[-1]
    drift = places - (places[0] + np.array(slots)[:, None] * step)
    normal = _normal(stack[0])
    in_plane = np.linalg.norm(drift - np.outer(drift @ normal, normal), axis=1)
    if in_plane.max() > 0.1:
        raise FormatError(
            "invalid_argument",
            None,
            f"{name}: slice {int(in_plane.argmax()) + 1} lies {in_plane.max():.3g} mm beside the line of"
            " the others",
        )
    return _Steps(step, tuple(range(count)) if on_gap == "keep" else slots, missing)


def _affine(stack: list[Slice], steps: _Steps, name: str) -> tuple[Affine, dict[str, Any]]:
    first = stack[0]
    lps = np.eye(4)
    lps[:3, 0] = first.pixel_spacing[1] * np.array(first.orientation[:3])
    lps[:3, 1] = first.pixel_spacing[0] * np.array(first.orientation[3:])
    lps[:3, 2] = steps.step
    lps[:3, 3] = first.position
    notes: dict[str, Any] = {}
    along = abs(float(_normal(first) @ steps.step)) / float(np.linalg.norm(steps.step))
    tilt = float(np.degrees(np.arccos(min(1.0, along))))
    if tilt > 0.05:
        notes["gantry_tilt_degrees"] = round(tilt, 3)
    if len(stack) == 1:
        notes["slice_spacing_source"] = "header" if first.through_plane else "assumed 1 mm"
    if steps.missing:
        notes["missing_slices"] = ",".join(map(str, steps.missing))
    return checked_affine(LPS_TO_RAS @ lps, name), notes


def _pixels(stacks: list[list[Slice]], steps: _Steps, name: str) -> tuple[NDArray[Any], dict[str, Any]]:
    everything = [item for stack in stacks for item in stack]
    rows, columns = everything[0].size
    scales = {(item.slope, item.intercept) for item in everything}
    depth = steps.slots[-1] + 1
    header = everything[0].header
    frames = _Frames()
    raw = [frames.read(item) for item in everything]
    integral = all(slope.is_integer() and inter.is_integer() for slope, inter in scales)
    dtype: np.dtype[Any] = np.dtype(np.float32)
    if len(scales) == 1 and integral and raw[0].dtype.kind in "iu":
        (slope, inter) = next(iter(scales))
        low = int(min(int(item.min()) for item in raw) * slope + inter)
        high = int(max(int(item.max()) for item in raw) * slope + inter)
        low, high = min(low, high), max(low, high)
        candidates: list[np.dtype[Any]] = (
            [raw[0].dtype] if (slope, inter) == (1.0, 0.0) else [np.dtype("i2"), np.dtype("i4")]
        )
        dtype = next((c for c in candidates if np.iinfo(c).min <= low and high <= np.iinfo(c).max), dtype)
    fill = (
        0
        if not steps.missing
        else min(float(item.min()) * s.slope + s.intercept for item, s in zip(raw, everything, strict=True))
    )
    stored = np.full((len(stacks), depth, rows, columns), fill, dtype)
    per = len(stacks[0])
    for index, (pixels, item) in enumerate(zip(raw, everything, strict=True)):
        time, place = divmod(index, per)
        if dtype.kind == "f":
            stored[time, steps.slots[place]] = pixels.astype(np.float64) * item.slope + item.intercept
        else:
            stored[time, steps.slots[place]] = pixels.astype(np.int64) * int(item.slope) + int(item.intercept)
    notes: dict[str, Any] = {"photometric_interpretation": str(header.get("PhotometricInterpretation", ""))}
    padding = header.get("PixelPaddingValue")
    if padding is not None:
        notes["pixel_padding_value"] = float(padding) * everything[0].slope + everything[0].intercept
    volume = stored.transpose(3, 2, 1, 0)  # i = column, j = row, k = slice, t
    return (volume if len(stacks) > 1 else volume[..., 0]), notes


class _Frames:
    """Decoded pixels; a multi-frame file is decoded once."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._pixels: NDArray[Any] = np.empty(0)

    def read(self, item: Slice) -> NDArray[Any]:
        if self._path != item.path:
            self._path, self._pixels = item.path, _decoded(item.path)
        pixels = self._pixels if item.frame is None or self._pixels.ndim == 2 else self._pixels[item.frame]
        if pixels.shape != item.size:
            raise FormatError(
                "invalid_argument",
                None,
                f"{item.path.name}: pixels of shape {pixels.shape}, Rows and Columns say {item.size}",
            )
        return pixels


def _decoded(path: Path) -> NDArray[Any]:
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            pixels: NDArray[Any] = dataset.pixel_array
    except Exception as error:  # pydicom names the missing decoder in its own words
        raise FormatError(
            "invalid_argument", None, f"{path.name}: pixels cannot be decoded: {error}"
        ) from None
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated = pixels.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored", allocated))
    high = int(dataset.get("HighBit", stored - 1))
    if not 0 < stored <= high + 1 <= allocated:
        raise FormatError(
            "invalid_argument",
            None,
            f"{path.name}: Bits Stored {stored} and High Bit {high} in {allocated} bits",
        )
    if stored == allocated:
        return pixels
    # overlay bits above, and pixels that do not start at bit 0: shift up to the sign bit, then back down
    moved: NDArray[Any] = np.right_shift(np.left_shift(pixels, allocated - 1 - high), allocated - stored)
    return moved

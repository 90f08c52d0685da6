"""Slices of DICOM series, read from headers alone and grouped into volumes.

Positions and orientations come from Image Position and Orientation (Patient) alone (PS3.3 C.7.6.2); file
names, Instance Number, Slice Thickness and Spacing Between Slices never order or space slices. Enhanced
multi-frame objects are read through their functional groups (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError, MissingExtraError, NotFoundError, SourceError

SPLITTING = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoNumbers",
    "AcquisitionNumber",
    "TriggerTime",
)
"""Attributes that may tell slices at one position apart, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2-D image of a series: a file, or a frame of a multi-frame file.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    frame : int or None
        Number of the frame from 0; None for a single-frame file.
    sop_instance_uid : str
        The object.
    position : tuple of float, (3,)
        Image Position (Patient): centre of the first pixel, LPS, in mm.
    orientation : tuple of float, (6,)
        Image Orientation (Patient): unit vectors along a row and along a column, LPS.
    pixel_spacing : tuple of float, (2,)
        Millimetres between rows, between columns.
    size : tuple of int, (2,)
        Rows, columns.
    slope, intercept : float
        Rescale to Hounsfield or other units.
    splitting : dict
        Values of the attributes of `SPLITTING` that it has.
    through_plane : float or None
        Spacing Between Slices or Slice Thickness in mm; used for a series of one slice only.
    group : tuple
        Equal for the slices of one volume.
    header : pydicom.Dataset
        Attributes of the file without its pixels.
    """

    path: Path
    frame: int | None
    sop_instance_uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    size: tuple[int, int]
    slope: float
    intercept: float
    splitting: dict[str, float]
    through_plane: float | None
    group: tuple[Any, ...]
    header: Any

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector that crosses the slice, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def distance(self) -> float:
        """Projection of the position on the normal, in mm: orders the slices of a volume."""
        return float(self.normal @ np.array(self.position))


def refusal(kind: str, where: str, why: str) -> FormatError:
    """Return the error for a slice or a series that cannot be stored.

    Parameters
    ----------
    kind : str
        Of `VOLUME_KINDS` or of the core.
    where : str
        Which slice or series.
    why : str
        What is wrong with it.

    Returns
    -------
    FormatError
        To be raised.
    """
    return FormatError(kind, None, f"{where}: {why}")


class _Datasets(NamedTuple):
    """Where the attributes of a slice stand: in functional groups, or all in the header."""

    position: Any
    orientation: Any
    measures: Any
    values: Any
    content: Any


def import_pydicom() -> Any:
    """Return pydicom.

    Raises
    ------
    MissingExtraError
        When it is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "volumes") from None
    return pydicom


def find_series(path: str | PathLike[str]) -> list[list[Slice]]:
    """Return the slices of each volume of a folder (not of its subfolders) or of one file.

    By headers alone; each list is sorted along the normal of its slices.

    Raises
    ------
    FormatError
        For a slice whose place cannot be told, or that cannot be a part of a volume.
    SourceError
        When a file cannot be read.
    NotFoundError
        When there is no slice.
    """
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
    ordered = sorted(slices.items(), key=lambda pair: str(pair[0]))
    return [sorted(group, key=lambda item: item.distance) for _, group in ordered]


def _slices_of(file: Path) -> Iterable[Slice]:
    pydicom = import_pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        return []
    except OSError as error:
        raise SourceError.from_os(error, file) from None
    except Exception as error:
        raise refusal("not_dicom", file.name, f"{error}") from None
    if "Rows" not in header:  # DICOMDIR, structured reports, presentation states
        return []
    if "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header:
        return _enhanced(file, header)
    return [_classic(file, header)]


def _classic(file: Path, header: Any) -> Slice:
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise refusal(
            "unsupported_image", file.name, "several frames without functional groups have no positions"
        )
    return _slice(file, None, header, _Datasets(header, header, header, header, header))


def _enhanced(file: Path, header: Any) -> list[Slice]:
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != int(header.get("NumberOfFrames", 1) or 1):
        raise refusal(
            "bad_header",
            file.name,
            f"{len(frames)} functional groups for {header.get('NumberOfFrames')} frames",
        )
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "FrameContentSequence",
    )
    return [
        _slice(
            file,
            index,
            header,
            _Datasets(*(_first(frame, name) or _first(shared, name) or {} for name in names)),
        )
        for index, frame in enumerate(frames)
    ]


def _first(dataset: Any, name: str) -> Any:
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def _slice(file: Path, frame: int | None, header: Any, datasets: _Datasets) -> Slice:
    where = file.name if frame is None else f"{file.name}, frame {frame + 1}"
    x, y, z = _numbers(datasets.position, "ImagePositionPatient", 3, where)
    orientation = _directions(_numbers(datasets.orientation, "ImageOrientationPatient", 6, where), where)
    between_rows, between_columns = _numbers(datasets.measures, "PixelSpacing", 2, where)
    if min(between_rows, between_columns) <= 0:
        raise refusal(
            "bad_header", where, f"Pixel Spacing {(between_rows, between_columns)} must be positive"
        )
    _check_is_stored(header, where)
    through = datasets.measures.get("SpacingBetweenSlices") or datasets.measures.get("SliceThickness")
    group = (
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("FrameOfReferenceUID", "")),
        int(header.Rows),
        int(header.Columns),
        tuple(round(value, 4) for value in (between_rows, between_columns)),
        tuple(round(value, 3) + 0.0 for value in orientation),
        "\\".join(map(str, header.get("ImageType", ()) or ())),
        str(datasets.content.get("StackID", "")) if frame is not None else "",
    )
    return Slice(
        path=file,
        frame=frame,
        sop_instance_uid=str(header.get("SOPInstanceUID", file)),
        position=(x, y, z),
        orientation=orientation,
        pixel_spacing=(between_rows, between_columns),
        size=(int(header.Rows), int(header.Columns)),
        slope=_number(datasets.values, "RescaleSlope", 1.0, where),
        intercept=_number(datasets.values, "RescaleIntercept", 0.0, where),
        splitting=_splitting(datasets.content, header if frame is None else {}),
        through_plane=None if through in (None, "") else abs(float(through)),
        group=group,
        header=header,
    )


def _check_is_stored(header: Any, where: str) -> None:
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise refusal("unsupported_image", where, "colour images are not volumes")
    if _first(header, "ModalityLUTSequence") is not None:
        raise refusal("unsupported_image", where, "a Modality LUT is not supported; only rescale is")


def _splitting(content: Any, header: Any) -> dict[str, float]:
    splitting = {}
    for name in SPLITTING:
        value = content.get(name, header.get(name))
        value = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
        if value not in (None, ""):
            splitting[name] = float(value)
    return splitting


def _numbers(dataset: Any, name: str, count: int, where: str) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in dataset.get(name))
    except (TypeError, ValueError):
        raise refusal("bad_header", where, f"{name} is missing or no numbers") from None
    if len(values) != count or not np.isfinite(values).all():
        raise refusal("bad_header", where, f"{name} needs {count} finite numbers, has {values}")
    return values


def _number(dataset: Any, name: str, default: float, where: str) -> float:
    text = dataset.get(name)
    value = default if text in (None, "") else float(text)
    if not np.isfinite(value) or (name == "RescaleSlope" and value == 0):
        raise refusal("bad_header", where, f"{name} is {value}")
    return value


def _directions(cosines: tuple[float, ...], where: str) -> tuple[float, ...]:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise refusal(
            "bad_geometry", where, f"Image Orientation {cosines} is not two orthogonal unit vectors"
        )
    return tuple(float(v) for v in (*(row / lengths[0]), *(column / lengths[1])))

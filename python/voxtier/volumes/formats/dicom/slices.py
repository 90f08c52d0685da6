"""Slices of DICOM files, read from headers alone.

Positions and orientations come from Image Position and Orientation (Patient) alone (PS3.3 C.7.6.2); file
names, Instance Number, Slice Thickness and Spacing Between Slices never order or space slices. Enhanced
multi-frame objects are read through their functional groups (PS3.3 C.7.6.16).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError
from voxtier.volumes.formats.dicom.attributes import (
    find_numbers,
    find_text,
    first_item,
    read_header,
    read_numbers,
    refusal,
)
from voxtier.volumes.formats.dicom.mosaic import is_mosaic, read_mosaic
from voxtier.volumes.formats.dicom.scales import MAPPINGS, Scale, is_parametric_map, read_scale
from voxtier.volumes.formats.dicom.tags import HEADER_TAGS, Value, classic_tags, frame_tags, frame_type

ROW = {
    "Modality": "modality",
    "SeriesDescription": "series_description",
    "KVP": "kvp",
    "Exposure": "exposure",
    "RepetitionTime": "repetition_time",
    "EchoTime": "echo_time",
    "MagneticFieldStrength": "magnetic_field_strength",
}
"""Keyword -> column of the row of observations."""

_SIEMENS_MR = (0x00190010, 0x0019100A)  # creator and number of images in a mosaic
_TAGS = (
    *ROW,
    *HEADER_TAGS,
    *_SIEMENS_MR,
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID"),
    *("ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units"),
    *("ModalityLUTSequence", MAPPINGS, "PixelPaddingValue", "SegmentSequence"),
    *("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber"),
    "ConcatenationFrameOffsetNumber",
    "PixelRepresentation",  # says whether the padding has a sign (PS3.5 A.1)
)
"""What is read of a header; the rest of a file (a CSA header has 100 KB) is passed over."""

_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR, an index of other files
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_SCANS = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.481")  # PS3.4 B.5: SEG, RT
_LARGEST_SIDE = 65535  # Rows and Columns are US


class Kind(NamedTuple):
    """What the slices of one volume share exactly."""

    series: str
    frame_of_reference: str
    size: tuple[int, int]
    image_type: str
    sop_class: str
    photometric: str
    units: str
    stack_id: str


@dataclass(frozen=True, slots=True)
class Slice:
    """One 2-D image of a series: a file, a frame of a multi-frame file, or a tile of a mosaic.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    frame : int or None
        Number of the frame from 0; None for a single-frame file.
    tile : tuple of int or None
        Number of the tile, tiles that hold a slice, and tiles in a row, for a mosaic.
    sop_instance_uid : str
        The object.
    position : tuple of float, (3,)
        Image Position (Patient): centre of the first pixel, LPS, in mm.
    orientation : tuple of float, (6,)
        Image Orientation (Patient): unit vectors along a row and along a column, LPS.
    pixel_spacing : tuple of float, (2,)
        Millimetres between rows, between columns.
    scale : Scale
        From stored numbers to Hounsfield or other units.
    tags : dict
        Values of the attributes that may tell it from others at its place.
    through_plane : float or None
        Spacing Between Slices or Slice Thickness in mm; used for a series of one slice only.
    kind : Kind
        Equal for the slices of one volume.
    header : pydicom.Dataset
        Those attributes of the file that are read.
    """

    path: Path
    frame: int | None
    tile: tuple[int, int, int] | None
    sop_instance_uid: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    scale: Scale
    tags: dict[str, Value]
    through_plane: float | None
    kind: Kind
    header: Any

    @property
    def size(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.kind.size

    @property
    def slope(self) -> float:
        """Of its scale."""
        return self.scale.slope

    @property
    def intercept(self) -> float:
        """Of its scale."""
        return self.scale.intercept

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector that crosses the slice, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def modality(self) -> str:
        """Modality as a name: ``"unknown"`` where it is none of the standard's (PS3.3 C.7.3.1.1.1)."""
        text = find_text(self.header, "Modality").strip()
        return text if re.fullmatch("[A-Za-z0-9_]{1,16}", text) else "unknown"

    @property
    def is_localizer(self) -> bool:
        """Whether Image Type says that it was made to plan others (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.kind.image_type.upper().split("\\")

    @property
    def is_secondary_capture(self) -> bool:
        """Whether it is a picture of something else (PS3.3 A.8)."""
        return _is_below(self.kind.sop_class, _SECONDARY_CAPTURE)


class Contents(NamedTuple):
    """What a file of a folder holds: slices, or why it holds none."""

    slices: Sequence[Slice] = ()
    series: str = ""
    """Series Instance UID, where the header could be read."""
    no_image: str = ""
    """What it is instead of an image with a place in the patient."""
    error: FormatError | None = None
    """Why its slices cannot be used."""


class _Datasets(NamedTuple):
    """Where the attributes of a slice stand: in functional groups, or all in the header."""

    position: Any
    orientation: Any
    measures: Any
    values: Any
    mappings: Any


def read_slices(file: Path) -> Contents | None:
    """Return the slices of a file (none of a DICOMDIR); None for one that is not DICOM Part 10.

    Raises
    ------
    FormatError
        For a file that begins as DICOM and cannot be parsed: nobody can tell what it is a part of.
    SourceError
        When it cannot be read.
    """
    header = read_header(file, _TAGS)
    if header is None:
        return None
    if find_text(header.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY:
        return Contents()
    try:
        series = find_text(header, "SeriesInstanceUID")
        no_image = _other_object(header)
        if no_image:
            return Contents(series=series, no_image=no_image)
        return Contents(_slices(file, header), series)
    except FormatError as error:
        return Contents(series=series, error=error)
    except Exception as error:  # pydicom converts values when they are asked for
        return Contents(
            series=series, error=refusal("bad_header", file.name, f"the header is damaged: {error}")
        )


def _other_object(header: Any) -> str:
    """Return what an object is that is no slice of a scan; empty for one that may be."""
    sop_class = find_text(header, "SOPClassUID")
    if "Rows" not in header:
        return "an object without an image (a report, a directory, a presentation state)"
    if any(_is_below(sop_class, root) for root in _NO_SCANS) or "SegmentSequence" in header:
        return "a segmentation, a radiotherapy image or dose"
    if _is_below(sop_class, _SECONDARY_CAPTURE) and "ImagePositionPatient" not in header:
        return "a secondary capture without a position in the patient"
    samples = (find_numbers(header, "SamplesPerPixel") or (1.0,))[0]
    if samples != 1 or "PALETTE" in find_text(header, "PhotometricInterpretation").upper():
        return "a colour image; colour images are not volumes"
    frames = (find_numbers(header, "NumberOfFrames") or (1.0,))[0]
    if frames > 1 and not any(name in header for name in _FUNCTIONAL_GROUPS):
        return "several frames without functional groups, which have no positions"
    return ""


_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def _is_below(uid: str, root: str) -> bool:
    return uid == root or uid.startswith(f"{root}.")


def _slices(file: Path, header: Any) -> list[Slice]:
    if any(name in header for name in _FUNCTIONAL_GROUPS):
        return _enhanced(file, header)
    types = {"VFRAME", "GRID"} & set(find_text(header, "ImageType").upper().split("\\"))
    if types:
        raise refusal(
            "unsupported_image",
            file.name,
            f"Image Type {min(types)}: the tiles of this maker are not put into slices",
        )
    only = _slice(
        file, None, header, _Datasets(header, header, header, header, header), classic_tags(header), ""
    )
    return _tiles(file, only) if is_mosaic(header) else [only]


def _tiles(file: Path, image: Slice) -> list[Slice]:
    """Return the slices of a mosaic."""
    header = read_header(file)
    rows, columns = image.size
    along_row = np.array(image.orientation[:3]) * image.pixel_spacing[1]
    along_column = np.array(image.orientation[3:]) * image.pixel_spacing[0]
    corner = np.array(image.position)
    centre = corner + along_row * columns / 2 + along_column * rows / 2
    mosaic = read_mosaic(header, centre, image.normal, file.name)
    size = (rows // mosaic.side, columns // mosaic.side)
    first = corner + along_row * (columns - size[1]) / 2 + along_column * (rows - size[0]) / 2
    kind = image.kind._replace(size=size)
    return [
        replace(
            image,
            tile=(number, mosaic.tiles, mosaic.side),
            position=tuple(float(v) for v in first + number * mosaic.step),
            through_plane=float(np.linalg.norm(mosaic.step)),
            kind=kind,
        )
        for number in range(mosaic.tiles)
    ]


def _enhanced(file: Path, header: Any) -> list[Slice]:
    shared = first_item(header, "SharedFunctionalGroupsSequence")
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
    )
    slices = []
    for index, frame in enumerate(frames):
        mappings: Any = next((d for d in (frame, shared, header) if first_item(d, MAPPINGS) is not None), {})
        found = [first_item(frame, name) or first_item(shared, name) or {} for name in names]
        groups = _Datasets(found[0], found[1], found[2], found[3], mappings)
        stack = find_text(first_item(frame, "FrameContentSequence"), "StackID")
        sort = f"{stack}\\{frame_type(frame, shared)}"
        slices.append(_slice(file, index, header, groups, frame_tags(frame, shared), sort))
    bare = [item.frame or 0 for item in slices if item.scale.unit is None]
    if is_parametric_map(header) and 0 < len(bare) < len(slices):
        raise refusal(
            "bad_header",
            f"{file.name}, frame {bare[0] + 1}",
            "a frame without a Real World Value Mapping in a parametric map whose other frames have one",
        )
    return slices


def _slice(
    file: Path, frame: int | None, header: Any, datasets: _Datasets, tags: dict[str, Value], stack_id: str
) -> Slice:
    where = file.name if frame is None else f"{file.name}, frame {frame + 1}"
    position = read_numbers(datasets.position, "ImagePositionPatient", 3, where)
    cosines = read_numbers(datasets.orientation, "ImageOrientationPatient", 6, where)
    spacing = read_numbers(datasets.measures, "PixelSpacing", 2, where)
    if min(spacing) < 1e-6:
        raise refusal("bad_header", where, f"Pixel Spacing {spacing} must be positive")
    if first_item(header, "ModalityLUTSequence") is not None:
        raise refusal("unsupported_image", where, "a Modality LUT is not supported; only rescale is")
    size = (int(header.Rows), int(header.Columns))
    if not all(0 < side <= _LARGEST_SIDE for side in size):
        raise refusal("bad_header", where, f"{size[0]} rows of {size[1]} columns hold no pixel")
    scale = read_scale(header, datasets.values, datasets.mappings, where)
    units = find_text(datasets.values, "RescaleType") + find_text(header, "Units")
    through = (find_numbers(datasets.measures, n) for n in ("SpacingBetweenSlices", "SliceThickness"))
    return Slice(
        path=file,
        frame=frame,
        tile=None,
        sop_instance_uid=find_text(header, "SOPInstanceUID") or str(file),
        position=position,
        orientation=_directions(cosines, where),
        pixel_spacing=spacing,
        scale=scale,
        tags=tags,
        through_plane=next((abs(value[0]) for value in through if value and value[0]), None),
        kind=Kind(
            find_text(header, "SeriesInstanceUID"),
            find_text(header, "FrameOfReferenceUID"),
            size,
            find_text(header, "ImageType"),
            find_text(header, "SOPClassUID"),
            find_text(header, "PhotometricInterpretation"),
            units if scale.unit is None else f"{scale.unit}\\{scale.quantity}",
            stack_id,
        ),
        header=header,
    )


def _directions(cosines: tuple[float, ...], where: str) -> tuple[float, ...]:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise refusal(
            "bad_geometry", where, f"Image Orientation {cosines} is not two orthogonal unit vectors"
        )
    return tuple(float(v) for v in (*(row / lengths[0]), *(column / lengths[1])))

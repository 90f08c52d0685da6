"""A whole-slide image of real JPEG tiles, complete enough for readers of others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

TILE = 64
STUDY, SERIES = "1.2.77", "1.2.77.1"


def tile_colour(column: int, row: int) -> list[int]:
    """Return the colour of a tile, which tells its place."""
    return [(40 * column + 30) % 256, (40 * row + 30) % 256, 128]


def tile(column: int, row: int) -> bytes:
    """Return the JPEG of a tile."""
    colour = np.array(tile_colour(column, row), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(np.tile(colour, (TILE, TILE, 1))).save(picture, "JPEG", quality=90, subsampling=0)
    return picture.getvalue()


def write_slide(path: Path, uids: tuple[str, str, str], columns: int, rows: int) -> list[bytes]:
    """Write a slide of one level, its tiles in rows (PS3.3 C.7.6.17.3); return the tiles."""
    study, series, instance = uids
    tiles = [tile(column, row) for row in range(rows) for column in range(columns)]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    values = {
        "SOPClassUID": VLWholeSlideMicroscopyImageStorage,
        "SOPInstanceUID": instance,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": f"{study}.9",
        "DimensionOrganizationType": "TILED_FULL",
        "Modality": "SM",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "PatientName": "Slide^Test",
        "PatientID": "1",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyDate": "20261127",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "1",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "ContentDate": "20261127",
        "ContentTime": "120000",
        "AcquisitionDateTime": "20261127120000",
        "Manufacturer": "voxtier tests",
        "ManufacturerModelName": "none",
        "DeviceSerialNumber": "1",
        "SoftwareVersions": "1",
        "ContainerIdentifier": "1",
        "IssuerOfTheContainerIdentifierSequence": Sequence(),
        "ContainerTypeCodeSequence": Sequence(),
        "AcquisitionContextSequence": Sequence(),
        "SpecimenLabelInImage": "NO",
        "BurnedInAnnotation": "NO",
        "FocusMethod": "AUTO",
        "ExtendedDepthOfField": "NO",
        "VolumetricProperties": "VOLUME",
        "PositionReferenceIndicator": "SLIDE_CORNER",
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1",
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "YBR_FULL_422",
        "PlanarConfiguration": 0,
        "Rows": TILE,
        "Columns": TILE,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "NumberOfFrames": len(tiles),
        "TotalPixelMatrixColumns": columns * TILE,
        "TotalPixelMatrixRows": rows * TILE,
        "TotalPixelMatrixFocalPlanes": 1,
        "ImagedVolumeWidth": 10.0,
        "ImagedVolumeHeight": 10.0,
        "ImagedVolumeDepth": 0.001,
        "NumberOfOpticalPaths": 1,
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
    }
    for keyword, value in values.items():
        setattr(slide, keyword, value)
    origin, path_item, illumination, measures, shared, kind = (Dataset() for _ in range(6))
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    slide.TotalPixelMatrixOriginSequence = Sequence([origin])
    illumination.CodeValue, illumination.CodingSchemeDesignator, illumination.CodeMeaning = (
        "111744",
        "DCM",
        "Brightfield illumination",
    )
    path_item.OpticalPathIdentifier = "0"
    path_item.IlluminationTypeCodeSequence = Sequence([illumination])
    path_item.IlluminationWaveLength = 500.0
    slide.OpticalPathSequence = Sequence([path_item])
    measures.PixelSpacing = [0.0005, 0.0005]
    measures.SliceThickness = 0.001
    measures.SpacingBetweenSlices = 0.001
    kind.FrameType = slide.ImageType
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.WholeSlideMicroscopyImageFrameTypeSequence = Sequence([kind])
    slide.SharedFunctionalGroupsSequence = Sequence([shared])
    slide.PixelData = encapsulate(tiles, has_bot=True)
    slide.save_as(path, enforce_file_format=True)
    return tiles


def write_changed(
    folder: Path, name: str, columns: int, rows: int, change: Callable[[Dataset], None] | None = None
) -> Path:
    """Write an instance of JPEG tiles, changed by pydicom."""
    path = folder / f"{name}.dcm"
    number = sum(map(ord, name))
    write_slide(path, (STUDY, SERIES, f"{SERIES}.{number}"), columns, rows)
    if change is not None:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return path


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def scaled(factor: int) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [0.0005 * factor, 0.0005 * factor]

    return change


def sparse(
    places: list[tuple[int, int]], size: tuple[int, int], **extra: list[object]
) -> Callable[[Dataset], None]:
    """Let the first frames lie at places (column, row of tiles)."""

    def change(dataset: Dataset) -> None:
        dataset.DimensionOrganizationType = "TILED_SPARSE"
        dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = size[0] * TILE, size[1] * TILE
        groups = []
        for number, (column, row) in enumerate(places):
            place = item(
                ColumnPositionInTotalImagePixelMatrix=column * TILE + 1,
                RowPositionInTotalImagePixelMatrix=row * TILE + 1,
                XOffsetInSlideCoordinateSystem=0,
                YOffsetInSlideCoordinateSystem=0,
                ZOffsetInSlideCoordinateSystem=extra["z"][number] if "z" in extra else 0,
            )
            group = item(PlanePositionSlideSequence=Sequence([place]))
            if "path" in extra:
                identified = item(OpticalPathIdentifier=extra["path"][number])
                group.OpticalPathIdentificationSequence = Sequence([identified])
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
        if "path" in extra:
            dataset.OpticalPathSequence = Sequence(
                [item(OpticalPathIdentifier=each) for each in sorted(set(map(str, extra["path"])))]
            )

    return change


def frames_of(path: Path) -> list[bytes]:
    dataset = pydicom.dcmread(path)
    return list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames))

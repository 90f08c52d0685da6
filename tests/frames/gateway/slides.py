"""A whole-slide image of real JPEG tiles, complete enough for readers of others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

TILE = 64


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

"""DICOM series: which slices make a volume, where it lies, what its voxels are."""

from voxtier.volumes.formats.dicom.grid import OnGap
from voxtier.volumes.formats.dicom.image import assemble, read_series
from voxtier.volumes.formats.dicom.series import (
    DicomPath,
    describe,
    expand_files,
    files_of,
    find_series,
    is_dicom,
)
from voxtier.volumes.formats.dicom.stacks import volume_label

__all__ = [
    "DicomPath",
    "OnGap",
    "assemble",
    "describe",
    "expand_files",
    "files_of",
    "find_series",
    "is_dicom",
    "read_series",
    "volume_label",
]

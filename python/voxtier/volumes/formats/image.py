"""What reading a NIfTI file or a DICOM series gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from voxtier.volumes.geometry import OrientationInfo


@dataclass(frozen=True, slots=True)
class Image:
    """One image as it was read.

    Parameters
    ----------
    voxels : numpy.ndarray
        (x, y, z) or (x, y, z, t), in the order of the source: of NIfTI the stored numbers (little-endian, x
        fastest), of DICOM rescaled values (column, row, slice[, time]).
    orientation : OrientationInfo
        Affine of the voxels.
    meta : dict
        Metadata of the volume that is made of it: scaling, the header of a NIfTI file, the UID of a series.
    row : dict
        Columns of its row of observations.
    """

    voxels: NDArray[Any]
    orientation: OrientationInfo
    meta: dict[str, Any]
    row: dict[str, Any]

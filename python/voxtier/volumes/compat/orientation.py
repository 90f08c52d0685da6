"""How axes lie in the patient, in the origin's form: axis codes as a tuple, the affine as nested lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import FormatError
from voxtier.volumes import geometry
from voxtier.volumes.formats.dicom import read_series

_IDENTITY = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))


@dataclass(frozen=True, slots=True)
class OrientationInfo:
    """How the axes of a volume lie in the patient.

    Parameters
    ----------
    axcodes : tuple of str
        Directions in which i, j and k grow, such as ``("R", "A", "S")``.
    affine : list of list of float
        Index to RAS+ millimetres, 4 x 4.
    is_canonical : bool
        Whether the axes grow towards Right, Anterior, Superior.
    confidence : str
        ``header``, ``inferred`` or ``unknown``.
    source : str
        ``nifti_sform``, ``nifti_qform``, ``dicom_iop`` or ``identity`` (the file says nothing).
    """

    axcodes: tuple[str, str, str]
    affine: list[list[float]]
    is_canonical: bool
    confidence: str
    source: str

    @classmethod
    def of(cls, info: geometry.OrientationInfo) -> OrientationInfo:
        """Return the origin's form of an orientation."""
        i, j, k = list(info.axcodes)
        source = "identity" if info.source == "nifti_base" else info.source
        return cls((i, j, k), info.affine.tolist(), info.is_canonical, info.confidence, source)


def is_orientation_valid(info: OrientationInfo) -> bool:
    """Return whether an affine is regular, has orthogonal axes, and is not the identity."""
    try:
        affine = geometry.checked_affine(info.affine, "affine")
    except FormatError:
        return False
    axes = affine[:3, :3] / geometry.spacing(affine)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4) and not np.allclose(affine, _IDENTITY))


def detect_nifti_orientation(img: Any) -> OrientationInfo:
    """Return the orientation that the header of a nibabel image states."""
    codes = {name: int(img.header[f"{name}_code"]) for name in ("sform", "qform")}
    source = next((f"nifti_{name}" for name, code in codes.items() if code > 0), "nifti_base")
    affine = geometry.checked_affine(img.affine, "affine of the image")
    confidence = "unknown" if source == "nifti_base" else "header"
    return OrientationInfo.of(geometry.OrientationInfo(affine, source, confidence))


def detect_dicom_orientation(series_path: str | PathLike[str]) -> OrientationInfo:
    """Return the orientation of the one volume of a DICOM series.

    Raises
    ------
    FormatError
        When the series is none, or not one volume.
    """
    images = read_series(series_path)
    if len(images) != 1:
        raise FormatError("bad_geometry", None, f"{series_path} holds {len(images)} volumes, not one")
    return OrientationInfo.of(images[0].orientation)


def reorient_to_canonical(
    data: NDArray[Any], affine: NDArray[Any], target: str = "RAS"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flip and permute the axes so that they grow towards a target; no voxel is resampled.

    Parameters
    ----------
    data : numpy.ndarray
        (x, y, z[, t]).
    affine : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4.
    target : {"RAS", "LAS", "LPS"}
        Directions to aim at.

    Returns
    -------
    numpy.ndarray
        The voxels, contiguous.
    numpy.ndarray
        Their affine.
    """
    voxels, moved = geometry.reorient(data, geometry.checked_affine(affine, "affine"), target)
    return np.ascontiguousarray(voxels), moved


def orientation_info_to_metadata(
    info: OrientationInfo, original_affine: NDArray[Any] | None = None
) -> dict[str, str]:
    """Return the metadata of a volume that states an orientation."""
    meta = {
        "orientation_axcodes": "".join(info.axcodes),
        "orientation_affine": json.dumps(info.affine),
        "orientation_source": info.source,
        "orientation_confidence": info.confidence,
    }
    if original_affine is not None:
        meta["original_affine"] = json.dumps(np.asarray(original_affine, dtype=float).tolist())
    return meta


def metadata_to_orientation_info(metadata: Mapping[str, Any]) -> OrientationInfo | None:
    """Return the orientation that the metadata of a volume states, None where it states none."""
    info = geometry.from_meta(dict(metadata), "metadata")
    return None if info is None else OrientationInfo.of(info)

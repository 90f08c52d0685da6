"""What the headers of images say, in the origin's form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from voxtier.errors import FormatError
from voxtier.volumes import geometry
from voxtier.volumes.formats.dicom import read_series
from voxtier.volumes.formats.identity import identify
from voxtier.volumes.formats.nifti import header_row, read_header

KNOWN_SERIES_TYPES = frozenset(
    (
        "T1w",
        "T2w",
        "T1rho",
        "T1map",
        "T2map",
        "T2star",
        "FLAIR",
        "FLASH",
        "PD",
        "PDmap",
        "PDT2",
        "inplaneT1",
        "inplaneT2",
        "angio",
        "T1gd",
        "bold",
        "cbv",
        "phase",
        "dwi",
        "CT",
        "HRCT",
        "CTA",
        "CTPA",
        "phasediff",
        "magnitude",
        "fieldmap",
        "epi",
    )
)
"""Suffixes of BIDS for a series, and the origin's for CT."""


def infer_series_type(path: Path, header: Any = None) -> str:
    """Return the series that a file's name states, else the one that its header tells, else ``unknown``."""
    stated = identify(Path(path)).series
    if stated is not None:
        return {name.lower(): name for name in KNOWN_SERIES_TYPES}.get(stated.lower(), stated)
    description = b"" if header is None else bytes(header["descrip"])
    words = description.decode("latin-1").lower()
    return next((name for name in sorted(KNOWN_SERIES_TYPES) if name.lower() in words), "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    voxel_spacing: tuple[float, float, float]
    dimensions: tuple[int, ...]
    axcodes: str
    affine_json: str
    orientation_source: str
    source_path: str

    def _row(self, obs_id: str, obs_subject_id: str) -> dict[str, Any]:
        row = asdict(self) | {
            "voxel_spacing": str(self.voxel_spacing),
            "dimensions": str(self.dimensions),
        }
        return {"obs_id": obs_id, "obs_subject_id": obs_subject_id, **row}


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiMetadata(_Metadata):
    """What the header of a NIfTI file says: spacing in mm, dimensions, codes and scaling."""

    datatype: int
    bitpix: int
    scl_slope: float
    scl_inter: float
    xyzt_units: int
    spatial_units: str
    qform_code: int
    sform_code: int

    @property
    def is_4d(self) -> bool:
        """Whether there are time points."""
        return len(self.dimensions) == 4

    @property
    def spatial_dimensions(self) -> tuple[int, ...]:
        """Voxels along x, y, z."""
        return self.dimensions[:3]

    def to_obs_dict(self, obs_id: str, obs_subject_id: str, series_type: str) -> dict[str, Any]:
        """Return the row of an observation.

        Parameters
        ----------
        obs_id, obs_subject_id : str
            Its keys.
        series_type : str
            Its series.

        Returns
        -------
        dict
            Column -> value.
        """
        return {**self._row(obs_id, obs_subject_id), "series_type": series_type}


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomMetadata(_Metadata):
    """What the headers of a DICOM series say: spacing in mm, (columns, rows, slices), modality, settings."""

    modality: str
    series_description: str
    kvp: float | None = None
    exposure: float | None = None
    repetition_time: float | None = None
    echo_time: float | None = None
    magnetic_field_strength: float | None = None

    def to_obs_dict(self, obs_id: str, obs_subject_id: str) -> dict[str, Any]:
        """Return the row of an observation."""
        return self._row(obs_id, obs_subject_id)


def _placed(orientation: geometry.OrientationInfo, path: object) -> dict[str, Any]:
    source = "identity" if orientation.source == "nifti_base" else orientation.source
    return {
        "voxel_spacing": tuple(float(step) for step in geometry.spacing(orientation.affine)),
        "axcodes": orientation.axcodes,
        "affine_json": geometry.to_json(orientation.affine),
        "orientation_source": source,
        "source_path": str(path),
    }


def extract_nifti_metadata(nifti_path: str | PathLike[str]) -> NiftiMetadata:
    """Return what the header of a NIfTI file says, without reading its voxels."""
    header = read_header(nifti_path)
    return NiftiMetadata(
        dimensions=header.shape, **header_row(header), **_placed(header.orientation, nifti_path)
    )


def extract_dicom_metadata(dicom_dir: str | PathLike[str]) -> DicomMetadata:
    """Return what the headers of the one volume of a DICOM series say.

    Raises
    ------
    FormatError
        When the series is none, or not one volume.
    """
    images = read_series(dicom_dir)
    if len(images) != 1:
        raise FormatError("bad_geometry", None, f"{dicom_dir} holds {len(images)} volumes, not one")
    image = images[0]
    names = DicomMetadata.__dataclass_fields__
    row: dict[str, Any] = {
        name: None if value != value else value for name, value in image.row.items() if name in names
    }
    return DicomMetadata(dimensions=image.voxels.shape, **row, **_placed(image.orientation, dicom_dir))

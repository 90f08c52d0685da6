"""The origin's volume: ours, with the orientation in the origin's form."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from voxtier.volumes import volume
from voxtier.volumes.compat.orientation import OrientationInfo
from voxtier.volumes.tiledb.layout import ATTRIBUTE as VOXELS_ATTR

__all__ = ["VOXELS_ATTR", "Volume"]


class Volume(volume.Volume):
    """A 3-D or 4-D image in TileDB.

    Parameters
    ----------
    uri : path or URI
        Local folder or ``s3://`` address.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    """

    @property
    def orientation_info(self) -> OrientationInfo | None:  # type: ignore[override]
        """How the axes lie in the patient; None when that is not known."""
        info = super().orientation_info
        return None if info is None else OrientationInfo.of(info)

    def to_nifti(self, file_path: str | PathLike[str], compression: bool = True) -> Path:  # noqa: FBT001, FBT002
        """Write a NIfTI file (see `voxtier.volumes.Volume.to_nifti`) and return its path."""
        return super().to_nifti(file_path, compression)

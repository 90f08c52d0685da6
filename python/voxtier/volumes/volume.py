"""One volume: read by the piece (see `reading`), changed, exported, created."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError
from voxtier.volumes import geometry
from voxtier.volumes.config import SliceOrientation, as_dtype, as_enum, get_config
from voxtier.volumes.formats.dicom import DicomPath
from voxtier.volumes.formats.nifti import write_nifti
from voxtier.volumes.reading.reader import VolumeReader
from voxtier.volumes.store.jobs import OnGap, dicom_content, nifti_content
from voxtier.volumes.tiledb import arrays, replicas
from voxtier.volumes.tiledb.creation import array_meta, cast_numbers, create_array, plain_voxels
from voxtier.volumes.tiledb.format import fragments
from voxtier.volumes.tiledb.format.fragments import Fragment
from voxtier.volumes.tiledb.session import Session, Uri, as_uri, measure_bytes


class Volume(VolumeReader):
    """A 3-D or 4-D image in TileDB, opened when its first voxel or fact is asked for.

    Axes are (x, y, z[, t]) as they were ingested. Numbers are scaled by the stored slope and intercept
    (integers stay integers where the result is integral); ``raw=True`` gives the stored ones.

    Parameters
    ----------
    uri : path or URI
        Local folder or ``s3://`` address.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    expected_obs_id : str, optional
        Identifier that the array must hold.

    Raises
    ------
    NotFoundError
        At the first access, when there is no volume.
    FormatError
        At the first access, when the array is no volume or holds another identifier.
    """

    def to_nifti(self, path: str | PathLike[str], compression: bool = True) -> Path:  # noqa: FBT001, FBT002
        """Write a NIfTI file with the stored numbers, the affine, the codes and the scaling.

        The header that was read is written back where its shape and affine are the volume's.

        Parameters
        ----------
        path : path-like
            ``.gz`` is appended when ``compression`` is asked for and the name does not end in it.
        compression : bool
            Write ``.nii.gz``; ignored when the name says ``.gz``.

        Returns
        -------
        pathlib.Path
            The file that was written.
        """
        target = Path(path)
        if target.suffix.lower() not in (".nii", ".gz"):
            target = target.with_name(target.name + ".nii")
        if compression and target.suffix.lower() != ".gz":
            target = target.with_name(target.name + ".gz")
        meta = self.array.meta
        write_nifti(
            target,
            self.read(raw=True),
            self._orientation,
            meta,
            is_tilted="gantry_tilt_degrees" in meta,
        )
        return target

    def set_obs_id(self, obs_id: str) -> None:
        """Store the identifier in the array."""
        arrays.write_meta(self.uri, {"obs_id": obs_id}, self._session)

    def update(self, start: Iterable[SupportsIndex], values: NDArray[Any]) -> None:
        """Overwrite a box of stored (unscaled) numbers; one more fragment until `consolidate`.

        Replicas get it too. One that cannot be written is left stale, as after two writers at a time, until
        `replicate` or `consolidate`.

        Raises
        ------
        IndexError
            When the box does not lie inside the volume.
        ConfigError
            For a box of another number of dimensions, a start that is no whole number, masked values, and
            for values that the stored type cannot hold: out of its range, or fractions where it is an
            integer. Floats are rounded to its precision.
        """
        array = self.array
        corner = tuple(whole_number("each start of a box", s) for s in start)
        values = plain_voxels(values, f"the box of {self.uri}")
        shape = array.layout.shape
        if len(corner) != len(shape) or values.ndim != len(shape):
            raise ConfigError(f"start and values need {len(shape)} dimensions")
        if any(s < 0 or s + n > size for s, n, size in zip(corner, values.shape, shape, strict=True)):
            raise IndexError(f"the box {corner} + {values.shape} does not lie inside {shape}")
        if not values.size:
            return
        cells = cast_numbers(values, array.dtype, self.uri)
        meta = array.meta
        replicas.write_region(self.uri, corner, cells, self._session)
        if "stored_min" in meta:  # the type that scaled reads give depends on it
            low = min(int(meta["stored_min"]), int(cells.min()))
            high = max(int(meta["stored_max"]), int(cells.max()))
            arrays.write_meta(self.uri, {"stored_min": low, "stored_max": high}, self._session)

    def replicate(self, *orientations: SliceOrientation | str) -> list[str]:
        """Store the voxels in further tilings too, and write replicas again that are stale.

        Parameters
        ----------
        *orientations : SliceOrientation
            Tilings to add.

        Returns
        -------
        list of str
            Orientations that were written.

        Raises
        ------
        ConfigError
            When the volume's own tiles are one of them.
        """
        added = [as_enum(SliceOrientation, "a tiling", orientation) for orientation in orientations]
        if self.tile_orientation in added:
            raise ConfigError(f"the tiles of {self.uri} are {self.tile_orientation.value} already")
        return replicas.replicate(self.uri, self._session, add=added)

    def fragments(self) -> list[Fragment]:
        """List the fragments (one per write) of the array."""
        return fragments.list_fragments(self.uri, self._session)

    def consolidate(self, *, memory_mb: int | None = None) -> None:
        """Merge the fragments into one and remove what it replaces, in the order that is safe.

        Others may read and write meanwhile. Of several processes that consolidate one local volume each waits
        for the one before; on an object store some may be refused, and can try again: nothing is damaged.
        """
        most = None if memory_mb is None else whole_number("memory_mb", memory_mb, 1)
        replicas.consolidate(self.uri, self._session, memory_mb=most)

    def vacuum(self) -> None:
        """Remove what earlier consolidations have replaced."""
        fragments.vacuum(self.uri, self._session)

    def refresh(self) -> None:
        """Forget the open handle, so that the next read sees what is there now.

        Local volumes notice changes by themselves.
        """
        arrays.forget(self.uri)

    def stored_bytes(self) -> int:
        """Return the bytes that the volume occupies."""
        return measure_bytes(self.uri, self._session)

    @classmethod
    def open(cls, uri: Uri, ctx: object = None) -> Volume:
        """Open a volume and check at once that it is one."""
        volume = cls(uri, ctx)
        volume.array  # noqa: B018 -- opened now, so that a wrong address is told here
        return volume

    @classmethod
    def create(
        cls, uri: Uri, shape: Iterable[SupportsIndex], dtype: Any = np.float32, ctx: object = None
    ) -> Volume:
        """Create a volume without voxels (reads give TileDB's fill value until they are written).

        Parameters
        ----------
        uri : path or URI
            Place of the new volume.
        shape : sequence of int
            Voxels along x, y, z[, t].
        dtype : numpy.dtype or what makes one
            Type of the voxels.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.

        Returns
        -------
        Volume
            The new volume.
        """
        session = Session.of(ctx)
        write, target, cell = get_config().write, as_uri(uri), as_dtype("dtype", dtype)
        create_array(target, shape, cell, write, session)
        arrays.write_meta(target, array_meta(write, cell), session)
        return cls(target, session)

    @classmethod
    def from_numpy(
        cls,
        uri: Uri,
        data: NDArray[Any],
        ctx: object = None,
        *,
        affine: object = None,
        obs_id: str | None = None,
    ) -> Volume:
        """Store an array.

        Parameters
        ----------
        uri : path or URI
            Place of the new volume.
        data : numpy.ndarray
            (x, y, z[, t]).
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        affine : array_like, (4, 4), optional
            Index to RAS+ millimetres.
        obs_id : str, optional
            Identifier to keep in the array.

        Returns
        -------
        Volume
            The new volume.
        """
        meta: dict[str, Any] = geometry.affine_meta(affine, "affine=")
        if obs_id is not None:
            meta["obs_id"] = obs_id
        return cls._store(uri, plain_voxels(data, "the array"), meta, ctx)

    @classmethod
    def from_nifti(
        cls,
        uri: Uri,
        nifti_path: str | PathLike[str],
        ctx: object = None,
        reorient: bool | None = None,  # noqa: FBT001
    ) -> Volume:
        """Store a NIfTI file: stored numbers, scaling pair, affine and header.

        Parameters
        ----------
        uri : path or URI
            Place of the new volume.
        nifti_path : path-like
            ``.nii`` or ``.nii.gz``.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.

        Returns
        -------
        Volume
            The new volume.
        """
        content = nifti_content(nifti_path, reorient=reorient)
        return cls._store(uri, content.voxels, content.meta, ctx)

    @classmethod
    def from_dicom(
        cls,
        uri: Uri,
        dicom_dir: DicomPath,
        ctx: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        dtype: Any = None,
        *,
        on_gap: OnGap = "error",
    ) -> Volume:
        """Store the one DICOM series of a folder (or one enhanced multi-frame file).

        Parameters
        ----------
        uri : path or URI
            Place of the new volume.
        dicom_dir : path-like or sequence of path-like
            Folder of slices, one file, or files.
        ctx : tiledb.Ctx, tiledb.Config or mapping, optional
            TileDB keys on top of `configure`.
        reorient : bool, optional
            Flip and permute to the configured target; by default as configured.
        dtype : numpy.dtype or what makes one, optional
            Type of the voxels, by default the narrowest that holds the rescaled pixels.
        on_gap : {"error", "keep", "fill"}
            What becomes of missing slices.

        Returns
        -------
        Volume
            The new volume.

        Raises
        ------
        ConfigError
            For pixels that ``dtype`` cannot hold, and when the folder holds several volumes.
        """
        cell = None if dtype is None else as_dtype("dtype", dtype)
        content = dicom_content(dicom_dir, reorient=reorient, on_gap=on_gap)
        image = content.voxels if cell is None else cast_numbers(content.voxels, cell, "dtype=")
        return cls._store(uri, image, content.meta, ctx)

    @classmethod
    def _store(cls, uri: Uri, image: NDArray[Any], meta: dict[str, Any], ctx: object) -> Volume:
        target, session = as_uri(uri), Session.of(ctx)
        replicas.write_volume(target, image, meta, get_config().write, session)
        return cls(target, session)

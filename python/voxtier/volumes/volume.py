"""One volume: voxels read by the piece, and where they lie in the patient."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError
from voxtier.volumes import geometry
from voxtier.volumes.config import SliceOrientation, WriteConfig, get_config
from voxtier.volumes.geometry import Affine, OrientationInfo
from voxtier.volumes.indexing import Key, select
from voxtier.volumes.tiledb import arrays as voxels
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb import session as engine
from voxtier.volumes.tiledb.session import Session, Uri, as_uri

if TYPE_CHECKING:
    from voxtier.volumes.tiledb.arrays import Fragment, VoxelArray

Plane = Literal["axial", "sagittal", "coronal"]
_PLANE_AXIS = {"axial": 2, "sagittal": 0, "coronal": 1}


class Volume:
    """A 3-D or 4-D image in TileDB, opened when its first voxel or fact is asked for.

    Axes are (x, y, z[, t]) as they were ingested. Numbers are scaled by the stored slope and intercept
    (integers stay integers where the result is integral); ``raw=True`` gives the stored ones.

    Parameters
    ----------
    uri : path or URI
        Local folder or ``s3://`` address.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.

    Raises
    ------
    NotFoundError
        At the first access, when there is no volume.
    """

    def __init__(self, uri: Uri, ctx: object = None, *, expected_obs_id: str | None = None) -> None:
        self.uri = as_uri(uri)
        self._session = Session.of(ctx)
        self._expected = expected_obs_id
        self._opened: weakref.ref[VoxelArray] | None = None  # the open arrays are few and shared, see voxels

    @property
    def session(self) -> Session:
        """How the volume is reached."""
        return self._session

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.uri, self._session, self._expected)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Volume) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def _array(self) -> VoxelArray:
        opened = None if self._opened is None else self._opened()
        if opened is not None and voxels.is_current(opened):
            return opened
        array = voxels.open_array(self.uri, self._session)
        if self._expected is not None and array.meta.get("obs_id") != self._expected:
            raise FormatError(
                "bad_table", None,
                f"{self.uri} holds {array.meta.get('obs_id')!r}, not {self._expected!r}: the store was"
                    " changed"
                " by something else; run `voxtier volume verify`",
            )  # fmt: skip
        self._opened = weakref.ref(array)
        return array

    # -- facts ----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along x, y, z and, in 4-D, t."""
        return self._array.layout.shape

    @property
    def ndim(self) -> int:
        """3 or 4."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers that reads give (after scaling)."""
        return self._array.scaling.dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers (what ``raw=True`` gives)."""
        return self._array.kept

    @property
    def obs_id(self) -> str | None:
        """Identifier of this observation, kept in the array itself."""
        found = self._array.meta.get("obs_id")
        return None if found is None else str(found)

    @property
    def meta(self) -> dict[str, Any]:
        """All metadata of the array (a copy)."""
        return dict(self._array.meta)

    @property
    def tile_orientation(self) -> SliceOrientation | None:
        """Orientation that the tiles serve best; None when the store does not say."""
        meta = self._array.meta
        with suppress(ValueError):
            return SliceOrientation(meta.get("tile_orientation", meta.get("slice_orientation")))
        return None

    @property
    def tile_extents(self) -> tuple[int, ...]:
        """Voxels of one tile along x, y, z[, t]."""
        return self._array.layout.api_extents

    def tiling_of_plane(self, axis: int) -> tuple[tuple[int, ...], str | None]:
        """Return the tile extents (x, y, z) that answer a plane across an axis, and whose replica it is."""
        array = self._array
        sizes = enumerate(array.layout.shape)
        chosen = array.cheapest(tuple((0, 1, 1) if d in (axis, 3) else (0, size, 1) for d, size in sizes))
        name = None if chosen is array else chosen.uri.rpartition("replica-")[2]
        return chosen.layout.api_extents[:3], name

    @property
    def replicas(self) -> list[str]:
        """Orientations of the further tilings that hold the same voxels now (see `TileConfig.replicas`)."""
        return list(replicas.current(self._array))

    @property
    def orientation_info(self) -> OrientationInfo | None:
        """How the axes lie in the patient; None when that is not known."""
        return geometry.from_meta(self._array.meta, self.uri)

    @property
    def affine(self) -> Affine | None:
        """Index (i, j, k) to world millimetres (RAS+); None when that is not known."""
        found = self.orientation_info
        return None if found is None else found.affine

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimetres between voxels along x, y, z and, in 4-D, seconds along t."""
        affine = self.affine
        if affine is None:
            return None
        steps = [float(step) for step in geometry.spacing(affine)]
        if self.ndim == 4:
            steps.append(float(self._array.meta.get("time_step_s", 1.0)))
        return tuple(steps)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        found = self.orientation_info
        parts = [f"shape={size}", f"dtype={self.dtype}"]
        if self.obs_id is not None:
            parts.append(f"obs_id={self.obs_id!r}")
        if found is not None and not found.is_canonical:
            parts.append(
                f"axes={found.axcodes} (axial() is the array's z plane; plane('axial', i) follows the"
                " patient)"
            )
        return f"Volume({', '.join(parts)})"

    # -- reads ----------------------------------------------------------------------------------

    def read(self, key: Key = ..., *, raw: bool = False) -> NDArray[Any]:
        """Return ``self[key]``, or the stored numbers for ``raw=True``."""
        array = self._array
        selection = select(key, array.layout.shape)
        return array.finished(selection.apply(array.read(selection.region)), raw=raw)

    def __getitem__(self, key: Key) -> NDArray[Any]:
        return self.read(key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001
        if copy is False:
            raise ValueError("a volume has to be read: np.asarray(volume, copy=False) cannot work")
        found = self.read()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self.read(index) for index in range(self.shape[0]))

    def to_numpy(self, *, raw: bool = False) -> NDArray[Any]:
        """Read all voxels."""
        return self.read(raw=raw)

    def axial(self, z: int, t: int | None = None) -> NDArray[Any]:
        """Return the array's plane ``z``: (X, Y), or (X, Y, T) of a 4-D volume without ``t``."""
        return self._plane(2, z, t)

    def sagittal(self, x: int, t: int | None = None) -> NDArray[Any]:
        """Return the array's plane ``x``: (Y, Z[, T])."""
        return self._plane(0, x, t)

    def coronal(self, y: int, t: int | None = None) -> NDArray[Any]:
        """Return the array's plane ``y``: (X, Z[, T])."""
        return self._plane(1, y, t)

    def _plane(self, axis: int, index: int, t: int | None) -> NDArray[Any]:
        key: list[int | slice] = [slice(None)] * self.ndim
        key[axis] = index
        if t is not None:
            if self.ndim != 4:
                raise IndexError("t= is for 4-D volumes, this one has 3 dimensions")
            key[3] = t
        return self.read(tuple(key))

    def plane(self, name: Plane, index: int, t: int | None = None) -> NDArray[Any]:
        """Return an anatomical plane: the array axis is found through the affine.

        Parameters
        ----------
        name : {"axial", "sagittal", "coronal"}
            Plane of the patient, whatever the order of the array's axes.
        index : int
            Index along the array axis that crosses the plane.
        t : int, optional
            Time point of a 4-D volume.
        """
        if name not in _PLANE_AXIS:
            raise ConfigError(f"a plane is axial, sagittal or coronal, got {name!r}")
        affine = self.affine
        if affine is None:
            raise ConfigError(
                f"{self.uri} does not know how it lies in the patient: use axial(), sagittal(), coronal()"
            )
        world = [axis for axis, _ in geometry.closest_axes(affine)]
        return self._plane(world.index(_PLANE_AXIS[name]), index, t)

    def slice(self, x: slice, y: slice, z: slice, t: slice | None = None) -> NDArray[Any]:
        """Read a box; ``volume[x, y, z]`` does the same."""
        return self.read((x, y, z) if t is None else (x, y, z, t))

    def crop(self, centre_mm: Sequence[float], size_mm: Sequence[float]) -> tuple[NDArray[Any], Affine]:
        """Read the voxels around a point in the world (RAS+ mm), and the affine of what was read."""
        affine = self.affine
        if affine is None:
            raise ConfigError(f"{self.uri} does not know how it lies in the patient: crop by index")
        box = geometry.world_box(affine, self.shape, centre_mm, size_mm)
        return self.read(box), geometry.shifted(affine, tuple(part.start for part in box))

    def read_patches(
        self, starts: object, size: Sequence[int], *, fill: float = 0, raw: bool = False
    ) -> NDArray[Any]:
        """Read many boxes of one size at once; each stored block is decoded once for all of them.

        Parameters
        ----------
        starts : array_like of int, (N, ndim)
            First voxels; they may be negative or reach past the end.
        size : sequence of int
            Voxels of one patch along x, y, z[, t].
        fill : number
            Stored number outside the volume.
        raw : bool
            Give the stored numbers, unscaled.

        Returns
        -------
        numpy.ndarray
            (N, *size).
        """
        array = self._array
        ndim = len(array.layout.shape)
        corners = np.asarray(starts)
        if corners.ndim != 2 or corners.shape[1] != ndim or corners.dtype.kind not in "iu":
            raise ConfigError(
                f"starts must be integers of shape (N, {ndim}), got {corners.dtype} {corners.shape}"
            )
        box = tuple(int(count) for count in size)
        if len(box) != ndim or any(count < 1 for count in box):
            raise ConfigError(f"a patch of this volume has {ndim} sizes >= 1, got {box}")
        return array.finished(array.read_patches(corners.astype(np.int64), box, fill), raw=raw)

    # -- numbers --------------------------------------------------------------------------------

    def get_statistics(
        self,
        percentiles: Sequence[float] | None = None,
        *,
        nan_policy: Literal["omit", "propagate", "raise"] = "omit",
    ) -> dict[str, float]:
        """Return mean, std, min, max, median and percentiles (keys ``p5``, ``p99.5``).

        Parameters
        ----------
        percentiles : sequence of float, optional
            0 to 100.
        nan_policy : {"omit", "propagate", "raise"}
            What happens to NaN voxels; ``omit`` also returns their number as ``nan_count``.
        """
        flat = self.read().ravel(order="K")
        missing = int(np.isnan(flat).sum()) if flat.dtype.kind in "fc" else 0
        found: dict[str, float] = {}
        if missing:
            if nan_policy == "raise":
                raise FormatError("invalid_argument", None, f"{self.uri}: {missing} voxels are NaN")
            if nan_policy == "omit":
                flat = flat[~np.isnan(flat)]
                found["nan_count"] = float(missing)
        if flat.size == 0 or flat.dtype.kind == "c":
            raise FormatError("invalid_argument", None, f"{self.uri}: no real numbers to describe")
        wanted = [50.0, *(float(p) for p in percentiles or ())]
        values = np.percentile(flat, wanted)
        found |= {
            "mean": float(flat.mean(dtype=np.float64)),
            "std": float(flat.std(dtype=np.float64)),
            "min": float(flat.min()),
            "max": float(flat.max()),
            "median": float(values[0]),
        }
        return found | {f"p{p:g}": float(value) for p, value in zip(wanted[1:], values[1:], strict=True)}

    def compute_histogram(
        self, bins: int = 256, value_range: tuple[float, float] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return counts and bin edges; voxels that are not finite are left out."""
        flat = self.read().ravel(order="K")
        if flat.dtype.kind == "f":
            flat = flat[np.isfinite(flat)]
        return np.histogram(flat, bins=bins, range=value_range)

    # -- export and changes ---------------------------------------------------------------------

    def to_nifti(self, path: str | PathLike[str], compression: bool = True) -> Path:  # noqa: FBT001, FBT002
        """Write a NIfTI file with the stored numbers, the affine, the codes and the scaling.

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
        from voxtier.volumes.formats.nifti import write_nifti

        target = Path(path)
        if target.suffix not in (".nii", ".gz"):
            target = target.with_name(target.name + ".nii")
        if compression and target.suffix != ".gz":
            target = target.with_name(target.name + ".gz")
        meta = self._array.meta
        write_nifti(
            target, self.read(raw=True), self.orientation_info, meta,
            reoriented="original_affine" in meta, tilted="gantry_tilt_degrees" in meta,
        )  # fmt: skip
        return target

    def set_obs_id(self, obs_id: str) -> None:
        """Store the identifier in the array."""
        voxels.write_meta(self.uri, {"obs_id": obs_id}, self._session)

    def update(self, start: Sequence[int], values: NDArray[Any]) -> None:
        """Overwrite a box of stored (unscaled) numbers; one more fragment until `consolidate`.

        Raises
        ------
        IndexError
            When the box does not lie inside the volume.
        """
        array = self._array
        corner = tuple(int(s) for s in start)
        shape = array.layout.shape
        if len(corner) != len(shape) or values.ndim != len(shape):
            raise ConfigError(f"start and values need {len(shape)} dimensions")
        if any(s < 0 or s + n > size for s, n, size in zip(corner, values.shape, shape, strict=True)):
            raise IndexError(f"the box {corner} + {values.shape} does not lie inside {shape}")
        if not np.can_cast(values.dtype, array.kept, "same_kind"):
            raise ConfigError(f"{values.dtype} does not fit the stored {array.kept} without loss")
        if not values.size:
            return
        cells = values.astype(array.kept)
        meta = array.meta
        replicas.write_region(self.uri, corner, cells, self._session)
        if "stored_min" in meta:  # the type that scaled reads give depends on it
            low, high = (
                min(int(meta["stored_min"]), int(cells.min())),
                max(int(meta["stored_max"]), int(cells.max())),
            )
            voxels.write_meta(self.uri, {"stored_min": low, "stored_max": high}, self._session)

    def replicate(self, *orientations: SliceOrientation | str) -> list[str]:
        """Store the voxels in further tilings too, and renew replicas that are stale.

        Returns the orientations that were written.
        """
        added = [SliceOrientation(orientation) for orientation in orientations]
        if self.tile_orientation in added:
            raise ConfigError(f"the tiles of {self.uri} are {self.tile_orientation.value} already")
        return replicas.renew(self.uri, self._session, add=added)

    def fragments(self) -> list[Fragment]:
        """List the fragments (one per write) of the array."""
        return voxels.fragments(self.uri, self._session)

    def consolidate(self, *, memory_mb: int | None = None) -> None:
        """Merge the fragments into one and remove what it replaces, in the order that is safe."""
        replicas.consolidate(self.uri, self._session, memory_mb=memory_mb)

    def vacuum(self) -> None:
        """Remove what earlier consolidations have replaced."""
        voxels.vacuum(self.uri, self._session)

    def refresh(self) -> None:
        """Forget the open handle.

        The next read sees what is there now (local volumes notice by themselves).
        """
        voxels.forget(self.uri)

    def stored_bytes(self) -> int:
        """Return the bytes that the volume occupies."""
        return engine.stored_bytes(self.uri, self._session)

    # -- creation -------------------------------------------------------------------------------

    @classmethod
    def open(cls, uri: Uri, ctx: object = None) -> Volume:
        """Open a volume and check at once that it is one."""
        volume = cls(uri, ctx)
        volume._array  # noqa: B018
        return volume

    @classmethod
    def create(cls, uri: Uri, shape: tuple[int, ...], dtype: Any = np.float32, ctx: object = None) -> Volume:
        """Create a volume without voxels (reads give TileDB's fill value until they are written)."""
        session = Session.of(ctx)
        write, target = get_config().write, as_uri(uri)
        voxels.create_array(target, shape, np.dtype(dtype), write, session)
        voxels.write_meta(target, _write_meta(write, np.dtype(dtype)), session)
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
        """Store an array (x, y, z[, t]), with an affine to RAS+ mm where there is one."""
        voxels_in = np.asarray(data)
        meta: dict[str, Any] = {}
        if affine is not None:
            matrix = geometry.checked_affine(affine, "affine=")
            meta = geometry.to_meta(OrientationInfo(geometry.axcodes(matrix), matrix, "identity", "header"))
        if obs_id is not None:
            meta["obs_id"] = obs_id
        return cls._store(as_uri(uri), voxels_in, meta, Session.of(ctx))

    @classmethod
    def from_nifti(
        cls,
        uri: Uri,
        nifti_path: str | PathLike[str],
        ctx: object = None,
        reorient: bool | None = None,  # noqa: FBT001
    ) -> Volume:
        """Store a NIfTI file: stored numbers, scaling pair, affine and header."""
        from voxtier.volumes.store.ingest import nifti_content

        content = nifti_content(nifti_path, reorient=reorient)
        return cls._store(as_uri(uri), content.voxels, content.meta, Session.of(ctx))

    @classmethod
    def from_dicom(
        cls,
        uri: Uri,
        dicom_dir: str | PathLike[str],
        ctx: object = None,
        reorient: bool | None = None,  # noqa: FBT001
        dtype: Any = None,
        *,
        on_gap: Literal["error", "keep", "fill"] = "error",
    ) -> Volume:
        """Store the one DICOM series of a folder (or one enhanced multi-frame file)."""
        from voxtier.volumes.store.ingest import dicom_content

        content = dicom_content(dicom_dir, reorient=reorient, on_gap=on_gap)
        image = content.voxels if dtype is None else content.voxels.astype(dtype)
        return cls._store(as_uri(uri), image, content.meta, Session.of(ctx))

    @classmethod
    def _store(cls, uri: str, image: NDArray[Any], meta: dict[str, Any], session: Session) -> Volume:
        write = get_config().write
        replicas.write_volume(uri, image, {**_write_meta(write, image.dtype), **meta}, write, session)
        return cls(uri, session)


def _rebuild(uri: str, session: Session, expected: str | None) -> Volume:
    return Volume(uri, session, expected_obs_id=expected)


def _write_meta(write: WriteConfig, dtype: np.dtype[Any]) -> dict[str, str]:
    meta = {"tile_orientation": write.tile.orientation.value}
    if voxels.stored_dtype(dtype) != dtype.newbyteorder("<"):
        meta["voxtier_dtype"] = dtype.newbyteorder("=").str
    return meta

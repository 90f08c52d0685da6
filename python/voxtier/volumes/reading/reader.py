"""What can be asked of a stored volume: facts, planes, boxes, patches, statistics. `volume` adds the rest."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from voxtier.arguments import whole_number
from voxtier.errors import ConfigError, FormatError, VoxtierError
from voxtier.system.html import facts_html
from voxtier.volumes import geometry
from voxtier.volumes.config import SliceOrientation
from voxtier.volumes.geometry import Affine, OrientationInfo
from voxtier.volumes.reading.indexing import Key, select
from voxtier.volumes.reading.pictures import encode_png, to_grey
from voxtier.volumes.reading.statistics import NanPolicy, count, describe
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.arrays import VoxelArray, open_array
from voxtier.volumes.tiledb.creation import cast_numbers
from voxtier.volumes.tiledb.scaling import Normalize
from voxtier.volumes.tiledb.session import Session, Uri, as_uri

Plane: TypeAlias = Literal["axial", "sagittal", "coronal"]

PLANES = {"axial": 2, "sagittal": 0, "coronal": 1}
"""The world axis (0 R, 1 A, 2 S) that crosses a plane of the patient, and the array's where none is known."""


class VolumeReader:
    """The read side of a `Volume`, opened when its first voxel or fact is asked for.

    Parameters
    ----------
    uri : path or URI
        Local folder or ``s3://`` address.
    ctx : tiledb.Ctx, tiledb.Config or mapping, optional
        TileDB keys on top of `configure`.
    expected_obs_id : str, optional
        Identifier that the array must hold.
    """

    def __init__(self, uri: Uri, ctx: object = None, *, expected_obs_id: str | None = None) -> None:
        self.uri = as_uri(uri)
        self._session = Session.of(ctx)
        self._expected = expected_obs_id
        self._opened: weakref.ref[VoxelArray] | None = None  # `arrays` keeps a bounded number open

    @property
    def session(self) -> Session:
        """How the volume is reached."""
        return self._session

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.uri, self._session, self._expected)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VolumeReader) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def array(self) -> VoxelArray:
        """The open array of the volume, opened again when it has changed on disk."""
        opened = None if self._opened is None else self._opened()
        if opened is not None and opened.is_current:
            return opened
        array = open_array(self.uri, self._session)
        obs_id = array.meta.get("obs_id")
        if self._expected is not None and obs_id != self._expected:
            raise FormatError(
                "store_changed",
                None,
                f"{self.uri} holds {obs_id!r}, not {self._expected!r}: the store was changed by something"
                " else; run `voxtier volumes verify`",
            )
        self._opened = weakref.ref(array)
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along x, y, z and, in 4-D, t."""
        return self.array.layout.shape

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
        return self.array.scaling.dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers (what ``raw=True`` gives)."""
        return self.array.dtype

    @property
    def obs_id(self) -> str | None:
        """Identifier of this observation, kept in the array itself."""
        obs_id = self.array.meta.get("obs_id")
        return None if obs_id is None else str(obs_id)

    @property
    def meta(self) -> dict[str, Any]:
        """All metadata of the array (a copy)."""
        return dict(self.array.meta)

    @property
    def tile_orientation(self) -> SliceOrientation | None:
        """Orientation that the tiles serve best; None when the store does not say."""
        meta = self.array.meta
        with suppress(ValueError):
            return SliceOrientation(meta.get("tile_orientation", meta.get("slice_orientation")))
        return None

    @property
    def tile_extents(self) -> tuple[int, ...]:
        """Voxels of one tile along x, y, z[, t]."""
        return self.array.layout.api_extents

    def tiling_of_plane(self, axis: int) -> tuple[tuple[int, ...], str | None]:
        """Return the tile extents (x, y, z) that answer a plane across an axis, and whose replica it is."""
        array = self.array
        sizes = enumerate(array.layout.shape)
        region = tuple((0, 1, 1) if d in (axis, 3) else (0, size, 1) for d, size in sizes)
        tiling = replicas.cheapest(array, region)
        name = None if tiling is array else replicas.replica_orientation(tiling.uri)
        return tiling.layout.api_extents[:3], name

    @property
    def replicas(self) -> list[str]:
        """Orientations of the further tilings that hold the same voxels now (see `TileConfig.replicas`)."""
        return list(replicas.find_replicas(self.array))

    @property
    def orientation_info(self) -> OrientationInfo | None:
        """How the axes lie in the patient; None when that is not known."""
        return self._orientation

    @property
    def _orientation(self) -> OrientationInfo | None:
        """What `orientation_info` gives, which the room `compat` gives in another form."""
        return geometry.from_meta(self.array.meta, self.uri)

    @property
    def affine(self) -> Affine | None:
        """Index (i, j, k) to world millimetres (RAS+); None when that is not known."""
        orientation = self._orientation
        return None if orientation is None else orientation.affine

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimetres between voxels along x, y, z and, in 4-D, seconds along t (0: not known or not one)."""
        affine = self.affine
        if affine is None:
            return None
        steps = [float(step) for step in geometry.spacing(affine)]
        if self.ndim == 4:
            steps.append(geometry.time_step(self.array.meta))
        return tuple(steps)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        orientation = self._orientation
        parts = [f"shape={'x'.join(map(str, self.shape))}", f"dtype={self.dtype}"]
        if self.obs_id is not None:
            parts.append(f"obs_id={self.obs_id!r}")
        if orientation is not None and not orientation.is_canonical:
            parts.append(
                f"axes={orientation.axcodes} (axial() is the array's z plane; plane('axial', i) follows the"
                " patient)"
            )
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return what notebooks show: the facts, and the middle axial plane (the patient's if known)."""
        spacing, orientation = self.spacing, self._orientation
        facts = {
            "shape": "x".join(map(str, self.shape)),
            "type": self.dtype,
            "spacing": None if spacing is None else " x ".join(f"{step:g}" for step in spacing),
            "axes": None if orientation is None else orientation.axcodes,
            "tiles": "x".join(map(str, self.tile_extents)),
        }
        try:
            axis = 2 if orientation is None else geometry.axis_of_plane(orientation.affine, PLANES["axial"])
            plane = self._plane(axis, self.shape[axis] // 2, 0 if self.ndim == 4 else None)
            picture = encode_png(to_grey(plane))
        except VoxtierError:  # the facts are worth showing all the same
            picture = None
        return facts_html(self.obs_id or type(self).__name__, facts, picture)

    def read(self, key: Key = ..., *, raw: bool = False) -> NDArray[Any]:
        """Return ``self[key]``, or the stored numbers for ``raw=True``."""
        array = self.array
        selection = select(key, array.layout.shape)
        return array.to_numbers(selection.apply(replicas.read(array, selection.region)), raw=raw)

    def __getitem__(self, key: Key) -> NDArray[Any]:
        return self.read(key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001
        if copy is False:
            raise ValueError("a volume has to be read: np.asarray(volume, copy=False) cannot work")
        voxels = self.read()
        return voxels if dtype is None else voxels.astype(dtype, copy=False)

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

        Returns
        -------
        numpy.ndarray
            The two other axes of the array, and time without ``t``.

        Raises
        ------
        ConfigError
            For another name, and when the volume does not know how it lies in the patient.
        """
        if name not in PLANES:
            raise ConfigError(f"a plane is axial, sagittal or coronal, got {name!r}")
        affine = self.affine
        if affine is None:
            raise ConfigError(
                f"{self.uri} does not know how it lies in the patient: use axial(), sagittal(), coronal()"
            )
        return self._plane(geometry.axis_of_plane(affine, PLANES[name]), index, t)

    def slice(self, x: slice, y: slice, z: slice, t: slice | None = None) -> NDArray[Any]:
        """Read a box; ``volume[x, y, z]`` does the same.

        Parameters
        ----------
        x, y, z : slice
            Voxels along each axis.
        t : slice, optional
            Time points of a 4-D volume, by default all.

        Returns
        -------
        numpy.ndarray
            (x, y, z[, t]).
        """
        return self.read((x, y, z) if t is None else (x, y, z, t))

    def crop(self, centre_mm: Sequence[float], size_mm: Sequence[float]) -> tuple[NDArray[Any], Affine]:
        """Read the voxels around a point in the world (RAS+ mm), and the affine of what was read.

        Raises
        ------
        ConfigError
            When the volume does not know how it lies in the patient.
        IndexError
            When the box misses the volume.
        """
        affine = self.affine
        if affine is None:
            raise ConfigError(f"{self.uri} does not know how it lies in the patient: crop by index")
        box = geometry.world_box(affine, self.shape, centre_mm, size_mm)
        return self.read(box), geometry.crop_affine(affine, tuple(part.start for part in box))

    def read_patches(
        self, starts: object, size: Iterable[SupportsIndex], *, fill: float = 0, raw: bool = False
    ) -> NDArray[Any]:
        """Read many boxes of one size at once; each stored block is decoded once for all of them.

        Parameters
        ----------
        starts : array_like of int, (N, ndim)
            First voxels; they may be negative or reach past the end.
        size : sequence of int
            Voxels of one patch along x, y, z[, t].
        fill : float
            Stored number outside the volume.
        raw : bool
            Give the stored numbers, unscaled.

        Returns
        -------
        numpy.ndarray
            (N, *size).

        Raises
        ------
        ConfigError
            For starts or a size of another form.
        """
        array = self.array
        corners, box = _boxes(starts, size, len(array.layout.shape))
        cells = replicas.read_patches(array, corners, box, fill)
        return array.to_numbers(cells, raw=raw)

    def read_patches_into(
        self, starts: object, out: NDArray[Any], *, fill: float = 0, normalize: Normalize | None = None
    ) -> None:
        """Read many boxes of one size into the caller's memory: `read_patches`, cast to the type of ``out``.

        Local volumes are decoded, scaled, normalised, cast and turned in one pass.

        Parameters
        ----------
        starts : array_like of int, (N, ndim)
            First voxels; they may be negative or reach past the end.
        out : numpy.ndarray, (N, x, y, z[, t])
            C-contiguous and writable.
        fill : float
            Stored number outside the volume.
        normalize : Normalize, optional
            Further step after scaling.

        Raises
        ------
        ConfigError
            For starts or an output of another form, and for numbers that the type of ``out`` cannot hold.
        """
        array = self.array
        corners, box = _boxes(starts, out.shape[1:], len(array.layout.shape))
        if len(out) != len(corners) or not out.flags.c_contiguous or not out.flags.writeable:
            raise ConfigError(f"out must be C-contiguous and writable, for {len(corners)} patches of {box}")
        if len(corners) and not replicas.read_into(array, corners, out, fill, normalize):
            numbers = array.to_numbers(replicas.read_patches(array, corners, box, fill), raw=False)
            wanted = numbers if normalize is None else normalize.apply(numbers)
            out[...] = cast_numbers(wanted, out.dtype, self.uri)

    def get_statistics(
        self, percentiles: Iterable[float] | None = None, *, nan_policy: NanPolicy = "omit"
    ) -> dict[str, float]:
        """Return mean, std, min, max, median and percentiles (keys as given: ``p5``, ``p99.5``).

        Parameters
        ----------
        percentiles : sequence of float, optional
            0 to 100.
        nan_policy : {"omit", "propagate", "raise"}
            What happens to NaN voxels; ``omit`` also returns their number as ``nan_count``.

        Returns
        -------
        dict
            Name -> number.

        Raises
        ------
        ConfigError
            For percentiles outside 0 to 100 and another policy.
        FormatError
            For NaN voxels under ``raise``, and when there are no real numbers.
        """
        return describe(self.read(), percentiles, nan_policy, self.uri)

    def compute_histogram(
        self, bins: int = 256, value_range: tuple[float, float] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return counts and bin edges; voxels that are not finite are left out."""
        return count(self.read(), bins, value_range, self.uri)


def _boxes(
    starts: object, size: Iterable[SupportsIndex], ndim: int
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    corners = np.asarray(starts)
    if corners.ndim != 2 or corners.shape[1] != ndim or corners.dtype.kind not in "iu":
        raise ConfigError(
            f"starts must be integers of shape (N, {ndim}), got {corners.dtype} {corners.shape}"
        )
    sizes = size if isinstance(size, Iterable) else [size]
    box = tuple(whole_number("each size of a patch", count) for count in sizes)
    if len(box) != ndim or any(count < 1 for count in box):
        raise ConfigError(f"a patch of this volume has {ndim} sizes >= 1, got {box}")
    return corners.astype(np.int64), box


def _rebuild(kind: type[VolumeReader], uri: str, session: Session, expected: str | None) -> VolumeReader:
    return kind(uri, session, expected_obs_id=expected)

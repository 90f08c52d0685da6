"""Where a voxel lies in the patient: affines from index (i, j, k) to world millimetres, RAS+, float64.

World axes point to the patient's Right, Anterior and Superior; DICOM's own (Left, Posterior, Superior) are
converted on the way in. An affine that cannot be used is refused: the identity never stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError

Affine = NDArray[np.float64]
"""4 x 4; (x, y, z, 1) = affine @ (i, j, k, 1), in millimetres."""

LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])

TIME_STEP = "time_step_s"
"""Metadata of a 4-D volume: seconds from one point in time to the next. Absent where that is not known."""

_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, slots=True)
class OrientationInfo:
    """How the axes of a volume lie in the patient.

    Parameters
    ----------
    affine : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4 float64.
    source : str
        ``nifti_sform``, ``nifti_qform``, ``nifti_base``, ``dicom_iop`` or ``identity``.
    confidence : str
        ``header``, ``inferred`` or ``unknown`` (the file says nothing).
    """

    affine: Affine
    source: str
    confidence: str

    @property
    def axcodes(self) -> str:
        """Directions in which i, j and k grow, such as ``"RAS"``."""
        return axcodes(self.affine)

    @property
    def is_canonical(self) -> bool:
        """Whether the axes grow towards Right, Anterior, Superior."""
        return self.axcodes == "RAS"


def checked_affine(matrix: object, what: str) -> Affine:
    """Return an affine of an image as float64.

    Raises
    ------
    FormatError
        ``bad_geometry`` when it is not 4 x 4, not finite, not affine or singular; ``what`` names it.
    """
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise FormatError("bad_geometry", None, f"{what}: the affine must be 4 x 4 finite numbers")
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise FormatError("bad_geometry", None, f"{what}: the last row of an affine is 0 0 0 1")
    lengths = spacing(affine)
    if (lengths <= 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise FormatError("bad_geometry", None, f"{what}: the affine is singular")
    return affine


def affine_meta(affine: object, what: str) -> dict[str, str]:
    """Return the metadata of an affine that a caller gave; empty for None.

    Raises
    ------
    ConfigError
        When the affine cannot be used; ``what`` names it.
    """
    if affine is None:
        return {}
    try:
        matrix = checked_affine(affine, what)
    except FormatError as error:
        raise ConfigError(error.detail) from None
    return to_meta(OrientationInfo(matrix, "identity", "header"))


def spacing(affine: Affine) -> NDArray[np.float64]:
    """Return the millimetres between neighbours along i, j, k."""
    lengths: NDArray[np.float64] = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return lengths


def closest_axes(affine: Affine) -> tuple[tuple[int, int], ...]:
    """Return for i, j, k the world axis that each follows most (0 R, 1 A, 2 S) and its sign.

    Judged on the rotation that is nearest to the affine (shears and zooms removed); the clearest axis chooses
    first, and each world axis is used once.
    """
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing(affine))
    rotation = left @ right
    chosen: dict[int, tuple[int, int]] = {}
    for axis in sorted(range(3), key=lambda a: -float(np.abs(rotation[:, a]).max())):
        free = [world for world in range(3) if world not in [used for used, _ in chosen.values()]]
        world = max(free, key=lambda w: abs(rotation[w, axis]))
        chosen[axis] = (world, -1 if rotation[world, axis] < 0 else 1)
    return tuple(chosen[axis] for axis in range(3))


def axis_of_plane(affine: Affine, world_axis: int) -> int:
    """Return the array axis that crosses the planes which a world axis (0 R, 1 A, 2 S) crosses."""
    return [world for world, _ in closest_axes(affine)].index(world_axis)


def axcodes(affine: Affine) -> str:
    """Return the directions in which i, j and k grow, such as ``"LPS"``."""
    return "".join(_CODES[world][sign > 0] for world, sign in closest_axes(affine))


def reorient(voxels: NDArray[Any], affine: Affine, target: str = "RAS") -> tuple[NDArray[Any], Affine]:
    """Flip and permute the axes so that they grow towards a target; no voxel is resampled.

    Parameters
    ----------
    voxels : numpy.ndarray
        (x, y, z[, t]).
    affine : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4.
    target : str
        Axis codes, such as ``"RAS"``.

    Returns
    -------
    numpy.ndarray
        A view of the voxels.
    numpy.ndarray
        The affine of the view: every voxel keeps its place in the world.
    """
    wanted = [next(w for w, pair in enumerate(_CODES) if code in pair) for code in target]
    signs = [1 if code == _CODES[world][1] else -1 for code, world in zip(target, wanted, strict=True)]
    axes = closest_axes(affine)
    order = [next(a for a, (w, _) in enumerate(axes) if w == world) for world in wanted]
    flips = [axes[a][1] != sign for a, sign in zip(order, signs, strict=True)]
    view = voxels.transpose(*order, *range(3, voxels.ndim))
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        step[old, new] = -1 if flip else 1
        if flip:
            step[old, 3] = voxels.shape[old] - 1
    view = view[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return view, affine @ step


def corner_error(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """Return how far two affines are apart.

    Parameters
    ----------
    first, second : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4.
    shape : tuple of int
        Voxels of the volume along x, y, z[, t].

    Returns
    -------
    float
        Largest distance in mm between the eight corners of the volume under both.
    """
    corners = np.array(np.meshgrid(*((0, size - 1) for size in shape[:3]), indexing="ij")).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.sqrt((((first - second) @ homogeneous)[:3] ** 2).sum(axis=0)).max())


def crop_affine(affine: Affine, start: tuple[int, ...]) -> Affine:
    """Return the affine of a crop whose first voxel is ``start``."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start[:3], dtype=np.float64)
    return moved


def world_box(
    affine: Affine, shape: tuple[int, ...], centre_mm: object, size_mm: object
) -> tuple[slice, slice, slice]:
    """Return the voxels whose centres cover a box in the world, clipped to the volume.

    Parameters
    ----------
    affine : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4.
    shape : tuple of int
        Voxels of the volume along x, y, z[, t].
    centre_mm, size_mm : array_like, (3,)
        Centre and edges of the box in RAS+ millimetres.

    Returns
    -------
    tuple of slice
        Along x, y, z.

    Raises
    ------
    ConfigError
        When the centre or the size is not three numbers, or a size is not positive.
    IndexError
        When the box misses the volume.
    """
    centre = np.asarray(centre_mm, dtype=np.float64)
    half = np.asarray(size_mm, dtype=np.float64) / 2
    if centre.shape != (3,) or half.shape != (3,) or not (half > 0).all():
        raise ConfigError("centre_mm and size_mm are three numbers each, sizes > 0")
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3, indexing="ij")).reshape(3, -1)
    corners = centre[:, None] + signs * half[:, None]
    index = np.linalg.inv(affine) @ np.vstack([corners, np.ones(8)])
    low = np.maximum(np.ceil(index[:3].min(axis=1) - 1e-6), 0).astype(int)
    high = np.minimum(np.floor(index[:3].max(axis=1) + 1e-6) + 1, shape[:3]).astype(int)
    if (high <= low).any():
        raise IndexError(f"the box around {tuple(centre)} mm misses the volume")
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z


def to_json(affine: Affine) -> str:
    """Return the affine as text: 4 x 4 JSON numbers that parse back to the same doubles."""
    return json.dumps(affine.tolist())


def from_meta(meta: dict[str, Any], what: str) -> OrientationInfo | None:
    """Return the orientation that a volume's metadata states, None where it states none."""
    text = meta.get("orientation_affine")
    if not text:
        return None
    source, confidence = (
        meta.get("orientation_source", "identity"),
        meta.get("orientation_confidence", "unknown"),
    )
    return OrientationInfo(checked_affine(json.loads(text), what), str(source), str(confidence))


def to_meta(orientation: OrientationInfo) -> dict[str, str]:
    """Return the metadata that `from_meta` reads."""
    return {
        "orientation_axcodes": orientation.axcodes,
        "orientation_affine": to_json(orientation.affine),
        "orientation_source": orientation.source,
        "orientation_confidence": orientation.confidence,
    }


def time_step(meta: Mapping[str, Any]) -> float:
    """Return the seconds along t that a volume's metadata states; 0, as in NIfTI, where it states none."""
    return float(meta.get(TIME_STEP, 0.0))

"""Where a voxel lies in the patient: affines from index (i, j, k) to world millimetres, RAS+, float64.

World axes point to the patient's Right, Anterior and Superior; DICOM's own (Left, Posterior, Superior) are
converted on the way in. An affine is refused rather than guessed: never the identity in silence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from voxtier.errors import ConfigError, FormatError

Affine = NDArray[np.float64]

LPS_TO_RAS: Final[Affine] = np.diag([-1.0, -1.0, 1.0, 1.0])
_CODES: Final = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, slots=True)
class OrientationInfo:
    """How the axes of a volume lie in the patient.

    Parameters
    ----------
    axcodes : str
        Directions in which i, j and k grow, such as ``"RAS"``.
    affine : numpy.ndarray
        Index to RAS+ millimetres, 4 x 4 float64.
    source : str
        ``nifti_sform``, ``nifti_qform``, ``nifti_base``, ``dicom_iop`` or ``identity``.
    confidence : str
        ``header``, ``inferred`` or ``unknown`` (the file says nothing).
    """

    axcodes: str
    affine: Affine
    source: str
    confidence: str

    @property
    def is_canonical(self) -> bool:
        """Whether the axes grow towards Right, Anterior, Superior."""
        return self.axcodes == "RAS"


def checked_affine(matrix: object, what: str) -> Affine:
    """Return a 4 x 4 float64 affine, or refuse one that is not finite, not affine or singular."""
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise FormatError("invalid_argument", None, f"{what}: the affine must be 4 x 4 finite numbers")
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise FormatError("invalid_argument", None, f"{what}: the last row of an affine is 0 0 0 1")
    lengths = spacing(affine)
    if (lengths <= 0).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise FormatError("invalid_argument", None, f"{what}: the affine is singular")
    return affine


def spacing(affine: Affine) -> NDArray[np.float64]:
    """Return the millimetres between neighbours along i, j, k."""
    lengths: NDArray[np.float64] = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return lengths


def closest_axes(affine: Affine) -> tuple[tuple[int, int], ...]:
    """Return for i, j, k the world axis that each follows most (0 R, 1 A, 2 S) and its sign.

    Judged on the rotation that is nearest to the affine (shears and zooms removed), each world axis used
    once.
    """
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing(affine))
    rotation = left @ right
    found: dict[int, tuple[int, int]] = {}
    for axis in sorted(
        range(3), key=lambda a: -float(np.abs(rotation[:, a]).max())
    ):  # the clearest axis chooses first
        free = [world for world in range(3) if world not in [used for used, _ in found.values()]]
        world = max(free, key=lambda w: abs(rotation[w, axis]))
        found[axis] = (world, -1 if rotation[world, axis] < 0 else 1)
    return tuple(found[axis] for axis in range(3))


def axcodes(affine: Affine) -> str:
    """Return the directions in which i, j and k grow, such as ``"LPS"``."""
    return "".join(_CODES[world][sign > 0] for world, sign in closest_axes(affine))


def reorient(voxels: NDArray[Any], affine: Affine, target: str = "RAS") -> tuple[NDArray[Any], Affine]:
    """Flip and permute the axes so that they grow towards ``target``; no voxel is resampled.

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
    moved = voxels.transpose(*order, *range(3, voxels.ndim))
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        step[old, new] = -1 if flip else 1
        if flip:
            step[old, 3] = voxels.shape[old] - 1
    moved = moved[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return moved, affine @ step


def corner_error(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """Return the largest distance in mm between the eight corners of a volume under two affines."""
    corners = np.array(np.meshgrid(*((0, size - 1) for size in shape[:3]), indexing="ij")).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.sqrt((((first - second) @ homogeneous)[:3] ** 2).sum(axis=0)).max())


def shifted(affine: Affine, start: tuple[int, ...]) -> Affine:
    """Return the affine of a crop whose first voxel is ``start``."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start[:3], dtype=np.float64)
    return moved


def world_box(
    affine: Affine, shape: tuple[int, ...], centre_mm: object, size_mm: object
) -> tuple[slice, slice, slice]:
    """Return the voxels whose centres cover a box in the world (RAS+ mm), clipped to the volume.

    Raises
    ------
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
    affine = checked_affine(json.loads(text), what)
    return OrientationInfo(
        axcodes(affine),
        affine,
        str(meta.get("orientation_source", "identity")),
        str(meta.get("orientation_confidence", "unknown")),
    )


def to_meta(orientation: OrientationInfo) -> dict[str, str]:
    """Return the metadata that `from_meta` reads."""
    return {
        "orientation_axcodes": orientation.axcodes,
        "orientation_affine": to_json(orientation.affine),
        "orientation_source": orientation.source,
        "orientation_confidence": orientation.confidence,
    }

"""The tables of one resampling: what each step of the stock pipeline does to each axis of a volume.

The order is MONAI's: orientation, spacing, intensities, Gaussian, interpolation. Geometry is computed by
MONAI's own functions; what torch's kernels do with it is asked in `rounding.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import torch
from monai.config import USE_COMPILED
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.networks.utils import to_norm_affine
from monai.transforms import Spacingd
from monai.transforms.inverse import TraceableTransform
from monai.transforms.spatial.functional import scale_affine
from monai.transforms.utils_pytorch_numpy_unification import allclose
from numpy.typing import NDArray

from voxtier import _core
from voxtier.errors import EngineLimitError
from voxtier.tensors.engine.rounding import (
    Grid,
    Lines,
    convolution_sum,
    gaussian_kernel,
    grid_is_fused,
    interpolation_is_fused,
    nearest_voxels,
    resize_lines,
)

if TYPE_CHECKING:
    from monai.transforms import Orientationd

    from voxtier.tensors.identity.config import ImageProcessing

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Oriented:
    """A volume after `Orientationd`."""

    axes: tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]
    """For each axis: which axis of the file it is, and whether it runs backwards."""
    shape: Shape
    affine: Affine
    change: Affine
    """Voxel to voxel of the orientation."""


@dataclass(frozen=True, slots=True)
class Tables:
    """A plan of the core, and the facts that it rests on."""

    core: _core.ResamplePlan | _core.LabelPicks
    spaced: Shape
    """Voxels after the first step."""
    xform: Affine | None
    """Voxel to voxel of the first step; None where `Spacing` returns the volume as it is."""
    rounding: tuple[str, ...]
    """How convolutions along x, y, z and interpolation sum: ``mul+add``, ``fma``, ``blocks``, ``none``."""
    size: Shape
    """Voxels of the result."""


def orient(transform: Orientationd, shape: Shape, affine: Affine) -> Oriented:
    """Return where the axes of a volume go.

    Parameters
    ----------
    transform : Orientationd
        Of the pipeline.
    shape : tuple of int
        Voxels along the axes of the file.
    affine : numpy.ndarray
        4 x 4, voxel to world in millimetres.

    Returns
    -------
    Oriented
        The axes, their lengths and the new affine.

    Raises
    ------
    EngineLimitError
        The affine leaves an axis without a direction.
    """
    orientation = transform.ornt_transform
    labels = {} if orientation.labels is None else {"labels": orientation.labels}
    nib: Any = nibabel.orientations
    wanted = nib.axcodes2ornt(orientation.axcodes, **labels)
    change = nib.ornt_transform(nib.io_orientation(affine), wanted)
    if np.isnan(change).any():
        raise EngineLimitError("an affine that leaves an axis without a direction")
    inverse = nib.inv_ornt_aff(change, shape)
    order = [int(axis) for axis in np.argsort(change[:, 0])]
    first, second, third = ((axis, bool(change[axis, 1] == -1)) for axis in order)
    lengths = (shape[order[0]], shape[order[1]], shape[order[2]])
    return Oriented((first, second, third), lengths, affine @ inverse, inverse)


def make_tables(
    spacing: Spacingd,
    oriented: Oriented,
    processing: ImageProcessing,
    *,
    threads: int = 1,
    is_smoothed: bool = True,
) -> Tables:
    """Return the tables of an image.

    Parameters
    ----------
    spacing : Spacingd
        Of the pipeline.
    oriented : Oriented
        From `orient`.
    processing : ImageProcessing
        The settings of the pipeline.
    threads : int
        Threads of torch in the stock pipeline that is to be equalled: torch chooses kernels by them.
    is_smoothed : bool
        Whether a Gaussian comes before the interpolation to fewer voxels.

    Returns
    -------
    Tables
        For the core.

    Raises
    ------
    EngineLimitError
        Why the core cannot equal the stock pipeline on this volume.
    """
    first, spaced, xform = _first_step(spacing, oriented)
    size = _target_shape(processing, spaced)
    resize = [resize_lines(inputs, outputs) for inputs, outputs in zip(spaced, size, strict=True)]
    kernels = _gaussians(spaced, size if is_smoothed else spaced, threads)
    is_fused = interpolation_is_fused()
    low, high = processing.scale_b_min, processing.scale_b_max
    if processing.clip_hu_max - processing.clip_hu_min == 0:
        raise EngineLimitError("clip_hu_min equals clip_hu_max")
    core = _core.ResamplePlan(
        first,
        resize,
        kernels,
        (
            processing.clip_hu_min,
            processing.clip_hu_max - processing.clip_hu_min,
            high - low,
            low,
            low,
            high,
        ),
        fused=is_fused,
    )
    sums = [name if len(kernel) else "none" for kernel, name in kernels]
    sums.append("fma" if is_fused else "mul+add")
    if isinstance(first, Grid):
        sums.append("fma" if first.fused else "mul+add")
    return Tables(core, spaced, xform, tuple(sums), size)


def make_label_tables(
    spacing: Spacingd, oriented: Oriented, processing: ImageProcessing, *, spaced: Shape | None = None
) -> Tables:
    """Return the tables of a label, which takes the nearest voxel in both steps.

    Parameters
    ----------
    spacing, oriented, processing : Spacingd, Oriented, ImageProcessing
        As for `make_tables`.
    spaced : tuple of int, optional
        The shape of the spaced image, where `Spacingd` gives the label that shape too.

    Returns
    -------
    Tables
        For the core.

    Raises
    ------
    EngineLimitError
        Why the core cannot equal the stock pipeline on this label.
    """
    lines, found, xform = _first_step(spacing, oriented, spaced)
    if isinstance(lines, Grid):
        raise EngineLimitError("an oblique label")
    size = _target_shape(processing, found)
    picks = []
    for line, inputs, outputs in zip(lines, found, size, strict=True):
        # Exact: `near` and `far` are the distances from the voxel that torch rounds from.
        nearest = np.rint(line.voxel + line.far).astype(np.uint32)
        picks.append(np.ascontiguousarray(nearest[nearest_voxels(inputs, outputs)]))
    x, y, z = picks
    return Tables(_core.LabelPicks(oriented.shape, [x, y, z]), found, xform, (), size)


def _target_shape(processing: ImageProcessing, spaced: Shape) -> Shape:
    x, y, z = processing.target_shape_dhw or spaced
    return x, y, z


def _first_step(
    transform: Spacingd, oriented: Oriented, spaced: Shape | None = None
) -> tuple[list[Lines] | Grid, Shape, Affine | None]:
    """Return what MONAI's `spatial_resample` and torch's `grid_sample` do, the new shape, and the matrix."""
    if USE_COMPILED:
        raise EngineLimitError("MONAI resamples by its compiled kernels (BUILD_MONAI)")
    target, shape = _target_grid(transform, oriented, spaced)
    xform = np.asarray(np.linalg.solve(oriented.affine, target), np.float64)
    is_close = allclose(oriented.affine, target, atol=AFFINE_TOL) or allclose(
        xform, np.eye(4), atol=AFFINE_TOL
    )
    if is_close and shape == oriented.shape:
        return [_copy_lines(length) for length in shape], shape, None
    theta = to_norm_affine(torch.from_numpy(xform)[None], oriented.shape, shape, align_corners=False)
    reverse = torch.as_tensor([2, 1, 0])
    theta[:, :3] = theta[:, reverse]
    theta[:, :, :3] = theta[:, :, reverse]
    matrix = theta[0, :3, :3]
    if bool((matrix - torch.diag(torch.diag(matrix)) != 0).any()):
        return _grid(theta[0, :3], oriented.shape, shape), shape, xform
    return (
        [
            _sampled_lines(theta[:, :3], axis, inputs, outputs)
            for axis, (inputs, outputs) in enumerate(zip(oriented.shape, shape, strict=True))
        ],
        shape,
        xform,
    )


def _target_grid(transform: Spacingd, oriented: Oriented, spaced: Shape | None) -> tuple[Affine, Shape]:
    """Return the affine and the shape that `Spacing` asks its resampling for; nothing is resampled."""
    asked: dict[str, Any] = {}

    def resample(_: Any, **arguments: Any) -> None:
        asked.update(arguments)

    spacing = copy.copy(transform.spacing_transform)
    spacing.sp_resample = resample
    image = MetaTensor(torch.zeros(1).expand(1, *oriented.shape), affine=torch.from_numpy(oriented.affine))
    spacing(
        image,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
        dtype=np.float64,
        output_spatial_shape=spaced,
    )
    x, y, z = (int(length) for length in asked["spatial_size"])
    if min(x, y, z) < 1:
        raise EngineLimitError(f"a spaced volume of {x} x {y} x {z} voxels")
    return np.asarray(asked["dst_affine"], np.float64), (x, y, z)


def _copy_lines(length: int) -> Lines:
    return Lines(length, np.arange(length, dtype=np.uint32), np.ones(length), np.zeros(length))


def _grid(theta: Any, inputs: Shape, outputs: Shape) -> Grid:
    """Return the places by a matrix that mixes axes; torch counts the axes from the last."""
    if not bool(torch.isfinite(theta).all()):
        raise EngineLimitError("a grid that is not finite")
    straight = torch.eye(4, dtype=torch.float64)[None, :3]
    coordinates = [_coordinates(straight, axis, count) for axis, count in enumerate(outputs)]
    matrix = [[float(number) for number in theta[2 - axis]] for axis in range(3)]
    return Grid(inputs, coordinates, matrix, grid_is_fused())


def _coordinates(theta: Any, axis: int, outputs: int) -> NDArray[np.float64]:
    """Return what `affine_grid` gives along one axis, the others being of length 1."""
    size = [1, 1, 1, 1, 1]
    size[2 + axis] = outputs
    grid = torch.nn.functional.affine_grid(theta, size, align_corners=False)
    return np.ascontiguousarray(grid.reshape(-1, 3)[:, 2 - axis].numpy())


def _sampled_lines(theta: Any, axis: int, inputs: int, outputs: int) -> Lines:
    """Return the table of one axis of a matrix that mixes no axes."""
    grid = _coordinates(theta, axis, outputs)
    place = ((grid + 1) * inputs - 1) / 2
    place = np.minimum(inputs - 1, np.maximum(place, 0.0))
    if not np.isfinite(place).all() or (np.diff(place) < 0).any():
        raise EngineLimitError("a grid that is not ascending")
    index = np.floor(place)
    return Lines(inputs, index.astype(np.uint32), (index + 1) - place, place - index)


def _gaussians(spaced: Shape, size: tuple[int, ...], threads: int) -> list[tuple[NDArray[np.float32], str]]:
    """Return the kernel of the anti-aliasing along each axis and how its products are summed."""
    if not any(outputs < inputs for inputs, outputs in zip(spaced, size, strict=True)):
        return [(np.zeros(0, np.float32), "fma")] * 3
    factors = torch.div(torch.Tensor(list(spaced)), torch.Tensor(size))
    sigmas = torch.maximum(torch.zeros(3), (factors - 1) / 2).tolist()
    kernels = [gaussian_kernel(sigma) for sigma in sigmas]
    found = []
    for axis, kernel in enumerate(kernels):
        # All paddings come before the first convolution; each takes its own away again.
        x, y, z = (
            length + (len(kernels[each]) - 1 if each >= axis else 0) for each, length in enumerate(spaced)
        )
        a, b, c = (len(kernel) if each == axis else 1 for each in range(3))
        found.append((kernel, convolution_sum((x, y, z), (a, b, c), threads)))
    return found


def move_metadata(
    item: dict[str, Any], key: str, oriented: Oriented, tables: Tables, *, resized: bool
) -> None:
    """Change the metadata of an image or label as the transforms of the pipeline do.

    Parameters
    ----------
    item : dict
        From `load_headers`; the metadata of the key are changed, in the image and beside it.
    key : str
        Which one.
    oriented : Oriented
        From `orient`.
    tables : Tables
        From `make_tables` or `make_label_tables`.
    resized : bool
        Whether `Resized` is among the transforms.
    """
    image = _moved(item[key], oriented.change)
    image = _moved(image, None if tables.xform is None else torch.from_numpy(tables.xform))
    for beside in item if _spacing_tells_metadata() else ():
        if isinstance(beside, str) and beside.startswith(f"{key}_"):
            item[beside].update(image.meta)
    item[key] = _moved(image, scale_affine(tables.spaced, tables.size)) if resized else image


@lru_cache(maxsize=1)
def _spacing_tells_metadata() -> bool:
    """Whether this version's `Spacingd` also changes the metadata beside an image: MONAI 1.5.2 does not."""
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "a.nii"}, affine=torch.eye(4))
    item = Spacingd(keys=["image"], pixdim=(1.0, 1.0, 1.0))({"image": image, "image_meta_dict": {}})
    return bool(item["image_meta_dict"])


def _moved(image: Any, change: Any) -> Any:
    moved = image.clone()
    moved.copy_meta_from(TraceableTransform.track_transform_meta(image, affine=change))
    return moved

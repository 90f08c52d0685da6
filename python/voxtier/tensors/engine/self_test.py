"""The proof that the engine must give before it makes a tensor in a process: four volumes, both ways."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel
import numpy as np

from voxtier.errors import VoxtierError
from voxtier.system.text import describe_error
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.identity.pipeline import build_transforms

if TYPE_CHECKING:
    from voxtier.tensors.identity.config import ImageProcessing


class _Case(NamedTuple):
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    """Of the volume in those of the result: below 1 it has more voxels."""
    size: tuple[int, int, int]
    slope: float
    turn: float = 0.0
    """Radians by which the first axis is turned to the second."""


_CASES = (
    _Case((40, 37, 18), (0.93, 0.93, 1.4), (11, 21, 30), 1.0),
    _Case((1, 9, 12), (1.7, 0.6, 2.1), (3, 5, 31), 0.5),
    _Case((70, 66, 60), (0.9, 0.95, 0.8), (33, 70, 20), 1.0),
    _Case((31, 29, 23), (0.9, 1.2, 0.8), (20, 30, 11), 1.0, turn=0.2),
)
"""Every axis shrinks in one of them and grows in another; the third is large enough for oneDNN."""


def find_fault(processing: ImageProcessing) -> str:
    """Return why the engine must not be used in this process for these settings, or ``""``.

    Raises
    ------
    MemoryError
        There is not enough memory for the self-test.
    """
    try:
        return _compare(processing)
    except MemoryError:
        raise
    except Exception as error:  # such as what MONAI raises of these settings, or no room for the volumes
        return f"the self-test could not run: {describe_cause(error)}"


def find_cause(error: BaseException) -> BaseException:
    """Return the innermost cause that is clear: MONAI wraps every error in 'applying transform ...'.

    Errors of ours, and those of the system that have a number, are clear; what torch says below them is not.
    """
    while error.__cause__ is not None and not isinstance(error, VoxtierError):
        if isinstance(error, OSError) and error.errno is not None:
            break
        error = error.__cause__
    return error


def describe_cause(error: BaseException) -> str:
    """Return the cause of an error in one line."""
    return describe_error(find_cause(error))


def _compare(processing: ImageProcessing) -> str:
    with tempfile.TemporaryDirectory(prefix="voxtier-engine-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, case in enumerate(_CASES):
            path = Path(folder) / f"{number}.nii.gz"
            _write_volume(path, case, processing, number)
            settings = replace(processing, target_shape_dhw=case.size)
            transforms = build_transforms(settings)
            item = {"image": path}
            stock = partial(transforms, item)
            engine = Engine(configured_pipeline(transforms, settings))
            _, outcome = engine.make(item, stock, is_checked=True)
            # Turned axes may be left to MONAI, volume by volume, and the others not.
            if outcome.difference:
                return f"core and MONAI differ in volume {number} of the self-test: {outcome.difference}"
            if outcome.engine != "fused" and not case.turn:
                return f"the core does not take volume {number} of the self-test: {outcome.reason}"
    return ""


def _write_volume(path: Path, case: _Case, processing: ImageProcessing, seed: int) -> None:
    generator = np.random.default_rng(seed)
    limits = np.nan_to_num([processing.clip_hu_min, processing.clip_hu_max]).clip(-32768, 32767)
    low, high = limits.min(), limits.max()
    margin = (high - low) / 8
    values = generator.uniform(low - margin, high + margin, case.shape) / case.slope
    stored = np.clip(np.rint(values), -32768, 32767).astype(np.int16)
    # MONAI keeps the spacing of the volume for lengths that are none.
    lengths = [each if 0 < each < np.inf else 1.0 for each in processing.target_spacing]
    spacing = np.array(case.spacing) * lengths
    affine = np.diag([*(spacing * (-1) ** np.arange(seed, seed + 3)), 1.0])
    if case.turn:
        cosine, sine = np.cos(case.turn), np.sin(case.turn)
        affine[:2] = np.array([[cosine, -sine], [sine, cosine]]) @ affine[:2]
    affine[:3, 3] = (-170.5, 90.25, -310.125)
    image: Any = nibabel.Nifti1Image(stored, affine)
    if case.slope != 1.0:
        image.header.set_slope_inter(case.slope, 0.0)
    nibabel.save(image, path)

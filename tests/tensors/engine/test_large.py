"""Volumes of a thousand slices and of more than 4 GiB: `make soak`, as MONAI takes 14 GB for one."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("monai")

import torch

from tensors.engine import fuzz
from voxtier.tensors.engine.engine import Engine
from voxtier.tensors.engine.pipelines import configured_pipeline
from voxtier.tensors.identity.config import ImageProcessing
from voxtier.tensors.identity.pipeline import build_transforms

PROCESSING = ImageProcessing((0.75, 0.75, 1.5), (128, 256, 256), -1000, 1000, "LPS", -1.0, 1.0, "float32")

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("one_thread")]


def fused(path: Path) -> Any:
    transforms = build_transforms(PROCESSING)
    item, _ = Engine(configured_pipeline(transforms, PROCESSING)).fuse({"image": path})
    return item["image"]


def write(path: Path, slices: int, *, side: int, depends_on_slice_only: bool = False) -> None:
    """Write a volume slice by slice: noise, or one value a slice, the same for every side."""
    random = np.random.default_rng(7)
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([-0.7, 0.7, 1.0, 1.0])).header
    header.set_data_shape((side, side, slices))
    header["vox_offset"] = 352
    firsts = random.integers(-900, 900, slices, np.int16)
    plane = random.integers(-1100, 1100, (side, side), np.int16)
    is_zipped = path.suffix == ".gz"
    with gzip.open(path, "wb", compresslevel=1) if is_zipped else path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for number, first in enumerate(firsts):
            if depends_on_slice_only:
                stream.write(np.full(side * side, first, np.int16).tobytes())
            else:
                stream.write(np.roll(plane, (7 * number, 3 * number), (0, 1)).tobytes())


def test_a_thousand_slices(tmp_path: Path) -> None:
    path = tmp_path / "long.nii.gz"
    write(path, 1000, side=512)
    expected = build_transforms(PROCESSING)({"image": path})["image"]
    assert np.array_equal(fuzz.bits(fused(path)), fuzz.bits(expected))


def test_more_than_four_gigabytes_behind_gzip(tmp_path: Path) -> None:
    """A gzip trailer knows sizes modulo 2**32 only."""
    slices, side = 1000, 1500
    assert 2 * slices * side * side > 1 << 32
    zipped, plain, narrow = tmp_path / "big.nii.gz", tmp_path / "big.nii", tmp_path / "narrow.nii"
    for path, width in ((zipped, side), (plain, side), (narrow, 300)):
        write(path, slices, side=width, depends_on_slice_only=True)
    found = fused(zipped)
    assert np.array_equal(fuzz.bits(found), fuzz.bits(fused(plain)))
    plain.unlink()
    expected = build_transforms(PROCESSING)({"image": narrow})["image"][0, 64, 128]
    # The truncated kernels within the slices have other sums, as they shrink other sides to the same.
    assert torch.allclose(found[0, 64, 128], expected, atol=1e-3)
    assert float(expected.std()) > 0.1

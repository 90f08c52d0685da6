"""A number that a user states is held by the type that it goes into, or refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtier.errors import ConfigError
from voxtier.volumes import (
    Augmentation,
    DatasetConfig,
    GridPatchDataset,
    Normalize,
    RadiObject,
    SegmentationDataset,
    Volume,
    batches,
)

HELD: dict[str, list[Any]] = {
    "uint8": [0, -0.0, 255, 255.0, True, np.float32(7), np.int64(7)],
    "int16": [-1000, -1000.0, 32767, np.float16(-8)],
    "int64": [-(2**63), -(2.0**63), 2**63 - 1],
    "uint64": [2**64 - 1, 2.0**63],
    "float16": [0.5, 65504, math.nan, -math.inf],
    "float32": [1e38, 2**70, math.nan, math.inf, 0.1],
    "float64": [1e300, math.nan],
    "bool": [0, 1, 1.0, False],
    "complex64": [0, 1.5, 2j],
}
OTHER: dict[str, list[Any]] = {
    "uint8": [-1, -1000.0, 256.0, 0.5, math.nan, math.inf, None, "a", [1, 2], 1j, 10**400, np.float32(-1)],
    "int16": [32768, 32768.0, 1e6, 1e40, math.nan],
    "int64": [2**63, 2.0**63, 1e40, math.nan],
    "uint64": [2**64, 2.0**64, -1.0],
    "float16": [1e6, 65536],  # stored in cells of 32 bits
    "float32": [1e40, 10**40, 10**400, "a", None],
    "float64": [10**400, 1j],
    "bool": [7, -1, 0.5],  # stored in bytes
    "complex64": [1e40j, None],
}


def read_outside(volume: Volume, fill: Any) -> np.ndarray[Any, Any]:
    return volume.read_patches(np.array([[0, -1, 0]]), (2, 2, 2), fill=fill)[0, :, 0]


@pytest.mark.parametrize("kind", HELD)
def test_a_fill_is_in_the_patch_or_refused(tmp_path: Path, kind: str) -> None:
    volume = Volume.from_numpy(str(tmp_path / "v"), np.ones((2, 2, 2), kind))
    for fill in HELD[kind]:
        found = read_outside(volume, fill)
        assert found.dtype == kind
        wanted = np.full(found.shape, fill, kind)
        assert np.array_equal(found, wanted, equal_nan=found.dtype.kind in "fc")
        assert found.dtype.kind in "fc" or {each.item() for each in found.ravel()} == {fill}
    for fill in OTHER[kind]:
        with pytest.raises(ConfigError, match=f"is no number that cells of {kind} hold"):
            read_outside(volume, fill)
        if kind != "complex64":
            with pytest.raises(ConfigError, match="is no number that cells"):
                volume.read_patches_into(np.array([[0, -1, 0]]), np.empty((1, 2, 2, 2), "f4"), fill=fill)


@pytest.mark.parametrize("fill", [-1000, -1000.0, math.nan, 0.5])
def test_a_mask_with_a_fill_that_only_the_image_holds_is_refused(tmp_path: Path, fill: float) -> None:
    pytest.importorskip("torch")
    nibabel = pytest.importorskip("nibabel")
    for name, dtype in (("CT", np.float32), ("seg", np.uint8)):
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 2, 4), dtype), np.eye(4)), tmp_path / f"s_{name}.nii")
    radi = RadiObject.from_niftis(
        tmp_path / "store", images={name: str(tmp_path / f"*_{name}.nii") for name in ("CT", "seg")}
    )
    config = {"loading_mode": "patch", "patch_size": 4, "fill": fill}
    data = SegmentationDataset(radi.CT, radi.seg, DatasetConfig(**config))
    for draw in (lambda: data[0], lambda: next(iter(batches(data, 1)))):
        with pytest.raises(
            ConfigError, match=r"cells of uint8 hold \(a mask has a fill of its own: mask_fill=\)"
        ):
            draw()
    data = SegmentationDataset(radi.CT, radi.seg, DatasetConfig(**config, mask_fill=9))
    for item in (data[0], next(iter(batches(data, 1)))):
        assert np.unique(np.asarray(item["mask"])).tolist() == [1, 9]
        outside = np.asarray(item["image"])
        assert np.array_equal(np.unique(outside), np.unique([1.0, fill]), equal_nan=True)
    image = GridPatchDataset(radi.CT.iloc[0], 4, fill=fill)[0]["image"]
    assert np.array_equal(np.unique(image), np.unique([1.0, fill]), equal_nan=True)


@pytest.mark.parametrize("numbers", [{"std": 1e-50}, {"mean": 1e39}, {"std": 1e39}, {"low": math.nan}])
def test_what_32_bits_make_zero_or_infinite_does_not_normalise(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="normalising needs"):
        Normalize(**numbers)


@pytest.mark.parametrize("ends", [(math.nan, math.nan), (0.0, math.inf), (1.0, 0.0)])
def test_angles_are_a_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="rotation is a range"):
        Augmentation(rotation=ends)

"""Items and batches in a type that was asked for, and patches that go back into a volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from voxtier.errors import ConfigError
from voxtier.volumes import RadiObject, RadiObjectWriter, Volume, batches
from voxtier.volumes.training.datasets import DatasetConfig, GridPatchDataset, VolumeCollectionDataset
from voxtier.volumes.training.sampling import GridAggregator


def in_volume(collection: Any, mode: str, dtype: str) -> NDArray[Any]:
    """Return the voxels of the only volume as an item holds them."""
    size = 6 if mode == "patch" else None
    data = VolumeCollectionDataset(collection, DatasetConfig(mode, size, dtype=dtype))
    return np.stack([item["image"] for item in data])


def in_batch(collection: Any, dtype: str, asked: str | None) -> NDArray[Any]:
    pytest.importorskip("torch")
    data = VolumeCollectionDataset(collection, DatasetConfig("patch", 6, dtype=dtype))
    return next(iter(batches(data, 1, dtype=asked)))["image"].numpy()


DOORS: dict[str, Callable[[Any, str], NDArray[Any]]] = {
    "patch": lambda collection, dtype: in_volume(collection, "patch", dtype),
    "full_volume": lambda collection, dtype: in_volume(collection, "full_volume", dtype),
    "slice_2d": lambda collection, dtype: in_volume(collection, "slice_2d", dtype),
    "grid": lambda collection, dtype: GridPatchDataset(collection.iloc[0], 6, dtype=dtype)[0]["image"],
    "batch": lambda collection, dtype: in_batch(collection, dtype, None),
    "stored batch": lambda collection, dtype: in_batch(collection, "float32", dtype),
    "patches into": lambda collection, dtype: into(collection.iloc[0], dtype),
}


def into(volume: Volume, dtype: str) -> NDArray[Any]:
    out = np.zeros((1, *volume.shape), dtype)
    volume.read_patches_into(np.zeros((1, volume.ndim), np.int64), out)
    return out


def store(folder: Path, numbers: NDArray[Any]) -> Any:
    with RadiObjectWriter(folder / "r") as writer, writer.add_collection("CT") as collection:
        collection.write_volume(numbers, "a_CT", "a")
    return RadiObject(folder / "r").CT


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("times", [(), (2,)])
@pytest.mark.parametrize(
    ("stored", "held", "refused"),
    [
        ([-1000, 3000], "int16", ["uint8", "uint16", "int8", "bool"]),
        ([0, 255], "uint8", ["int8"]),
        ([0, 70_000], "uint32", ["uint16", "int16", "float16"]),
        ([0.0, 2.0], "uint8", []),
        ([0.5, 2.0], "float32", ["uint8", "int64"]),
        ([np.nan, 2.0], "float32", ["int32"]),
    ],
)
def test_numbers_that_a_type_cannot_hold_are_refused_at_every_door(
    tmp_path: Path, door: str, times: tuple[int, ...], stored: list[float], held: str, refused: list[str]
) -> None:
    numbers = np.resize(np.array(stored, np.int64 if isinstance(stored[0], int) else np.float64), (6, 6, 6))
    numbers = np.stack([numbers] * 2, axis=-1) if times else numbers
    collection, read = store(tmp_path, numbers), DOORS[door]
    image = read(collection, held)
    assert image.dtype == held
    assert {str(float(number)) for number in np.unique(image)} == {str(number * 1.0) for number in stored}
    if door in ("batch", "stored batch"):
        refused = [dtype for dtype in refused if dtype != "bool"]  # no type of batches at all
    for dtype in refused:
        with pytest.raises(ConfigError, match=f"a_CT.*: {dtype} cannot hold these numbers"):
            read(collection, dtype)


def test_channels_are_cast_one_by_one(tmp_path: Path) -> None:
    """Beside signed ones numpy makes floats of unsigned numbers of 64 bits, which have fewer digits."""
    great = 2**53 + 1
    with RadiObjectWriter(tmp_path / "r") as writer:
        for name, dtype in (("A", np.int64), ("B", np.uint64)):
            with writer.add_collection(name) as collection:
                collection.write_volume(np.full((3, 3, 3), great, dtype), f"a_{name}", "a")
    radi = RadiObject(tmp_path / "r")
    data = VolumeCollectionDataset([radi.A, radi.B], DatasetConfig("full_volume", dtype="int64"))
    assert np.unique(data[0]["image"]).tolist() == [great]


def test_what_lies_outside_a_volume_is_dropped() -> None:
    rng = np.random.default_rng(0)
    for start in np.ndindex(6, 6, 6):
        corner = [(-9, -4, -1, 2, 5, 7)[place] for place in start]
        patch, whole = rng.random((4, 4, 4)), GridAggregator((5, 6, 7))
        whole.add(np.ones((5, 6, 7)), (0, 0, 0))
        whole.add(patch, corner)
        wanted = np.ones((5, 6, 7))  # voxel by voxel
        for place in np.ndindex(wanted.shape):
            inside = [index - first for index, first in zip(place, corner, strict=True)]
            if all(0 <= index < 4 for index in inside):
                wanted[place] = (1 + patch[tuple(inside)]) / 2
        assert np.array_equal(whole.result(), wanted), corner

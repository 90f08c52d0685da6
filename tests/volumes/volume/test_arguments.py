"""Whole numbers that users give: NumPy's count like Python's, and what is none is refused, not cut off."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tree.graph import PACKAGE
from volumes.support.images import pairs
from voxtier.arguments import several, whole_number
from voxtier.errors import ConfigError, IngestError
from voxtier.volumes import (
    Augmentation,
    ClassSampler,
    CompressionConfig,
    DatasetConfig,
    EpochSampler,
    ForegroundSampler,
    GridAggregator,
    GridPatchDataset,
    LesionSampler,
    RadiObject,
    ReadConfig,
    S3Config,
    StreamingWriter,
    TileConfig,
    Volume,
    VolumeCollectionDataset,
    batches,
    data_loader,
)

PATCHES = DatasetConfig("patch", patch_size=2)
Door = Callable[[RadiObject, Path, Any], Any]


def create(_: RadiObject, folder: Path, size: Any) -> tuple[int, ...]:
    place = folder / str(len(list(folder.iterdir())))
    return Volume.create(place, (4, size, 4)).shape


def in_state(radi: RadiObject, name: str, value: Any) -> list[int]:
    loader = batches(VolumeCollectionDataset(radi.T1w, PATCHES), batch_size=1)
    loader.load_state_dict({**loader.state_dict(), name: value})
    return [int(batch["idx"][0]) for batch in loader]


def drawn(radi: RadiObject, **options: Any) -> list[Any]:
    """Return the places of a pass over patches."""
    config, own = options.pop("config", PATCHES), VolumeCollectionDataset
    loader = batches(own(radi.T1w, config), **{"batch_size": 2, **options})
    return [batch["patch_start"].tolist() for batch in loader]


def after(thing: Any, epoch: Any) -> Any:
    thing.set_epoch(epoch)
    return thing


# What each takes, and a number that is right for it.
DOORS: dict[str, tuple[int, Door]] = {
    "tile extent x": (8, lambda *a: TileConfig(x=a[2])),
    "tile extent t": (2, lambda *a: TileConfig(t=a[2])),
    "compression level": (5, lambda *a: CompressionConfig(level=a[2])),
    "memory_budget_mb": (64, lambda *a: ReadConfig(memory_budget_mb=a[2])),
    "concurrency": (2, lambda *a: ReadConfig(concurrency=a[2])),
    "max_workers": (2, lambda *a: ReadConfig(max_workers=a[2])),
    "tile_cache_size_mb": (16, lambda *a: ReadConfig(tile_cache_size_mb=a[2])),
    "max_parallel_ops": (2, lambda *a: S3Config(max_parallel_ops=a[2])),
    "multipart_part_size_mb": (5, lambda *a: S3Config(multipart_part_size_mb=a[2])),
    "memory_mb": (64, lambda radi, _, n: radi.T1w.iloc[0].consolidate(memory_mb=n)),
    "size of a shape": (5, create),
    "size of a patch": (2, lambda radi, _, n: radi.T1w.iloc[0].read_patches([[0, 0, 0]], (1, n, 2)).shape),
    "start of a box": (1, lambda radi, _, n: radi.T1w.iloc[0].update((0, n, 0), np.ones((1, 1, 1), int))),
    "patch_size": (2, lambda *a: DatasetConfig("patch", patch_size=(2, a[2], 2))),
    "patch_size is": (2, lambda *a: DatasetConfig("patch", patch_size=a[2])),
    "stride": (2, lambda radi, _, n: GridPatchDataset(radi.T1w.iloc[0], 2, n).starts),
    "patches_per_volume": (2, lambda radi, _, n: drawn(radi, config=DatasetConfig("patch", 2, n))),
    "seed": (7, lambda radi, _, n: drawn(radi, config=DatasetConfig("patch", 2, seed=n))),
    "seed ": (7, lambda radi, _, n: drawn(radi, seed=n)),
    "batch_size": (2, lambda radi, _, n: drawn(radi, batch_size=n)),
    "threads": (2, lambda radi, _, n: drawn(radi, threads=n)),
    "prefetch": (2, lambda radi, _, n: drawn(radi, prefetch=n)),
    "world_size": (2, lambda radi, _, n: drawn(radi, world_size=n)),
    "batch of a state": (1, lambda radi, _, n: in_state(radi, "batch", n)),
    "epoch of a state": (1, lambda radi, _, n: in_state(radi, "epoch", n)),
    "length": (3, lambda *a: list(EpochSampler(a[2]))),
    "rank": (1, lambda *a: list(EpochSampler(9, rank=a[2], world_size=2))),
    "epoch": (1, lambda *a: list(after(EpochSampler(9), a[2]))),
    "epoch ": (
        1,
        lambda radi, _, n: after(VolumeCollectionDataset(radi.T1w, PATCHES), n)[1]["patch_start"].tolist(),
    ),
    "flat_axis": (1, lambda *a: Augmentation(flat_axis=a[2])),
    "class of lesions": (1, lambda *a: LesionSampler(1.0, a[2]).label),
    "batch_size  ": (2, lambda radi, _, n: len(data_loader(radi.T1w.to_dataset(), batch_size=n))),
    "num_workers": (0, lambda radi, _, n: data_loader(radi.T1w.to_dataset(), num_workers=n).num_workers),
    "batch_size   ": (2, lambda radi, _, n: [len(b.obs_ids) for b in radi.T1w.lazy().iter_batches(n)]),
    "batch_size    ": (2, lambda radi, _, n: len(radi.T1w.map_batches(lambda batch: [1] * len(batch), n))),
}


@pytest.fixture(scope="module")
def radi(tmp_path_factory: pytest.TempPathFactory) -> RadiObject:
    folder = tmp_path_factory.mktemp("numbers")
    return RadiObject.from_niftis(folder / "store", images={"T1w": pairs(folder / "in", ["a", "b", "c"])})


@pytest.mark.parametrize("what", DOORS)
def test_numbers_of_numpy_do_what_those_of_python_do(radi: RadiObject, tmp_path: Path, what: str) -> None:
    number, door = DOORS[what]
    expected = door(radi, tmp_path, number)
    for kind in (np.int64, np.uint8, np.array):
        assert door(radi, tmp_path, kind(number)) == expected


@pytest.mark.parametrize("what", DOORS)
def test_what_is_no_whole_number_is_refused_by_name(radi: RadiObject, tmp_path: Path, what: str) -> None:
    number, door = DOORS[what]
    before = radi.T1w.iloc[0].to_numpy().copy()
    for wrong in (number + 0.5, float(number), np.float64(number), str(number), True, [number, number]):
        with pytest.raises(ConfigError, match=what.strip()):
            door(radi, tmp_path, wrong)
    assert np.array_equal(radi.T1w.iloc[0].to_numpy(), before)


def test_a_class_of_a_mask_is_a_number() -> None:
    for label in (1, 1.5, np.uint8(1), np.float32(1.5), np.array(1)):
        assert ForegroundSampler(0.5, label=label).label == label
    for wrong in (True, "1", float("nan"), np.zeros(2), [1]):
        with pytest.raises(ConfigError, match="label is a class of the mask"):
            ForegroundSampler(0.5, label=wrong)
    for wrong in ("1", True, np.nan):
        with pytest.raises(ConfigError, match="a class of the mask"):
            ClassSampler({wrong: 1.0})


def test_a_box_is_written_where_numpy_would_write_it(tmp_path: Path) -> None:
    expected, box = np.zeros((7, 6, 5), np.int16), np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    volume = Volume.from_numpy(tmp_path / "v", expected)
    for start in ((np.array(volume.shape) - 2) // 2, (np.uint8(5), 0, np.int64(3)), [0, 4, 1]):
        volume.update(start, box)
        x, y, z = start
        expected[x : x + 2, y : y + 2, z : z + 2] = box
    assert np.array_equal(volume[...], expected)
    for start in ((np.array(volume.shape) - 2) / 2, (-0.5, 0, 0), ("3", 0, 0), (np.nan, 0, 0)):
        with pytest.raises(ConfigError, match="start of a box must be a whole number"):
            volume.update(start, box)
    assert np.array_equal(volume[...], expected)


def test_an_item_has_a_whole_number(radi: RadiObject) -> None:
    data = radi.T1w.to_dataset()
    assert data[np.int64(1)]["obs_id"] == data[1]["obs_id"]
    for wrong in (1.5, 1.0, "1"):
        with pytest.raises(TypeError):
            data[wrong]
    grid = GridPatchDataset(radi.T1w.iloc[0], iter((2, 2, 2)), iter((1, 2, 2)))
    assert grid.starts == GridPatchDataset(radi.T1w.iloc[0], 2, (1, 2, 2)).starts


def test_numbers_keep_to_their_bounds() -> None:
    assert (whole_number("n", 3, 3, 3), whole_number("n", 2**70)) == (3, 2**70)
    for value, least, most, words in (
        (2, 3, None, "n must be a whole number >= 3, got 2"),
        (4, None, 3, "n must be a whole number <= 3, got 4"),
        (np.int8(-1), 0, 9, "n must be a whole number from 0 to 9, got -1"),
        (None, None, None, "n must be a whole number, got None"),
    ):
        with pytest.raises(ConfigError) as caught:
            whole_number("n", value, least, most)
        assert str(caught.value) == words


def test_masked_voxels_are_refused_with_the_remedy(radi: RadiObject, tmp_path: Path) -> None:
    masked = np.ma.MaskedArray(np.full((5, 6, 7), 7, np.int16), mask=False)
    plain = Volume.from_numpy(tmp_path / "plain", masked)
    assert (plain[...] == 7).all()
    masked[0, 0, 0] = np.ma.masked
    grid = GridAggregator((5, 6, 7))
    with StreamingWriter(tmp_path / "written") as writer:
        writer.write_volume(masked.filled(0), "a", "a")
        for store in (
            lambda: Volume.from_numpy(tmp_path / "masked", masked),
            lambda: plain.update((0, 0, 0), masked),
            lambda: writer.write_volume(masked, "b", "b"),
            lambda: radi.T1w.map_batches(lambda batch: [masked] * len(batch)).write(tmp_path / "mapped"),
            lambda: next(radi.T1w.map(lambda _: masked).iter_arrays()),
            lambda: grid.add(masked, (0, 0, 0)),
        ):
            with pytest.raises(ConfigError, match=r"masked voxels.*\.filled\(value\)"):
                store()
    with pytest.raises(IngestError, match="masked voxels"):
        radi.T1w.map(lambda _: masked).materialize(tmp_path / "lazy")
    assert (plain[...] == 7).all()
    assert writer.close().obs_ids == ["a"]
    assert not (tmp_path / "masked").exists()


def test_one_text_or_path_is_one() -> None:
    for one in ("ab", b"ab", Path("ab")):
        assert several(one) == [one]
    assert several(letter for letter in "ab") == several({"a": 0, "b": 0}) == ["a", "b"]


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (TileConfig, "config"),
        (CompressionConfig, "config"),
        (DatasetConfig, "training/datasets/config"),
    ],
)
def test_what_is_told_to_type_checkers_is_what_the_class_takes(kind: Any, file: str) -> None:
    """Their ``__init__`` is written twice: by `dataclass`, and for who checks types."""
    tree = ast.parse((PACKAGE / "volumes" / f"{file}.py").read_text())
    (told,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    (init,) = [
        node for node in ast.walk(told) if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    fields = [item for item in told.body if isinstance(item, ast.AnnAssign)]
    assert [argument.arg for argument in init.args.args[1:]] == [f.name for f in dataclasses.fields(kind)]
    assert [ast.unparse(each) for each in init.args.defaults] == [ast.unparse(item.value) for item in fields]

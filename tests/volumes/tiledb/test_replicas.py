"""Volumes in several tilings: the cheapest answers, and only while it holds the same voxels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from volumes.support.checks import check_identity
from volumes.support.images import pairs
from voxtier.errors import ConfigError
from voxtier.volumes import CompressionConfig, RadiObject, ReadConfig, TileConfig, Volume, configure
from voxtier.volumes.tiledb import replicas
from voxtier.volumes.tiledb.arrays import open_array
from voxtier.volumes.tiledb.session import Session

SHAPE = (40, 36, 30)


def make(
    folder: Path,
    orientation: str = "axial",
    others: Sequence[str] = ("sagittal", "coronal"),
    shape: tuple[int, ...] = SHAPE,
    dtype: Any = np.int16,
) -> tuple[Volume, NDArray[Any]]:
    configure(tile=TileConfig(orientation, replicas=others), io=ReadConfig(tile_cache_size_mb=0))
    data = np.random.default_rng(1).integers(0, 999, shape).astype(dtype)
    return Volume.from_numpy(folder / "v", data), data


def tiling_of(volume: Volume, *key: int | slice) -> str:
    """Return the tiling that answers a read."""
    region = tuple(
        (k, 1, 1) if isinstance(k, int) else (0, n, 1) for k, n in zip(key, volume.shape, strict=True)
    )
    return replicas.cheapest(volume.array, region).uri.rpartition("/")[2]


def test_each_plane_is_read_from_its_own_tiles(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    every = slice(None)
    assert volume.replicas == ["sagittal", "coronal"]
    assert tiling_of(volume, every, every, 3) == "v"
    assert tiling_of(volume, 3, every, every) == "replica-sagittal"
    assert tiling_of(volume, every, 3, every) == "replica-coronal"
    assert np.array_equal(volume.axial(3), data[:, :, 3])
    assert np.array_equal(volume.sagittal(3), data[3])
    assert np.array_equal(volume.coronal(3), data[:, 3])
    assert np.array_equal(volume[::-2, 5:9, ::7], data[::-2, 5:9, ::7])
    assert np.array_equal(volume.to_numpy(), data)
    starts = np.array([[-3, 4, 5], [38, 20, 3]])
    assert np.array_equal(
        volume.read_patches(starts, (2, 36, 30), fill=-1),
        Volume(volume.uri).array.read_patches(starts, (2, 36, 30), -1),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(20, 17, 9), (12, 9, 10, 3)])
def test_random_reads_are_those_of_numpy(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    volume, data = make(tmp_path, "isotropic", ("axial", "sagittal", "coronal"), shape, dtype)
    rng = np.random.default_rng(2)
    for _ in range(150):
        key = tuple(
            int(rng.integers(n))
            if rng.random() < 0.4
            else slice(*sorted(rng.integers(0, n + 1, 2)), int(rng.integers(1, 4)))
            for n in shape
        )
        assert np.array_equal(volume[key], data[key]), key


def test_any_writer_makes_a_replica_stale(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    with tiledb.open(volume.uri, "w") as array:  # somebody who knows nothing of replicas
        array[0:2, 0:36, 0:40] = np.full((2, 36, 40), 7, np.int16)
    data[:, :, 0:2] = 7
    assert volume.replicas == []
    assert np.array_equal(volume.sagittal(3), data[3])
    assert np.array_equal(Volume(volume.uri).sagittal(3), data[3])
    assert replicas.find_differences(volume.uri, Session.of(None)) == [
        "replica sagittal is stale",
        "replica coronal is stale",
    ]
    assert volume.replicate() == ["sagittal", "coronal"]
    assert tiling_of(volume, 3, slice(None), slice(None)) == "replica-sagittal"
    assert np.array_equal(volume.sagittal(3), data[3])
    with tiledb.open(replicas.replica_uri(volume.uri, "sagittal"), "w") as array:
        array[0:1, 0:30, 0:36] = np.zeros((1, 30, 36), np.int16)
    assert Volume(volume.uri).replicas == ["coronal"]


def test_updates_and_consolidation_keep_them_the_same(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    reader = Volume(volume.uri)
    for step in range(3):
        volume.update((step, 2, 3), np.full((2, 5, 6), 50 + step, np.int16))
        data[step : step + 2, 2:7, 3:9] = 50 + step
        assert volume.replicas == ["sagittal", "coronal"]
        assert np.array_equal(reader.sagittal(step), data[step])
    assert replicas.find_differences(volume.uri, Session.of(None)) == []
    volume.consolidate()
    assert volume.replicas == ["sagittal", "coronal"]
    assert np.array_equal(reader.coronal(4), data[:, 4])
    assert replicas.find_differences(volume.uri, Session.of(None)) == []


def test_a_replica_that_is_damaged_or_gone_is_passed_over(tmp_path: Path) -> None:
    volume, data = make(tmp_path)
    victim = next((tmp_path / "v/replica-sagittal/__fragments").glob("*/a0.tdb"))
    content = bytearray(victim.read_bytes())
    content[40:60] = b"\xff" * 20
    victim.write_bytes(content)
    assert np.array_equal(Volume(volume.uri).sagittal(0), data[0])
    shutil.rmtree(tmp_path / "v/replica-sagittal")
    volume.refresh()
    assert np.array_equal(volume.sagittal(0), data[0])
    assert volume.replicate() == ["sagittal"]
    assert replicas.find_differences(volume.uri, Session.of(None)) == []


def test_replicas_of_a_cohort_and_of_an_existing_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tile=TileConfig("axial", replicas=["sagittal"]))
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": pairs(tmp_path / "in", ["b", "a"])})
    check_identity(radi.T1w)
    assert [volume.replicas for volume in radi.T1w] == [["sagittal"], ["sagittal"]]
    assert radi.repair(dry_run=True) == []
    configure(tile=TileConfig("axial"))
    copy = radi.materialize(tmp_path / "copy")
    assert [volume.replicas for volume in copy.T1w] == [[], []]
    assert copy.T1w.iloc[0].replicate("coronal") == ["coronal"]
    with pytest.raises(ConfigError, match="axial already"):
        copy.T1w.iloc[0].replicate("axial")
    check_identity(copy.T1w)


def test_replicas_that_repeat_an_orientation_are_refused() -> None:
    with pytest.raises(ConfigError, match="differ"):
        TileConfig("axial", replicas=("axial",))
    with pytest.raises(ConfigError, match="differ"):
        TileConfig("axial", replicas=("coronal", "coronal"))
    with pytest.raises(ConfigError, match="one of"):
        TileConfig(replicas=["oblique"])


def test_the_planner_counts_what_is_decoded(tmp_path: Path) -> None:
    """Against the core's own counter: the estimate orders tilings as the bytes do."""
    data = np.random.default_rng(1).integers(0, 999, (80, 72, 66)).astype(np.int16)
    from voxtier.volumes import cache_stats, clear_cache

    arrays = []
    for orientation in ("axial", "sagittal", "coronal", "isotropic"):
        configure(tile=TileConfig(orientation), io=ReadConfig(tile_cache_size_mb=0))
        arrays.append(Volume.from_numpy(tmp_path / orientation, data).array)
    everything = ((0, 80, 1), (0, 72, 1), (0, 66, 1))
    planes = [tuple((9, 1, 1) if axis == d else everything[d] for d in range(3)) for axis in range(3)]
    cube, line = ((5, 32, 1),) * 3, ((3, 1, 1), (4, 1, 1), (0, 66, 1))
    for region in (everything, *planes, cube, line):
        truth = []
        for array in arrays:
            clear_cache()
            array.read(region)
            truth.append(cache_stats()["bytes_decoded"])
        best = min(range(4), key=lambda n: arrays[n].layout.decoded_cells(region))
        assert truth[best] <= 1.3 * min(truth), (region, truth)


KILLED = """
import sys, os
from voxtier.volumes import RadiObject, TileConfig, configure
from voxtier.volumes.tiledb import replicas
configure(tile=TileConfig("axial", replicas=["sagittal", "coronal"]))
write, count = replicas._write, [0]
def dies(*arguments):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), 9)
    write(*arguments)
replicas._write = dies
folder = sys.argv[1]
images = [(folder + f"/in/{n:03d}_T1w.nii", s) for n, s in enumerate("ba")]
RadiObject.from_niftis(folder + "/r", images={"T1w": images})
"""


def test_an_ingest_killed_between_replicas_is_repeated(tmp_path: Path) -> None:
    images = pairs(tmp_path / "in", ["b", "a"])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert done.returncode == -9
    configure(tile=TileConfig("axial", replicas=["sagittal", "coronal"]))
    radi = RadiObject.from_niftis(tmp_path / "r", images={"T1w": images})
    check_identity(radi.T1w)
    assert [volume.replicas for volume in radi.T1w] == [["sagittal", "coronal"]] * 2
    assert open_array(radi.T1w.iloc[0].uri, Session.of(None)).meta["obs_id"] == "a_T1w"


def test_a_replica_is_compressed_as_its_volume_whatever_the_options_say_later(tmp_path: Path) -> None:
    configure(tile=TileConfig("axial"), compression=CompressionConfig("gzip", 7))
    volume = Volume.from_numpy(tmp_path / "v", np.zeros((9, 8, 7, 6), np.int16))
    configure(tile=TileConfig("axial", t=3), compression=CompressionConfig("none"))
    volume.replicate("sagittal")
    with tiledb.open(f"{volume.uri}/replica-sagittal") as replica, tiledb.open(volume.uri) as array:
        assert replica.attr("voxels").filters == array.attr("voxels").filters
        assert replica.attr("voxels").filters[1].level == 7
        assert replica.domain.dim("t").tile == array.domain.dim("t").tile == 1

"""Volumes in several tilings: the cheapest answers, and only while it holds the same voxels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from numpy.typing import NDArray

from volumes.support.checks import check_identity
from volumes.support.command_line import run
from volumes.support.images import pairs
from voxtier.errors import BackendError, ConfigError
from voxtier.system.locks import hold_lock
from voxtier.volumes import CompressionConfig, RadiObject, ReadConfig, TileConfig, Volume, configure
from voxtier.volumes.tiledb import arrays, replicas
from voxtier.volumes.tiledb.arrays import VoxelArray, open_array
from voxtier.volumes.tiledb.format import fragments
from voxtier.volumes.tiledb.format.folders import fragment_names
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
    assert "replica sagittal cannot be read: bad_tile" in run("verify", volume.uri, code=1).out
    run("verify", volume.uri, "--fix")
    run("verify", volume.uri)
    shutil.rmtree(tmp_path / "v/replica-sagittal")
    volume.refresh()
    assert np.array_equal(volume.sagittal(0), data[0])
    assert volume.replicate() == ["sagittal"]
    assert replicas.find_differences(volume.uri, Session.of(None)) == []


def _update(volume: Volume) -> None:
    volume.update((0, 0, 0), np.full((4, 8, 8), 1, np.int32))


ACTIONS: dict[str, Callable[[Volume], object]] = {
    "update": _update,
    "replicate": Volume.replicate,
    "consolidate": Volume.consolidate,
    "fix": lambda volume: replicas.renew(volume.uri, volume.session),
    "slice": lambda volume: volume.sagittal(6),
}
INTRUDERS: dict[str, Callable[[Volume], object]] = {
    "update": lambda volume: volume.update((2, 0, 0), np.full((6, 8, 8), 2, np.int32)),
    "foreign": lambda volume: arrays.write_region(
        volume.uri, (2, 0, 0), np.full((6, 8, 8), 2, np.int32), volume.session
    ),
    "replicate": Volume.replicate,
    "consolidate": Volume.consolidate,
}


class Interruption:
    """Lets another process act before one step of `replicas`: a listing, an opening, a write, a removal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> None:
        self.steps, self.at, self.act, self.is_acting = 0, at, act, False
        for owner, name in (
            (replicas, "fragment_names"),
            (replicas, "VoxelArray"),
            (replicas, "remove_own"),
            (replicas, "create_like"),
            (arrays, "open_array"),
            (arrays, "write_region"),
            (arrays, "write_voxels"),
            (arrays, "write_meta"),
        ):
            monkeypatch.setattr(owner, name, self._step(getattr(owner, name)))
        # Who would wait for the other process, which waits here, gives up instead.
        monkeypatch.setattr(fragments, "hold_lock", lambda path, _, mode: hold_lock(path, 0, mode=mode))

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if not self.is_acting:
                self.steps += 1
                if self.steps == self.at:
                    self.is_acting = True
                    with suppress(BackendError):
                        self.act()
                    self.is_acting = False
            return real(*arguments, **options)

        return step


@pytest.mark.parametrize("intruder", INTRUDERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_replica_counts_with_other_voxels_whoever_writes_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, intruder: str
) -> None:
    configure(tile=TileConfig(x=8, y=8, z=1, replicas=("sagittal",)))
    for at in range(1, 100):
        volume = Volume.from_numpy(tmp_path / f"v{at}", np.zeros((8, 8, 8), np.int32))
        if action in ("replicate", "fix"):  # else they have nothing to do
            INTRUDERS["foreign"](volume)
        with monkeypatch.context() as patched:
            interruption = Interruption(patched, at, lambda: INTRUDERS[intruder](Volume(volume.uri)))  # noqa: B023
            ACTIONS[action](volume)
        every = volume.array.read(tuple((0, 8, 1) for _ in range(3)))
        here = f"before step {at} of {interruption.steps}"
        assert (every[:2] == int(action == "update")).all(), here
        fresh = Volume(volume.uri)
        assert np.array_equal(fresh.sagittal(6), every[6]) and np.array_equal(fresh.sagittal(3), every[3]), (
            here
        )
        trouble = replicas.find_differences(volume.uri, volume.session)
        assert trouble in ([], ["replica sagittal is stale"]), here
        assert volume.replicate() == ["sagittal"] * len(trouble) and volume.replicas == ["sagittal"], here
        if interruption.steps < at:
            break
    assert 4 < at < 99  # several steps, and all of them


def test_a_replica_that_another_process_writes_while_it_is_opened_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make(tmp_path, others=["sagittal"])
    opened = replicas.VoxelArray

    def open_later(uri: str, session: Session, *, is_replica: bool = False) -> VoxelArray:
        arrays.write_region(uri, (0, 0, 0), np.full((5, 36, 30), -1, np.int16), session)
        return opened(uri, session, is_replica=is_replica)

    monkeypatch.setattr(replicas, "VoxelArray", open_later)
    assert np.array_equal(volume.sagittal(3), data[3])


def test_a_replica_that_vanishes_under_an_update_is_stale_and_the_update_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, data = make(tmp_path)
    write = arrays.write_region

    def removed_in_between(*arguments: Any) -> list[str]:
        names = write(*arguments)
        shutil.rmtree(tmp_path / "v/replica-sagittal", ignore_errors=True)  # as `replicate` begins
        return names

    monkeypatch.setattr(arrays, "write_region", removed_in_between)
    volume.update((0, 0, 0), np.full((2, 36, 30), 7, np.int16))
    data[:2] = 7
    assert np.array_equal(volume.to_numpy(), data)
    assert volume.replicas == ["coronal"]
    assert volume.replicate() == ["sagittal"]  # it is still listed


def test_a_fragment_that_is_not_committed_yet_is_no_part_of_a_digest(tmp_path: Path) -> None:
    volume, data = make(tmp_path, others=["sagittal"])
    arrays.write_region(volume.uri, (0, 0, 0), np.full((40, 36, 30), 7, np.int16), volume.session)
    commit = max((tmp_path / "v/__commits").iterdir())
    commit.rename(tmp_path / "later")  # its folder is there, its voxels do not count yet
    assert np.array_equal(volume.sagittal(3), data[3])
    volume.replicate()
    (tmp_path / "later").rename(commit)
    assert volume.replicas == []
    assert (volume.sagittal(3) == 7).all()


def test_an_update_keeps_a_stale_replica_listed(tmp_path: Path) -> None:
    volume, _ = make(tmp_path)
    shutil.rmtree(tmp_path / "v/replica-sagittal")
    volume.update((0, 0, 0), np.full((2, 2, 2), 7, np.int16))
    assert volume.replicas == ["coronal"]
    assert replicas.find_differences(volume.uri, Session.of(None)) == ["replica sagittal is stale"]


def test_a_fix_writes_a_replica_again_that_holds_other_voxels(tmp_path: Path) -> None:
    volume, data = make(tmp_path, others=["sagittal"])
    place = replicas.replica_uri(volume.uri, "sagittal")
    names = arrays.write_region(place, (0, 0, 0), np.full((40, 36, 30), -1, np.int16), volume.session)
    both = [fragment_names(volume.uri, volume.session), fragment_names(place, volume.session)]
    assert set(names) < set(both[1])
    replicas._set_digests(volume.uri, {"sagittal": replicas._digest(*both)}, volume.session)
    done = run("verify", volume.uri, code=1)
    assert "replica sagittal holds other voxels" in done.out
    done = run("verify", volume.uri, "--fix")
    assert "replica sagittal holds other voxels" in done.out
    assert volume.replicas == ["sagittal"]
    assert np.array_equal(volume.sagittal(3), data[3])


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

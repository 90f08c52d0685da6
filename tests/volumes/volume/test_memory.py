"""Budgets bound what they say: resident memory of reads and of an ingest, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from support.peak import PEAK_KIB
from voxtier.volumes import Volume

READS = """
import sys
import numpy as np
from voxtier.volumes import ReadConfig, Volume, cache_stats, configure
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
uri, cap = sys.argv[1], int(sys.argv[2])
configure(read=ReadConfig(memory_budget_mb=64, tile_cache_size_mb=cap, concurrency=2))
volume = Volume(uri)
rng = np.random.default_rng(0)
corners = rng.integers(0, np.array(volume.shape) - 48, (400, 3))
for corner in corners[:20]:
    volume[tuple(slice(int(c), int(c) + 48) for c in corner)]
base, most = resident() - cache_stats()["bytes_held"] / 2**20, 0
for corner in corners:
    volume[tuple(slice(int(c), int(c) + 48) for c in corner)]
    most = max(most, resident())
stats = cache_stats()
assert stats["bytes_held"] <= min(cap, 64) * 2**20, stats
assert cap == 0 or stats["evictions"] > 0, stats
print(base, most)
"""


def run(script: str, *arguments: Any) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [float(part) for part in done.stdout.split()]


def test_hundreds_of_cubes_stay_within_the_budget(tmp_path: Path) -> None:
    from voxtier.volumes import TileConfig, Volume, configure

    configure(tile=TileConfig("isotropic", 32, 32, 32))
    data = np.random.default_rng(0).integers(0, 4000, (320, 320, 256)).astype(np.int32)  # 105 MB decoded
    Volume.from_numpy(tmp_path / "v", data)
    for cap in (0, 10, 40):
        base, most = run(READS, tmp_path / "v", cap)
        assert most <= 1.1 * (base + 64), (cap, base, most)
        assert most <= base + cap + 24, (cap, base, most)  # one cube, two threads' buffers, the allocator


EPOCH = """
import sys
import numpy as np
from voxtier.volumes import RadiObject, ReadConfig, SegmentationDataset, cache_stats, configure
from voxtier.volumes.training.datasets import DatasetConfig
def pss():
    rows = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1024
configure(read=ReadConfig(memory_budget_mb=64, tile_cache_size_mb=32, concurrency=2))
radi = RadiObject(sys.argv[1])
data = SegmentationDataset(radi.CT, radi.seg, DatasetConfig("patch", 48, 120))
np.stack([data[0]["image"]] * 4)
before, most, held = pss() - cache_stats()["bytes_held"] / 2**20, 0, []
for item in np.random.default_rng(0).permutation(len(data)):
    held = [*held[-7:], data[int(item)]]  # as a loader that reads ahead holds them: long and short lives mix
    np.stack([sample["image"] for sample in held[-4:]])
    if item % 20 == 0:
        most = max(most, pss())
stats = cache_stats()
assert stats["evictions"] > 0 and stats["bytes_held"] > 28 * 2**20, stats
print(before, most)
"""


def test_an_epoch_of_patches_takes_its_budget_and_what_the_process_had(tmp_path: Path) -> None:
    from voxtier.volumes import RadiObject, TileConfig, configure

    configure(tile=TileConfig("isotropic", 32, 32, 32))
    rng = np.random.default_rng(0)
    images: dict[str, list[tuple[Path, str]]] = {"CT": [], "seg": []}
    for number in range(3):
        voxels = rng.integers(-1000, 1000, (192, 192, 128)).astype(np.int16)
        mask = (voxels > 900).astype(np.uint8)
        for name, data in (("CT", voxels), ("seg", mask)):
            path = tmp_path / f"{number}_{name}.nii"
            nib.save(nib.Nifti1Image(data, np.eye(4)), path)
            images[name].append((path, str(number)))
    RadiObject.from_niftis(tmp_path / "r", images=images)
    before, most = run(EPOCH, tmp_path / "r")
    assert most <= before + 1.1 * 64, (before, most)


INGEST = (
    PEAK_KIB
    + """
import sys
from pathlib import Path
import voxtier.volumes as v
v.configure(read=v.ReadConfig(max_workers=int(sys.argv[2]), concurrency=2))
base = peak_kib() / 1024
v.RadiObject.from_niftis(sys.argv[1] + "/r" + sys.argv[2], images={"CT": sys.argv[1] + "/in"})
print(base, peak_kib() / 1024)
"""
)


def test_an_ingest_holds_a_volume_or_two_for_each_worker(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).integers(0, 4000, (200, 200, 200)).astype(np.int16)
    size = voxels.nbytes / 2**20
    for number in range(12):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / f"s{number:02d}_CT.nii")
    for workers in (1, 2):
        base, most = run(INGEST, tmp_path, workers)
        assert most - base < (3.5 * workers + 1) * size + 60, (workers, base, most, size)
        assert most - base < 12 * size  # not the cohort


CONSOLIDATION = (
    PEAK_KIB
    + """
import sys
import numpy as np
from voxtier.volumes import Volume
small, large = (Volume(uri) for uri in sys.argv[1:])
for volume in (small, large):
    for x in range(3):
        volume.update((x, 0, 0), np.full((1, *volume.shape[1:]), x, np.int16))
base = peak_kib()
small.consolidate()
first = peak_kib()
large.consolidate(memory_mb=256)
print((first - base) / 1024, (peak_kib() - base) / 1024)
"""
)


def test_a_consolidation_takes_what_its_volume_is_worth(tmp_path: Path) -> None:
    small = Volume.from_numpy(tmp_path / "small", np.zeros((64, 64, 64), np.int16))
    large = Volume.from_numpy(tmp_path / "large", np.zeros((512, 512, 200), np.int16))
    for_small, for_large = run(CONSOLIDATION, small.uri, large.uri)
    assert for_small < 64  # 170 MB are what TileDB takes of the default budget
    assert for_large < 256 + 64

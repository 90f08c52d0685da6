"""One decoded cache for all processes of a user: one copy, right voxels under eviction and kills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtier.system.machine import start_ticks
from voxtier.volumes import TileConfig, Volume, configure
from voxtier.volumes.tiledb.format import node_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and /proc are Linux's")

BEGIN = """
import json, os, signal, sys, time
import numpy as np
from voxtier.volumes import ReadConfig, Volume, cache_stats, configure
from voxtier.volumes.tiledb.format.direct import join_node, share_budget
def shared_kib(pid):
    kib, inside = {"Pss": 0, "Rss": 0}, False
    for line in open(f"/proc/{pid}/smaps"):
        name, _, rest = line.partition(":")
        if "-" in line.split()[0] and not name.endswith("kB") and " " in rest:
            inside = "voxtier-tiles" in line
        elif inside and name in kib:
            kib[name] += int(rest.split()[0])
    return kib
"""

# Four workers that were forked, one that was spawned and one from a fork server read everything and wait.
SIX = (
    BEGIN
    + """
import multiprocessing
def work(uri, number, pipe):
    configure(read=ReadConfig(memory_budget_mb=256, tile_cache_size_mb=96))
    share_budget(4)  # as a worker of a DataLoader
    volume = Volume(uri)
    truth = np.load(uri + ".npy", mmap_mode="r")
    same = all(np.array_equal(volume[x:x + 64], truth[x:x + 64]) for x in range(0, 256, 64))
    again = all(np.array_equal(volume[x:x + 64], truth[x:x + 64]) for x in range(0, 256, 64))
    pipe.send([same and again, cache_stats()])
    pipe.recv()
if __name__ == "__main__":
    children = []
    methods = ["fork"] * 4 + ["spawn", "forkserver"]
    for number, method in enumerate(methods):
        context = multiprocessing.get_context(method)
        pipe, end = context.Pipe()
        child = context.Process(target=work, args=(sys.argv[1], number, end))
        child.start()
        children.append((child, pipe))
        if number == 0:
            first = pipe.recv()  # the others find all of it
    answers = [first] + [pipe.recv() for _, pipe in children[1:]]
    memory = [shared_kib(child.pid) for child, _ in children]
    for child, pipe in children:
        pipe.send(None)
        child.join(20)
    print(json.dumps([answers, memory, [child.exitcode for child, _ in children]]))
"""
)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 MB decoded, in chunks of 64 KiB; a part is constant."""
    configure(tile=TileConfig("isotropic", 32, 32, 32))  # type: ignore[arg-type]
    data = np.random.default_rng(0).integers(0, 4000, (256, 256, 256)).astype(np.int16)
    data[:32, :64] = 7
    place = tmp_path_factory.mktemp("node") / "v"
    Volume.from_numpy(place, data)
    np.save(f"{place}.npy", data)
    return place


def run(script: str, *arguments: Any, home: Path) -> Any:
    environment = {**os.environ, "VOXTIER_HOME": str(home)}
    path = home / "script.py"
    home.mkdir(exist_ok=True)
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(240)
def test_six_processes_hold_one_copy(volume: Path, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    answers, memory, codes = run(SIX, volume, home=tmp_path / "h")
    assert [same for same, _ in answers] == [True] * 6
    assert codes == [0] * 6
    decoded = 256**3 * 2
    shared = answers[0][1]["shared_bytes"]
    assert decoded * 0.9 < shared < decoded * 1.15
    assert sum(kib["Pss"] for kib in memory) * 1024 < 1.1 * shared  # all together
    assert all(kib["Rss"] * 1024 > 0.8 * decoded for kib in memory)  # each sees all of it
    assert all(stats["bytes_decoded"] < decoded / 8 for _, stats in answers[1:])  # constants alone
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "voxtier" in name}


# Readers compare every patch while a budget of two slabs evicts all the time; some of them are killed.
CHURN = (
    BEGIN
    + """
configure(read=ReadConfig(memory_budget_mb=64, tile_cache_size_mb=10, concurrency=2))
share_budget(4)
volume, truth = Volume(sys.argv[1]), np.load(sys.argv[1] + ".npy", mmap_mode="r")
rng, end, patches = np.random.default_rng(int(sys.argv[2])), time.monotonic() + float(sys.argv[3]), 0
print("reads", flush=True)
while time.monotonic() < end or cache_stats()["shared_evictions"] <= 100:  # a busy machine takes longer
    corner = rng.integers(0, 256 - 70, 3) // [1, 2, 4]
    box = tuple(slice(int(c), int(c) + 70) for c in corner)
    assert np.array_equal(volume[box], truth[box]), corner
    patches += 1
print(json.dumps([patches, cache_stats()]))
"""
)


def churn(volume: Path, home: Path, seconds: float, kills: int) -> list[Any]:
    """Run three readers and one victim after the other; return what the readers say."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "VOXTIER_HOME": str(home)}

    def start(number: int, seconds: float) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", CHURN, str(volume), str(number), str(seconds)]
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n", process.communicate()[1]
        return process

    readers = [start(number, seconds) for number in range(3)]
    for number in range(kills):
        victim = start(10 + number, 600)
        time.sleep(0.02 + 0.013 * (number % 5))  # a moment of its work, not a wait for a fact
        victim.kill()
        victim.communicate()
    answers = []
    for reader in readers:
        out, error = reader.communicate(timeout=240)
        assert reader.returncode == 0, error
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


@pytest.mark.timeout(240)
def test_voxels_are_right_while_others_evict_and_are_killed(volume: Path, tmp_path: Path) -> None:
    answers = churn(volume, tmp_path / "h", 2.0, 2)
    assert all(patches > 0 for patches, _ in answers)
    assert all(0 < stats["shared_bytes"] <= stats["shared_budget"] <= 10 << 20 for _, stats in answers)
    assert answers[0][1]["shared_evictions"] > 100


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_voxels_are_right_while_many_are_killed(volume: Path, tmp_path: Path) -> None:
    churn(volume, tmp_path / "h", 300.0, 150)
    assert not {name for name in os.listdir("/dev/shm") if "voxtier" in name}


ALONE = (
    BEGIN
    + """
import resource
from unittest import mock
configure(read=ReadConfig(tile_cache_size_mb=64))
if sys.argv[2] == "limit":  # the system refuses files of this length
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
if sys.argv[2] == "off":
    configure(read=ReadConfig(tile_cache_size_mb=64, share_cache=False))
share_budget(4)
volume, truth = Volume(sys.argv[1]), np.load(sys.argv[1] + ".npy", mmap_mode="r")
same = all(np.array_equal(volume[40:90, 3:99, 17:80], truth[40:90, 3:99, 17:80]) for _ in range(2))
from voxtier.volumes import get_config
print(json.dumps([bool(same), join_node(get_config().read), cache_stats()]))
"""
)


@pytest.mark.parametrize("how", ["limit", "off", "folder"])
def test_a_process_has_a_cache_of_its_own_where_none_is_shared(
    volume: Path, tmp_path: Path, how: str
) -> None:
    home = tmp_path / "h"
    if how == "folder":
        (home / f"voxtier-{os.getuid()}").mkdir(parents=True)
        (home / f"voxtier-{os.getuid()}").chmod(0o777)
    same, why, stats = run(ALONE, volume, how, home=home)
    assert same
    assert {"limit": "refused here", "off": "switched off", "folder": "not a folder of this user"}[how] in why
    assert stats["shared_budget"] == 0
    assert stats["budget"] == (64 << 20) // 4
    assert stats["hits"] > 0
    assert stats["bytes_held"] > 0


def test_the_memory_of_processes_that_ended_is_not_joined(volume: Path, tmp_path: Path) -> None:
    home = tmp_path / "h"
    home.mkdir()
    folder = home / f"voxtier-{os.getuid()}"
    folder.mkdir(mode=0o700)
    own = [os.getpid(), start_ticks(os.getpid()), 0, 0]  # alive, but its descriptor is another file
    (folder / "tiles").write_text(json.dumps([[1, "0", 5, 5], own]))
    assert run(ALONE, volume, "", home=home)[1] is None
    [file] = home.rglob("tiles")
    assert len(json.loads(file.read_text())) == 2  # the one that lives, and the one that came
    for content in ("", "[[1,", '{"a": 1}', '[["x", 1, 2, 3]]'):
        file.write_text(content)
        with file.open() as opened:
            assert node_cache._read(opened.fileno()) == []


SMALL = """
mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 77
dd if=/dev/zero of=/dev/shm/full bs=64k count=1 2>/dev/null
"$@"
"""


def test_a_full_dev_shm_is_no_matter(volume: Path, disk_path: Path) -> None:
    shutil.copytree(volume, disk_path / "v")
    shutil.copy(f"{volume}.npy", disk_path / "v.npy")
    environment = {**os.environ, "VOXTIER_HOME": str(disk_path / "h"), "TMPDIR": str(disk_path)}
    arguments = [sys.executable, "-c", ALONE, str(disk_path / "v"), ""]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", SMALL, "sh", *arguments],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("this container may not mount")
    assert done.returncode == 0, done.stderr
    same, why, stats = json.loads(done.stdout.splitlines()[-1])
    assert same
    assert why is None
    assert stats["shared_bytes"] > 0

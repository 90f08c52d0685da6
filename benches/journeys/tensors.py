"""Journey: a MONAI cache verified, completed and filled, against torch, MONAI and plain loops."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benches.measure import ROOT, Goal, Lap, Result, Way, dropped_from_cache, race, timed

OURS = "voxtier"
TORCH_LOAD = "torch.load, 2 processes"
MONAI_MOVE = "MONAI PersistentDataset, TMPDIR on tmpfs, not flushed"


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race verify (warm, cold, structure), start-up, the search for missing files, writes, and generate."""
    large = large_files(folder / "large", 24 if quick else 80)
    yield warm(large, rounds)
    yield cold(large, min(rounds, 3))
    shutil.rmtree(folder / "large")
    yield structure(folder / "small", 2_000 if quick else 8_000, rounds)
    yield start_up(folder / "empty", 2 * rounds)
    yield missing(folder / "missing", 20_000 if quick else 100_000, rounds)
    yield writes(folder / "writes", 2 * rounds)
    for seconds, story in (
        (0.04, "The hub is slow: downloads take four times as long as transforms."),
        (0.011, "The hub is as fast as the transforms: the hardest case to overlap."),
    ):
        yield pipeline(folder / f"pipeline{seconds}", 8 if quick else 16, seconds, story, min(rounds, 3))


def large_files(folder: Path, count: int) -> list[str]:
    """Return files of 14 MB, as the predecessor's pipeline writes them for a small target shape."""
    import torch

    folder.mkdir()
    image = torch.rand(1, 96, 192, 192, generator=torch.Generator().manual_seed(1))
    paths = [str(folder / f"{number}.pt") for number in range(count)]
    for path in paths:
        torch.save({"image": image, "image_meta_dict": {"affine": torch.eye(4)}}, path)
    return paths


def torch_load(path: str) -> bool:
    """Verify as the predecessor does: the file is fine if it loads."""
    import torch

    return bool(torch.load(path, weights_only=False)["image"].ndim == 4)


def verifier(paths: list[str], threads: int, **options: Any) -> Callable[[], int]:
    from voxtier import _core

    return lambda: sum(
        report.state == "ok" for _, report in _core.ParallelVerifier(paths, threads=threads, **options)
    )


def read_through(path: str) -> bool:
    """Read a file from its first byte to its last and ignore the bytes."""
    space = bytearray(1 << 20)
    descriptor = os.open(path, os.O_RDONLY)
    while os.readv(descriptor, [space]):
        pass
    os.close(descriptor)
    return True


def read_loop(paths: list[str], threads: int) -> Callable[[], int]:
    def loop() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read_through, paths))

    return loop


def testzip(paths: list[str]) -> int:
    good = 0
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            good += archive.testzip() is None
    return good


def megabytes(paths: list[str]) -> int:
    return sum(map(os.path.getsize, paths)) // 1_000_000


def warm(paths: list[str], rounds: int) -> Result:
    result = Result(
        "tensors",
        "Verify in full, in the page cache",
        "Structure, opcodes, bounds and the CRC-32 of every record. torch.load, the predecessor's verifier, "
        "checks no CRC and runs what it finds; its two processes are started beforehand.",
        "MB",
        megabytes(paths),
    )
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(torch_load, paths[:8]))
        ways = [
            Way(f"{OURS}, 2 threads", timed(verifier(paths, 2)), "voxtier"),
            Way(f"{OURS}, 1 thread", timed(verifier(paths, 1)), "voxtier"),
            Way(TORCH_LOAD, timed(lambda: sum(pool.map(torch_load, paths)))),
            Way("zipfile.testzip", timed(lambda: testzip(paths)), rounds=1),
            Way("read() to the end, 2 threads", timed(read_loop(paths, 2)), "floor"),
        ]
        return race(result, ways, [Goal(f"{OURS}, 2 threads", TORCH_LOAD, 1.3)], rounds=rounds)


def cold(paths: list[str], rounds: int) -> Result:
    result = Result(
        "tensors",
        "Verify in full, out of the page cache",
        "Every page is dropped before each lap; the floor reads the same files and looks at no byte.",
        "MB",
        megabytes(paths),
    )

    def drop() -> None:
        dropped_from_cache([Path(path) for path in paths])

    ways = [
        Way(f"{OURS}, 4 in flight (the default here)", timed(verifier(paths, 4), drop), "voxtier"),
        Way(f"{OURS}, 1 in flight", timed(verifier(paths, 1), drop), "voxtier"),
        Way("read() to the end, 1 in flight", timed(read_loop(paths, 1), drop), "floor"),
        Way("read() to the end, 4 in flight", timed(read_loop(paths, 4), drop), "floor"),
    ]
    goals = [Goal(ways[0].name, ways[3].name, 0.95), Goal(ways[1].name, ways[2].name, 0.9)]
    return race(result, ways, goals, rounds=rounds)


def structure(folder: Path, count: int, rounds: int) -> Result:
    import torch

    folder.mkdir()
    paths = [str(folder / f"{number}.pt") for number in range(count)]
    meta = {f"k{number}": number for number in range(40)}
    torch.save({"image": torch.rand(1, 8, 8, 8), "image_meta_dict": meta}, paths[0])
    content = Path(paths[0]).read_bytes()
    for path in paths[1:]:
        Path(path).write_bytes(content)
    result = Result(
        "tensors",
        "Verify structure, opcodes and bounds only",
        "What --quick does: headers and data.pkl are read, payloads are not. The goal is 20,000 files/s.",
        "file",
        count,
    )
    ways = [
        Way(f"{OURS}, 2 threads", timed(verifier(paths, 2, crc=False)), "voxtier"),
        Way("torch.load, 1 process", timed(lambda: sum(map(torch_load, paths))), rounds=1),
        Way("20,000 files/s", lambda: (count / 20_000, count), "floor", "the goal as a time"),
    ]
    goals = [Goal(ways[0].name, ways[2].name, 1), Goal(ways[0].name, ways[1].name, 5)]
    return race(result, ways, goals, rounds=rounds)


def start_up(folder: Path, rounds: int) -> Result:
    folder.mkdir()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}

    def command(*arguments: str) -> Callable[[], Lap]:
        def work() -> int:
            return subprocess.run(
                [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, cwd=ROOT
            ).returncode

        work()  # leaves the bytecode behind, as an installation does
        return timed(work)

    result = Result(
        "tensors",
        "From the command to its end, on an empty folder",
        "voxtier tensors verify starts without torch, MONAI and numpy.",
        "start",
        1,
    )
    ways = [
        Way("voxtier tensors verify", command("-m", "voxtier", "tensors", "verify", str(folder)), "voxtier"),
        Way("python -c 'import torch'", command("-c", "import torch"), rounds=2),
        Way("python -c 'import click'", command("-c", "import click"), "floor"),
        Way("python -c pass", command("-c", "pass"), "floor"),
        Way("0.1 s", lambda: (0.1, 0), "floor", "the goal"),
    ]
    goals = [Goal(ways[0].name, ways[4].name, 1), Goal(ways[0].name, ways[1].name, 5)]
    return race(result, ways, goals, rounds=rounds)


def missing(folder: Path, count: int, rounds: int) -> Result:
    from voxtier.tensors.identity.keys import item_key, missing_keys

    folder.mkdir()
    names = [f"train_{number}_a_1.nii.gz" for number in range(count)]
    for name in names[::2]:
        (folder / f"{item_key(name)}.pt").touch()

    def path_by_path() -> int:
        """Look for missing files as the predecessor does: one Path and one stat per item."""
        keys = (hashlib.md5(str(name).encode()).hexdigest() for name in names)
        return sum(not (folder / f"{key}.pt").exists() for key in keys)

    result = Result(
        "tensors",
        "Which items are missing?",
        "Half of the items lie in the cache. The goal is 0.4 s for 100,000.",
        "item",
        count,
    )
    ways = [
        Way("voxtier missing_keys", timed(lambda: len(missing_keys(names, folder).missing)), "voxtier"),
        Way("Path.exists, one by one", timed(path_by_path)),
        Way("0.4 s for 100,000", lambda: (0.4 * count / 100_000, count // 2), "floor", "the goal"),
    ]
    goals = [Goal(ways[0].name, ways[2].name, 1), Goal(ways[0].name, ways[1].name, 2)]
    return race(result, ways, goals, rounds=rounds)


def writes(folder: Path, rounds: int) -> Result:
    import torch
    from monai.data import PersistentDataset
    from monai.transforms import Compose, Transform

    from voxtier.tensors.saving import save_checked

    folder.mkdir()
    item = {"image": torch.rand(1, 96, 192, 375)}
    numbers = itertools.count()
    other_device = "/dev/shm" if Path("/dev/shm").is_dir() else None

    class Give(Transform):  # type: ignore[misc]
        def __call__(self, _: object) -> object:
            return item

    def fresh() -> None:
        """Flush the dirty pages of earlier laps, so that this one does not wait for them."""
        for path in folder.iterdir():
            path.unlink()
        os.sync()

    def checked() -> int:
        path = folder / f"{next(numbers)}.pt"
        save_checked(item, path)
        return path.stat().st_size >> 20

    def plain() -> int:
        path = folder / f"{next(numbers)}.pt"
        torch.save(item, path)
        return path.stat().st_size >> 20

    def stock() -> int:
        before, tempfile.tempdir = tempfile.tempdir, other_device
        try:
            PersistentDataset([next(numbers)], Compose([Give()]), folder)[0]
        finally:
            tempfile.tempdir = before
        return next(folder.glob("*.pt")).stat().st_size >> 20

    def stock_flushed() -> int:
        size = stock()
        descriptor = os.open(next(folder.glob("*.pt")), os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
        return size

    result = Result(
        "tensors",
        "A tensor of 27.6 MB appears in the cache",
        "voxtier's file is written beside its place, read back (every CRC), flushed with its folder and then "
        "named. MONAI saves to TMPDIR, here on another file system, and copies to the final name, where "
        "others see it grow; nothing is flushed.",
        "file",
        1,
    )
    ways = [
        Way("voxtier save_checked", timed(checked, fresh), "voxtier"),
        Way(MONAI_MOVE, timed(stock, fresh)),
        Way("the same, then fsync", timed(stock_flushed, fresh)),
        Way("torch.save to the final name, not flushed", timed(plain, fresh), "floor"),
    ]
    goals = [Goal(ways[0].name, MONAI_MOVE, 1), Goal(ways[0].name, ways[2].name, 1.3)]
    return race(result, ways, goals, rounds=rounds)


def pipeline(folder: Path, count: int, pause: float, story: str, rounds: int) -> Result:
    """Race generate against each of its stages alone."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tensors.cases import names_of, nifti_bytes, put_raw, write_project
    from tensors.making.hub_server import HubServer
    from voxtier.tensors import load_config
    from voxtier.tensors.identity.keys import hub_path, raw_path
    from voxtier.tensors.making.hub import Hub
    from voxtier.tensors.making.run import Generator, Options

    folder.mkdir()
    names = names_of(count)
    shape = (96, 96, 60)
    fresh = (folder / str(number) for number in itertools.count())

    def generate(*, local: bool) -> Lap:
        base = next(fresh)
        config = load_config(write_project(base, names), environment={})
        if local:
            for index, name in enumerate(names):
                put_raw(base, name, index, shape=shape)
        generator = Generator(config, Options(workers=2, min_free=0), hub=hub())
        plan = generator.plan()
        started = time.perf_counter()
        made = generator.run(plan).made
        return time.perf_counter() - started, made

    def download() -> Lap:
        source, base = hub(), next(fresh)
        entries = source.look_up(server.files)
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            targets = [raw_path(base, name, "flat") for name in names]
            list(pool.map(source.fetch, (entries[hub_path(name)] for name in names), targets))
        return time.perf_counter() - started, len(names)

    def hub() -> Hub:
        return Hub("some/CT-RATE", endpoint=server.endpoint)

    result = Result("tensors", "Generate against its slowest stage", story, "volume", count)
    ways = [
        Way("voxtier tensors generate: everything", lambda: generate(local=False), "voxtier"),
        Way("downloads alone, 2 at once", download, "floor"),
        Way("transforms alone, 2 workers", lambda: generate(local=True), "floor"),
    ]
    with HubServer() as server:
        server.seconds_per_chunk = pause
        server.files = {hub_path(name): nifti_bytes(i, shape=shape) for i, name in enumerate(names)}
        generate(local=True)  # starts the server of the workers
        probe = {way.name: way.lap()[0] for way in ways[1:]}
        goal = Goal(ways[0].name, max(probe, key=lambda name: probe[name]), 1 / 1.2)
        return race(result, ways, [goal], rounds=rounds)

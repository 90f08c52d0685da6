"""Journey: patches a second in a training loop, from voxtier's batches and from the loaders people use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benches.measure import ROOT, Goal, Lap, Limit, Result, Way, race
from benches.rivals.loaders import BATCH, WAYS, write

OURS = "voxtier, "
TENSORSTORE = "tensorstore, pool of 512 MB"
MEMMAP, BLOSC, MONAI = "np.memmap", "nnU-Net's blosc2, float32, mmap", "MONAI CacheDataset, tuned"
SLOW = {"zarr 3": 15, "TorchIO queue": 64}
"""Batches that are timed of what gives tens of patches a second; of a queue of 64 patches, two fillings."""


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Run the race for patches of 96 cubed, and of 64 cubed where the cohort is in the cache."""
    volumes = 3 if quick else 8
    write(folder, volumes)
    count = 24 if quick else 150
    for edge in (96, 64):
        title = f"patches of {edge} cubed with labels, batches of {BATCH}, {volumes} volumes, two threads"
        result = Result("training", title, __doc__ or "", "patch", count * BATCH)
        measured: dict[str, dict[str, Any]] = {}
        ways = [
            Way(name, lap(folder, name, edge, volumes, count, measured),
                "voxtier" if OURS in name else "rival", rounds=1 if name in SLOW else None)
            for name in WAYS
            if edge == 96 or name not in SLOW
        ]  # fmt: skip
        race(result, ways, goals(edge), rounds=1 if quick else min(rounds, 2), same=lambda _: "checked")
        for name, facts in measured.items():
            result.facts.append(
                f"{name}: {facts['cpu_ms']:.1f} ms CPU a patch, PSS {facts['pss_mb']:.0f} MB"
                f" ({facts['before_mb']:.0f} before), {facts['disk_mb']:.0f} MB on disk, first batch after"
                f" {facts['first_s']:.2f} s"
            )
        if edge == 96:
            demand_bytes(result, folder, volumes)
        yield result


def demand_bytes(result: Result, folder: Path, volumes: int) -> None:
    """Count what a patch reads from disk of files that are open, but not in the page cache."""
    read = {}
    for way in (OURS + "zstd, no cache", OURS + "lz4, no cache", TENSORSTORE):
        arguments = ["--cold", way, str(folder), "96", str(volumes), "8"]
        read[way] = float(_loaders(arguments)) / 1e6
    said = ", ".join(f"{way}: {megabytes:.2f} MB" for way, megabytes in read.items())
    met = read[OURS + "zstd, no cache"] <= read[TENSORSTORE]
    result.demand("a cold patch reads no more from disk than tensorstore's", said, met=met)


def goals(edge: int) -> list[Goal | Limit]:
    """Return what is to be reached."""
    cached = OURS + "cohort in the cache"
    if edge == 64:
        return [Limit(cached, 1 / 2000), Goal(cached, MONAI, 2)]
    return [
        Limit(OURS + "zstd, no cache", 1 / 300),
        Limit(OURS + "lz4, no cache", 1 / 300),
        Limit(cached, 1 / 900),
        Goal(OURS + "zstd, no cache", BLOSC, 2),
        Goal(cached, MEMMAP, 2),
        Goal(cached, MONAI, 2),
    ]


def lap(
    folder: Path, way: str, edge: int, volumes: int, count: int, measured: dict[str, dict[str, Any]]
) -> Callable[[], Lap]:
    """Return a lap in a process of its own; OpenMP has one thread, as nodes of several ranks set it."""

    def once() -> Lap:
        batches = SLOW.get(way, count)
        arguments = [way, str(folder), str(edge), str(volumes), str(min(60, batches)), str(batches)]
        seconds, facts = _loaders(arguments).split(maxsplit=1)
        measured[way] = json.loads(facts)
        return float(seconds) * count / batches, facts

    return once


def _loaders(arguments: list[str]) -> str:
    """Return the last line that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benches.rivals.loaders", *arguments],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip().splitlines()[-1]

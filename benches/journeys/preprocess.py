"""Journey: a chest CT from NIfTI file to tensor, by the core and by everybody else, in CPU seconds."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.measure import ROOT, Goal, Lap, Result, Way, race

OURS = "voxtier: the core"
STOCK = "MONAI, stock"
FLOOR = "inflating alone"
RIVALS = {
    "MONAI, lazy": "lazy",
    "MONAI, spacing in float32": "float32_spacing",
    "SimpleITK, then MONAI": "simple_itk",
    "scipy": "scipy_zoom",
    "torchio, then MONAI": "torch_io",
}
MOST_MEMORY = 300 << 20


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race single volumes of three lengths, then whole runs of generate."""
    write_ct(folder / "small.nii.gz", 3, side=64)
    yield volume(folder, 24, min(rounds, 3), goal=8.0, floor=None, rivals=RIVALS)
    yield volume(folder, 240, 1 if quick else min(rounds, 2), goal=24.0, floor=1.8, rivals={})
    if not quick:
        yield volume(folder, 600, 1, goal=24.0, floor=None, rivals={})
    yield whole_runs(folder / "runs", count=6 if quick else 20, slices=48 if quick else 240)


def write_ct(path: Path, slices: int, *, side: int = 512, seed: int = 0) -> Path:
    """Write a chest of air, lung and tissue with correlated noise, int16, LAS, 0.7 x 0.7 x 1.0 mm."""
    import nibabel

    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    body[((np.abs(x) - 0.4) / 0.25) ** 2 + (y / 0.5) ** 2 < 1] = -850
    voxels = np.empty((side, side, slices), np.int16, order="F")
    for z in range(slices):
        noise = random.normal(0, 44, (side + 1, side + 1))
        smooth = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 4
        voxels[:, :, z] = np.rint(body.T + smooth * (1 + 0.1 * np.sin(z / 9)))
    image = nibabel.Nifti1Image(voxels, np.diag([-0.7, 0.7, 1.0, 1.0]))
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(image.to_bytes())
    return path


def volume(
    folder: Path, slices: int, rounds: int, *, goal: float, floor: float | None, rivals: dict[str, str]
) -> Result:
    """Race all ways over one volume; the answer of MONAI's own pipeline is the truth."""
    path = write_ct(folder / f"{slices}.nii.gz", slices)
    peaks: dict[str, int] = {}
    outs = {name: folder / f"{number}.npy" for number, name in enumerate([STOCK, OURS, *rivals])}

    def lap(name: str, way: str) -> Callable[[], Lap]:
        def run_way() -> Lap:
            command = [sys.executable, "-m", "benches.rivals.preprocessing", way, str(path)]
            command += [str(outs[name])] if name in outs else []
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                raise RuntimeError(done.stderr.strip()[-300:])
            seconds, facts = done.stdout.split(maxsplit=1)
            peaks[name] = json.loads(facts)["peak"]
            return float(seconds), "made"

        return run_way

    ways = [
        Way(STOCK, lap(STOCK, "stock"), rounds=1 if slices > 100 else None),
        Way(OURS, lap(OURS, "fused"), "voxtier"),
        Way(FLOOR, lap(FLOOR, "inflate"), "floor"),
        *(Way(name, lap(name, way), rounds=1) for name, way in rivals.items()),
    ]
    goals = [Goal(OURS, STOCK, goal)] + ([Goal(OURS, FLOOR, 1 / floor)] if floor else [])
    story = (
        "Orientation, spacing 0.75 x 0.75 x 1.5 mm in float64, intensities, anti-aliasing and interpolation"
        " to 128 x 256 x 256: CPU seconds (user and system) of one thread in a process of its own, imports"
        " and saving left out. Rivals that give other numbers are listed with the differences they make."
    )
    result = Result("preprocess", f"A CT of 512 x 512 x {slices} becomes a tensor", story, "volume", 1)
    race(result, ways, goals, rounds=rounds)
    truth = np.load(outs[STOCK])
    found = np.load(outs[OURS])
    unequal = int((truth.view(np.int32) != found.view(np.int32)).sum())
    result.demand("0 bits differ from MONAI", f"{unequal:,} of {truth.size:,} voxels", met=unequal == 0)
    memory = f"the core takes <= {MOST_MEMORY >> 20} MB beyond the imports"
    if slices <= 240:
        result.demand(memory, f"{peaks[OURS] >> 20} MB", met=peaks[OURS] <= MOST_MEMORY)
    result.facts.append(f"most memory beyond the imports: {_megabytes(peaks)}")
    for name in rivals:
        result.facts.append(f"{name}: {_differences(truth, outs[name])}")
    return result


def _megabytes(peaks: dict[str, int]) -> str:
    return ", ".join(f"{name} {peak >> 20} MB" for name, peak in peaks.items())


def _differences(truth: Any, path: Path) -> str:
    if not path.exists():
        return "failed"
    found = np.load(path)
    if found.shape != truth.shape:
        return f"another shape, {found.shape}"
    apart = np.abs(found.astype(np.float64) - truth)
    return f"{np.mean(apart > 0):.0%} of the voxels differ, by {apart.max() * 1000:.2g} HU at most"


def whole_runs(folder: Path, *, count: int, slices: int) -> Result:
    """Race whole runs of generate with two workers: start, self-test, comparisons, saving, checking."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tensors.cases import CONFIG, names_of, write_project
    from voxtier.tensors.identity.keys import raw_path

    folder.mkdir()
    names = names_of(count)
    source = write_ct(folder / "one.nii.gz", slices)
    config = CONFIG.replace("[1.5, 1.5, 3.0]", "[0.75, 0.75, 1.5]").replace("[16, 32, 32]", "[128, 256, 256]")
    summaries: list[str] = []
    home = folder / "home"

    def generate(engine: str, *, is_first: bool = False) -> Lap:
        if is_first:
            shutil.rmtree(home, ignore_errors=True)
        base = folder / f"{engine}-{time.monotonic_ns()}"
        path = write_project(base, names, config=config)
        for name in names:
            raw = raw_path(base / "images", name, "nested")
            raw.parent.mkdir(parents=True, exist_ok=True)
            raw.hardlink_to(source)
        command = [sys.executable, "-m", "voxtier", "tensors", "generate", "--config", str(path), "--yes"]
        command += ["--num-workers", "2", "--min-free", "0", "--engine", engine]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=base,
            env={**os.environ, "VOXTIER_HOME": str(home)},  # where proofs are kept
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        summaries.append(next(line for line in done.stderr.splitlines() if line.startswith("engine:")))
        return seconds, len(list((base / "cache").rglob("*.pt")))

    story = (
        "All of the command, in seconds of the clock: imports, the start of the workers, saving, checking and"
        " recording; in the first run on a machine also the self-test and two volumes both ways. MONAI's is"
        " the same command with --engine stock."
    )
    result = Result(
        "preprocess", f"generate makes {count} CTs of {slices} slices, 2 workers", story, "volume", count
    )
    first, later, stock = "generate, the first run", "generate, a later run", "generate --engine stock"
    ways = [
        Way(stock, lambda: generate("stock")),
        Way(first, lambda: generate("fused", is_first=True), "voxtier"),
        Way(later, lambda: generate("fused"), "voxtier"),
    ]
    race(result, ways, [Goal(first, stock, 8.0), Goal(later, stock, 8.0)], rounds=1)
    result.facts += summaries
    return result

"""Races: several ways to one answer, run in turns, so that load on the machine slows all of them alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("VOXTIER_BENCH_RESULTS", ROOT / "benches" / "results"))

Lap = tuple[float, Any]  # seconds (or what the race counts), answer


@dataclass(frozen=True)
class Way:
    """One way to the answer: voxtier's, a rival's, or a floor that no reader can go below."""

    name: str
    lap: Callable[[], Lap]
    role: str = "rival"  # voxtier | rival | floor
    note: str = ""
    rounds: int | None = None  # fewer than the others, for what takes seconds


@dataclass(frozen=True)
class Goal:
    """A ratio of two ways: ``slower`` must take at least ``at_least`` times as long as ``faster``."""

    faster: str
    slower: str
    at_least: float

    def __str__(self) -> str:
        if self.at_least < 1:
            return f"{self.faster} takes <= {1 / self.at_least:.3g}x of {self.slower}"
        if self.at_least < 2:
            return f"{self.faster} takes <= {1 / self.at_least:.2g}x of {self.slower}"
        return f"{self.slower} takes >= {self.at_least:g}x of {self.faster}"

    def shown(self, ratio: float) -> str:
        """Return the ratio as text, in the direction of the goal's sentence."""
        return f"{1 / ratio:.2f}x" if self.at_least < 2 else f"{ratio:.1f}x"


@dataclass(frozen=True)
class Limit:
    """An absolute goal: one unit of work by ``way`` takes at most so many seconds (or bytes, or requests)."""

    way: str
    at_most: float


@dataclass
class Result:
    """What came of a race."""

    journey: str
    title: str
    story: str
    unit: str  # what one unit of work is: "file", "table", "frame"
    amount: int  # units of one lap
    ways: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    quantity: str = "seconds"  # or "bytes", "requests": less is better in all of them

    def hold(self, limit: Limit, best: float) -> None:
        """Record whether the best lap of a way keeps within a limit."""
        each = best / self.amount
        shown = milliseconds if self.quantity == "seconds" else "{:,.4g}".format
        text = f"{limit.way} takes <= {shown(limit.at_most)} a {self.unit}"
        self.demand(text, shown(each), met=each <= limit.at_most)

    def demand(self, text: str, shown: str, *, met: bool) -> None:
        """Add a goal that is not a ratio of two ways of this race."""
        self.goals.append({"text": text, "shown": shown, "met": met})


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def timed(work: Callable[[], Any], before: Callable[[], object] | None = None) -> Callable[[], Lap]:
    """Return a lap that times a function in this process; ``before`` runs untimed."""

    def lap() -> Lap:
        if before is not None:
            before()
        start = time.perf_counter()
        answer = work()
        return time.perf_counter() - start, answer

    return lap


def elsewhere(
    arguments: list[str], script: str = "", before: Callable[[], object] | None = None
) -> Callable[[], Lap]:
    """Return a lap in another process, which prints its own seconds and its answer: start-up is not timed."""
    command = [sys.executable, "-c", script, *arguments] if script else arguments

    def lap() -> Lap:
        if before is not None:
            before()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
        seconds, answer = done.stdout.split(maxsplit=1)
        return float(seconds), json.loads(answer)

    return lap


def race(
    result: Result,
    ways: list[Way],
    goals: Sequence[Goal | Limit],
    *,
    rounds: int,
    same: Callable[[Any], Any] = lambda answer: answer,
) -> Result:
    """Run all ways in turns, ``rounds`` times each, and compare their answers with the first way's.

    A rival that fails or answers otherwise stays in the report with the reason instead of a time;
    voxtier's own ways and the floors must be right.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    trouble: dict[str, str] = {}
    expected: Any = None
    for number in range(rounds):
        for way in ways:
            if way.name in trouble or number >= (way.rounds or rounds):
                continue
            try:
                lap, answer = way.lap()
            except Exception as failure:
                if way.role == "voxtier":
                    raise
                trouble[way.name] = f"{type(failure).__name__}: {str(failure)[-160:]}"
                continue
            if way.role != "floor":
                expected = same(answer) if expected is None else expected
                if same(answer) != expected:
                    if way.role == "voxtier":
                        raise AssertionError(f"{result.title}: {way.name} answers otherwise")
                    trouble[way.name] = f"answers otherwise: {answer}"
                    continue
            seconds[way.name].append(lap)
    for way in ways:
        laps = [] if way.name in trouble else seconds[way.name]
        result.ways.append(
            {
                "name": way.name,
                "role": way.role,
                "note": way.note,
                "best": min(laps, default=None),
                "median": statistics.median(laps) if laps else None,
                "laps": laps,
                "trouble": trouble.get(way.name),
            }
        )
    best = {way["name"]: way["best"] for way in result.ways}
    for goal in goals:
        if isinstance(goal, Limit):
            if best.get(goal.way):
                result.hold(goal, best[goal.way])
        elif best.get(goal.faster) and best.get(goal.slower):
            ratio = best[goal.slower] / best[goal.faster]
            outcome = {"ratio": ratio, "shown": goal.shown(ratio), "met": ratio >= goal.at_least}
            result.goals.append(asdict(goal) | {"text": str(goal)} | outcome)
    return result


def say(result: Result) -> None:
    """Print the race as plain text on standard error."""
    print(f"\n{result.title}  ({result.amount:,} {result.unit}s a lap)", file=sys.stderr)
    ours = next((way["best"] for way in result.ways if way["role"] == "voxtier" and way["best"]), None)
    for way in result.ways:
        if way["best"] is None:
            print(f"  {way['name']:<44} -- {way['trouble']}", file=sys.stderr)
            continue
        if result.quantity != "seconds":
            ratio = f"{way['best'] / ours:9.2f}x" if ours else ""
            print(f"  {way['name']:<44} {way['best']:14,.1f} {result.quantity} {ratio}", file=sys.stderr)
            continue
        rate = result.amount / way["best"]
        against = f"{way['best'] / ours:9.2f}x" if ours else ""
        print(
            f"  {way['name']:<44} {way['best'] * 1e3:11.3f} ms {rate:14,.0f} {result.unit}s/s {against}",
            file=sys.stderr,
        )
    for goal in result.goals:
        mark = "met   " if goal["met"] else "MISSED"
        print(f"  {mark} {goal['text']}: {goal['shown']}", file=sys.stderr)
    for fact in result.facts:
        print(f"  {fact}", file=sys.stderr)


def machine() -> dict[str, str]:
    """Return processor, cores, system and versions: nothing that identifies anyone."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in (
        "voxtier",
        "pydicom",
        "highdicom",
        "wsidicom",
        "dicomsdl",
        "pydcm",
        "numpy",
        "tiledb",
        "zarr",
        "tensorstore",
        "h5py",
        "blosc2",
        "nibabel",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def floor_binary() -> str:
    """Build the floors in native code (``rust/examples/floor.rs``): a loop in Python would be no floor."""
    build = ["cargo", "build", "--quiet", "--release", "--example", "floor"]
    subprocess.run(build, cwd=ROOT, check=True)
    return str(ROOT / "target" / "release" / "examples" / "floor")


def dropped_from_cache(paths: list[Path]) -> None:
    """Drop the files from the page cache: the next read goes to storage, or to a hypervisor's cache."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

"""Journey: traces replayed: hits by policy, round trips with whole series, hits after a restart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.inputs.traces import HOUR, Trace, mixed, statistics_at, viewer
from benches.measure import Result
from voxtier._core import encode_rows, simulate
from voxtier.frames import FrameCache, FrameTable, TableResult, read_table, top_n
from voxtier.frames.memory.cache import LoadResult

JOURNEY = "replay"
WEIGHT = 200  # bytes of an entry: a path of 64 characters, one frame


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Replay everything; nothing is timed, so rounds do not matter."""
    del rounds
    days, studies = (8, 10) if quick else (30, 40)
    trace = viewer(days, studies)
    yield policies(trace, mixed(days, studies))
    yield priming(trace, folder)
    yield restarts(trace, folder, days)


def ratio(trace: Trace, policy: str, budget: int) -> tuple[float, float]:
    """Return the hit ratios of all requests, and of those that are not scans."""
    weights = np.full(len(trace.keys), WEIGHT, np.uint32)
    [(hits, clinical)] = simulate(trace.keys.astype(np.uint32), weights, trace.scans, policy, [budget])
    return hits / len(trace.keys), clinical / max(int((~trace.scans).sum()), 1)


def plain_lru(trace: Trace, budget: int) -> float:
    """Replay with an OrderedDict, the oracle."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace.keys.tolist():
        if key in kept:
            hits += 1
            kept.move_to_end(key)
            continue
        kept[key] = None
        if len(kept) * WEIGHT > budget:
            kept.popitem(last=False)
    return hits / len(trace.keys)


def policies(trace: Trace, busy: Trace) -> Result:
    files = len(trace.inserted)
    result = Result(
        JOURNEY,
        f"Hit ratios: {len(trace.keys):,} viewer requests, {len(busy.keys):,} with training, {files:,} files",
        "Replayed exactly in Rust. Belady knows the future.",
        "request",
        len(trace.keys),
    )
    for share in (0.02, 0.10):
        budget = int(files * WEIGHT * share)
        ours, theirs = ratio(trace, "lru", budget)[0], plain_lru(trace, budget)
        best = ratio(trace, "belady", budget)[0]
        result.demand(
            f"viewer, {share:.0%}: LRU within 0.1 pp of an OrderedDict",
            f"{ours:.2%} and {theirs:.2%}; fifo {ratio(trace, 'fifo', budget)[0]:.2%}, Belady {best:.2%}",
            met=abs(ours - theirs) <= 0.001,
        )
    budget = int(files * WEIGHT * 0.25)
    deaf, hinted = ratio(busy, "lru", budget)[1], ratio(busy, "scan_aware", budget)[1]
    result.demand(
        "viewer beside training, 25 %: clinical hits with the scan class >= without",
        f"{hinted:.2%} and {deaf:.2%}",
        met=hinted >= deaf,
    )
    epoch = np.tile(np.arange(files), 4)
    cyclic = trace._replace(keys=epoch, scans=np.ones(len(epoch), np.bool_))
    ours, best = ratio(cyclic, "scan_aware", budget)[0], ratio(cyclic, "belady", budget)[0]
    result.demand(
        "four epochs in order, 25 %: scan class >= 0.95 of Belady",
        f"{ours:.2%} of {best:.2%} (LRU {ratio(cyclic, 'lru', budget)[0]:.2%})",
        met=ours >= 0.95 * best,
    )
    return result


def priming(trace: Trace, folder: Path) -> Result:
    """Count the questions that the reader would ask the index."""
    table, weight = one_frame(folder)
    names = paths(trace)
    rows = {name: encode_rows("s", [TableResult(name, table, None)])[0] for name in names}
    series_of = dict(zip(names, trace.series.tolist(), strict=True))
    members: dict[int, list[str]] = {}
    for name, series in series_of.items():
        members.setdefault(series, []).append(name)
    result = Result(
        JOURNEY,
        f"Round trips to the index, {len(trace.keys):,} requests",
        "Without priming each miss is one; with it, the first miss of a series brings the others along.",
        "request",
        len(trace.keys),
    )
    requests = list(zip(trace.keys.tolist(), trace.times.tolist(), strict=True))
    for share in (0.02, 0.10):
        trips = []
        for primed in (False, True):
            now = [0.0]
            cache = FrameCache(int(len(names) * weight * share))
            cache.clock = lambda now=now: now[0]  # type: ignore[misc]
            count = 0
            for key, time in requests:
                if cache.touch(names[key]):
                    continue
                now[0] = time / 1e6
                count += 1

                def recall(name: str, cache: FrameCache = cache, primed: bool = primed) -> LoadResult:
                    others = members[series_of[name]] if primed and cache.claim_series(name) else []
                    return LoadResult(table, "tier2", b"".join(rows[each] for each in (name, *others)))

                cache.load(names[key], recall)
            trips.append(count)
        result.demand(
            f"{share:.0%} of the files in memory: >= 50 times fewer with priming",
            f"{trips[0] / len(requests) * 1000:.0f} -> {trips[1] / len(requests) * 1000:.2f} "
            f"a 1000 requests, {trips[0] / trips[1]:.0f}x",
            met=trips[0] >= 50 * trips[1],
        )
    return result


def restarts(trace: Trace, folder: Path, days: int) -> Result:
    """Return the hit ratio of the first four hours after a restart, with memory for 15 % of the files."""
    table, weight = one_frame(folder)
    names = paths(trace)
    result = Result(
        JOURNEY,
        "The first four hours after a restart, memory for 15 % of the files",
        "Preloaded by score up to 80 % of the budget, against an empty cache. No series is primed here.",
        "request",
        len(trace.keys),
    )
    for hour in (6, 13):
        for day in sorted({days // 2, days - 2}):
            moment = (day * 24 + hour) * HOUR
            chosen = trace.keys[(trace.times >= moment) & (trace.times < moment + 4 * HOUR)].tolist()
            known = np.flatnonzero(trace.inserted < moment)
            budget = int(len(known) * weight * 0.15)
            last_used, count = statistics_at(trace, moment)
            columns = (last_used[known], trace.inserted[known], count[known])
            best = known[top_n(*columns, n=len(known) // 5, now=moment)[0]]
            warm, cold = FrameCache(budget), FrameCache(budget)
            for key in best.tolist():
                row, _ = encode_rows("s", [TableResult(names[key], table, None)])
                warm.preload_rows(row, int(budget * 0.8))
            warm_hits, cold_hits = replayed(warm, chosen, names, table), replayed(cold, chosen, names, table)
            result.demand(
                f"day {day}, {hour:02}:00: preload >= +8 pp",
                f"{cold_hits:.1%} -> {warm_hits:.1%}",
                met=warm_hits - cold_hits >= 0.08,
            )
    return result


def replayed(cache: FrameCache, keys: list[int], names: list[str], table: FrameTable) -> float:
    hits = 0
    for key in keys:
        if cache.touch(names[key]):
            hits += 1
        else:
            cache.put_table(names[key], table)
    return hits / max(len(keys), 1)


def paths(trace: Trace) -> list[str]:
    """Return paths of 64 characters."""
    series = trace.series.tolist()
    return [f"/Volumes/archive/pixels/viewer/{at:012d}/{number:020d}" for number, at in enumerate(series)]


def one_frame(folder: Path) -> tuple[FrameTable, int]:
    """Return a real table of one frame, and what an entry with it weighs."""
    from benches.inputs.files import ct_files

    if not (folder / "ct").exists():
        ct_files(folder / "ct", 1)
    table = read_table(next((folder / "ct").iterdir()), verify="all")
    probe = FrameCache(1 << 20)
    probe.put_table("/" * 64, table)
    used: Any = probe.counters()["used"]
    return table, int(used)

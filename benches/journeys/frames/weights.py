"""What tier 1 takes in bytes: an entry, a frame, and what remains after entries came and went."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benches.measure import Goal, Result, Way, elsewhere, race
from voxtier.frames import FrameCache

JOURNEY = "memory"


def weights(*, quick: bool) -> list[Result]:
    """Measure the bytes of entries, of frames, and of a process after many entries came and went."""
    return [entries(100_000 if quick else 1_000_000), frames(), churn(300_000 if quick else 12_000_000)]


_ENTRIES = """
import gc, json, sys, time
from benches.inputs.entries import filled, rss
kind, count = sys.argv[1], int(sys.argv[2])
if kind == "cachebox":
    import cachebox
    cache = cachebox.LRUCache(count)
if kind == "origin":
    from collections import OrderedDict
    cache = OrderedDict()
if kind == "voxtier":
    cache = filled([])
    import numpy as np
    offsets, lengths = np.array([1352], np.uint64), np.array([1000], np.uint64)
gc.collect()
before = rss()
for i in range(count):
    key = f"/Volumes/archive/pixels/study{i // 500:06d}/s{i // 50:06d}/{i:010d}.dcm"
    if kind == "voxtier":
        cache.put(key, offsets, lengths, ts_uid="1.2.840.10008.1.2.4.90", pixel_data_pos=1330)
    elif kind == "cachebox":
        cache.insert(key, None)
    else:
        row = {"frame_number": i - i, "start_pos": 1352 + i, "end_pos": 2351 + i, "pixel_data_pos": 1330 + i}
        cache[(key, "c.s.t")] = {"frames": {0: row}, "ts": "1.2.840.10008.1.2.4.90", "last_used": time.time()}
grown = rss() - before
print(grown / count, json.dumps(count))
"""


def entries(count: int) -> Result:
    """Measure an entry in resident bytes."""
    result = Result(
        JOURNEY,
        f"Bytes of memory an entry, {count:,} files of one frame",
        "Resident memory of a process that holds nothing else. cachebox holds keys and no value at all.",
        "entry",
        1,
        quantity="bytes",
    )
    ways = [
        Way("voxtier", elsewhere(["voxtier", str(count)], _ENTRIES), "voxtier"),
        Way("cachebox, empty values", elsewhere(["cachebox", str(count)], _ENTRIES)),
        Way("the origin's dicts", elsewhere(["origin", str(count)], _ENTRIES)),
    ]
    goals = [Goal("voxtier", "cachebox, empty values", 1 / 0.85), Goal("voxtier", "the origin's dicts", 5)]
    return race(result, ways, goals, rounds=1)


def lengths_of(count: int) -> dict[str, Any]:
    """Return the lengths of so many frames, as the kinds of images have them."""
    dice = np.random.default_rng(4)
    return {
        "native": np.full(count, 524_288.0),
        "JPEG 2000, fixed rate": dice.normal(52_000, 40, count),
        "JPEG-LS CT": dice.normal(180_000, 9000, count),
        "RLE ultrasound": dice.normal(300_000, 30_000, count),
        "JPEG ultrasound": dice.normal(60_000, 5000, count),
        "slide, tiles of 256": dice.lognormal(9.3, 0.6, count),
        "slide, tiles of 512": dice.lognormal(10.6, 0.7, count),
    }


def frames() -> Result:
    """Measure packed tables in bytes per frame, and the origin's dicts of the same frames."""
    result = Result(
        JOURNEY,
        "Bytes of memory a frame",
        "Packed tables; 'accounted' is what the budget counts: with key, slot, and what the heap rounds up, a"
        " quarter at most. The origin's dicts as sys.getsizeof counts objects, which knows no rounding.",
        "frame",
        1,
        quantity="bytes",
    )
    for count, least, kinds in ((100, 100, ""), (20_000, 150, "slide")):
        ours, ratios, accounted = {}, {}, {}
        for name, values in lengths_of(count).items():
            if not name.startswith(kinds):  # nothing but slides has so many frames
                continue
            lengths = (values.astype(np.uint64) // np.uint64(2)) * np.uint64(2)
            offsets = np.cumsum(lengths + np.uint64(8)) - lengths + np.uint64(1000)
            ours[name], accounted[name] = packed(offsets, lengths)
            ratios[name] = dicts(offsets.tolist(), lengths.tolist()) / ours[name]
        heaviest, nearest = max(ours, key=ours.__getitem__), min(ratios, key=ratios.__getitem__)
        result.demand(
            f"{count:,} frames: <= 2.6 bytes a frame", f"{ours[heaviest]:.2f} ({heaviest})",
            met=ours[heaviest] <= 2.6,
        )  # fmt: skip
        result.demand(
            f"{count:,} frames: the origin's dicts take >= {least}x", f"{ratios[nearest]:.0f}x ({nearest})",
            met=ratios[nearest] >= least,
        )  # fmt: skip
        result.facts += [
            f"{name}, {count:,}: {ours[name]:.2f}, {ratios[name]:.0f}x; {accounted[name]:.2f} accounted"
            for name in ours
        ]
    return result


def packed(offsets: Any, lengths: Any) -> tuple[float, float]:
    """Return bytes per frame in memory: of the packed table, and of everything that the budget counts."""
    cache = FrameCache(1 << 40)
    cache.put("k", offsets, lengths)
    found = cache.locate_many("k", np.arange(len(lengths)))
    assert found is not None
    assert np.array_equal(found[0], offsets.astype(np.int64))
    assert np.array_equal(found[1], lengths.astype(np.int64))
    return (cache.packed_bytes("k") or 0) / len(lengths), cache.counters()["used"] / len(lengths)


def dicts(offsets: list[int], lengths: list[int]) -> float:
    """Return bytes per frame of a dict of rows; a frame's number is one object, as key and as value."""
    rows = {
        number: {"frame_number": number, "start_pos": offset, "end_pos": offset + length - 1,
                 "pixel_data_pos": 1 << 30}
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True))
    }  # fmt: skip
    each = (sys.getsizeof(row) + sum(map(sys.getsizeof, row.values())) for row in rows.values())
    return (sys.getsizeof(rows) + sum(each)) / len(rows)


_CHURN = """
import json, sys
import numpy as np
from benches.inputs.entries import rss
from voxtier.frames import FrameCache
dice = np.random.default_rng(1)
cache = FrameCache(200 << 20)
shapes = []
for n in (1, 1, 1, 30, 100, 400, 3000):
    lengths = dice.integers(400, 4000, n).astype(np.uint64)
    shapes.append((np.cumsum(lengths + np.uint64(8)) - lengths + np.uint64(1000), lengths))
before = rss()
for _ in range(int(sys.argv[1]) // 100_000):
    chosen, keys = dice.integers(0, len(shapes), 100_000), dice.integers(0, 3_000_000, 100_000)
    for shape, key in zip(chosen.tolist(), keys.tolist()):
        cache.put(f"/Volumes/archive/pixels/dicom/{key:024d}.dcm", *shapes[shape])
cache.validate()
print((rss() - before) / cache.counters()["used"], json.dumps(cache.counters()["evicted"]["capacity"]))
"""


def churn(inserts: int) -> Result:
    """Measure a process in which entries of mixed sizes came and went."""
    result = Result(
        JOURNEY,
        f"Resident bytes after {inserts:,} inserts",
        "A budget of 200 MiB, entries of 1 to 3,000 frames under three million keys in any order.",
        "insert",
        inserts,
        quantity="resident / accounted",
    )
    ratio, evictions = elsewhere([str(inserts)], _CHURN)()
    result.demand("resident <= 1.25 of what is accounted", f"{ratio:.3f}", met=ratio <= 1.25)
    result.facts.append(f"{evictions:,} evictions")
    return result

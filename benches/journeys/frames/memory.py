"""Journey: tier 1 against every installable cache: look-ups, evictions, many ids, threads, bytes."""

from __future__ import annotations

import functools
import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.inputs.entries import filled, paths_of
from benches.journeys.frames.weights import weights
from benches.measure import Goal, Result, Way, race, timed

JOURNEY = "memory"


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Every race of tier 1; sizes follow the reference."""
    count = 20_000 if quick else 100_000
    for measured in (look_ups, locating, evicting, touching, threads):
        yield measured(count, rounds)
    yield from weights(quick=quick)


def probe_table(key: str) -> Any:
    """Return a table as a loader returns it."""
    return filled([key]).table(key)


class LockedDict:
    """What many services use: an OrderedDict behind a lock."""

    def __init__(self, cap: int) -> None:
        self.cap, self.lock, self.items = cap, threading.Lock(), OrderedDict[str, Any]()

    def get(self, key: str) -> Any:
        with self.lock:
            value = self.items.get(key)
            if value is not None:
                self.items.move_to_end(key)
            return value

    def put(self, key: str, value: Any) -> None:
        with self.lock:
            self.items[key] = value
            self.items.move_to_end(key)
            if len(self.items) > self.cap:
                self.items.popitem(last=False)


class RowsOfFrames(LockedDict):
    """The predecessor's cache: dicts of frames by file, hits and misses counted, access time recorded."""

    hits = misses = 0

    def frame(self, key: str, table: str, frame: int) -> dict[str, int] | None:
        with self.lock:
            entry = self.items.get((key, table))
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self.items.move_to_end((key, table))
            entry["last_used"] = time.time()
            entry["access_count"] += 1
            for row in (entry["frames"].get(frame),):
                return row
            return None


def rivals(keys: list[str], cap: int) -> dict[str, tuple[Callable[[str], Any], Callable[[str, Any], Any]]]:
    """Return get and put of each rival, filled."""
    import cachebox
    import cachetools
    import lru
    import moka_py
    import theine

    found: dict[str, tuple[Callable[[str], Any], Callable[[str, Any], Any]]] = {}
    box = cachebox.LRUCache(cap)
    found["cachebox.LRUCache"] = (box.get, box.insert)
    tools, lock = cachetools.LRUCache(cap), threading.Lock()

    def tools_get(key: str) -> Any:
        with lock:
            return tools.get(key)

    def tools_put(key: str, value: Any) -> None:
        with lock:
            tools[key] = value

    found["cachetools.LRUCache + Lock"] = (tools_get, tools_put)
    ordered = LockedDict(cap)
    found["OrderedDict + Lock"] = (ordered.get, ordered.put)
    c_lru = lru.LRU(cap)
    found["lru-dict"] = (c_lru.get, c_lru.__setitem__)
    moka = moka_py.Moka(cap)
    found["moka-py"] = (moka.get, moka.set)
    tiny: Any = theine.Cache(cap)
    found["theine"] = ((lambda key: tiny.get(key)[0]), tiny.set)
    for _, put in found.values():
        for key in keys:
            put(key, key)
    time.sleep(0.2)  # theine and moka admit in the background
    return found


def calls(function: Callable[[Any], Any], keys: list[Any]) -> Callable[[], int]:
    def work() -> int:
        for key in keys:
            function(key)
        return len(keys)

    return work


def hot(keys: list[str], count: int) -> list[str]:
    """Draw keys from a working set, as viewers do."""
    return random.Random(1).choices(keys[:1000], k=count)


def look_ups(count: int, rounds: int) -> Result:
    keys = paths_of(count)
    asked = hot(keys, count)
    cache = filled(keys)
    remembered = functools.lru_cache(maxsize=count)(lambda key: key)
    for key in keys:
        remembered(key)
    result = Result(
        JOURNEY,
        f"{count:,} look-ups of hot keys among {count:,}",
        "A hit that counts and promotes. functools.lru_cache and the dict know no budget in bytes.",
        "look-up",
        count,
    )
    table = dict.fromkeys(keys, 1)
    ways = [
        Way("voxtier FrameCache.touch", timed(calls(cache.touch, asked)), "voxtier"),
        Way("dict.get", timed(calls(table.get, asked)), "floor"),
        Way("functools.lru_cache", timed(calls(remembered, asked))),
    ]
    ways += [Way(name, timed(calls(get, asked))) for name, (get, _) in rivals(keys, count + 10).items()]
    goals = [
        Goal("voxtier FrameCache.touch", "cachebox.LRUCache", 0.8),
        Goal("voxtier FrameCache.touch", "functools.lru_cache", 1.0),
    ]
    return race(result, ways, goals, rounds=max(rounds, 9))


def locating(count: int, rounds: int) -> Result:
    keys = paths_of(count)
    asked = hot(keys, count)
    cache = filled(keys, frames=3)
    old = RowsOfFrames(count)
    for key in keys:
        frames = {i: {"start_pos": 1352 + 1008 * i, "end_pos": 2351 + 1008 * i} for i in range(3)}
        old.items[(key, "c.s.t")] = {"frames": frames, "last_used": 0.0, "access_count": 0}
    result = Result(
        JOURNEY, f"{count:,} frames located", "Byte range of a frame of a hot file.", "frame", count
    )

    def ours() -> int:
        locate, total = cache.locate, 0
        for key in asked:
            total += locate(key, 2)[0]  # type: ignore[index]
        return total

    def theirs() -> int:
        frame, total = old.frame, 0
        for key in asked:
            total += frame(key, "c.s.t", 2)["start_pos"]  # type: ignore[index]
        return total

    ways = [
        Way("voxtier FrameCache.locate", timed(ours), "voxtier"),
        Way("the origin's shape", timed(theirs)),
    ]
    return race(
        result, ways, [Goal("voxtier FrameCache.locate", "the origin's shape", 5)], rounds=max(rounds, 9)
    )


def evicting(count: int, rounds: int) -> Result:
    keys = paths_of(2 * count)
    first, second = keys[:count], keys[count:]
    probe = filled(first[:1]).counters()["used"]
    cache = filled(first, budget=probe * count)
    offsets, lengths = np.array([1352], np.uint64), np.array([1000], np.uint64)
    turn = [second, first]

    def ours() -> int:
        put = cache.put
        for key in turn[0]:
            put(key, offsets, lengths, ts_uid="1.2.840.10008.1.2.4.90", pixel_data_pos=1330)
        return count

    def theirs(put: Callable[[str, Any], Any]) -> Callable[[], int]:
        def work() -> int:
            for key in turn[0]:
                put(key, key)
            return count

        return work

    def swap() -> None:
        turn.reverse()

    result = Result(
        JOURNEY,
        f"{count:,} puts, each evicting one entry",
        "voxtier packs two arrays into a table and weighs it; the rivals store a reference.",
        "put",
        count,
    )
    ways = [Way("voxtier FrameCache.put", timed(ours, swap), "voxtier")]
    table = probe_table(first[0])
    made = filled(first, budget=probe * count)
    other = [second, first]

    def of_a_table() -> int:
        put = made.put_table
        for key in other[0]:
            put(key, table)
        return count

    ways.append(Way("voxtier FrameCache.put_table", timed(of_a_table, other.reverse), "voxtier"))
    ways += [Way(name, timed(theirs(put))) for name, (_, put) in rivals(first, count).items()]
    goals = [
        Goal("voxtier FrameCache.put", "cachebox.LRUCache", 0.77),
        Goal("voxtier FrameCache.put", "OrderedDict + Lock", 3.5),
    ]
    return race(result, ways, goals, rounds=max(rounds, 5))


def touching(count: int, rounds: int) -> Result:
    keys = paths_of(count)
    cache = filled(keys)
    asked = random.Random(2).choices(keys[:1000], k=count)
    ids = np.array([cache.key_id(key) for key in asked], np.uint64)
    batches = [ids[at : at + 64] for at in range(0, count, 64)]
    large = [ids[at : at + 1000] for at in range(0, count, 1000)]
    result = Result(JOURNEY, f"{count:,} touches in batches", "By number instead of by key.", "touch", count)

    def many(parts: list[Any]) -> Callable[[], int]:
        return lambda: sum(map(cache.touch_many, parts))

    ways = [
        Way("voxtier touch_many, 1000 at a time", timed(many(large)), "voxtier"),
        Way("voxtier touch_many, 64 at a time", timed(many(batches)), "voxtier"),
        Way("voxtier touch, one by one", timed(calls(cache.touch, asked)), "voxtier"),
    ]
    goals = [
        Goal("voxtier touch_many, 1000 at a time", "voxtier touch, one by one", 10),
        Goal("voxtier touch_many, 64 at a time", "voxtier touch, one by one", 5),
    ]
    return race(result, ways, goals, rounds=max(rounds, 9))


def threads(count: int, rounds: int) -> Result:
    keys = paths_of(count)
    asked = hot(keys, count)
    cache = filled(keys)

    def several(number: int) -> Callable[[], int]:
        def work() -> int:
            share = len(asked) // number
            parts = [asked[at * share : (at + 1) * share] for at in range(number)]
            running = [threading.Thread(target=calls(cache.touch, part)) for part in parts]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            return count

        return work

    result = Result(JOURNEY, f"{count:,} look-ups by threads", "One mutex, one GIL.", "look-up", count)
    ways = [
        Way("voxtier, 4 threads", timed(several(4)), "voxtier"),
        Way("voxtier, 1 thread", timed(several(1)), "voxtier"),
    ]
    return race(result, ways, [Goal("voxtier, 4 threads", "voxtier, 1 thread", 0.5)], rounds=max(rounds, 5))


if __name__ == "__main__":
    from dataclasses import asdict

    print(json.dumps([asdict(r) for r in run(Path("/var/tmp"), quick=True, rounds=3)], indent=1))

"""Journey: frames while the database is sick: hot ones, forty misses at once, and the recovery."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import benches.inputs.files  # noqa: F401 - puts the tests' folder on the path
from benches.measure import Goal, Limit, Result, Way, race
from frames.serving.sick_servers import (
    Trouble,
    add_reader,
    frozen,
    killed,
    locked,
    out_of_connections,
    read_only,
    revoked,
    stopped,
)
from support.builders import dicom, element, image, pattern
from voxtier.frames import FrameReader, FrameStore
from voxtier.frames.indexing.run import FileIndexer
from voxtier.postgres.embedded import EmbeddedServer

JOURNEY = "sick_database"
MISSES = 40
SIZE = 128 * 128 * 2
HOT = 2_000
TROUBLES: dict[str, Trouble] = {
    each.__name__.replace("_", " "): each
    for each in (stopped, killed, frozen, locked, out_of_connections, read_only, revoked)
}


class Episode(NamedTuple):
    """What was measured while the database was sick once, in seconds."""

    hot: float  # HOT frames from memory, one after the other, after the misses
    hot_p99: float  # of the frames from memory while the misses waited
    slowest_miss: float
    recovery: float  # until the index answers a miss again


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Every trouble in turns, as often as there are rounds."""
    rounds = 1 if quick else min(rounds, 3)
    server = EmbeddedServer(folder / "server")
    server.attach()
    try:
        paths = files(folder / "images", 1 + (MISSES + 200) * (len(TROUBLES) + 1) * rounds)
        with FrameStore(server.conninfo()) as store:
            FileIndexer(store, source="s").index_batch(paths)
        dsn = add_reader(server)
        hot, fresh = paths[0], iter(paths[1:])
        episodes: dict[str, list[Episode]] = {name: [] for name in ("well", *TROUBLES)}
        for _ in range(rounds):
            for name in episodes:
                misses = [next(fresh) for _ in range(MISSES)]
                trouble = TROUBLES[name](server) if name in TROUBLES else nullcontext()
                later = [next(fresh) for _ in range(200)]
                episodes[name].append(measured(dsn, trouble, hot, misses, later))
    finally:
        server.detach()
    yield from results(episodes, rounds)


def files(folder: Path, count: int) -> list[str]:
    """Write files of a series each, so that none comes into memory along with another."""
    folder.mkdir()
    shape = image(rows=128, columns=128, bits=16)
    header = [each for each in shape if each.tag not in (0x0020000E, 0x00080018)]
    paths = []
    for number in range(count):
        own = [element("SOPInstanceUID", f"2.25.{number}"), element("SeriesInstanceUID", f"2.25.9.{number}")]
        elements = sorted([*header, *own], key=lambda each: each.tag)
        path = folder / f"{number}.dcm"
        path.write_bytes(dicom([*elements, element("PixelData", pattern(SIZE, number), "OW")]).content)
        paths.append(str(path))
    return paths


def measured(
    dsn: str, trouble: AbstractContextManager[None], hot: str, misses: list[str], later: list[str]
) -> Episode:
    """Measure one episode; the bytes of every frame are compared with those of its file."""
    expected = content(hot)
    with FrameStore(dsn) as store, FrameReader(store, "s", publish=False) as reader:
        store.sources()
        assert reader.frame(hot, 0) == expected
        assert reader.stats()["tier2"] == 1
        with trouble:
            latencies, waits = asyncio.run(crowd(reader, hot, expected, misses))
            began = time.perf_counter()
            for _ in range(HOT):
                frame = reader.frame(hot, 0)
            seconds = time.perf_counter() - began
            assert frame == expected
        well_again = time.perf_counter()
        answered = reader.stats()["tier2"]
        for path in later:
            assert reader.frame(path, 0) == content(path)
            if reader.stats()["tier2"] > answered:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("the index does not answer again")
        recovery = time.perf_counter() - well_again
    return Episode(seconds, sorted(latencies)[int(len(latencies) * 0.99)], max(waits), recovery)


def content(path: str) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(-SIZE, os.SEEK_END)
        return file.read()


async def crowd(
    reader: FrameReader, hot: str, expected: bytes, misses: list[str]
) -> tuple[list[float], list[float]]:
    """Ask for all misses at once, and for the hot frame again and again until they are answered."""
    waits: list[float] = []

    async def miss(path: str) -> None:
        began = time.perf_counter()
        frame = await reader.aframe(path, 0)
        waits.append(time.perf_counter() - began)
        assert frame == content(path)

    tasks = [asyncio.create_task(miss(path)) for path in misses]
    latencies = []
    while len(latencies) < 100 or not all(task.done() for task in tasks):
        began = time.perf_counter()
        frame = await reader.aframe(hot, 0)
        latencies.append(time.perf_counter() - began)
        assert frame == expected
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    return latencies, waits


def results(episodes: dict[str, list[Episode]], rounds: int) -> Iterator[Result]:
    """Make a race of each quantity; every state of the database is a way."""
    well = "well"
    names = list(TROUBLES)
    for field, title, story, unit, amount, goals in (
        (
            "hot",
            f"{HOT:,} frames of one file in memory, by the state of the database",
            "Read one after the other, after forty misses have found out that the database is sick.",
            "frame",
            HOT,
            [Goal(faster=name, slower=well, at_least=1 / 1.25) for name in names],
        ),
        (
            "hot_p99",
            f"A frame in memory while {MISSES} misses wait: 99 of 100",
            "One event loop asks for all; the misses ask the sick database for at most 0.25 s.",
            "frame",
            1,
            [Limit(name, 0.005) for name in names],
        ),
        (
            "slowest_miss",
            f"The slowest of {MISSES} misses at once",
            "A miss asks the index and then reads the file itself.",
            "miss",
            1,
            [Limit(name, 0.4) for name in names],
        ),
        (
            "recovery",
            "From the database's return to the first answer of the index",
            "The reader is asked for another file every 20 ms.",
            "recovery",
            1,
            [Limit(name, 2.0) for name in names],
        ),
    ):
        ways = [
            Way(name, iter([(getattr(each, field), None) for each in found]).__next__, role="voxtier")
            for name, found in episodes.items()
        ]
        yield race(Result(JOURNEY, title, story, unit, amount), ways, goals, rounds=rounds)

"""How the index behaves as it grows: ``python -m benches.scale 1000000 [--folder F] [--again [RESULT ...]]``.

One database grows from size to size; at each, the work that a service and its nightly index run do is
measured and written to ``benches/results/scale.json``. A run that was interrupted goes on where it stopped.
The files do not exist: what is measured is the index, see `benches.inputs.archive`. ``--estimate 1000000000``
tells from the results what so many files need; it measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benches.inputs.archive import SOURCE, Archive
from benches.measure import RESULTS, machine
from voxtier.frames import FileIndexer, FrameCache, index_files
from voxtier.frames.memory.ranking import preload_rows, ranked_files
from voxtier.frames.sources.listing import ListedObject
from voxtier.frames.sources.stores import ObjectState
from voxtier.frames.store.file_rows import BATCH
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer

DEFAULT_SIZE = 1_000_000
# name of a result: what it says, unit
MEASURES = {
    "first_run": ("first run, the index's part", "files/s"),
    "wal_a_row": ("log of the first run", "bytes a file"),
    "known": ("known files asked about", "files/s"),
    "nothing_new": ("a run over a listing of which nothing is new", "files/s"),
    "one_percent_new": ("a run that finds 1 % new, the index's part", "files/s"),
    "touch": ("accesses of 10,000 files written", "files/s"),
    "by_path": ("look-up by path", "ms"),
    "by_sop_uid": ("look-up by SOP Instance UID", "ms"),
    "by_series": ("look-up of a series of 100 files", "ms"),
    "series_with_file": ("a file with its series, for memory", "ms"),
    "priority_500": ("ranked list of 500 files", "s"),
    "priority_100k": ("ranked list of 100,000 files", "s"),
    "preload_100k": ("preload of 100,000 tables", "s"),
    "preload_first": ("the first of them is in memory after", "s"),
    "prune_walk": ("prune: rows asked about", "files/s"),
    "prune_delete": ("prune: rows deleted", "files/s"),
    "vacuum": ("vacuum and analyze after that", "s"),
    "row": ("a row of the table, without tables of frames outside it", "bytes"),
    "indexes": ("its indexes", "bytes a row"),
    "frames": ("tables of frames outside the row", "bytes a row"),
    "statistics": ("statistics of the files that were read, with their index", "bytes a row"),
    "restart": ("stop, start, first look-up", "s"),
}


class Scale:
    """One database of a synthetic archive, and what is measured of it at its size of the moment."""

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder = folder
        self.archive = Archive(folder / "files")
        self.server = EmbeddedServer(folder / "postgres")
        self.results = results
        self.found: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
        self.dice = random.Random(7)
        self.store: FrameStore

    def run(self, sizes: list[int], *, again: Sequence[str]) -> None:
        """Grow to each size and measure there what has no result yet, or is to be measured again."""
        self.server.attach()
        try:
            with FrameStore(self.server.conninfo()) as self.store:
                self.store.sources()
                for rows in sorted(sizes):
                    self.grow(rows)
                    known = self.found.setdefault(str(rows), {})
                    for work in (self.index, self.look_up, self.rank, self.prune, self.space, self.listing):
                        for name, measure in work(rows).items():
                            if name in again or name not in known:
                                known[name] = round(measure(), 4)
                                self.say(rows, name)
        finally:
            self.server.detach()
        for rows in sizes:
            if "restart" in again or "restart" not in self.found[str(rows)]:
                self.found[str(rows)]["restart"] = round(self.restart(), 3)
                self.say(rows, "restart")

    def say(self, rows: int, name: str) -> None:
        """Print one result and keep all of them."""
        words, unit = MEASURES[name]
        print(f"{rows:>12,}  {words:<60} {self.found[str(rows)][name]:>14,.4g} {unit}", file=sys.stderr)
        content = self.found | {"machine": machine()}
        self.results.write_text(json.dumps(content, indent=1) + "\n")

    def ask(self, question: str) -> Any:
        return self.store.query(question, ())[0][0]

    def grow(self, rows: int) -> None:
        """Add files until there are so many, as a first run does; note its rate."""
        present = self.ask("SELECT count(*) FROM voxtier.file")
        if present >= rows:
            return
        log, seconds = self.ask("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8"), 0.0
        for first in range(present, rows, BATCH):
            past = min(first + BATCH, rows)
            paths, made = self.archive.paths(first, past), self.archive.rows(first, past)
            seconds += seconds_of(lambda: self.store.encoded_states(SOURCE, paths))  # noqa: B023 - called at once
            seconds += seconds_of(lambda: self.store.upsert_rows(SOURCE, made))  # noqa: B023
        log = self.ask("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8") - log
        known = self.found.setdefault(str(rows), {})
        known["first_run"], known["wal_a_row"] = (
            round((rows - present) / seconds),
            round(log / (rows - present)),
        )
        self.say(rows, "first_run")
        self.say(rows, "wal_a_row")
        now = datetime.now(UTC)
        for first in range(present, rows, 2 * BATCH):
            self.touch(first, min(first + 2 * BATCH, rows), now)
        self.vacuum()

    def touch(self, first: int, past: int, now: datetime) -> None:
        keys, counts, times = zip(*self.archive.accesses(first, past, now), strict=True)
        self.store.touch(keys, counts, times)

    def vacuum(self) -> None:
        self.store.database.run(
            lambda each: each.execute("VACUUM (ANALYZE) voxtier.file, voxtier.file_stats")
        )

    def index(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return the work of an index run over files that are known, and of the flush of accesses."""
        first = self.dice.randrange(max(rows - 200_000, 1))
        count = min(rows, 200_000)

        def known() -> float:
            batches = [self.archive.paths(at, at + BATCH) for at in range(first, first + count, BATCH)]
            return count / seconds_of(lambda: [self.store.encoded_states(SOURCE, each) for each in batches])

        def one_percent_new() -> float:
            seconds = 0.0
            for at in range(first, first + count, BATCH):
                paths, new = self.archive.paths(at, at + BATCH), self.archive.rows(at, at + BATCH // 100)
                self.store.delete(SOURCE, paths[: BATCH // 100])
                seconds += seconds_of(lambda: self.store.encoded_states(SOURCE, paths))  # noqa: B023
                seconds += seconds_of(lambda: self.store.upsert_rows(SOURCE, new))  # noqa: B023
            return count / seconds

        def touch() -> float:
            now, laps = datetime.now(UTC), []
            for _ in range(3):
                keys = [self.archive.key(2 * self.dice.randrange(rows // 2)) for _ in range(10_000)]
                laps.append(seconds_of(lambda: self.store.touch(keys, [1] * 10_000, [now] * 10_000)))  # noqa: B023
            return 10_000 / min(laps)

        return {
            "known": known,
            "one_percent_new": one_percent_new,
            "touch": touch,
        }

    def look_up(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return single questions; each is asked of 400 files anywhere, and the median counts."""
        store, archive = self.store, self.archive

        def median(question: Callable[[int], object]) -> Callable[[], float]:
            def lap() -> float:
                numbers = [self.dice.randrange(rows) for _ in range(400)]
                return 1e3 * statistics.median(seconds_of(lambda: question(each)) for each in numbers)  # noqa: B023

            return lap

        def series_with_file(number: int) -> object:
            return store.recall(SOURCE, archive.path(number), with_series=True)

        return {
            "by_path": median(lambda number: store.recall(SOURCE, archive.path(number))),
            "by_sop_uid": median(lambda number: store.by_sop_instance(archive.instance_uid(number), SOURCE)),
            "by_series": median(lambda number: store.by_series(archive.series_uid(number), SOURCE)),
            "series_with_file": median(series_with_file),
        }

    def rank(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return the ranked lists and the preload, each the better of two."""

        def listed(limit: int) -> Callable[[], float]:
            return lambda: min(seconds_of(lambda: ranked_files(self.store, SOURCE, limit)) for _ in range(2))

        def preload(most: int) -> float:
            cache = FrameCache(1 << 40)
            for part in preload_rows(self.store, SOURCE, 100_000):
                cache.preload_rows(part, 1 << 39)
                if len(cache) >= most:
                    break
            return float(len(cache))

        return {
            "priority_500": listed(500),
            "priority_100k": listed(100_000),
            "preload_first": lambda: seconds_of(lambda: preload(1)),
            "preload_100k": lambda: seconds_of(lambda: preload(100_000)),
        }

    def prune(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return the walk over all rows, the deletion of 10,000 anywhere (written again), and the vacuum."""

        def walk() -> float:
            return rows / seconds_of(lambda: sum(1 for _ in self.store.missing_files(SOURCE, is_gone=bool)))

        def delete() -> float:
            starts = [self.dice.randrange(max(rows - 100, 1)) for _ in range(100)]
            paths = [path for first in starts for path in self.archive.paths(first, first + 100)]
            seconds = seconds_of(lambda: self.store.delete(SOURCE, paths))
            for first in starts:
                self.store.upsert_rows(SOURCE, self.archive.rows(first, first + 100))
            return len(paths) / seconds

        return {
            "prune_walk": walk,
            "prune_delete": delete,
            "vacuum": lambda: seconds_of(self.vacuum),
        }

    def space(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return the bytes of table, indexes and statistics a row."""

        def each(size: str) -> Callable[[], float]:
            return lambda: float(self.ask(f"SELECT {size}")) / rows

        return {
            "row": each("pg_relation_size('voxtier.file')"),
            "indexes": each("pg_indexes_size('voxtier.file')"),
            "frames": each(
                "pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'voxtier.file'::regclass"
            ),
            "statistics": each("pg_total_relation_size('voxtier.file_stats')"),
        }

    def listing(self, rows: int) -> dict[str, Callable[[], float]]:
        """Return a run over a listing; last, as its rows are made for it and leave their room behind."""
        count = min(rows, 200_000)

        def nothing_new() -> float:
            """Measure a whole run over objects in the states of their listing; the rows are made for it."""
            bucket = Archive(self.folder / "files", "s3:/")
            paths = bucket.paths(0, count)
            for at in range(0, count, BATCH):
                self.store.upsert_rows(SOURCE, bucket.rows(at, min(at + BATCH, count)))
            states = self.store.file_states(SOURCE, paths)
            listed = [
                ListedObject(path, ObjectState(*state.fingerprint))
                for path, state in zip(paths, states, strict=True)
            ]

            def run() -> None:
                for part in index_files(FileIndexer(self.store, source=SOURCE), listed):
                    assert all(report.status == "unchanged" for report in part)

            gc.collect()
            gc.freeze()  # a listing comes as a stream: no run has all of it for the collector to walk through
            try:
                laps = [seconds_of(run) for _ in range(3)]
            finally:
                gc.unfreeze()
            self.store.delete(SOURCE, paths)
            return count / min(laps)

        return {"nothing_new": nothing_new}

    def restart(self) -> float:
        """Return the seconds from the order to stop to the answer of a server that started again."""

        def work() -> None:
            self.server.stop(force=True)
            self.server.attach()
            with FrameStore(self.server.conninfo()) as store:
                assert store.recall(SOURCE, self.archive.path(0)) is not None

        try:
            return seconds_of(work)
        finally:
            self.server.detach()


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a function takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of all sizes, and by what the largest differs from the smallest."""
    sizes = sorted(int(name) for name in found if name.isdigit())
    yield f"{'':<58}{'':<14}" + "".join(f"{size:>14,}" for size in sizes) + "   last / first"
    for name, (words, unit) in MEASURES.items():
        values = [found[str(size)].get(name) for size in sizes]
        known = [value for value in values if value is not None]
        shown = "".join(f"{'--' if value is None else format(value, ',.4g'):>14}" for value in values)
        slope = f"{known[-1] / known[0]:14.2f}x" if len(known) > 1 and known[0] else ""
        yield f"{words:<58}{unit:<14}{shown}{slope}"


def estimate(found: dict[str, dict[str, Any]], rows: int, *, workers: int) -> Iterator[str]:
    """Yield what so many files need, by the results of the largest size that was measured."""
    size = max(int(name) for name in found if name.isdigit())
    at = found[str(size)]
    gib = rows / 2**30
    yield f"{rows:,} files, from what was measured at {size:,}; times are of one connection, on that machine"
    space = {name: at[name] * gib for name in ("row", "indexes", "frames", "statistics")}
    yield f"  database                     {sum(space.values()):12,.0f} GiB"
    for name, value in space.items():
        yield f"    {name:<26} {value:12,.0f} GiB"
    warm = space["indexes"] + space["statistics"]
    yield f"  memory for warm look-ups     {warm:12,.0f} GiB (indexes and statistics)"
    yield f"  log of the first run         {at['wal_a_row'] * gib:12,.0f} GiB"
    for name, words in (("first_run", "first run"), ("nothing_new", "a run that finds nothing new")):
        hours = rows / at[name] / 3600
        yield f"  {words:<28} {hours:12,.1f} h of the index, {hours / workers:,.1f} h with {workers} indexers"
    yield f"  prune                        {rows / at['prune_walk'] / 3600:12,.1f} h, and a look at each file"
    yield f"  vacuum                       {at['vacuum'] * rows / size / 60:12,.0f} min"


def main() -> int:
    """Measure the sizes that were asked for, or estimate."""
    options = argparse.ArgumentParser(prog="python -m benches.scale", description=__doc__)
    options.add_argument("sizes", nargs="*", type=int, help=f"numbers of files; {DEFAULT_SIZE:,}")
    options.add_argument(
        "--folder", type=Path, default=Path("/var/tmp/voxtier-scale"), help="of the database"
    )
    options.add_argument(
        "--again", nargs="*", metavar="RESULT", default=(), help="measure these again, or all"
    )
    options.add_argument("--estimate", type=int, nargs="+", metavar="FILES", help="tell what so many need")
    options.add_argument("--workers", type=int, default=4, help="indexers of the estimate")
    chosen = options.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    scale = Scale(chosen.folder, RESULTS / "scale.json")
    if not chosen.estimate:
        again = list(MEASURES) if chosen.again == [] else chosen.again
        scale.run(chosen.sizes or [DEFAULT_SIZE], again=again)
    print("\n".join(table(scale.found)))
    for rows in chosen.estimate or ():
        print("\n" + "\n".join(estimate(scale.found, rows, workers=chosen.workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

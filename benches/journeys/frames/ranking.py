"""Journey: ranking millions of files by score, and loading the best into memory."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benches.measure import Goal, Result, Way, elsewhere, race, timed
from voxtier import _core
from voxtier.frames import FrameCache, read_table, top_n
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.memory.priority import score_sql
from voxtier.frames.memory.ranking import preload_rows
from voxtier.frames.store.store import FrameStore

JOURNEY = "ranking"
NOW = 1_790_000_000_000_000
NULL = np.iinfo(np.int64).min
DAY = 86_400_000_000


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Rank in memory, rank in SQL, preload, flush."""
    from voxtier.postgres.embedded import EmbeddedServer

    rows = 1_000_000 if quick else 10_000_000
    yield best_of_many(rows, rounds)
    yield without_avx2(rows, rounds)
    server = EmbeddedServer(folder / "postgres")
    server.attach()
    try:
        with FrameStore(server.conninfo()) as store:
            files = 20_000 if quick else 100_000
            fill(folder, store, files)
            yield sql_scores(store, files, rounds)
            yield preloading(store, files, rounds)
            yield flushing(store, files, files // 20, rounds)
    finally:
        server.detach()


def columns(rows: int) -> tuple[Any, Any, Any]:
    dice = np.random.default_rng(0)
    used = NOW - dice.integers(0, 365 * DAY, rows)
    used[dice.random(rows) < 0.3] = NULL
    return used, NOW - dice.integers(0, 730 * DAY, rows), dice.geometric(0.2, rows).astype(np.int64) - 1


def numpy_scores(used: Any, inserted: Any, count: Any) -> Any:
    with np.errstate(over="ignore"):
        recent = np.where(used == NULL, 0.0, np.exp2(-np.maximum(NOW - used, 0) / 86_400e6))
        fresh = np.where(inserted == NULL, 0.0, np.exp2(-np.maximum(NOW - inserted, 0) / 604_800e6))
    return 0.5 * recent + 0.2 * fresh + 0.3 * np.log10(1.0 + count)


def best_of_many(rows: int, rounds: int) -> Result:
    used, inserted, count = columns(rows)
    n = rows // 1000

    def naive() -> list[int]:
        return _top(numpy_scores(used, inserted, count), n)

    def blocked() -> list[int]:
        scores = np.empty(rows)
        for start in range(0, rows, 16_384):
            part = slice(start, start + 16_384)
            scores[part] = numpy_scores(used[part], inserted[part], count[part])
        return _top(scores, n)

    def ours() -> list[int]:
        return top_n(used, inserted, count, n=n, now=NOW)[0].tolist()  # type: ignore[no-any-return]

    result = Result(
        JOURNEY,
        f"The best {n:,} of {rows:,} files",
        "Exact: the same rows as a full stable sort. The floor reads the three columns once.",
        "file",
        rows,
    )
    scores = numpy_scores(used, inserted, count)
    full = np.lexsort((np.arange(rows), -scores))[:n]
    assert ours() == full.tolist()
    result.facts.append("ids equal those of a full stable sort of all scores")
    ways = [
        Way("voxtier top_n", timed(ours), "voxtier"),
        Way("read 24 bytes a row", timed(lambda: (used.max(), inserted.max(), count.max())), "floor"),
        Way("numpy, whole columns + argpartition", timed(naive), rounds=2),
        Way("numpy, blocks + argpartition", timed(blocked), rounds=2),
    ]
    goals = [
        Goal("voxtier top_n", "numpy, whole columns + argpartition", 10),
        Goal("voxtier top_n", "numpy, blocks + argpartition", 5),
        Goal("voxtier top_n", "read 24 bytes a row", 0.2),
    ]
    return race(result, ways, goals, rounds=max(rounds, 5))


_BASELINE = """
import json, os, sys, time
os.environ["VOXTIER_CPU"] = "baseline"
from benches.journeys.frames.ranking import NOW, columns
from voxtier.frames import top_n
rows = int(sys.argv[1])
given = columns(rows)
laps = []
for _ in range(3):
    start = time.perf_counter()
    ids = top_n(*given, n=rows // 1000, now=NOW)[0].tolist()
    laps.append(time.perf_counter() - start)
print(min(laps), json.dumps(ids))
"""


def without_avx2(rows: int, rounds: int) -> Result:
    """Race the portable path, as on a machine without AVX2; numpy still uses AVX2."""
    given, n = columns(rows), rows // 1000
    result = Result(
        JOURNEY,
        f"The best {n:,} of {rows:,} files without AVX2",
        "voxtier runs its portable path (VOXTIER_CPU=baseline); numpy uses what the machine has.",
        "file",
        rows,
    )
    ways = [
        Way("voxtier top_n, portable", elsewhere([str(rows)], _BASELINE), "voxtier", rounds=2),
        Way(
            "numpy, whole columns + argpartition",
            timed(lambda: _top(numpy_scores(*given), n)),
            rounds=2,
        ),
    ]
    goals = [Goal("voxtier top_n, portable", "numpy, whole columns + argpartition", 4)]
    return race(result, ways, goals, rounds=max(rounds, 2))


def _top(scores: Any, n: int) -> list[int]:
    chosen = np.argpartition(-scores, n)[:n]
    return [int(row) for row in chosen[np.lexsort((chosen, -scores[chosen]))]]


def fill(folder: Path, store: FrameStore, files: int) -> None:
    """Index one real table under many paths, with statistics of a year."""
    from benches.inputs.files import slide

    made = slide(folder / "slide.dcm", 50, 10_000, "none")
    table = read_table(made.path, verify="all")
    store.upsert(
        "s", (TableResult(f"/archive/study{i // 500}/{i:08d}.dcm", table, None) for i in range(files))
    )
    dice, now = random.Random(1), datetime.now(UTC)
    keys = [_core.file_key("s", f"/archive/study{i // 500}/{i:08d}.dcm") for i in range(0, files, 2)]
    for start in range(0, len(keys), 5000):
        part = keys[start : start + 5000]
        times = [now - timedelta(hours=dice.expovariate(1 / 200)) for _ in part]
        store.touch(part, [dice.randrange(1, 30) for _ in part], times)


def sql_scores(store: FrameStore, files: int, rounds: int) -> Result:
    """Race one statement over all rows: voxtier's expression, and the form with EXTRACT, which is numeric."""
    tables = "FROM voxtier.file AS f LEFT JOIN voxtier.file_stats AS s USING (key)"
    moment = f"{time.time()}::float8"
    numeric = (
        "0.5*coalesce(power(2, -greatest(extract(epoch FROM now() - s.last_used_at), 0)/86400), 0)"
        "+0.2*power(2, -greatest(extract(epoch FROM now() - f.inserted_at), 0)/604800)"
        "+0.3*log(1 + coalesce(s.access_count, 0))"
    )

    def scored(expression: str) -> Callable[[], int]:
        query = f"SELECT count(*) FROM (SELECT {expression} AS score {tables} OFFSET 0) AS q WHERE score >= 0"
        return lambda: int(store.query(query, ())[0][0])

    result = Result(JOURNEY, f"Scores of {files:,} rows in SQL", "The same join under both.", "row", files)
    ways = [
        Way("voxtier score_sql (float8)", timed(scored(score_sql(now=moment))), "voxtier"),
        Way("EXTRACT and numeric", timed(scored(numeric)), rounds=2),
        Way("the join alone", timed(scored("1")), "floor"),
    ]
    return race(
        result, ways, [Goal("voxtier score_sql (float8)", "EXTRACT and numeric", 15)], rounds=max(rounds, 3)
    )


def preloading(store: FrameStore, files: int, rounds: int) -> Result:
    """Race loading everything that is indexed into memory."""

    def warm() -> int:
        cache = FrameCache(1 << 40)
        for rows in preload_rows(store, "s", files):
            cache.preload_rows(rows, 1 << 39)
        return len(cache)

    def bare() -> int:
        return sum(bool(part) for part in preload_rows(store, "s", files))

    paths = [f"/archive/study{i // 500}/{i:08d}.dcm" for i in range(files)]
    few = paths[:: max(files // 1000, 1)][:1000]

    def singles() -> int:
        cache = FrameCache(1 << 40)
        for path in few:
            cache.put_table(path, store.get("s", path))  # type: ignore[arg-type]
        return len(cache)

    result = Result(
        JOURNEY,
        f"{files:,} tables of 50 frames from Postgres into memory",
        "One ranked COPY, parsed in Rust; single SELECTs are measured on 1000 files.",
        "file",
        files,
    )
    ways = [
        Way("voxtier preload", timed(warm), "voxtier"),
        Way("the bare ranked COPY", timed(bare), "floor"),
    ]
    result = race(result, ways, [Goal("voxtier preload", "the bare ranked COPY", 0.5)], rounds=max(rounds, 3))
    laps = [timed(singles)()[0] for _ in range(3)]
    best = result.ways[0]["best"] / files
    ratio = statistics.median(laps) / len(few) / best
    result.demand("single SELECTs take >= 30x the time a file", f"{ratio:.0f}x", met=ratio >= 30)
    return result


def flushing(store: FrameStore, total: int, files: int, rounds: int) -> Result:
    """Race writing accesses of many files in one batch or one by one; count what the database logs for it."""
    every = [_core.file_key("s", f"/archive/study{i // 500}/{i:08d}.dcm") for i in range(0, total, 2)]
    now, dice = datetime.now(UTC), random.Random(5)
    keys: list[bytes] = []
    few = dice.sample(every, 200)

    def choose() -> None:
        keys[:] = dice.sample(every, files)

    def batch() -> int:
        return len(store.touch(keys, [1] * files, [now] * files))

    def singly() -> int:
        return sum(len(store.touch([key], [1], [now])) for key in few)

    result = Result(JOURNEY, f"Accesses of {files:,} files flushed", "One statement, sorted.", "file", files)
    store.query("SELECT pg_stat_reset() IS NULL", ())
    result = race(result, [Way("voxtier flush", timed(batch, choose), "voxtier")], [], rounds=max(rounds, 3))
    hot, updates = updates_of(store)
    result.demand(
        f"updates of {files / len(every):.0%} of the statistics at a time stay in their page: 100 %",
        f"{hot:,} of {updates:,}",
        met=hot == updates > 0,
    )
    laps = [timed(singly)()[0] for _ in range(3)]
    ratio = min(laps) / len(few) / (result.ways[0]["best"] / files)
    result.demand("one UPSERT an access takes >= 10x the time a file", f"{ratio:.0f}x", met=ratio >= 10)
    log = [logged(store, table) for table in (1, 5000)]
    result.demand(
        "the log of a flush does not depend on the frames",
        f"{log[0]:.0f} and {log[1]:.0f} bytes a file of 1 and of 5,000 frames",
        met=abs(log[0] - log[1]) < 0.05 * log[0],
    )
    return result


def updates_of(store: FrameStore) -> tuple[int, int]:
    """Return HOT updates and all updates of the statistics, once the server has counted them."""
    for _ in range(30):
        [row] = store.query(
            "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'file_stats'", ()
        )
        if row[1]:
            break
        time.sleep(0.2)
    return int(row[0]), int(row[1])


def logged(store: FrameStore, frames: int, files: int = 500) -> float:
    """Return bytes of WAL per file of a second flush, which logs no full pages."""
    lengths = np.arange(frames, dtype=np.uint64) % np.uint64(7) * np.uint64(2) + np.uint64(100)
    probe = FrameCache(1 << 30)
    probe.put("t", np.cumsum(lengths + np.uint64(8)) + np.uint64(1000) - lengths, lengths)
    table, source = probe.table("t"), f"wal{frames}"
    assert table is not None
    paths = [f"/wal/{number:05}" for number in range(files)]
    store.upsert(source, (TableResult(path, table, None) for path in paths))
    keys, now = [_core.file_key(source, path) for path in paths], datetime.now(UTC)
    before = 0.0
    for _ in range(3):
        before = wal(store)
        assert store.touch(keys, [1] * files, [now] * files) == []
    return (wal(store) - before) / files


def wal(store: FrameStore) -> float:
    return float(store.query("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8", ())[0][0])

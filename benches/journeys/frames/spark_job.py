"""Journey: a catalogue of small files indexed by Spark tasks, by the plain driver, and one row at a time.

python -m benches.journeys.frames.spark_job [--quick]        prints one JSON object
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from benches.journeys.frames.index_run import dsn_of, make_frame_rows, rows_one_by_one, small_files
from benches.measure import Goal, Lap, Result, Way, machine, race, say
from voxtier.frames.databricks.spark import BOTCacheBuilder, local_session
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.store.store import FrameStore

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 4_000  # files that the slow way reads; its time is scaled
PARTITIONS = 4
RAM = 300  # MiB that a Python worker may hold


class RowAtATime:
    """The published job's pattern in a task."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for batch in batches:
                rows_one_by_one(connection, batch.column("local_path").to_pylist())
                yield pyarrow.RecordBatch.from_arrays([batch.column("local_path")], names=["local_path"])


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race the engine with the plain driver and with the published pattern."""
    os.environ["VOXTIER_HOME"] = str(folder / "home")
    os.environ.pop("VOXTIER_DSN", None)
    paths = [str(path) for path in small_files(folder / "images", 10_000 if quick else 100_000)]
    with FrameStore() as store:
        store.sources()
        spark = local_session(conf={"spark.log.level": "ERROR", "spark.local.dir": str(folder)})
        try:
            yield _race(spark, store, dsn_of(store), folder, paths, min(rounds, 3))
        finally:
            spark.stop()


def _race(spark: Any, store: FrameStore, dsn: str, folder: Path, paths: list[str], rounds: int) -> Result:
    catalogue = str(folder / "catalogue")
    spark.createDataFrame([(path,) for path in paths], "local_path string").write.parquet(catalogue)
    sources = (f"main.bench.lap{number}" for number in itertools.count())
    last = ""
    peaks: list[float] = []

    def on_spark(source: str) -> Lap:
        frame = spark.read.parquet(catalogue)
        start = time.perf_counter()
        statuses = BOTCacheBuilder(source, dsn=dsn, partitions=PARTITIONS).transform(frame)
        counts = statuses.groupBy("bot_cache_status").count().collect()
        seconds = time.perf_counter() - start
        peaks.extend(_worker_peaks())
        assert store.summary(source).total.files == len(paths)
        return seconds, sum(row["count"] for row in counts)

    def first() -> Lap:
        nonlocal last
        last = next(sources)
        return on_spark(last)

    def plain() -> Lap:
        indexer = FileIndexer(store, source=next(sources))
        start = time.perf_counter()
        found = sum(len(reports) for reports in index_files(indexer, iter(paths)))
        return time.perf_counter() - start, found

    def row_at_a_time() -> Lap:
        with psycopg.connect(dsn, autocommit=True) as connection:
            make_frame_rows(connection)
            frame = spark.read.parquet(catalogue).limit(SAMPLE).repartition(PARTITIONS)
            start = time.perf_counter()
            found = frame.mapInArrow(RowAtATime(dsn), "local_path string").count()
            seconds = time.perf_counter() - start
            row = connection.execute("SELECT count(*) FROM frame_rows").fetchone()
            assert row == (found,) == (SAMPLE,)
        return seconds * len(paths) / SAMPLE, len(paths)

    result = Result(
        "spark_job",
        f"{len(paths):,} small files indexed by Spark, local[2]",
        "A catalogue of paths, a status for each, rows in PostgreSQL; session and server run already.",
        "file",
        len(paths),
    )
    scaled = f"the published pattern on the same Spark: SELECT, pydicom, INSERT; {SAMPLE:,} files, scaled"
    ways = [
        Way("voxtier on Spark", first, "voxtier"),
        Way("voxtier without Spark", plain, "voxtier"),
        Way("voxtier on Spark, run again: nothing changed", lambda: on_spark(last), "voxtier"),
        Way("Spark, one file at a time", row_at_a_time, note=scaled),
    ]
    race(result, ways, [Goal("voxtier on Spark", "Spark, one file at a time", 10)], rounds=rounds)
    best = {way["name"]: way["best"] for way in result.ways}
    overhead = best["voxtier on Spark"] / best["voxtier without Spark"]
    result.facts += [
        f"On Spark {len(paths) / best['voxtier on Spark']:,.0f} files/s: the engine takes {overhead:.2f}x "
        "the time of the plain driver.",
        f"Peak memory of a Python worker: {max(peaks):.0f} MiB (goal under {RAM} MiB, "
        f"{'met' if max(peaks) < RAM else 'MISSED'}).",
    ]
    return result


def _worker_peaks() -> Iterator[float]:
    """Yield the peak memory of each living Python worker of Spark, in MiB."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if any("pyspark.daemon" in part for part in process.cmdline()):
                status = Path(f"/proc/{process.pid}/status").read_text()
                yield int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> int:
    """Run this journey alone; print its JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--quick", action="store_true", help="10,000 files")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="voxtier-bench-", dir="/var/tmp") as folder:
        races = []
        for each in run(Path(folder), quick=chosen.quick, rounds=chosen.rounds):
            say(each)
            races.append(each)
    print(json.dumps({"machine": machine(), "races": [asdict(each) for each in races]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

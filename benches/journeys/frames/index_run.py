"""Journey: many small files indexed into the embedded PostgreSQL, indexed again, and tables fetched."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pydicom

from benches.inputs.files import ct_header, slide
from benches.measure import Goal, Lap, Limit, Result, Way, race, timed
from support.builders import dicom, element
from support.peak import PEAK_KIB
from voxtier.frames import read_table
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.store.store import FrameStore

# A process of its own, so that its peak of memory is its own; the server runs already.
RUN = (
    PEAK_KIB
    + """
import sys, time
from voxtier.frames.indexing.run import FileIndexer, index_files
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames import read_table
from voxtier.frames.store.store import FrameStore
start = time.perf_counter()
with FrameStore() as store:
    indexer = FileIndexer(store, source=sys.argv[2])
    found = sum(len(reports) for reports in index_files(indexer, iter_files([sys.argv[1]])))
    seconds = time.perf_counter() - start
print(seconds, found, peak_kib())
"""
)
SAMPLE = 1_000  # files that the slow way reads; its time is scaled


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Index, index again, fetch."""
    os.environ["VOXTIER_HOME"] = str(folder / "home")
    os.environ.pop("VOXTIER_DSN", None)
    paths = small_files(folder / "images", 10_000 if quick else 100_000)
    with FrameStore() as store:
        store.sources()
        dsn = dsn_of(store)
        laps = min(rounds, 3)
        yield indexing(folder / "images", paths, dsn, laps)
        yield fetching(folder, store, dsn, quick, rounds)


def small_files(folder: Path, count: int) -> list[Path]:
    """Write ``count`` slices with a CT header and 4 KB of pixels, a thousand per folder; return the paths."""
    header = dicom([*ct_header(), element("PixelData", b"", "OW")]).content
    content = header[:-4] + (4096).to_bytes(4, "little") + bytes(4096)
    paths = []
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def dsn_of(store: FrameStore) -> str:
    """Return the connection string by which another process or library reaches the store's database."""
    with store.database.connection() as connection:
        info = connection.info
        return f"host={info.host} port={info.port} dbname={info.dbname} user={info.user}"


def make_frame_rows(connection: psycopg.Connection[Any]) -> None:
    """Create the empty table of the published pattern: one row per frame."""
    connection.execute("DROP TABLE IF EXISTS frame_rows")
    connection.execute("CREATE TABLE frame_rows (path text, frame int, first bigint, last bigint)")
    connection.execute("CREATE UNIQUE INDEX ON frame_rows (path, frame)")


def rows_one_by_one(connection: psycopg.Connection[Any], paths: Iterable[str]) -> None:
    """Index by the published pattern: per file one SELECT and one read by pydicom, per frame one INSERT."""
    for path in paths:
        if not connection.execute("SELECT 1 FROM frame_rows WHERE path = %s", [path]).fetchone():
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            row = (path, 0, 0, dataset.Rows * dataset.Columns * 2)
            connection.execute("INSERT INTO frame_rows VALUES (%s, %s, %s, %s)", row)


def indexing(images: Path, paths: list[Path], dsn: str, rounds: int) -> Result:
    """Race the first run, the second run, and the published pattern of one question and one row at a time."""
    sources = (f"lap{number}" for number in itertools.count())
    last = ""
    peaks: list[int] = []

    def child(source: str) -> Lap:
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(images), source], capture_output=True, text=True, check=True
        )
        seconds, found, peak = done.stdout.split()
        peaks.append(int(peak))
        return float(seconds), int(found)

    def first() -> Lap:
        nonlocal last
        last = next(sources)
        return child(last)

    def one_by_one() -> Lap:
        with psycopg.connect(dsn, autocommit=True) as connection:
            make_frame_rows(connection)
            start = time.perf_counter()
            rows_one_by_one(connection, map(str, paths[:SAMPLE]))
            seconds = time.perf_counter() - start
        return seconds * len(paths) / SAMPLE, len(paths)

    result = Result(
        "index_run",
        f"{len(paths):,} small files indexed into PostgreSQL",
        "Walk the folder, ask what is known, read headers, write rows; the embedded server runs already.",
        "file",
        len(paths),
    )
    scaled = f"pydicom, one SELECT and one INSERT a file; {SAMPLE:,} files, scaled"
    ways = [
        Way("voxtier, first run", first, "voxtier"),
        Way("voxtier, run again: nothing changed", lambda: child(last), "voxtier"),
        Way("one file at a time", one_by_one, note=scaled),
    ]
    goals = [Goal("voxtier, first run", "one file at a time", 10), Limit("voxtier, first run", 1 / 20_000)]
    race(result, ways, goals, rounds=rounds)
    peak = max(peaks) / 1024
    result.demand("peak memory of the indexing process <= 200 MiB", f"{peak:.0f} MiB", met=peak <= 200)
    return result


def fetching(folder: Path, store: FrameStore, dsn: str, quick: bool, rounds: int) -> Result:
    """Race fetching whole tables from the store against one row per frame."""
    shapes = (1_000, 20_000 if quick else 100_000)
    made = [slide(folder / f"{frames}.dcm", frames, 400, "none") for frames in shapes]
    outcomes = [TableResult(str(each.path), read_table(each.path, verify="all"), None) for each in made]
    store.upsert("slides", outcomes)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (path text, frame int, first bigint, last bigint)")
        for table in (outcome.table for outcome in outcomes):
            assert table is not None
            spans = [(str(len(table)), i, *table.ranges(i)[0]) for i in range(len(table))]
            with connection.cursor().copy("COPY rows FROM STDIN") as copy:
                for span in spans:
                    copy.write_row(span)
        connection.execute("CREATE UNIQUE INDEX ON rows (path, frame)")
        connection.execute("VACUUM ANALYZE rows")

        def packed(path: Path) -> Callable[[], int]:
            return lambda: len(store.get("slides", str(path)) or ())  # type: ignore[arg-type]

        def rows(frames: int) -> Callable[[], int]:
            query = "SELECT frame, first, last FROM rows WHERE path = %s ORDER BY frame"
            return lambda: len(connection.execute(query, [str(frames)], prepare=True).fetchall())

        few, many = made
        result = Result(
            "index_run",
            f"The whole table of a slide of {many.frames:,} frames out of PostgreSQL",
            "One row with a packed table, against a row for each frame. Ready to serve any frame.",
            "frame",
            many.frames,
        )
        small = timed(packed(few.path))
        small_ms = min(small()[0] for _ in range(50)) * 1e3
        bytes_each = len(outcomes[-1].table.packed) / len(outcomes[-1].table)  # type: ignore[union-attr,arg-type]
        result.facts += [
            f"A table of {few.frames:,} frames: {small_ms:.3f} ms.",
            f"Packed in PostgreSQL: {bytes_each:.2f} bytes a frame (goal 5).",
        ]
        ways = [
            Way("voxtier FrameStore.get", timed(packed(many.path)), "voxtier"),
            Way("a row for each frame", timed(rows(many.frames))),
        ]
        return race(result, ways, [Goal("voxtier FrameStore.get", "a row for each frame", 20)], rounds=rounds)

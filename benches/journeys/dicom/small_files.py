"""Journey: the tables of many small files, as a folder of CT slices has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pydicom

from benches.inputs.files import ct_files
from benches.measure import (
    ROOT,
    Goal,
    Lap,
    Result,
    Way,
    dropped_from_cache,
    elsewhere,
    floor_binary,
    race,
    timed,
)
from support.peak import PEAK_KIB
from voxtier.frames import read_frame, read_table, read_tables

Answer = list[int]  # files, sum of Rows: enough to know that every header was really read

DICOMSDL = """
import json, sys, time, dicomsdl
paths = open(sys.argv[1]).read().split()
start = time.perf_counter()
rows = [dicomsdl.open_file(path, 0x7FDFFFFF).Rows for path in paths]
print(time.perf_counter() - start, json.dumps([len(rows), sum(rows)]))
"""
PEAK = (
    PEAK_KIB
    + """
import itertools, sys
from voxtier.frames import read_tables
paths = open(sys.argv[1]).read().split()
count = sum(1 for _ in read_tables(itertools.islice(itertools.cycle(paths), int(sys.argv[2]))))
print(count, peak_kib() // 1024)
"""
)


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race from the page cache with one and two threads, and from storage with many."""
    paths = ct_files(folder / "ct", 1_000 if quick else 4_000)
    listing = folder / "paths.txt"
    listing.write_text("\n".join(map(str, paths)))
    check(paths[0])
    yield warm(paths, listing, rounds, quick)
    yield cold(paths, listing, min(rounds, 3))


def check(path: Path) -> None:
    """Compare the frame that the table leads to with pydicom's."""
    table = read_table(path)
    assert read_frame(path, table, 0) == pydicom.dcmread(path).PixelData


def bulk(paths: list[Path], threads: int) -> Callable[[], Answer]:
    return lambda: summed(result.table.rows for result in read_tables(paths, threads=threads) if result.table)


def summed(rows: Iterable[int]) -> Answer:
    every = list(rows)
    return [len(every), sum(every)]


def with_pydicom(paths: list[Path]) -> Answer:
    return summed(pydicom.dcmread(path, stop_before_pixels=True).Rows for path in paths)


def with_pydicom_tags(paths: list[Path]) -> Answer:
    tags = [
        "Rows",
        "Columns",
        "BitsAllocated",
        "SamplesPerPixel",
        "NumberOfFrames",
        "PhotometricInterpretation",
    ]
    return summed(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags).Rows for path in paths)


def bare(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.pread(descriptor, 8192, 0)
        os.close(descriptor)


def floor(listing: Path, threads: int, before: Callable[[], object] | None = None) -> Callable[[], Lap]:
    return elsewhere([floor_binary(), "files", str(listing), str(threads)], before=before)


def warm(paths: list[Path], listing: Path, rounds: int, quick: bool) -> Result:
    result = Result(
        "small_files",
        "CT slices of 512 KB, in the page cache",
        "A table of each file: open, find the pixels, close. The floor is open, one read of 8 KiB and close "
        "in Rust, with no parsing at all.",
        "file",
        len(paths),
    )
    ways = [
        Way("voxtier read_tables, 1 thread", timed(bulk(paths, 1)), "voxtier"),
        Way("voxtier read_tables, 2 threads", timed(bulk(paths, 2)), "voxtier"),
        Way(
            "voxtier read_table, one by one",
            timed(lambda: summed(read_table(path).rows for path in paths)),
            "voxtier",
        ),
        Way("pydicom stop_before_pixels", timed(lambda: with_pydicom(paths)), rounds=2),
        Way("pydicom specific_tags", timed(lambda: with_pydicom_tags(paths)), rounds=2),
        Way("dicomsdl until the pixels", elsewhere([str(listing)], DICOMSDL), note="in a process of its own"),
        Way("bare loop in Rust, 1 thread", floor(listing, 1), "floor"),
        Way("bare loop in Rust, 2 threads", floor(listing, 2), "floor"),
        Way("bare loop in Python", timed(lambda: bare(paths)), "floor"),
    ]
    goals = [
        Goal("voxtier read_tables, 1 thread", "pydicom stop_before_pixels", 80),
        Goal("voxtier read_tables, 1 thread", "bare loop in Rust, 1 thread", 0.5),
        Goal("voxtier read_tables, 2 threads", "bare loop in Rust, 2 threads", 0.5),
    ]
    many = 50_000 if quick else 200_000
    command = [sys.executable, "-c", PEAK, str(listing), str(many)]
    count, peak = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    result.facts.append(
        f"Peak memory of a whole process that reads {int(count):,} tables: {peak} MiB (goal: 200)."
    )
    return race(result, ways, goals, rounds=rounds)


def cold(paths: list[Path], listing: Path, rounds: int) -> Result:
    result = Result(
        "small_files",
        "The same slices, out of the page cache",
        "Every page of every file is dropped before each lap. Many readers in flight hide the storage's "
        "latency, whatever the number of cores.",
        "file",
        len(paths),
    )

    def drop() -> None:
        dropped_from_cache(paths)

    ways = [
        Way("voxtier read_tables, 32 threads", timed(bulk(paths, 32), drop), "voxtier"),
        Way("voxtier read_tables, 1 thread", timed(bulk(paths, 1), drop), "voxtier"),
        Way("pydicom stop_before_pixels", timed(lambda: with_pydicom(paths), drop), rounds=1),
        Way(
            "bare loop in Rust, 32 threads", floor(listing, 32, drop), "floor", "without advice to the kernel"
        ),
    ]
    goals = [Goal("voxtier read_tables, 32 threads", "bare loop in Rust, 32 threads", 0.8)]
    return race(result, ways, goals, rounds=rounds)

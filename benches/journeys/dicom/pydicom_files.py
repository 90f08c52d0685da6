"""Journey: every DICOM file that pydicom ships, unusual and broken ones included."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_files

from benches.measure import Goal, Result, Way, race, timed
from voxtier.errors import FormatError
from voxtier.frames import read_table, read_tables


def run(folder: Path, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Race all of them, ten times per lap; the answer is how many have pixels."""
    found = sorted(
        path for path in map(Path, get_testdata_files()) if path.is_file() and has_pixels_for_both(path)
    )
    # Once takes a millisecond, in which the processor's caches still hold the rival's work.
    paths = found * 10
    result = Result(
        "pydicom_files",
        "The test files of pydicom",
        f"{len(found)} files that both read; the tests compare offsets and bytes of all their frames.",
        "file",
        len(paths),
    )
    ways = [
        Way("voxtier read_tables, 1 thread", timed(lambda: with_voxtier(paths)), "voxtier"),
        Way(
            "voxtier read_table, one by one",
            timed(lambda: sum(len(read_table(path)) > 0 for path in paths)),
            "voxtier",
        ),
        Way(
            "pydicom stop_before_pixels",
            timed(lambda: with_pydicom(paths)),
            note="knows no frame's place yet",
        ),
    ]
    goals = [Goal("voxtier read_tables, 1 thread", "pydicom stop_before_pixels", 60)]
    yield race(result, ways, goals, rounds=max(rounds, 5))


def has_pixels_for_both(path: Path) -> bool:
    try:
        return len(read_table(path)) > 0 and with_pydicom([path]) == 1
    except (FormatError, AttributeError):
        return False


def with_voxtier(paths: list[Path]) -> int:
    return sum(result.table is not None and len(result.table) > 0 for result in read_tables(paths, threads=1))


def with_pydicom(paths: list[Path]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum("Rows" in pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths)

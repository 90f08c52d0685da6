"""Bulk reading: any number of files, any kind of trouble, one answer a file and never an exception."""

from __future__ import annotations

import errno
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frames.dicom.cases import CASES
from support.builders import dicom, element, image, pattern
from support.peak import PEAK_KIB
from voxtier.errors import FormatError, SourceError
from voxtier.frames import read_table, read_tables


def written(folder: Path) -> dict[Path, Any]:
    """Every small case as a file; half of them without an extension."""
    paths = {}
    for index, case in enumerate(case for case in CASES if len(case.content) < 1_000_000):
        path = folder / (f"{case.name}.dcm" if index % 2 else case.name)
        path.write_bytes(case.content)
        paths[path] = case
    return paths


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_any_number_of_threads_gives_the_answers_of_one_by_one(threads: int, tmp_path: Path) -> None:
    cases = written(tmp_path)
    results = list(read_tables(cases, threads=threads, verify="all"))
    assert sorted(Path(result.path) for result in results) == sorted(cases)
    for result in results:
        case = cases[Path(result.path)]
        assert (result.table is None) != (result.error is None)
        if result.error is not None:
            assert isinstance(result.error, FormatError)
            assert result.error.kind == case.error
        else:
            assert result.table == read_table(result.path, verify="all")


def test_any_order_of_paths_gives_equal_tables(tmp_path: Path) -> None:
    paths = list(written(tmp_path))
    forward = {result.path: result.table for result in read_tables(paths)}
    backward = {result.path: result.table for result in read_tables(reversed(paths), threads=3)}
    assert forward == backward


def test_a_path_that_cannot_be_read_is_a_result_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "broken link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("no image at all, but long enough to hold one" * 10)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may be no longer than about 100 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        names = ["folder", "broken link", "loop", "fifo", "socket", "missing", "text/inside", "x" * 300]
        results = {
            Path(result.path).name: result for result in read_tables(tmp_path / name for name in names)
        }
    assert len(results) == len(names)
    for result in results.values():
        assert isinstance(result.error, SourceError)
        assert result.error.kind == "io_error"
        assert str(tmp_path) not in str(result.error), "no path in messages: they end in logs"
    contents = {Path(r.path).name: r.error for r in read_tables([tmp_path / "empty", tmp_path / "text"])}
    assert {name: getattr(error, "kind", None) for name, error in contents.items()} == {
        "empty": "empty",
        "text": "not_dicom",
    }


def test_a_fifo_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError):
        read_table(tmp_path / "fifo")


def test_permission_denied_is_a_result_with_its_errno(tmp_path: Path) -> None:
    closed = tmp_path / "closed.dcm"
    closed.write_bytes(dicom(image()).content)
    closed.chmod(0)
    script = f"""
import os
from voxtier.frames import read_tables
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
print(next(read_tables([{str(closed)!r}])).error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EACCES), done.stderr


def test_paths_of_an_endless_generator_are_taken_as_needed(tmp_path: Path) -> None:
    """A generator of a million paths must not be drained before the first answer."""
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom([*image(), element("PixelData", pattern(16))]).content)
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    results = read_tables(endless(), threads=2)
    for _ in range(1000):
        assert next(results).error is None
    assert taken < 100_000
    del results


def test_slow_generator_does_not_hold_results_back(tmp_path: Path) -> None:
    """Paths that trickle in, as from a listing over the network: an answer comes a path or two later, some
    more on a busy machine, not when the batch of all of them is full."""
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom([*image(), element("PixelData", pattern(16))]).content)
    taken = 0

    def trickle(pause: float) -> Iterator[Path]:
        nonlocal taken
        taken = 0
        while taken < 40:
            taken += 1
            time.sleep(pause)
            yield path

    def median_lag(pause: float) -> float:
        lags = [taken - index for index, _ in enumerate(read_tables(trickle(pause), threads=2))]
        assert len(lags) == 40
        return statistics.median(lags)

    # Where the reading threads get no processor for so long, paths that come more slowly tell the same.
    assert any(median_lag(pause) <= 8 for pause in (0.02, 0.1, 0.5))


def test_generator_that_raises_ends_the_bulk_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom(image()).content)

    def broken() -> Iterator[Path]:
        yield path
        raise LookupError("the list of paths broke off")

    with pytest.raises(LookupError, match="broke off"):
        list(read_tables(broken(), threads=1))


def test_two_hundred_thousand_results_take_bounded_memory(tmp_path: Path) -> None:
    """200,000 answers in a fresh process: its peak memory must not know how many there were."""
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom([*image(frames=64), element("PixelData", pattern(1024))]).content)
    script = f"""
import itertools
from voxtier.frames import read_tables
{PEAK_KIB}
def peak(count):
    for result in read_tables(itertools.repeat({str(path)!r}, count)):
        assert result.error is None
    return peak_kib()
first = peak(20_000)
print(peak(200_000) - first)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 1024, "KiB beyond what 20,000 files took"


def test_no_paths_give_no_results() -> None:
    assert list(read_tables([])) == []


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(threads: int) -> None:
    with pytest.raises((ValueError, OverflowError), match="threads"):
        list(read_tables([], threads=threads))

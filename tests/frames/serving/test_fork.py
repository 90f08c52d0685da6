"""Readers in child processes: forked with threads alive, spawned, or from a fork server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.builders import dicom, element, image, pattern

SCRIPT = """
import itertools, multiprocessing, sys, warnings
from voxtier.errors import FormatError
from voxtier.frames import FrameTable, read_frame, read_table, read_tables

path, refused = sys.argv[2:]

def work(number):
    table = read_table(path)
    assert read_frame(path, table, 0) == read_frame(path, FrameTable.from_bytes(table.to_bytes()), 0)
    kinds = [result.error.kind for result in read_tables([refused] * 50, threads=4)]
    assert kinds == ["not_dicom"] * 50
    return table

def refuse(number):
    read_table(refused)

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
    alive = read_tables(itertools.repeat(path), threads=4)
    expected = next(alive).table
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        assert pool.map(work, range(8)) == [expected] * 8
        try:
            pool.map(refuse, range(2))
        except FormatError as error:
            assert error.kind == "not_dicom"
    assert next(alive).table == expected
    print("fine")
"""

INHERITED = """
import itertools, os, sys
from voxtier.frames import read_tables

alive = read_tables(itertools.repeat(sys.argv[1]), threads=4)
next(alive)
pid = os.fork()
if pid == 0:
    try:
        for _ in itertools.islice(alive, 100_000):
            pass
        os._exit(0)
    except Exception as error:
        print(type(error).__name__, flush=True)
        os._exit(0)
os.waitpid(pid, 0)
assert next(alive).error is None
print("fine")
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    path, refused = tmp_path / "image.dcm", tmp_path / "letter.txt"
    path.write_bytes(dicom([*image(frames=4), element("PixelData", pattern(64))]).content)
    refused.write_text("Dear colleague, " * 40)
    return str(path), str(refused)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes_read_and_their_errors_unpickle(
    method: str, files: tuple[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), method, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "fine\n", done.stderr


def test_an_iterator_inherited_by_a_fork_ends_or_refuses(files: tuple[str, str]) -> None:
    """The child has the iterator, but not its threads: it must not wait for them for ever."""
    command = [sys.executable, "-W", "ignore", "-c", INHERITED, files[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "fine", done.stderr

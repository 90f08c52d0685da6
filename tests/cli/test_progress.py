"""Progress of a command on a terminal: beside the results, and wiped."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cli.running import OK, finish, linked, start


def test_an_index_run_on_a_terminal_keeps_stdout_for_results(tmp_path: Path, dsn: str) -> None:
    """The files are counted beside the run; results stay alone on stdout."""
    linked(tmp_path / "many", 15_000)
    ours, theirs = os.openpty()
    # Whoever asks for the time finds a second gone, so that the fastest machine has something to show.
    clock = (
        "import itertools, types, voxtier.system.progress as progress; "
        "progress.time = types.SimpleNamespace(monotonic=itertools.count().__next__)"
    )
    process = start("index", tmp_path / "many", "--dsn", dsn, "--json", first=clock, stderr=theirs)
    os.close(theirs)
    done, seen = finish(process), b""
    with contextlib.suppress(OSError):  # a terminal ends with EIO
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert (done.code, len(done.rows)) == (OK, 15_001)
    assert b"files/s" not in seen
    assert b" files, " in seen
    assert b"\n" not in seen
    assert seen.split(b"\r")[-2].strip() == b"", "wiped at the end"

"""Progress lines on a terminal and elsewhere, durations, and names made fit for one line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.running import OK, finish, linked, start
from voxtier.cli.options import on_one_line
from voxtier.cli.progress import Progress, duration


def test_without_a_terminal_a_line_every_ten_seconds_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without a terminal: whole lines on stderr, ten seconds apart, nothing on stdout."""
    now = [0.0]
    monkeypatch.setattr("voxtier.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress("files", total=4000)
    for second in range(1, 31):
        now[0] = float(second)
        progress.advance(100, ", 3 refused")
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "1,000 of 4,000 files, 100/s, 30 s left, 3 refused",
        "2,000 of 4,000 files, 100/s, 20 s left, 3 refused",
        "3,000 of 4,000 files, 100/s, 10 s left, 3 refused",
    ]


def test_on_a_terminal_one_line_is_rewritten_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten in place, never left longer than what follows, wiped before the summary."""
    now, terminal = [0.0], io.StringIO()
    monkeypatch.setattr("voxtier.cli.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("files")
    for note in (", 123 refused", ""):
        now[0] += 1
        progress.advance(1000, note)
    progress.close()
    first, second = "1,000 files, 1,000/s, 123 refused", "2,000 files, 1,000/s"
    width = len(second)
    assert terminal.getvalue() == f"\r{first}\r{second:<{len(first)}}\r{'':<{width}}\r"


def test_an_index_run_on_a_terminal_keeps_stdout_for_results(tmp_path: Path, dsn: str) -> None:
    """The files are counted beside the run; results stay alone on stdout."""
    linked(tmp_path / "many", 15_000)
    ours, theirs = os.openpty()
    # Whoever asks for the time finds a second gone, so that the fastest machine has something to show.
    clock = (
        "import itertools, types, voxtier.cli.progress as progress; "
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_duration_names_the_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/plain/ümläut 影像.dcm", "/plain/ümläut 影像.dcm"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("\udcff", r"\udcff"),
        ("right‮left", r"right\u202eleft"),
    ],
)
def test_on_one_line_escapes_what_a_terminal_would_obey(text: str, shown: str) -> None:
    assert on_one_line(text) == shown

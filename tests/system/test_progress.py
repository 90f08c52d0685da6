"""What long work says: a line that renews itself on a terminal, few lines in a log, JSON for machines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import sys
from typing import Any

import pytest

from voxtier.system import progress
from voxtier.system.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def work(shown: Progress, clock: Clock, items: int, seconds: float) -> None:
    for _ in range(items):
        clock.now += seconds
        shown.advance(byte_count=1_000_000)
    shown.close()


def read_to_the_end(master: int) -> str:
    """All that was shown: a terminal hands it over in pieces, and its last is the line's end."""
    shown = b""
    while not shown.endswith(b"\n"):
        shown += os.read(master, 65536)
    return shown.decode()


def test_b23_a_terminal_sees_one_line_that_renews_itself(clock: Clock) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        work(Progress("verified", 4, stream=terminal), clock, 4, 1.0)
        text = read_to_the_end(master)
    os.close(master)
    lines = text.split("\r")
    assert lines[0] == ""
    assert lines[1] == "1 of 4 verified, 1.0/s, 1.00 MB/s, 3.0 s left"
    last = "4 of 4 verified, 1.0/s, 1.00 MB/s"
    assert lines[-2:] == [f"{last:<{len(lines[1])}}", "\n"]
    assert text.count("\n") == 1


def test_a_terminal_is_not_flooded(clock: Clock) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        work(Progress("made", 100, stream=terminal), clock, 100, 0.01)
        text = read_to_the_end(master)
    os.close(master)
    assert len(re.findall("made", text)) <= 4


def test_a_log_gets_a_line_in_ten_seconds_and_the_last(clock: Clock) -> None:
    log = io.StringIO()
    work(Progress("made", 25, stream=log), clock, 25, 1.0)
    counts = [re.match(r"(\d+) of 25 made, 1.0/s", line) for line in log.getvalue().splitlines()]
    assert [count and count[1] for count in counts] == ["10", "20", "25"]
    assert "\r" not in log.getvalue()


def test_b23_machines_get_json_lines(clock: Clock) -> None:
    out = io.StringIO()
    work(Progress("made", 20, stream=out, machine=True), clock, 20, 1.0)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["done"] for row in rows] == [10, 20]
    assert rows[0] == {
        "progress": "made",
        "done": 10,
        "total": 20,
        "bytes": 10_000_000,
        "items_per_second": 1.0,
        "seconds_left": 10.0,
    }


def test_quiet_and_empty_work_say_nothing(clock: Clock) -> None:
    out = io.StringIO()
    work(Progress("made", 5, stream=out, quiet=True), clock, 5, 20.0)
    work(Progress("made", 0, stream=out), clock, 0, 1.0)
    assert out.getvalue() == ""


def test_work_goes_on_without_stderr_and_with_one_that_fails(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        shown = Progress("made", 50, stream=full)
        work(shown, clock, 50, 20.0)
        assert shown.count == 50
        with contextlib.suppress(OSError):
            full.close()
    monkeypatch.setattr(sys, "stderr", None)  # as Python starts with it closed, and under pythonw
    for quiet in (False, True):
        shown = Progress("made", 50, quiet=quiet, transient=True)
        work(shown, clock, 50, 20.0)
        assert shown.count == 50


def test_without_a_terminal_a_line_every_ten_seconds_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without a terminal: whole lines on stderr, ten seconds apart, nothing on stdout."""
    now = [0.0]
    monkeypatch.setattr("voxtier.system.progress.time.monotonic", lambda: now[0])
    progress = Progress("files", total=4000, transient=True)
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
    monkeypatch.setattr("voxtier.system.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("files", transient=True)
    for note in (", 123 refused", ""):
        now[0] += 1
        progress.advance(1000, note)
    progress.close()
    first, second = "1,000 files, 1,000/s, 123 refused", "2,000 files, 1,000/s"
    width = len(second)
    assert terminal.getvalue() == f"\r{first}\r{second:<{len(first)}}\r{'':<{width}}\r"

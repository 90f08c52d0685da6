"""What long work says: a line that renews itself on a terminal, few lines in a log, JSON for machines."""

from __future__ import annotations

import io
import json
import os
import pty
import re

import pytest

from voxtier.tensors.making import progress
from voxtier.tensors.making.progress import Progress, format_bytes, format_seconds


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
        shown.advance(1_000_000)
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
        work(Progress(4, "verified", stream=terminal), clock, 4, 1.0)
        text = read_to_the_end(master)
    os.close(master)
    lines = text.split("\r")
    assert lines[0] == ""
    assert lines[1] == "verified 1/4 (1.0/s, 1.0 MB/s, 0:03 left)\x1b[K"
    assert lines[-2:] == ["verified 4/4 (1.0/s, 1.0 MB/s)\x1b[K", "\n"]
    assert text.count("\n") == 1


def test_a_terminal_is_not_flooded(clock: Clock) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        work(Progress(100, "made", stream=terminal), clock, 100, 0.01)
        text = read_to_the_end(master)
    os.close(master)
    assert len(re.findall("made", text)) <= 4


def test_a_log_gets_a_line_in_ten_seconds_and_the_last(clock: Clock) -> None:
    log = io.StringIO()
    work(Progress(25, "made", stream=log), clock, 25, 1.0)
    counts = [re.match(r"made (\d+)/25", line) for line in log.getvalue().splitlines()]
    assert [count and count[1] for count in counts] == ["10", "20", "25"]
    assert "\r" not in log.getvalue()


def test_b23_machines_get_json_lines(clock: Clock) -> None:
    out = io.StringIO()
    work(Progress(20, "made", stream=out, machine=True), clock, 20, 1.0)
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
    work(Progress(5, "made", stream=out, quiet=True), clock, 5, 20.0)
    work(Progress(0, "made", stream=out), clock, 0, 1.0)
    assert out.getvalue() == ""


def test_formats() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 33_554_432, 1.68e12)] == [
        "0 B", "999 B", "1.0 kB", "33.6 MB", "1.68 TB",
    ]  # fmt: skip
    assert [format_seconds(s) for s in (0, 59.4, 3599.6, 3723)] == ["0:00", "0:59", "1:00:00", "1:02:03"]

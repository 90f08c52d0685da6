"""`voxtier frames top`: the rate of a reader from page to page."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from voxtier.cli.frames import readers
from voxtier.frames.serving.status_files import ReaderStatus


def status(requests: int, written: float) -> ReaderStatus:
    stats = {"requests": requests, "tier1": requests, "tier2": 0, "tier3": 0, "degraded": False}
    stats |= {"cache": {"used": 0, "budget": 1, "dirty": 0}, "preload": {"state": "idle", "seen": 0}}
    return ReaderStatus(
        "1-0.json", 1, 0.0, {"source": "s", "started": 0.0, "written": written, "stats": stats}
    )


def test_a_reader_that_wrote_nothing_new_keeps_the_rate_of_its_last_two_statuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Since the start, then between two statuses; a page in between repeats the latter."""
    pages = [status(1000, 10.0), status(1060, 12.0), status(1060, 12.0), status(1080, 14.0)]
    monkeypatch.setattr(readers, "_statuses", lambda _: [pages.pop(0)])
    monkeypatch.setattr(readers.time, "sleep", lambda _: None)
    done = CliRunner().invoke(readers.top, ["--count", "4"], catch_exceptions=False)
    rows = [line.split() for line in done.output.splitlines() if line.split()[1:2] == ["s"]]
    assert [row[3] for row in rows] == ["100", "30", "30", "10"]

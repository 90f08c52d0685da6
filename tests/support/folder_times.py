"""Where the time of a test run went: one line a folder at the end of pytest's report.

`tests/conftest.py` imports the hook. With several workers the seconds are those of all of them together.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print tests and seconds of each folder, the slowest first."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = str(PurePosixPath(report.nodeid.partition("::")[0]).parent)
                seconds[folder] += report.duration
                tests[folder] += report.when == "call"
    if seconds:
        terminalreporter.section("seconds by folder")
    for folder in sorted(seconds, key=lambda folder: -seconds[folder]):
        terminalreporter.write_line(f"{seconds[folder]:8.1f} s {tests[folder]:5} tests  {folder}")

"""Progress on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress", "duration"]


class Progress:
    """Counts of long work, with rate and time left.

    Parameters
    ----------
    unit : str
        What is counted, in the plural.
    total : int or None
        How many there are, where known; may be set later through `total`.
    """

    def __init__(self, unit: str, total: int | None = None) -> None:
        self.unit = unit
        self.total = total
        self.count = 0
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._width = 0

    def advance(self, count: int, note: str = "") -> None:
        """Add to the count, and show the line when the last one is old enough."""
        self.count += count
        now = time.monotonic()
        if now - self._shown >= (0.1 if self._terminal else 10):
            self._shown = now
            self._write(self._line(now, note))

    def close(self) -> None:
        """Wipe the line: the summary follows."""
        if self._terminal and self._width:
            self._write("")

    def _line(self, now: float, note: str) -> str:
        elapsed = now - self._started
        rate = self.count / elapsed if elapsed > 0 else 0.0
        of_total = f" of {self.total:,}" if self.total else ""
        left = ""
        if self.total and rate > 0:
            left = f", {duration(max(self.total - self.count, 0) / rate)} left"
        return f"{self.count:,}{of_total} {self.unit}, {rate:,.0f}/s{left}{note}"

    def _write(self, line: str) -> None:
        if self._terminal:
            sys.stderr.write("\r" + line.ljust(self._width) + ("\r" if not line else ""))
            self._width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Write seconds as people do: ``0.4 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""Progress of long work: a line on stderr that is rewritten on a terminal, or rows of JSON for machines.

Indexing, the making and verifying of tensors, and the ingest of volumes report through it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import IO

from voxtier.system.text import format_bytes, format_duration

_TERMINAL_INTERVAL = 0.5
"""Seconds between two lines on a terminal, which are one line rewritten."""
_LOG_INTERVAL = 10.0
"""Seconds between two lines elsewhere."""


class Progress:
    """Counts items and bytes, and shows them with rate and time left.

    Parameters
    ----------
    unit : str
        What is counted or done, as it stands behind a number: ``files``, ``verified``.
    total : int or None
        How many there are, where known; may be set later through `total`.
    machine : bool
        Write rows of JSON instead of lines for people.
    quiet : bool
        Write nothing.
    transient : bool
        `close` wipes the line, because a summary follows; otherwise it shows the last count.
    stream : text file or None
        By default stderr. One that is closed, or that fails, gets nothing more: the work goes on.
    """

    def __init__(
        self,
        unit: str,
        total: int | None = None,
        *,
        machine: bool = False,
        quiet: bool = False,
        transient: bool = False,
        stream: IO[str] | None = None,
    ) -> None:
        self.unit = unit
        self.total = total
        self.count = 0
        self.bytes = 0
        self._machine = machine
        self._transient = transient
        self._stream: IO[str] | None = sys.stderr if stream is None else stream  # None where it is closed
        self._quiet = quiet or self._stream is None
        self._terminal = self._stream is not None and self._stream.isatty() and not machine
        self._started = self._shown_at = time.monotonic()
        self._shown_count = 0
        self._width = 0

    def advance(self, count: int = 1, note: str = "", *, byte_count: int = 0) -> None:
        """Add to the counts, and show them when the last line is old enough.

        Parameters
        ----------
        count : int
            Items done since the last call.
        note : str
            Put at the end of a line for people, such as ``", 3 refused"``.
        byte_count : int
            Bytes of these items.
        """
        self.count += count
        self.bytes += byte_count
        now = time.monotonic()
        if now - self._shown_at >= (_TERMINAL_INTERVAL if self._terminal else _LOG_INTERVAL):
            self._shown_at = now
            self._show(note)

    def seconds_left(self) -> float | None:
        """Return the time to the end at the speed so far; None where there is no total or no item yet."""
        if not self.count or self.total is None:
            return None
        return self._elapsed() / self.count * max(self.total - self.count, 0)

    def close(self, note: str = "") -> None:
        """Show the last count, unless it was shown, or wipe the line of a transient progress."""
        if not self._transient and self.count != self._shown_count:
            self._show(note)
        if self._terminal and self._width:
            self._write(f"\r{'':<{self._width}}\r" if self._transient else "\n")

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-6)

    def _show(self, note: str) -> None:
        if self._quiet:
            return
        self._shown_count = self.count
        line = json.dumps(self._row()) if self._machine else self._line(note)
        self._write(f"\r{line:<{self._width}}" if self._terminal else f"{line}\n")
        self._width = len(line)

    def _write(self, text: str) -> None:
        if self._quiet or self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a full disk behind a log, a reader that has left
            self._quiet = True

    def _line(self, note: str) -> str:
        rate = self.count / self._elapsed()
        of_total = f" of {self.total:,}" if self.total else ""
        parts = [f"{self.count:,}{of_total} {self.unit}", f"{rate:,.{0 if rate >= 10 else 1}f}/s"]
        if self.bytes:
            parts.append(f"{format_bytes(self.bytes / self._elapsed())}/s")
        if left := self.seconds_left():
            parts.append(f"{format_duration(left)} left")
        return ", ".join(parts) + note

    def _row(self) -> dict[str, str | float | None]:
        left = self.seconds_left()
        return {
            "progress": self.unit,
            "done": self.count,
            "total": self.total,
            "bytes": self.bytes,
            "items_per_second": round(self.count / self._elapsed(), 3),
            "seconds_left": None if left is None else round(left, 1),
        }

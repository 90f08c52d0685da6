"""Progress of long work: on stderr for people, as lines of JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from typing import IO

__all__ = ["Progress", "format_bytes", "format_seconds"]


def format_bytes(count: float) -> str:
    """Return ``12.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def format_seconds(seconds: float) -> str:
    """Return ``1:02:03``."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """Counts items and bytes, and shows them at most twice a second (once in ten seconds off a terminal).

    Parameters
    ----------
    total : int
        Items.
    verb : str
        What is done, such as ``verified``.
    machine : bool
        Write lines of JSON instead of a status line.
    quiet : bool
        Write nothing.
    stream : file, optional
        By default stderr.
    """

    def __init__(
        self,
        total: int,
        verb: str,
        *,
        machine: bool = False,
        quiet: bool = False,
        stream: IO[str] | None = None,
    ) -> None:
        self.total = total
        self.done = 0
        self.bytes = 0
        self._said: int | None = None
        self._verb = verb
        self._machine = machine
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty() and not machine
        self._start = self._shown = time.monotonic()

    def advance(self, byte_count: int = 0) -> None:
        """Count one item."""
        self.done += 1
        self.bytes += byte_count
        now = time.monotonic()
        if not self._quiet and now - self._shown >= (0.5 if self._tty else 10.0):
            self._shown = now
            self._show()

    def seconds_left(self) -> float | None:
        """Return the time to the end at the speed so far."""
        if self.done == 0:
            return None
        return (time.monotonic() - self._start) / self.done * (self.total - self.done)

    def close(self) -> None:
        """Show the final count."""
        if not self._quiet and self.total:
            if self._said != self.done:
                self._show()
            if self._tty:
                print(file=self._stream)

    def _show(self) -> None:
        self._said = self.done
        elapsed = max(time.monotonic() - self._start, 1e-6)
        left = self.seconds_left()
        if self._machine:
            row = {
                "progress": self._verb,
                "done": self.done,
                "total": self.total,
                "bytes": self.bytes,
                "items_per_second": round(self.done / elapsed, 3),
                "seconds_left": None if left is None else round(left, 1),
            }
            print(json.dumps(row), file=self._stream, flush=True)
            return
        rate = f"{self.done / elapsed:.1f}/s"
        if self.bytes:
            rate += f", {format_bytes(self.bytes / elapsed)}/s"
        eta = "" if left is None or self.done == self.total else f", {format_seconds(left)} left"
        line = f"{self._verb} {self.done}/{self.total} ({rate}{eta})"
        print(
            f"\r{line}\x1b[K" if self._tty else line,
            end="" if self._tty else "\n",
            file=self._stream,
            flush=True,
        )

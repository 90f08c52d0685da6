"""Why the server failed: a full disk, or what it wrote into its log."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

_LITTLE = 32 << 20
_TAIL = 64 << 10  # bytes of a log that may be long
_HARMLESS = (" LOG:  ", " WARNING:  ", " HINT:  ", " DETAIL:  ", " CONTEXT:  ")
# What ends sessions or the whole server, as `log_timezone` and PostgreSQL's own `log_line_prefix` write it.
_GRAVE = re.compile(r"(\d{4}-\d\d-\d\d \S+) UTC \[\d+\] (FATAL|PANIC):  ")


def explain_full_disk(folder: Path) -> str:
    """Return that the disk of the server's folder is full; '' when it is not."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _LITTLE:
            return f"the disk of {folder} is full: free some space, or set VOXTIER_HOME to another disk"
    return ""


def explain_start(folder: Path) -> str:
    """Return why the server did not start, by a full disk or the last error of its log; '' when unknown."""
    errors = [line for line in _lines(folder) if not any(level in line for level in _HARMLESS)]
    return explain_full_disk(folder) or (_explain(folder, errors[-1]) if errors else "")


def explain_loss(folder: Path, since: float) -> str:
    """Return why sessions were lost, by what the log says since then; '' when unknown.

    Errors of statements are in the log too, of all sessions of all times: they say nothing of a loss. A panic
    ends all sessions; what says FATAL beside it may be of one that came in the meantime.

    Parameters
    ----------
    folder : Path
        The server's own folder.
    since : float
        When the work began that was lost, in seconds since 1970.

    Returns
    -------
    str
        The line of the log in short, and where the log is.
    """
    begun = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    matches = [found for line in _lines(folder) if (found := _GRAVE.match(line)) and found[1] >= begun]
    panics = [found for found in matches if found[2] == "PANIC"]
    return _explain(folder, (panics or matches)[-1].string) if matches else ""


def _explain(folder: Path, line: str) -> str:
    if "No space left on device" in line:
        return f"the disk of {folder} was full: free some space, then try again"
    return f"{line.partition('] ')[2] or line} (see {folder}/server.log)"


def _lines(folder: Path) -> list[str]:
    """Return the last lines of the log."""
    with contextlib.suppress(OSError), (folder / "server.log").open("rb") as log:
        log.seek(max(log.seek(0, os.SEEK_END) - _TAIL, 0))
        return log.read().decode(errors="replace").splitlines()
    return []

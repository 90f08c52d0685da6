"""The server process of a database folder, found by ``postmaster.pid``, ``/proc`` and the socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

SOCKET_NAME = ".s.PGSQL.5432"
# Lines of postmaster.pid.
_PID, _SOCKET_FOLDER, _STATUS = 0, 4, 7


class Postmaster:
    """The server process of a database folder, if there is one.

    Parameters
    ----------
    data : Path
        The database folder.
    """

    def __init__(self, data: Path) -> None:
        self.data = data

    def pid(self) -> int | None:
        """Return the process number of ``postmaster.pid`` if it is that of a PostgreSQL in this folder."""
        line = self._line(_PID)
        pid = int(line) if line is not None and line.isdigit() else None
        return pid if pid is not None and self._runs_here(pid) else None

    def socket_folder(self) -> str | None:
        """Return the folder of its socket, as ``postmaster.pid`` says."""
        line = self._line(_SOCKET_FOLDER)
        return None if line is None else os.fsdecode(line)

    def accepts(self) -> bool:
        """Return whether it accepts connections."""
        if (self._line(_STATUS) or b"").strip() != b"ready":
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5.0)
            try:
                client.connect(f"{self.socket_folder()}/{SOCKET_NAME}")
            except OSError:
                return False
        return True

    def end_orphans(self) -> None:
        """End sessions that outlived a killed server: while they hold its memory, no other can start."""
        if self.pid() is not None:
            return
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._runs_here(int(entry.name)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(entry.name), signal.SIGQUIT)

    def _runs_here(self, pid: int) -> bool:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            return name == "postgres" and Path(f"/proc/{pid}/cwd").samefile(self.data)
        except OSError:
            return False

    def _line(self, number: int) -> bytes | None:
        """Return a line as it is: it may name a folder that is no text in this locale, or in any."""
        try:
            lines = (self.data / "postmaster.pid").read_bytes().split(b"\n")
        except OSError:
            return None
        return lines[number] if len(lines) > number else None


def users_of(lock: Path) -> tuple[int, ...]:
    """Return the other processes that hold a lock, as far as ``/proc/locks`` shows them."""
    try:
        inode = lock.stat().st_ino
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ()
    held = [row for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5].endswith(f":{inode}")]
    return tuple(sorted({int(row[4]) for row in held} - {os.getpid()}))

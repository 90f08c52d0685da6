"""A primary server and a hot standby that follows it, both real: PostgreSQL's own streaming replication."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from voxtier.postgres.embedded.programs import find_account, find_programs

_PORT = 5432
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
}


class Server:
    """A PostgreSQL server in a folder of a test.

    Parameters
    ----------
    folder : Path
        Its own, short enough for a socket.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._programs = find_programs()
        self._account = find_account(self._programs, folder)
        if self._account.prefix and self._account.prefix[0] == "setpriv":
            subprocess.run(["chown", f"{self._account.uid}:{self._account.gid}", folder], check=True)
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, **parameters: str) -> str:
        place = {"host": str(self.folder), "port": str(_PORT), "user": "voxtier", "dbname": "postgres"}
        return make_conninfo("", **{**place, **parameters})

    def initialise(self) -> None:
        """Make an empty database folder."""
        self._run("initdb", "-D", "data", "-U", "voxtier", "-A", "trust", "-E", "UTF8", "--no-sync")

    def copy_of(self, primary: Server) -> None:
        """Make a database folder that follows another server."""
        self._run(
            *("pg_basebackup", "-D", "data", "-d", primary.dsn(), "-R", "-X", "stream"),
            *("--no-sync", "--checkpoint=fast"),
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        place = ["-c", f"unix_socket_directories={self.folder}", "-c", f"port={_PORT}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._account.prefix, self._programs.postgres, "-D", "data", *options, *place],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        while True:
            try:
                return psycopg.connect(self.dsn()).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()[-1000:]
                time.sleep(0.02)

    def promote(self) -> None:
        """Make a standby a primary."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def wait_for(self, primary: Server) -> None:
        """Wait until a standby has replayed what its primary has written."""
        with psycopg.connect(primary.dsn()) as connection:
            position = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            while connection.execute("SELECT pg_last_wal_replay_lsn() < %s", position).fetchone() == (True,):
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # waits for its clients
            self._run("pg_ctl", "stop", "-D", "data", "-m", "fast", "-w", check=False)
            self._process.wait()
            self._process = None

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [*self._account.prefix, str(self._programs.folder / program), *arguments]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=check)

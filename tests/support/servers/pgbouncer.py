"""A real pgbouncer in front of a test's server: which programs there are, and one that runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from voxtier.postgres.embedded.programs import find_account, find_programs

# What `fetch_pgbouncer` fills: a folder a release of Debian.
FETCHED = Path(__file__).parents[3] / ".venv" / "pgbouncer"
RELEASES = ("bookworm", "trixie")
_PORT = 6432


def command_of(release: str) -> list[str]:
    """Return the command line of a release's pgbouncer; skips the test where there is none."""
    root = FETCHED / release
    loader = next(iter(sorted(root.rglob("ld-linux*"))), None)
    if loader is None:
        reason = FETCHED / "missing"
        why = reason.read_text().strip() if reason.is_file() else "run `make .venv/.pgbouncer`"
        pytest.skip(f"no pgbouncer of {release}: {why}")
    folders = {str(library.parent) for library in root.rglob("lib*.so*")}
    return [str(loader), "--library-path", ":".join(sorted(folders)), str(root / "usr/sbin/pgbouncer")]


class PgBouncer:
    """A pgbouncer in transaction mode before the server of a connection string.

    Parameters
    ----------
    folder : Path
        Its own folder, short enough for a socket.
    release : str
        Release of Debian whose program runs.
    server : str
        Connection string of the server; it serves every database of it, and any role without a password.
    settings : int or str
        Lines of its configuration: see pgbouncer(5).
    """

    def __init__(self, folder: Path, release: str, server: str, **settings: int | str) -> None:
        self._program = command_of(release)
        self._server = conninfo_to_dict(server)
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        # Not root, and able to reach the server's private socket: as the server itself.
        account = find_account(find_programs(), folder)
        self._prefix = account.prefix
        for path in (self.folder, self.folder / "log", self.folder / "users"):
            if path != self.folder:
                path.touch()
            os.chown(path, account.uid, account.gid)
        self._settings = {
            "listen_addr": "",
            "listen_port": _PORT,
            "unix_socket_dir": str(folder),
            "auth_type": "trust",
            "auth_file": str(folder / "users"),
            "admin_users": "voxtier",
            "logfile": str(folder / "log"),
            "pool_mode": "transaction",
            "default_pool_size": 4,
            "server_idle_timeout": 600,
            **settings,
        }
        self.allow("voxtier")
        self._process: subprocess.Popen[bytes] | None = None

    def allow(self, *roles: str) -> None:
        """Let roles log in."""
        with (self.folder / "users").open("a") as users:
            users.writelines(f'"{role}" ""\n' for role in roles)

    def dsn(self, **parameters: str) -> str:
        """Return the connection string of its socket; `parameters` change those of the server's."""
        place = {"host": str(self.folder), "port": str(_PORT)}
        return make_conninfo(**{**self._server, **place, **parameters})

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        place = f"host={self._server['host']} port={self._server['port']}"
        lines = [
            "[databases]",
            f"* = {place}",
            "[pgbouncer]",
            *(f"{key} = {value}" for key, value in self._settings.items()),
        ]
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen(
            [*self._prefix, *self._program, "--quiet", str(configuration)], stderr=subprocess.DEVNULL
        )
        while True:
            try:
                return self.command("SHOW VERSION")
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    log = (self.folder / "log").read_text()[-500:]
                    raise AssertionError(f"pgbouncer did not start: {log}") from None
                time.sleep(0.02)

    def command(self, text: str) -> None:
        """Give a command to its console, such as ``RELOAD`` or ``KILL db``."""
        with psycopg.connect(self.dsn(dbname="pgbouncer", user="voxtier"), autocommit=True) as console:
            console.execute(text.encode(), prepare=False)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; by ``SIGKILL`` its clients learn of it from their sockets alone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder / f".s.PGSQL.{_PORT}", ignore_errors=True)

    def __enter__(self) -> PgBouncer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

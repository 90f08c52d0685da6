"""Users of an embedded server in processes of their own, and questions about its state."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded.postmaster import Postmaster
from voxtier.system.locks import release, take

# Uses the server of the home in argv[1]: answers one question, then waits until its stdin ends.
USER = """
import sys
from pathlib import Path
import psycopg
from voxtier.postgres.embedded import embedded_server
server = embedded_server(Path(sys.argv[1]))
server.attach()
with psycopg.connect(server.conninfo()) as connection:
    print(connection.execute("SELECT 6 * 7").fetchone()[0], flush=True)
    sys.stdin.read()
"""


def start_user(home: Path, script: str = USER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def user(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = start_user(home)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "42\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=200)
    assert process.returncode == 0


def answer(server: EmbeddedServer) -> object:
    with psycopg.connect(server.conninfo()) as connection:
        row = connection.execute("SELECT 6 * 7").fetchone()
        return row and row[0]


def server_pid(home: Path) -> int:
    pid = EmbeddedServer(home).status().pid
    assert pid is not None
    return pid


def socket_folder(home: Path) -> Path:
    """Return where the running server of a home has its socket."""
    folder = Postmaster(home / "postgres" / "data").socket_folder()
    assert folder is not None
    return Path(folder)


def lock_is_free(home: Path, name: str = "server.lock") -> bool:
    lock = take(home / "postgres" / name)
    release(lock)
    return lock is not None


def eventually(condition: Callable[[], bool], within: float = 200) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

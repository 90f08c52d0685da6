"""Why the embedded server failed, as its users are told: never by what its log says of other things."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from postgres.servers import eventually, server_pid
from voxtier.errors import BackendError
from voxtier.postgres.database import Database
from voxtier.postgres.embedded.failures import explain_full_disk, explain_loss, explain_start

MISTAKE = 'ERROR:  relation "my_own_mistake" does not exist at character 15'
BROKEN = 'PANIC:  could not fdatasync file "000000010000000000000001": Input/output error'
FULL = 'PANIC:  could not write to file "pg_wal/xlogtemp.7": No space left on device'
LATE = "FATAL:  the database system is in recovery mode"


def line(text: str, at: float) -> str:
    """Return a line of a log as PostgreSQL writes it by default."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}.{int(at % 1 * 1000):03} UTC [17] {text}\n"


def answers(database: Database) -> bool:
    with contextlib.suppress(BackendError):
        database.probe("SELECT 1")
        return True
    return False


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    database = Database(home=home, max_size=1, timeout=2)
    database.start()
    yield database
    database.close()


def test_a_server_that_hangs_is_not_explained_by_an_old_mistake(home: Path, database: Database) -> None:
    with pytest.raises(BackendError, match="my_own_mistake"):
        database.run(lambda connection: connection.execute("SELECT * FROM my_own_mistake"))
    assert MISTAKE in (home / "postgres" / "server.log").read_text()
    pid = server_pid(home)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendError, match="connection timeout expired; run `voxtier doctor`") as told:
            database.probe("SELECT 1")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "mistake" not in str(told.value)


@pytest.mark.parametrize(
    ("before", "meanwhile", "told"),
    [
        (FULL, MISTAKE, "server closed the connection unexpectedly; run `voxtier doctor`"),
        (FULL, BROKEN, f"{BROKEN} (see "),
        (MISTAKE, FULL, "was full: free some space"),
    ],
)
def test_a_session_that_is_lost_is_explained_by_what_the_log_says_since_then(
    home: Path, database: Database, before: str, meanwhile: str, told: str
) -> None:
    log = home / "postgres" / "server.log"
    with log.open("a") as stream:
        stream.write(line(before, time.time() - 1))
    with pytest.raises(BackendError) as raised, database.stream() as connection:
        with log.open("a") as stream:
            stream.write(line(meanwhile, time.time()))
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        connection.execute("SELECT 1")
    eventually(lambda: answers(database))  # it has recovered, and can be stopped
    assert told in str(raised.value)


def test_the_panic_decides_not_who_came_while_it_ended_all_sessions(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(line(FULL, 1000) + line(LATE, 1001) + line(BROKEN, 2000.5) + line(LATE, 2001))
    assert explain_loss(tmp_path, 2000.5009) == f"{BROKEN} (see {log})"
    assert explain_loss(tmp_path, 2000.6) == f"{LATE} (see {log})"
    assert explain_loss(tmp_path, 2002) == ""
    log.write_bytes(b"\xff PANIC:  no time\n" + line(MISTAKE, 3000).encode())
    assert explain_loss(tmp_path, 0) == ""
    assert explain_loss(tmp_path / "nothing", 0) == ""


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    filler = line("LOG:  checkpoint complete", 1500) * 2000
    (tmp_path / "server.log").write_text(line(BROKEN, 1000) + filler)
    assert explain_loss(tmp_path, 0) == explain_start(tmp_path) == ""
    (tmp_path / "server.log").write_text(filler + line(BROKEN, 1000))
    assert explain_loss(tmp_path, 0).startswith(BROKEN)


def test_a_server_that_did_not_start_is_explained_by_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert explain_start(tmp_path) == ""
    log.write_text("unshare: unshare failed: Operation not permitted\n")
    assert explain_start(tmp_path) == f"unshare: unshare failed: Operation not permitted (see {log})"
    log.write_text(line("LOG:  starting", 1) + line(BROKEN, 2) + line("LOG:  shut down", 3))
    assert explain_start(tmp_path) == f"{BROKEN} (see {log})"


def test_a_full_disk_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain_full_disk(tmp_path) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=31 << 20))
    assert explain_full_disk(tmp_path) == explain_start(tmp_path)
    assert explain_full_disk(tmp_path).endswith(
        "is full: free some space, or set VOXTIER_HOME to another disk"
    )

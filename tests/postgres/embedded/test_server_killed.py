"""The embedded server after kill -9 of its users, its keeper and itself: the next user finds it working."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

from postgres.servers import (
    answer,
    eventually,
    leave,
    lock_is_free,
    server_pid,
    socket_folder,
    start_user,
    user,
)
from voxtier.postgres.embedded import EmbeddedServer

# Says when initdb begins and when it has ended, and never gives the finished folder its name.
MAKER = """
import subprocess, sys, time
from pathlib import Path
from voxtier.postgres.embedded import embedded_server
run = subprocess.run
def run_and_say(command, **options):
    if any(str(part).endswith("/initdb") for part in command):
        print("making", flush=True)
    return run(command, **options)
def never(*_):
    print("made", flush=True)
    time.sleep(1000)
subprocess.run, Path.rename = run_and_say, never
embedded_server(Path(sys.argv[1])).attach()
"""


def state_of(server: EmbeddedServer, backend: int) -> object:
    with psycopg.connect(server.conninfo()) as connection:
        row = connection.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [backend]).fetchone()
        return row and row[0]


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_last_user_killed_stops_the_server(home: Path) -> None:
    with user(home) as other:
        os.kill(other.pid, signal.SIGKILL)
        eventually(lambda: lock_is_free(home))  # the keeper has noticed
    with user(home):
        pass


def test_last_user_and_keeper_killed_the_next_user_takes_the_server_over(home: Path) -> None:
    with user(home) as other:
        pid = server_pid(home)
        os.kill(keeper_of(pid), signal.SIGKILL)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with user(home) as other:
        assert server_pid(home) == pid  # found, and taken over
        leave(other)
    assert lock_is_free(home)


def test_one_of_two_users_killed_leaves_the_server_to_the_other(home: Path) -> None:
    with user(home) as first, user(home):
        pid = server_pid(home)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        time.sleep(2.5)  # longer than the keeper waits between two looks
        assert server_pid(home) == pid


def test_server_killed_is_started_again_with_its_tables(home: Path) -> None:
    server = EmbeddedServer(home)
    server.attach()
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE survivor AS SELECT 1")
        os.kill(server_pid(home), signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            while True:  # the session lives a little longer than its server
                connection.execute("SELECT 1")
    server.ensure_running()
    with psycopg.connect(server.conninfo()) as connection:
        assert connection.execute("SELECT count(*) FROM survivor").fetchone() == (1,)
    server.detach()
    assert lock_is_free(home)


@pytest.mark.parametrize("long_path", [False, True])  # its socket lies elsewhere then
def test_numbers_that_a_killed_server_left_may_be_of_other_processes_now(
    tmp_path: Path, home: Path, *, long_path: bool
) -> None:
    if long_path:
        home = home.rename(tmp_path / ("deep" * 25))
    server = EmbeddedServer(home)
    server.attach()
    pid = server_pid(home)
    files = [home / "postgres" / "data" / "postmaster.pid"]
    files += [socket_folder(home) / ".s.PGSQL.5432.lock"]
    for victim in (keeper_of(pid), pid):
        os.kill(victim, signal.SIGKILL)
    eventually(lambda: lock_is_free(home))
    for file in files:
        number, rest = file.read_text().split("\n", 1)
        assert int(number) == pid
        file.write_text(f"{os.getpid()}\n{rest}")
    server.ensure_running()
    assert answer(server) == 42
    server.stop(force=True)
    assert not any(file.exists() for file in files)
    server.detach()


def test_server_killed_in_a_long_statement_is_started_again(home: Path) -> None:
    server = EmbeddedServer(home)
    server.attach()
    with psycopg.connect(server.conninfo()) as busy:
        # Computes without ever looking whether its server still lives.
        with busy.cursor() as cursor:
            cursor.connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 100000000000)")
            eventually(lambda: state_of(server, busy.info.backend_pid) == "active")
            os.kill(server_pid(home), signal.SIGKILL)
            eventually(lambda: server.status().pid is None)
            assert not lock_is_free(home)
            server.ensure_running()
            assert answer(server) == 42
        busy.close()
    server.detach()
    assert lock_is_free(home)


@pytest.mark.soak
def test_a_server_that_does_not_end_is_ended_and_starts_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process of it is stopped, which waits as one does that PostgreSQL itself has forgotten."""
    monkeypatch.setattr("voxtier.postgres.embedded.server.STOP_WITHIN", 20.0)
    server = EmbeddedServer(home)
    server.attach()
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE survivor AS SELECT 1")
        named = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        row = connection.execute(named).fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    server.detach()
    assert lock_is_free(home)
    server.attach()
    with psycopg.connect(server.conninfo()) as connection:
        assert connection.execute("SELECT count(*) FROM survivor").fetchone() == (1,)
    server.detach()


def test_user_killed_while_initdb_runs_leaves_no_broken_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for pause in (0.0, 0.05, 0.2, None):
        process = start_user(home, MAKER)
        assert process.stdout is not None
        assert process.stdout.readline() == "making\n"
        eventually((home / "postgres" / "data.tmp").exists)
        if pause is None:
            assert process.stdout.readline() == "made\n"
        else:
            time.sleep(pause)
        process.kill()
        process.communicate()
        assert (home / "postgres" / "data.tmp").exists()
        assert not (home / "postgres" / "data").exists()
    with user(home):
        assert not (home / "postgres" / "data.tmp").exists()


def test_user_killed_while_the_server_starts_does_not_stop_the_next(home: Path) -> None:
    for pause in (0.0, 0.01, 0.02, 0.04):
        process = start_user(home)
        eventually(lambda: not lock_is_free(home))
        time.sleep(pause)
        process.kill()
        process.communicate()
    with user(home) as other:
        leave(other)
    eventually(lambda: lock_is_free(home))


@pytest.mark.soak
def test_three_hundred_users_killed_at_any_moment(home: Path) -> None:
    for number in range(300):
        process = start_user(home)
        time.sleep(0.25 * (number % 20) / 20)
        process.kill()
        process.communicate()
        if number % 7 == 0 and (pid := EmbeddedServer(home).status().pid):
            with contextlib.suppress(ProcessLookupError):  # its keeper may have stopped it just now
                os.kill(pid, signal.SIGKILL)
    with user(home) as other:
        leave(other)
    eventually(lambda: lock_is_free(home))

"""The embedded server's users: the first starts it, the last stops it, whatever their order."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from postgres.servers import answer, eventually, leave, lock_is_free, server_pid, start_user, user
from voxtier.errors import BackendError, ConfigError
from voxtier.postgres.database import Database
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded import server as server_module
from voxtier.postgres.embedded.programs import find_account, find_programs, major_of
from voxtier.system.locks import release, take


def test_the_first_user_starts_the_server_and_the_last_one_stops_it(home: Path) -> None:
    server = EmbeddedServer(home)
    server.attach()
    server.attach()
    with user(home) as other:
        assert answer(server) == 42
        assert other.pid in server.status().users
        server.detach()
        server.detach()
        assert server.status().running
        leave(other)
    assert not server.status().running
    assert lock_is_free(home)


def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedServer:
    """Return a server that this process uses, and that needs no programs: it counts as running."""
    server = EmbeddedServer(tmp_path)
    monkeypatch.setattr(server, "_start_if_stopped", lambda: None)
    server.attach()
    return server


def test_a_server_that_does_not_stop_leaves_no_lock_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = attached(tmp_path, monkeypatch)
    opened: list[int] = []

    def fail() -> None:
        raise BackendError("it did not stop")

    monkeypatch.setattr(server, "_shut_down", fail)

    def take_behind_another(path: Path, **options: bool) -> int | None:
        opened.append(os.open(os.devnull, os.O_RDONLY))  # another thread does: the lock gets a new number
        return take(path, **options)

    monkeypatch.setattr(server_module, "take", take_behind_another)
    server.detach()
    free = take(server.folder / "use.lock")
    assert free is not None
    release(free)
    for descriptor in opened:
        os.close(descriptor)


def test_a_lock_of_another_thread_is_never_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = attached(tmp_path, monkeypatch)
    of_others: list[int | None] = []

    def release_and_take(lock: int | None, **options: bool) -> None:
        release(lock, **options)
        of_others.append(take(tmp_path / f"{len(of_others)}.lock"))

    monkeypatch.setattr(server_module, "release", release_and_take)
    server.detach()
    assert of_others
    for number in range(len(of_others)):
        assert take(tmp_path / f"{number}.lock") is None, "it is held no more"
    for lock in of_others:
        release(lock)


def test_processes_share_one_server(home: Path) -> None:
    with user(home):
        pid = server_pid(home)
        with user(home):
            assert server_pid(home) == pid


def test_eight_processes_at_once_make_one_folder_and_one_server(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet" / "there"
    processes = [start_user(home) for _ in range(8)]
    answers = [process.communicate(timeout=250)[0] for process in processes]
    assert answers == ["42\n"] * 8
    assert {process.returncode for process in processes} == {0}
    assert lock_is_free(home)
    assert not (home / "postgres" / "data.tmp").exists()


def test_processes_that_come_and_leave_at_once_find_a_server(home: Path) -> None:
    coming = """
        import sys, random, time
        from pathlib import Path
        import psycopg
        from voxtier.postgres.embedded import embedded_server
        server = embedded_server(Path(sys.argv[1]))
        for _ in range(6):
            server.attach()
            with psycopg.connect(server.conninfo()) as connection:
                connection.execute("SELECT 1")
            time.sleep(random.random() * 0.02)
            server.detach()
    """
    command = [sys.executable, "-c", textwrap.dedent(coming), str(home)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(250) for process in processes] == [0] * 4
    assert lock_is_free(home)


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """More descriptors than `select` of the C library has numbers for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with contextlib.ExitStack() as files:
        for _ in range(1100):
            files.enter_context(open(os.devnull))
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_open_files")
def test_a_process_with_many_open_files_starts_it_and_is_told_why_it_waits(home: Path) -> None:
    database = Database(home=home, max_size=1, timeout=0.2)
    try:
        with database.connection() as connection:
            assert connection.fileno() > 1024
            with pytest.raises(BackendError, match=r"within 0\.2 s: all 1 are in use"):
                database.start()
    finally:
        database.close()


def test_a_kept_server_outlives_its_users_until_it_is_stopped(home: Path) -> None:
    server = EmbeddedServer(home)
    server.keep()
    assert server.status().running
    assert server.status().kept
    with user(home) as other:
        leave(other)
    assert server.status().running
    assert server.stop()
    assert not server.status().running
    assert not server.stop()
    with user(home):  # the wish to keep it ended with that run
        assert not server.status().kept


def test_a_server_in_use_is_stopped_by_force_alone(home: Path) -> None:
    server = EmbeddedServer(home)
    with user(home) as other:
        with pytest.raises(ConfigError, match=f"in use .*{other.pid}"):
            server.stop()
        assert server.status().running
        assert server.stop(force=True)
        assert lock_is_free(home)


def test_status_and_stop_of_an_unused_home_create_nothing(tmp_path: Path) -> None:
    status = EmbeddedServer(tmp_path / "nothing").status()
    assert (status.running, status.pid, status.version, status.users) == (False, None, None, ())
    assert not (tmp_path / "nothing").exists()
    assert not EmbeddedServer(tmp_path / "nothing").stop()


def test_a_forked_child_holds_no_lock_and_starts_a_server_of_its_own(home: Path) -> None:
    forking = """
        import os, sys
        from pathlib import Path
        import psycopg
        from voxtier.postgres.embedded import embedded_server
        server = embedded_server(Path(sys.argv[1]))
        server.attach()
        if os.fork() == 0:  # keeps its stderr open until it ends
            os.close(1)
            sys.stdin.read()
            server.attach()  # the parent has gone and taken the server along: the child starts its own
            with psycopg.connect(server.conninfo()) as connection:
                connection.execute("CREATE TABLE child()")
            server.detach()
            os._exit(0)
    """
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(forking), str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    parent.stdout.read()
    assert parent.wait(60) == 0
    assert lock_is_free(home)
    _, complaints = parent.communicate(timeout=200)  # until the child has ended, too
    assert complaints == b""
    assert lock_is_free(home)
    server = EmbeddedServer(home)
    server.attach()
    with psycopg.connect(server.conninfo()) as connection:
        assert connection.execute("SELECT to_regclass('child')").fetchone() == ("child",)
    server.detach()


@pytest.mark.parametrize("pid", ["1", "own", "999999999", "", "garbage", "-1"])
def test_a_stale_postmaster_pid_is_not_taken_for_the_server(home: Path, pid: str) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    lines = [pid, str(home / "postgres" / "data"), "0", "5432", "/nowhere", "", "", "ready"]
    (home / "postgres" / "data" / "postmaster.pid").write_text("\n".join(lines))
    with user(home):
        assert server_pid(home) != os.getpid()


def test_a_server_that_somebody_started_by_hand_is_used(home: Path) -> None:
    server = EmbeddedServer(home)
    programs = find_programs()
    account = find_account(programs, server.folder)
    socket_folder = server.folder / "socket"
    socket_folder.mkdir(mode=0o700)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={socket_folder}"]
    command = [*account.prefix, programs.postgres, "-D", str(server.folder / "data"), *options]
    with open(home / "by_hand.log", "wb") as log:
        by_hand = subprocess.Popen(command, stdout=log, stderr=log)

    def runs() -> bool:
        assert by_hand.poll() is None, (home / "by_hand.log").read_text()
        return server.status().running

    try:
        eventually(runs)
        with user(home):
            assert server_pid(home) == by_hand.pid
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait(120)


def test_a_folder_of_another_postgresql_version_is_refused(home: Path) -> None:
    (home / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(BackendError, match=r"written by PostgreSQL 9, installed is .*VOXTIER_DSN"):
        EmbeddedServer(home).attach()


@pytest.mark.parametrize(
    ("content", "major"),
    [(b"18\n", 18), (b"9.6\n", 9), (b"", None), (b"\xff\xfe", None), (b"-1", None), (b"18x", None)],
)
def test_a_folder_that_does_not_tell_its_version_is_refused_with_a_remedy(
    tmp_path: Path, content: bytes, major: int | None
) -> None:
    server = EmbeddedServer(tmp_path)
    data = server.folder / "data"
    assert major_of(data) is None
    data.mkdir(parents=True)
    assert major_of(data) is None
    (data / "PG_VERSION").write_bytes(content)
    if major is not None:
        assert major_of(data) == major
        return
    for method in (server.attach, server.status):
        with pytest.raises(BackendError, match=r"data/PG_VERSION names no version .* move the folder away"):
            method()
    assert (data / "PG_VERSION").read_bytes() == content


def test_a_version_that_cannot_be_read_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").mkdir()
    with pytest.raises(BackendError, match=r"PG_VERSION cannot be read: Is a directory; move the folder"):
        major_of(tmp_path)

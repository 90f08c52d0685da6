"""Connections of the store: the pool, credentials, servers that do not answer, failures tried again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from frames.store.rows.index_rows import ask, results
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import FrameTable
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.database import Database
from voxtier.postgres.refusals import warn_of_plain_text

OUR_SESSIONS = "FROM pg_stat_activity WHERE application_name = 'voxtier' AND datname = current_database()"


def test_more_threads_than_connections_wait_their_turn(dsn: str) -> None:
    with FrameStore(Database(dsn, max_size=2)) as store, ThreadPoolExecutor(16) as threads:
        store.upsert("s", results(50))
        found = list(threads.map(lambda n: store.get("s", f"/{n % 50}"), range(400)))
        assert all(isinstance(table, FrameTable) for table in found)
        [(sessions,)] = ask(dsn, f"SELECT count(*) {OUR_SESSIONS}")
        assert sessions <= 2


def test_waiting_too_long_for_a_connection_is_a_backend_error(dsn: str) -> None:
    database = Database(dsn, max_size=1)
    with database.connection():  # this one may take as long as it needs
        assert database._pool is not None
        database._pool.timeout = 0.2
        with pytest.raises(BackendError, match=r"no connection .* within 0\.2 s: all 1 are"):
            database.run(lambda connection: connection.execute("SELECT 1"))
    database.close()


@pytest.mark.parametrize("drop", [Database.reset, Database.close])
def test_who_waits_for_a_connection_gets_one_of_the_pool_that_follows(
    dsn: str, drop: Callable[[Database], None]
) -> None:
    database = Database(dsn, max_size=1, timeout=100)

    def lend(how: Callable[[], contextlib.AbstractContextManager[psycopg.Connection]]) -> object:
        with how() as connection:
            return connection.execute("SELECT 42").fetchone()

    with ThreadPoolExecutor(3) as threads:
        with database.connection():
            pool = database._pool
            assert pool is not None
            lent = [threads.submit(lend, how) for how in (database.connection, database.stream)]
            started = threads.submit(database.start)
            deadline = time.monotonic() + 60
            while pool.get_stats()["requests_waiting"] < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            drop(database)
        assert [each.result() for each in lent] == [(42,), (42,)]
        started.result()
    database.close()


def test_connections_that_the_server_closed_are_replaced(dsn: str) -> None:
    with FrameStore(Database(dsn, max_size=4)) as store, ThreadPoolExecutor(4) as threads:
        store.upsert("s", results(5))
        barrier = threading.Barrier(4)
        list(threads.map(lambda _: store.database.run(lambda _: barrier.wait(120)), range(4)))
        ask(dsn, f"SELECT pg_terminate_backend(pid) {OUR_SESSIONS}")
        for number in range(6):
            assert isinstance(store.get("s", f"/{number % 5}"), FrameTable)


@pytest.mark.parametrize(
    "error",
    [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.AdminShutdown],
)
def test_passing_failures_are_tried_again(dsn: str, error: type[psycopg.Error]) -> None:
    attempts = []

    def work(connection: psycopg.Connection) -> int:
        attempts.append(connection)
        if len(attempts) < 3:
            raise error("passing")
        return 42

    database = Database(dsn)
    assert database.run(work) == 42
    assert len(attempts) == 3
    database.close()


@pytest.mark.parametrize("error", [psycopg.errors.DiskFull, psycopg.errors.QueryCanceled, psycopg.DataError])
def test_lasting_failures_are_not_tried_again(dsn: str, error: type[psycopg.Error]) -> None:
    attempts = []

    def work(connection: psycopg.Connection) -> None:
        attempts.append(connection)
        raise error("for good")

    database = Database(dsn)
    with pytest.raises(BackendError):
        database.run(work)
    assert len(attempts) == 1
    database.close()


def test_a_conflict_without_end_is_a_backend_error(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def work(_: psycopg.Connection) -> None:
        raise psycopg.errors.DeadlockDetected

    database = Database(dsn)
    with pytest.raises(BackendError, match="check the server"):
        database.run(work)
    database.close()


def test_credentials_are_asked_for_with_each_connection(dsn: str, postgres: str) -> None:
    roles = ["first_token", "second_token"]
    for role in roles:
        ask(postgres, f"CREATE ROLE {role} LOGIN")
    current = [roles[0]]
    database = Database(dsn, credentials=lambda: {"user": current[0]}, max_size=2)

    def who(connection: psycopg.Connection) -> object:
        return connection.execute("SELECT current_user").fetchone()

    assert database.run(who) == ("first_token",)
    current[0] = roles[1]  # the token was renewed, the old connections die
    deadline = time.monotonic() + 30
    while database.run(who) != ("second_token",):  # one with the first may just be on its way
        assert time.monotonic() < deadline
        ask(dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'first_token'")
    database.close()
    for role in roles:
        ask(postgres, f"DROP ROLE {role}")


def test_open_connections_work_while_credentials_fail(dsn: str) -> None:
    broken = threading.Event()

    def credentials() -> dict[str, str]:
        if broken.is_set():
            raise OSError("the token service is down")
        return {}

    with FrameStore(Database(dsn, credentials=credentials, max_size=3)) as store:
        store.upsert("s", results(3))
        broken.set()
        for _ in range(20):
            assert isinstance(store.get("s", "/1"), FrameTable)
    with pytest.raises(BackendError, match=r"cannot obtain the database credentials: OSError") as raised:
        FrameStore(Database(dsn, credentials=credentials)).sources()
    assert isinstance(raised.value.__cause__, OSError)


def test_a_connection_string_may_come_from_a_function(dsn: str) -> None:
    asked = []

    def moving() -> str:
        asked.append(1)
        return dsn

    with FrameStore(Database(moving)) as store:
        assert store.sources() == []
        assert asked


@pytest.mark.parametrize(
    "dsn", ["postgresql://user:hunter2@127.0.0.1:1/db", "host=/nowhere password=hunter2"]
)
def test_an_unreachable_server_is_told_at_once_without_the_password(dsn: str) -> None:
    store = FrameStore(Database(dsn, timeout=1000))
    started = time.monotonic()
    with pytest.raises(BackendError, match=r"--dsn, VOXTIER_DSN") as raised:
        store.sources()
    assert time.monotonic() - started < 100, "whoever is refused is told at once"
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("dsn", ["host", "hunter2", "postgresql://[::1/x", "host=x hunter2"])
def test_a_text_that_is_no_connection_string_is_a_config_error(dsn: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://") as raised:
        FrameStore(dsn)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_voxtier_dsn_names_the_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXTIER_DSN", dsn)
    with FrameStore() as store:
        assert not store.database.is_embedded
        assert store.sources() == []
    monkeypatch.setenv("VOXTIER_DSN", "")
    assert FrameStore().database.is_embedded


def test_a_network_connection_without_tls_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def opened(host: str, *, tls: bool) -> Any:
        return SimpleNamespace(info=SimpleNamespace(host=host), pgconn=SimpleNamespace(ssl_in_use=tls))

    for host, tls in (("10.0.0.1", True), ("/run/postgresql", False), ("127.0.0.1", False)):
        warn_of_plain_text(opened(host, tls=tls))
    assert caplog.text == ""
    warn_of_plain_text(opened("10.0.0.1", tls=False))
    assert "sslmode=verify-full" in caplog.text


@pytest.fixture
def role(dsn: str, postgres: str) -> Iterator[str]:
    """A connection string of a role that may do nothing but connect."""
    ask(postgres, "CREATE ROLE somebody LOGIN")
    yield psycopg.conninfo.make_conninfo(dsn, user="somebody")
    ask(dsn, "DROP OWNED BY somebody")
    ask(postgres, "DROP ROLE somebody")


def test_keys_are_sent_whatever_was_imported_first(dsn: str) -> None:
    program = (
        "import sys; from voxtier.postgres.database import Database; from voxtier.frames import FrameStore\n"
        "with FrameStore(Database(sys.argv[1])) as store: print(store.file_states('s', ['/x']))"
    )
    done = subprocess.run([sys.executable, "-c", program, dsn], capture_output=True, text=True, check=False)
    assert done.stdout == "[None]\n", done.stderr

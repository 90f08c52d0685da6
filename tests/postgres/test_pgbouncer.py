"""The store behind a real pgbouncer in transaction mode, where each transaction may meet another session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask, results
from support.depth import depth
from support.servers.pgbouncer import RELEASES, PgBouncer
from voxtier import _core
from voxtier.errors import BackendError
from voxtier.frames import FrameStore, TableResult
from voxtier.frames.memory.ranking import preload_rows
from voxtier.frames.store.adapters import fetch
from voxtier.postgres.database import Database
from voxtier.postgres.embedded import EmbeddedServer

SURFACE = Path(__file__).with_name("whole_surface.py")
# Without prepared statements, and with those of pgbouncer 1.21 and newer.
MODES = (
    ("bookworm", {}),
    pytest.param("trixie", {"max_prepared_statements": 0}, marks=pytest.mark.soak),
    ("trixie", {"max_prepared_statements": 200}),
)
ONE_NOW = (RELEASES[0], pytest.param(RELEASES[1], marks=pytest.mark.soak))

Start = Callable[..., PgBouncer]


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Start a pgbouncer of a release, with settings, before the test's database."""
    started: list[PgBouncer] = []

    def start(release: str = "bookworm", server: str = dsn, **settings: int | str) -> PgBouncer:
        bouncer = PgBouncer(tmp_path / f"b{len(started)}", release, server, **settings)
        bouncer.start()
        started.append(bouncer)
        return bouncer

    yield start
    for bouncer in started:
        bouncer.stop()


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("release", "settings"), MODES)
def test_six_processes_use_the_whole_surface(
    start: Start, tmp_path: Path, release: str, settings: dict[str, Any]
) -> None:
    bouncer = start(release, **settings)
    processes = []
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        command = [sys.executable, str(SURFACE), bouncer.dsn(), str(seed), str(depth(1, 6)), str(folder)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, "\n".join(said)


def use_some(store: FrameStore, number: int) -> None:
    """Two statements of the same shape, one of another, and a batch of rows."""
    path = f"/{number}"
    assert store.get("s", path) == TABLE
    assert store.by_series(TABLE.sop_instance_uid) == []
    assert len(store.by_sop_instance(TABLE.sop_instance_uid)) == 20
    assert store.touch([_core.file_key("s", path)], [1], [NOW]) == []
    assert store.upsert("s", results(1, number), force=True).updated == 1


def use_from_threads(*stores: FrameStore) -> None:
    stores[0].upsert("s", results(20))
    with ThreadPoolExecutor(8) as threads:
        for number in range(80):
            threads.submit(use_some, stores[number % len(stores)], number % 20)
        for done in [threads.submit(use_some, store, 0) for store in stores]:
            done.result()


def test_prepared_statements_stop_at_the_first_sign(start: Start) -> None:
    bouncer = start(default_pool_size=3)
    with FrameStore(bouncer.dsn()) as one, FrameStore(bouncer.dsn()) as other:
        use_from_threads(one, other)
        assert (one.database._prepare, other.database._prepare) == ("off", "off")


def test_prepared_statements_stay_where_the_pooler_passes_them_on(start: Start, dsn: str) -> None:
    bouncer = start("trixie", max_prepared_statements=100, default_pool_size=3)
    with FrameStore(bouncer.dsn()) as one, FrameStore(bouncer.dsn()) as other:
        use_from_threads(one, other)
        assert (one.database._prepare, other.database._prepare) == ("auto", "auto")
        with one.database.connection() as connection:
            names = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
        assert names


def test_sessions_that_are_reset_after_each_transaction_are_used_without_prepared_statements(
    start: Start,
) -> None:
    bouncer = start(server_reset_query_always=1, default_pool_size=2)
    with FrameStore(bouncer.dsn()) as one, FrameStore(bouncer.dsn()) as other:
        use_from_threads(one, other)
        assert one.database._prepare == "off"
        assert sum(map(len, preload_rows(one, "s", 20)))


def test_prepare_off_prepares_nothing_and_copies_rows(start: Start, dsn: str) -> None:
    bouncer = start(default_pool_size=1)
    for each in (f"{bouncer.dsn()} prepare=off", f"{dsn} prepare='off'"):
        with FrameStore(each) as store:
            use_from_threads(store)
            assert sum(map(len, preload_rows(store, "s", 20))) > 20 * 16
            assert (
                store.database.run(
                    lambda connection: connection.execute(
                        "SELECT name FROM pg_prepared_statements"
                    ).fetchall()
                )
                == []
            )


def test_a_statement_has_the_same_name_in_every_session_and_no_other_has_it(dsn: str) -> None:
    named = "SELECT name, statement FROM pg_prepared_statements ORDER BY name"
    questions = ["SELECT %s::int", "SELECT %s::text", "SELECT %s::int + 1"]
    found = []
    for order in (questions, questions[::-1]):
        database = Database(dsn)
        with database.connection() as connection:
            for question in order:
                fetch(connection, question, (1,))
            fetch(connection, questions[0], ("1",))  # the same text with a parameter of another type
            found.append(connection.execute(named).fetchall())
        database.close()
    assert found[0] == found[1]
    assert len({name for name, _ in found[0]}) == 4


def test_sessions_of_a_role_with_settings_of_its_own_are_voxtiers_in_every_transaction(
    start: Start, dsn: str, postgres: str
) -> None:
    settings = {
        "client_encoding": "LATIN1",
        "DateStyle": "German",
        "standard_conforming_strings": "off",
        "default_transaction_isolation": "serializable",
    }
    ask(postgres, "CREATE ROLE with_settings LOGIN SUPERUSER")
    for name, value in settings.items():
        ask(postgres, f"ALTER ROLE with_settings SET {name} = '{value}'")
    bouncer = start(default_pool_size=2)
    bouncer.allow("with_settings")
    bouncer.command("RELOAD")
    found = ", ".join(f"current_setting('{name.removeprefix('default_')}')" for name in settings)
    question = f"SELECT {found}, pg_backend_pid()"
    barrier = threading.Barrier(2)

    def work(connection: psycopg.Connection) -> tuple[Any, ...]:
        with connection.transaction():
            barrier.wait(60)
            return connection.execute(question.encode()).fetchone() or ()

    told = bouncer.dsn(user="with_settings")
    with (
        psycopg.connect(told, autocommit=True, prepare_threshold=None) as another,
        FrameStore(told) as store,
        ThreadPoolExecutor(2) as threads,
    ):
        store.upsert("s", [TableResult("/日本", TABLE, None)])
        assert store.get("s", "/日本") == TABLE
        sessions = set()
        for _ in range(10):
            assert another.execute("SHOW DateStyle").fetchone() == ("German, DMY",)
            for *values, pid in threads.map(store.database.run, [work] * 2):
                assert values == ["UTF8", "ISO, DMY", "on", "read committed"]
                sessions.add(pid)
        assert len(sessions) == 2
    assert ask(dsn, "SELECT path FROM voxtier.file") == [("/日本",)]
    ask(dsn, "DROP OWNED BY with_settings CASCADE")
    ask(postgres, "DROP ROLE with_settings")


def test_an_older_staging_table_of_the_session_is_not_met(start: Start) -> None:
    bouncer = start(default_pool_size=1)
    with psycopg.connect(bouncer.dsn(), autocommit=True) as another:
        another.execute("CREATE TEMP TABLE voxtier_staging (key int)")
        with FrameStore(bouncer.dsn()) as store:
            assert store.upsert("s", results(5)).inserted == 5
            assert store.upsert("s", results(9)).inserted == 4


def hold_out(store: FrameStore, disturb: Callable[[], object]) -> int:
    """Use a store from four threads while it is disturbed; every answer is right or a BackendError.

    Returns how many answers there were.
    """
    store.upsert("s", results(20))
    ended = threading.Event()
    failures: list[BaseException] = []
    answers = [0] * 4

    def use(thread: int) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            try:
                use_some(store, number % 20)
                answers[thread] += 1
            except BackendError as error:
                assert "check the server" in str(error) or "connection" in str(error)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=use, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            disturb()
            before = sum(answers)
            while sum(answers) < before + 20 and not failures:
                ended.wait(0.02)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures, "".join(traceback.format_exception(failures[0]))
    assert store.summary("s").total.files == 20
    return sum(answers)


@pytest.mark.parametrize("release", ONE_NOW)
def test_a_pgbouncer_that_is_killed_and_comes_back_costs_no_wrong_answer(start: Start, release: str) -> None:
    bouncer = start(release)

    def kill() -> None:
        bouncer.stop(signal.SIGKILL)
        bouncer.start()

    with FrameStore(Database(bouncer.dsn(), max_size=4)) as store:
        assert hold_out(store, kill)


@pytest.mark.parametrize("release", ONE_NOW)
def test_a_server_that_restarts_behind_pgbouncer_costs_no_wrong_answer(
    tmp_path: Path, start: Start, release: str
) -> None:
    server = EmbeddedServer(tmp_path / "server")
    server.attach()
    bouncer = start(release, server.conninfo(), server_login_retry=1)

    def restart() -> None:
        EmbeddedServer(tmp_path / "server").stop(force=True)
        server.ensure_running()

    with FrameStore(Database(bouncer.dsn(), max_size=4)) as store:
        assert hold_out(store, restart)
    server.detach()


def test_sessions_that_an_administrator_ends_are_replaced(start: Start, dsn: str) -> None:
    bouncer = start()
    own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'voxtier'"
    with FrameStore(Database(bouncer.dsn(), max_size=4)) as store:
        assert hold_out(store, lambda: ask(dsn, own))


def test_a_session_that_ends_in_the_middle_of_copy_is_a_lost_connection(start: Start, dsn: str) -> None:
    attempts = []

    def work(connection: psycopg.Connection) -> int:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE copied (number int) ON COMMIT DROP")
            pid = cursor.execute("SELECT pg_backend_pid()").fetchone()
            with cursor.copy("COPY copied FROM STDIN") as copy:
                copy.write(b"1\n")
                attempts.append(pid)
                if len(attempts) <= 3:
                    ask(dsn, "SELECT pg_terminate_backend(%s, 60000)", *pid)
            return cursor.rowcount

    database = Database(start().dsn())
    assert database.run(work) == 1
    assert len(attempts) == 4
    database.close()


def test_a_pool_whose_sessions_are_all_taken_is_a_backend_error_and_then_answers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    bouncer = start(default_pool_size=1, query_wait_timeout=4)
    with FrameStore(Database(bouncer.dsn(), timeout=3)) as store:
        store.upsert("s", results(3))
        with psycopg.connect(bouncer.dsn()) as another:
            another.execute("SELECT 1")  # its transaction holds the only session
            with pytest.raises(BackendError, match="runs no statement: is a pooler"):
                store.get("s", "/1")
        assert store.get("s", "/1") == TABLE


def test_a_pgbouncer_without_room_for_clients_is_told(start: Start) -> None:
    bouncer = start(max_client_conn=2)
    with (
        psycopg.connect(bouncer.dsn()),
        psycopg.connect(bouncer.dsn()),
        pytest.raises(BackendError, match="no more connections allowed"),
    ):
        FrameStore(bouncer.dsn()).sources()


def test_the_command_line_works_through_pgbouncer(start: Start, tmp_path: Path) -> None:
    bouncer = start(default_pool_size=1)
    (tmp_path / "1.dcm").write_bytes(b"not an image")
    for options, environment in (
        (["--prepare", "off"], {}),
        ([], {"VOXTIER_PREPARE": "off"}),
        ([], {}),
    ):
        command = [sys.executable, "-m", "voxtier", "index", str(tmp_path), "--dsn", bouncer.dsn(), *options]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr

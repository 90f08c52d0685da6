"""The store among others: many processes and threads, forks, killed servers, older servers, fewer rights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from frames.dicom.cases import CASES
from voxtier import _core
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import FrameTable, TableResult, read_table
from voxtier.frames.store.grants import grants
from voxtier.frames.store.migrations import current_version, migrate, scripts
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.database import Database, _warn_of_plain_text
from voxtier.postgres.embedded import EmbeddedServer, embedded_server
from voxtier.postgres.embedded import start as start_module
from voxtier.postgres.embedded.programs import Programs, _folders, _inspect

NOW = datetime.now(UTC)
TABLE = read_table(next(case for case in CASES if case.name == "e04_bot_multifrag").content, verify="all")

# Upserts batches of /0 ... /N-1 in an order of its own, while seven others do the same.
WRITER = """
import random, sys
from datetime import UTC, datetime
from voxtier import _core
from voxtier.frames import TableResult, read_table
from voxtier.frames.store.store import FrameStore
dsn, content, seed = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])
numbers = random.Random(seed)
table = read_table(content, verify="all")
inserted = 0
with FrameStore(dsn) as store:
    for _ in range(12):
        first = numbers.randrange(0, 1500)
        paths = [f"/{n}" for n in range(first, first + 500)]
        numbers.shuffle(paths)
        force = numbers.random() < 0.5
        batch = [TableResult(path, table, None) for path in paths]
        inserted += store.upsert("s", batch, force=force).inserted
        keys = [_core.file_key("s", path) for path in paths]
        assert store.touch(keys, [1] * 500, [datetime.now(UTC)] * 500) == []
        store.delete("gone", paths[:10])
print(inserted)
"""


OUR_SESSIONS = "FROM pg_stat_activity WHERE application_name = 'voxtier' AND datname = current_database()"


def results(count: int, start: int = 0) -> list[TableResult]:
    return [TableResult(f"/{n}", TABLE, None) for n in range(start, start + count)]


def ask(dsn: str, question: str) -> list[tuple]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(question)
        return cursor.fetchall() if cursor.description else []


class TestProcesses:
    def test_eight_write_overlapping_batches(self, dsn: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(CASES[0].content)
        with FrameStore(dsn) as store:
            store.sources()
        command = [sys.executable, "-c", WRITER, dsn, str(tmp_path / "file")]
        processes = [
            subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for seed in range(8)
        ]
        answers = [process.communicate(timeout=250) for process in processes]
        assert [process.returncode for process in processes] == [0] * 8, answers
        [(files, distinct)] = ask(dsn, "SELECT count(*), count(DISTINCT path) FROM voxtier.file")
        assert files == distinct == sum(int(out) for out, _ in answers)
        [(touches, unknown)] = ask(
            dsn, "SELECT sum(access_count), count(*) FILTER (WHERE f.key IS NULL) "
            "FROM voxtier.file_stats LEFT JOIN voxtier.file f USING (key)",
        )  # fmt: skip
        assert (touches, unknown) == (8 * 12 * 500, 0)
        # Retries would hide them: batches sorted by key never wait for each other in a circle.
        assert ask(dsn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
        with FrameStore(dsn) as store:
            assert isinstance(store.get("s", "/700"), FrameTable)

    def test_a_writer_that_is_killed_leaves_whole_batches(self, dsn: str, tmp_path: Path) -> None:
        endless = """
            import sys
            from voxtier.frames import TableResult, read_table
            from voxtier.frames.store.store import FrameStore
            table = read_table(open(sys.argv[2], "rb").read(), verify="all")
            with FrameStore(sys.argv[1]) as store:
                for batch in range(10_000):
                    store.upsert("s", [TableResult(f"/{batch}/{n}", table, None) for n in range(250)])
                    print(batch, flush=True)
        """
        (tmp_path / "file").write_bytes(CASES[0].content)
        command = [sys.executable, "-c", textwrap.dedent(endless), dsn, str(tmp_path / "file")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.01)
        process.kill()
        process.communicate()
        counts = "SELECT count(*) FROM voxtier.file GROUP BY split_part(path, '/', 2)"
        found = ask(dsn, counts)
        assert len(found) >= 3
        assert set(found) == {(250,)}

    def test_a_fork_uses_connections_of_its_own(self, dsn: str) -> None:
        forking = """
            import os, sys
            from voxtier.frames import TableResult
            from voxtier.frames.store.store import FrameStore
            store = FrameStore(sys.argv[1])
            question = b"SELECT pg_backend_pid()"
            mine = store.database.run(lambda c: c.execute(question).fetchone())
            children = []
            for _ in range(3):
                if (pid := os.fork()) == 0:
                    other = store.database.run(lambda c: c.execute(question).fetchone())
                    store.sources()
                    store.close()
                    os._exit(0 if other != mine else 1)
                children.append(pid)
            status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            assert status == [0, 0, 0], status
            alive = b"SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            assert store.database.run(lambda c: c.execute(alive, mine).fetchone()) == (1,)
            store.close()
        """
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(forking), dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


class TestPool:
    def test_more_threads_than_connections_wait(self, dsn: str) -> None:
        with FrameStore(Database(dsn, max_size=2)) as store, ThreadPoolExecutor(16) as threads:
            store.upsert("s", results(50))
            found = list(threads.map(lambda n: store.get("s", f"/{n % 50}"), range(400)))
            assert all(isinstance(table, FrameTable) for table in found)
            [(sessions,)] = ask(dsn, f"SELECT count(*) {OUR_SESSIONS}")
            assert sessions <= 2

    def test_who_waits_too_long_is_told(self, dsn: str) -> None:
        database = Database(dsn, max_size=1)
        with database.connection():  # this one may take as long as it needs
            assert database._pool is not None
            database._pool.timeout = 0.2
            with pytest.raises(BackendError, match=r"no connection .* within 0\.2 s: all 1 are"):
                database.run(lambda connection: connection.execute("SELECT 1"))
        database.close()

    def test_connections_that_the_server_closed(self, dsn: str) -> None:
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
    def test_passing_failures_are_tried_again(self, dsn: str, error: type[psycopg.Error]) -> None:
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

    @pytest.mark.parametrize(
        "error", [psycopg.errors.DiskFull, psycopg.errors.QueryCanceled, psycopg.DataError]
    )
    def test_other_failures_are_not(self, dsn: str, error: type[psycopg.Error]) -> None:
        attempts = []

        def work(connection: psycopg.Connection) -> None:
            attempts.append(connection)
            raise error("for good")

        database = Database(dsn)
        with pytest.raises(BackendError):
            database.run(work)
        assert len(attempts) == 1
        database.close()

    def test_a_conflict_without_end(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: None)

        def work(_: psycopg.Connection) -> None:
            raise psycopg.errors.DeadlockDetected

        database = Database(dsn)
        with pytest.raises(BackendError, match="check the server"):
            database.run(work)
        database.close()


class TestCredentials:
    def test_they_are_asked_for_with_each_connection(self, dsn: str, postgres: str) -> None:
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

    def test_while_they_cannot_be_had_open_connections_go_on(self, dsn: str) -> None:
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

    def test_a_connection_string_that_moves(self, dsn: str) -> None:
        asked = []

        def moving() -> str:
            asked.append(1)
            return dsn

        with FrameStore(Database(moving)) as store:
            assert store.sources() == []
            assert asked


class TestUnreachable:
    @pytest.mark.parametrize(
        "dsn", ["postgresql://user:hunter2@127.0.0.1:1/db", "host=/nowhere password=hunter2"]
    )
    def test_nobody_listens(self, dsn: str) -> None:
        store = FrameStore(Database(dsn, timeout=1000))
        started = time.monotonic()
        with pytest.raises(BackendError, match=r"--dsn, VOXTIER_DSN") as raised:
            store.sources()
        assert time.monotonic() - started < 100, "whoever is refused is told at once"
        assert "hunter2" not in str(raised.value)

    @pytest.mark.parametrize("dsn", ["host", "hunter2", "postgresql://[::1/x", "host=x hunter2"])
    def test_no_connection_string(self, dsn: str) -> None:
        with pytest.raises(ConfigError, match="postgresql://") as raised:
            FrameStore(dsn)
        assert "hunter2" not in str(raised.value)
        assert raised.value.__cause__ is None

    def test_the_environment_names_it(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VOXTIER_DSN", dsn)
        with FrameStore() as store:
            assert not store.database.is_embedded
            assert store.sources() == []
        monkeypatch.setenv("VOXTIER_DSN", "")
        assert FrameStore().database.is_embedded

    def test_a_connection_over_the_network_without_tls(self, caplog: pytest.LogCaptureFixture) -> None:
        def opened(host: str, *, tls: bool) -> Any:
            return SimpleNamespace(info=SimpleNamespace(host=host), pgconn=SimpleNamespace(ssl_in_use=tls))

        for host, tls in (("10.0.0.1", True), ("/run/postgresql", False), ("127.0.0.1", False)):
            _warn_of_plain_text(opened(host, tls=tls))
        assert caplog.text == ""
        _warn_of_plain_text(opened("10.0.0.1", tls=False))
        assert "sslmode=verify-full" in caplog.text


def running_pid() -> int:
    """The embedded server's process; a session may have outlived the last one, and nobody missed it yet."""
    deadline = time.monotonic() + 60
    while (pid := embedded_server().status().pid) is None:
        assert time.monotonic() < deadline
        embedded_server().ensure_running()
    return pid


class TestEmbedded:
    """Without any name: the embedded server, started and stopped by the store."""

    def test_it_comes_and_goes_with_the_store(self) -> None:
        with FrameStore() as store:
            assert store.upsert("s", results(2)).inserted == 2
            assert embedded_server().status().running
        assert not embedded_server().status().running
        with FrameStore() as store:
            assert isinstance(store.get("s", "/1"), FrameTable)

    def test_a_program_that_ends_without_closing(self) -> None:
        forgetful = """
            from voxtier.frames.store.store import FrameStore
            store = FrameStore()
            print(store.sources())
        """
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(forgetful)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
        assert not embedded_server().status().running

    def test_the_server_is_killed_in_mid_run(self) -> None:
        with FrameStore() as store:
            store.upsert("s", results(1))
            batches = 12
            for batch in range(batches):
                pid = running_pid()
                killer = threading.Timer(0.002 * batch, os.kill, (pid, signal.SIGKILL))
                if batch % 3 == 1:
                    killer.start()
                store.upsert("s", results(100, 100 * batch))
                if killer.ident:
                    killer.join()
                    store.upsert("s", results(100, 100 * batch))
            # A crash may lose the last batches that were not yet on disk: the next run heals.
            known = store.file_states("s", [f"/{n}" for n in range(batches * 100)])
            assert known[-1] is not None
            missing = [TableResult(f"/{n}", TABLE, None) for n, row in enumerate(known) if row is None]
            assert store.upsert("s", missing).inserted == len(missing)
            assert store.summary("s").total.files == batches * 100

    def test_a_server_that_cannot_start_again(self) -> None:
        with FrameStore() as store:
            store.upsert("s", results(1))
            # Commits do not wait for the disk: a server that is killed may forget its last moment.
            store.database.run(lambda connection: connection.execute("CHECKPOINT"))
            folder = embedded_server().folder
            control = folder / "data" / "global" / "pg_control"
            pid = embedded_server().status().pid
            assert pid is not None
            saved = control.read_bytes()
            control.unlink()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(BackendError, match=str(folder)):
                while True:  # the sessions live a little longer than their server
                    store.get("s", "/0")
            control.write_bytes(saved)
            assert isinstance(store.get("s", "/0"), FrameTable)


class TestSchema:
    def test_eight_open_an_empty_database_at_once(self, dsn: str) -> None:
        stores = [FrameStore(dsn) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(FrameStore.sources, stores)) == [[]] * 8
        for store in stores:
            store.close()
        numbers = [(number,) for number, _, _ in scripts()]
        assert ask(dsn, "SELECT version FROM voxtier.schema_version ORDER BY 1") == numbers

    def test_the_numbers_have_no_gap(self) -> None:
        assert [number for number, _, _ in scripts()] == list(range(1, len(scripts()) + 1))

    def test_a_newer_database_is_left_alone(self, dsn: str) -> None:
        with FrameStore(dsn) as store:
            store.sources()
        ask(dsn, "INSERT INTO voxtier.schema_version VALUES (999, 'future')")
        with pytest.raises(ConfigError, match=r"version 999.*upgrade voxtier"):
            FrameStore(dsn).sources()

    def test_a_migration_that_fails_leaves_nothing(self, dsn: str) -> None:
        ask(dsn, "CREATE SCHEMA voxtier; CREATE TYPE voxtier.table_method AS ENUM ()")
        with psycopg.connect(dsn, autocommit=True) as connection:
            with pytest.raises(psycopg.errors.DuplicateObject):
                migrate(connection)
            assert current_version(connection) == 0
            assert connection.execute("SELECT to_regtype('voxtier.table_status')").fetchone() == (None,)
            connection.execute("DROP TYPE voxtier.table_method")
            migrate(connection)
            migrate(connection)
            assert current_version(connection) == len(scripts())


class TestRights:
    @pytest.fixture
    def role(self, dsn: str, postgres: str) -> Iterator[str]:
        """A connection string of a role that may do nothing but connect."""
        ask(postgres, "CREATE ROLE somebody LOGIN")
        yield psycopg.conninfo.make_conninfo(dsn, user="somebody")
        ask(dsn, "DROP OWNED BY somebody")
        ask(postgres, "DROP ROLE somebody")

    def test_a_reader_needs_no_more_than_select(self, dsn: str, role: str) -> None:
        with FrameStore(dsn) as store:
            store.upsert("s", results(3))
        ask(dsn, "".join(grants("somebody", "reader")))
        with FrameStore(role) as store:
            assert isinstance(store.get("s", "/1"), FrameTable)
            assert store.touch([_core.file_key("s", "/1")], [1], [NOW]) == []
            assert store.summary("s").total.files == 3
            assert len(ask(role, "SELECT * FROM voxtier.dicom_frames")) == 9
            with pytest.raises(ConfigError, match=r"may not do that: permission denied for table source"):
                store.upsert("s", results(4))

    def test_a_builder_needs_no_ownership(self, dsn: str, role: str) -> None:
        with FrameStore(dsn) as store:
            store.sources()
        ask(dsn, "".join(grants("somebody", "builder")))
        with FrameStore(role) as store:
            assert store.upsert("s", results(3)).inserted == 3
            assert store.upsert("s", results(3), force=True).updated == 3
            assert store.delete("s", ["/1"]) == 1
            assert store.prune("s", is_gone=lambda path: path == "/2") == 1

    @pytest.mark.parametrize(
        "name", ['x"; DROP SCHEMA voxtier; --', "röle", "a" * 64, "", "-a", "a b", 'a"b', "a\0", "a\n"]
    )
    def test_names_that_are_no_identifiers(self, name: str) -> None:
        with pytest.raises(ConfigError, match="not a name for SQL"):
            grants(name, "reader")

    def test_who_may_not_make_the_schema_is_told(self, role: str) -> None:
        with pytest.raises(ConfigError, match="may not do that: permission denied for database"):
            FrameStore(role).sources()


def other_majors() -> list[Programs]:
    """Installed PostgreSQL of other versions than the default one, oldest first."""
    found = [programs for folder in _folders() if (programs := _inspect(folder))]
    return sorted((p for p in found if p.major != found[0].major), key=lambda p: p.major)


@pytest.mark.skipif(not other_majors(), reason="only one version of PostgreSQL is installed")
def test_an_older_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement, on the oldest installed server."""
    programs = other_majors()[0]
    monkeypatch.setattr(start_module, "find_programs", lambda _=None: programs)
    server = EmbeddedServer(tmp_path)
    server.attach()
    with FrameStore(server.conninfo()) as store:
        assert store.upsert("s", results(300)).inserted == 300
        assert store.upsert("s", results(400)) == (100, 0, 300, ())
        assert store.upsert("s", results(10), force=True).updated == 10
        assert store.get("s", "/7") == TABLE
        assert store.get_many("s", ["/7", "/x"]) == [TABLE, None]
        assert [row is None for row in store.file_states("s", ["/7", "/x"])] == [False, True]
        assert len(store.by_sop_instance(TABLE.sop_instance_uid)) == 400
        assert len(store.by_series(TABLE.series_instance_uid, "s")) == 400
        assert store.summary("s").total.files == 400
        assert list(store.refused_files("s")) == []
        assert store.touch([bytes(16), _core.file_key("s", "/7")], [1, 1], [NOW, NOW]) == [bytes(16)]
        assert store.delete("s", ["/7"]) == 1
        assert store.prune("s", force=True) == 399
        store.upsert("s", results(1))
        rows = ask(server.conninfo(), "SELECT start_pos, end_pos + 1 FROM voxtier.dicom_frames")
        spans = [(r[0][0], r[-1][1]) for r in map(TABLE.ranges, range(len(TABLE)))]
        assert rows == spans
    server.detach()

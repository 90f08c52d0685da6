"""Sessions that their role, database or environment sets up: the same answers, or a clear refusal."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, ask, ct, result, results
from voxtier import _core
from voxtier._core import encode_rows
from voxtier.errors import BackendError, ConfigError, NotFoundError
from voxtier.frames import FrameReader, FrameStore, LakebaseUtils, read_tables
from voxtier.frames.gateway.search.matching import rule_of
from voxtier.frames.store import migrations, statements
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.writing import COPY_HEADER, COPY_TRAILER
from voxtier.postgres.database import Database
from voxtier.postgres.refusals import explain

SOURCE = "c.s.t"
PATHS = "SELECT path, allowed_groups FROM voxtier.file"
# Of an instance, whose number is given in another form than wanted.
MATCHES = """SELECT voxtier_search.matches(
    '{"00200013": {"vr": "IS", "Value": ["5"]}}', '{}', '00200013', %s::jsonb)"""
LEVELS = ["repeatable read", "serializable"]
# Notes the isolation of each statement that writes.
LEVEL_OF_WRITES = """
CREATE TABLE public.level (level text);
CREATE FUNCTION public.note_level() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO public.level SELECT current_setting('transaction_isolation'); RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON voxtier.file_stats EXECUTE FUNCTION public.note_level();
CREATE TRIGGER note AFTER INSERT ON voxtier.slide_map EXECUTE FUNCTION public.note_level();
CREATE TRIGGER note AFTER DELETE ON voxtier.file EXECUTE FUNCTION public.note_level();
CREATE TRIGGER swept AFTER DELETE ON voxtier.file_stats EXECUTE FUNCTION public.note_level();
"""
_numbers = itertools.count()


@pytest.fixture
def set_up(dsn: str, postgres: str) -> Iterator[Callable[..., str]]:
    """Make a role whose sessions have settings; return its connection string of the test's database."""
    made = []

    def set_up(**settings: str) -> str:
        role = f"set_up_{next(_numbers)}"
        made.append(role)
        ask(postgres, f"CREATE ROLE {role} LOGIN")
        ask(dsn, f"GRANT CREATE ON DATABASE {psycopg.conninfo.conninfo_to_dict(dsn)['dbname']} TO {role}")
        for name, value in settings.items():
            ask(postgres, f"ALTER ROLE {role} SET {name} = '{value}'")
        return psycopg.conninfo.make_conninfo(dsn, user=role)

    yield set_up
    for role in made:
        ask(dsn, f"DROP OWNED BY {role} CASCADE")
        ask(postgres, f"DROP ROLE {role}")


@pytest.mark.parametrize("said_by", ["the role", "the environment", "the connection string", "options"])
def test_paths_and_rules_hold_whatever_encoding_a_session_is_told(
    set_up: Callable[..., str],
    dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said_by: str,
) -> None:
    told = set_up(client_encoding="LATIN1") if said_by == "the role" else dsn
    if said_by == "the environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    elif said_by != "the role":
        said = {"client_encoding": "LATIN1"}, {"options": "-c client_encoding=LATIN1"}
        told = psycopg.conninfo.make_conninfo(told, **said[said_by == "options"])
    kept, gone = (tmp_path / name for name in ("ärzte", "geräumt"))
    for folder in (kept, gone):
        folder.mkdir()
        (folder / "日本.dcm").write_bytes(ct())
    with FrameStore(told) as store, LakebaseUtils(dsn=told, uc_table_name=SOURCE) as lakebase:
        paths = [str(folder / "日本.dcm") for folder in (kept, gone)]
        lakebase.upsert_access_rule(SOURCE, "doctors", path_prefix=f"{kept}/")
        store.upsert(SOURCE, read_tables(paths))
        with FrameReader(store, SOURCE, user_groups=["strangers"], publish=False) as reader:
            with pytest.raises(NotFoundError):
                reader.frame(paths[0], 0)
            assert len(reader.frame(paths[1], 0)) == 16
        Path(paths[1]).unlink()
        assert store.prune(SOURCE, under=[str(tmp_path)]) == 1
    assert ask(psycopg.conninfo.make_conninfo(dsn, client_encoding="UTF8"), PATHS) == [
        (paths[0], ["doctors"])
    ]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_database_of_another_encoding_is_refused_with_the_remedy(
    postgres: str, tmp_path: Path, encoding: str
) -> None:
    name = f"encoded_{encoding.lower()}"
    ask(postgres, f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    dsn = psycopg.conninfo.make_conninfo(postgres, dbname=name)
    remedy = f"the database {name} has the encoding {encoding}.*ENCODING 'UTF8'"
    try:
        with FrameStore(dsn) as store:
            with pytest.raises(ConfigError, match=remedy):
                store.sources()
            with pytest.raises(ConfigError, match=remedy):  # or a gateway would take it for one that is back
                store.probe()
            with (
                FrameReader(store, SOURCE, user_groups=["strangers"], publish=False) as reader,
                pytest.raises(BackendError, match=remedy),
            ):
                path = tmp_path / "1.dcm"
                path.write_bytes(ct())
                reader.frame(str(path), 0)
        assert ask(dsn, "SELECT to_regnamespace('voxtier')") == [(None,)]
    finally:
        ask(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def wait_for_waiters(dsn: str, count: int) -> None:
    """Wait until so many sessions of the database wait for a lock."""
    waiters = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    while ask(dsn, f"{waiters} AND wait_event_type = 'Lock'") != [(count,)]:
        time.sleep(0.01)


@pytest.mark.parametrize("level", LEVELS)
def test_a_file_that_is_indexed_while_a_rule_is_set_gets_its_groups_at_any_default_isolation(
    set_up: Callable[..., str], dsn: str, level: str
) -> None:
    with FrameStore(set_up(default_transaction_isolation=level)) as store:
        store.upsert(SOURCE, results(1))
        with ThreadPoolExecutor(1) as threads:
            with psycopg.connect(dsn) as another:
                another.execute(statements.lock_groups(SOURCE, exclusive=True).encode())
                rule = "INSERT INTO voxtier.access_rule (source_id, path_prefix, group_name) "
                another.execute(f"{rule} SELECT source_id, '/', 'doctors' FROM voxtier.source".encode())
                indexed = threads.submit(store.upsert, SOURCE, results(1, 1))
                wait_for_waiters(dsn, 1)
            indexed.result()
    assert ask(dsn, f"{PATHS} WHERE path = '/1'") == [("/1", ["doctors"])]


@pytest.mark.parametrize("level", LEVELS)
def test_the_search_index_is_not_complete_without_what_another_adds_at_any_default_isolation(
    set_up: Callable[..., str], dsn: str, level: str
) -> None:
    with FrameStore(set_up(default_transaction_isolation=level)) as store:
        index = SearchIndex(store)
        index.switch_on(SOURCE)
        rows, _ = encode_rows(SOURCE, [result("/1")])
        with ThreadPoolExecutor(1) as threads:
            with psycopg.connect(dsn) as another, another.cursor() as cursor:
                cursor.execute(statements.STAGE.encode())
                with cursor.copy(statements.COPY.encode()) as copy:
                    copy.write(COPY_HEADER + rows + COPY_TRAILER)
                cursor.execute(statements.INSERT.encode(), {"source": SOURCE})
                complete = threads.submit(index.complete, SOURCE)
                wait_for_waiters(dsn, 1)
            assert not complete.result()
        assert len(index.missing(SOURCE)) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_two_stores_open_an_empty_database_at_any_default_isolation(
    set_up: Callable[..., str], dsn: str, level: str
) -> None:
    told = set_up(default_transaction_isolation=level)
    with ThreadPoolExecutor(2) as threads:
        with psycopg.connect(dsn) as another:
            another.execute("SELECT pg_advisory_xact_lock(%s)", (migrations._LOCK,))
            opened = [threads.submit(FrameStore(told).sources) for _ in range(2)]
            wait_for_waiters(dsn, 2)
        assert [each.result() for each in opened] == [[], []]


def test_every_transaction_is_read_committed(set_up: Callable[..., str]) -> None:
    question = b"SELECT current_setting('transaction_isolation')"

    def in_transaction(connection: psycopg.Connection[Any]) -> object:
        with connection.transaction():
            return connection.execute(question).fetchone()

    told = set_up(default_transaction_isolation="serializable")
    with FrameStore(told) as store, LakebaseUtils(dsn=told, uc_table_name=SOURCE) as lakebase:
        assert store.database.run(in_transaction) == ("read committed",)
        assert store.change(question.decode(), ()) == [("read committed",)]
        assert GroupStore(store, ["a"]).change(question.decode(), ()) == [("read committed",)]
        for _ in range(2):  # what a caller makes of it is gone when the connection is lent again
            connection = lakebase.connection.getconn()
            assert connection.execute(question).fetchone() == ("read committed",)
            connection.rollback()
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            lakebase.connection.putconn(connection)


def test_statistics_and_deletions_are_written_in_transactions(set_up: Callable[..., str], dsn: str) -> None:
    with FrameStore(set_up(default_transaction_isolation="serializable")) as store:
        store.upsert(SOURCE, results(2))
        ask(dsn, LEVEL_OF_WRITES)
        assert store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW]) == []
        assert store.keep_slide_maps(SOURCE, {"/1": b"map"}) == {"/1"}
        assert store.delete(SOURCE, ["/1"]) == 1
    assert ask(dsn, "SELECT DISTINCT level FROM public.level") == [("read committed",)]
    assert ask(dsn, "SELECT count(*) FROM public.level") == [(4,)]


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres"])
def test_times_and_literals_are_read_whatever_a_role_sets(set_up: Callable[..., str], style: str) -> None:
    told = set_up(DateStyle=style, standard_conforming_strings="off")
    with FrameStore(told) as store, LakebaseUtils(dsn=told, uc_table_name=SOURCE) as lakebase:
        lakebase.insert_metrics("x", {"n": 1})
        [metrics] = lakebase.get_latest_metrics()
        assert abs(datetime.fromisoformat(metrics["recorded_at"]) - datetime.now(UTC)) < timedelta(days=1)
        SearchIndex(store).switch_on(SOURCE)
        assert store.query(MATCHES, (json.dumps(rule_of("05")),)) == [(True,)]
        with store.database.connection() as connection, store.database.connection() as another:
            for each in (connection, another):  # one that the pool opened by itself, too
                assert each.info.parameter_status("DateStyle") in ("ISO, DMY", "ISO, MDY")
                assert each.info.parameter_status("standard_conforming_strings") == "on"


def test_a_connection_that_is_lost_without_a_word_is_told_by_its_class() -> None:
    told = explain(psycopg.OperationalError(), None, 0.0, is_embedded=False)
    assert told == "OperationalError; check the server, --dsn, VOXTIER_DSN"


@pytest.mark.parametrize("most", [0, 1])
def test_a_server_that_gives_no_further_sessions_is_not_said_to_be_in_use(dsn: str, most: int) -> None:
    """The threads of the pool are given none; the question why, which this thread asks, is."""
    sessions = itertools.count()

    def few() -> dict[str, str]:
        if threading.current_thread() is not threading.main_thread() and next(sessions) >= most:
            raise OSError("this one is ended at once")
        return {}

    database = Database(dsn, credentials=few, max_size=2, timeout=0.3)
    with contextlib.closing(database), contextlib.ExitStack() as lent:
        for _ in range(most):
            lent.enter_context(database.connection())
        with pytest.raises(
            BackendError, match=rf"within 0\.3 s: {most} of 2 are in use, and the server ended"
        ):
            database.start()

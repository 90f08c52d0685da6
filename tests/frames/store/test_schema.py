"""The schema: made once, refused when newer, with few rights, on an older PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask, results
from voxtier import _core
from voxtier.errors import ConfigError
from voxtier.frames import FrameTable
from voxtier.frames.store.grants import grants
from voxtier.frames.store.migrations import current_version, migrate, scripts
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer
from voxtier.postgres.embedded import start as start_module
from voxtier.postgres.embedded.programs import Programs, _folders, _inspect


def test_eight_stores_open_an_empty_database_at_once(dsn: str) -> None:
    stores = [FrameStore(dsn) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(FrameStore.sources, stores)) == [[]] * 8
    for store in stores:
        store.close()
    numbers = [(number,) for number, _, _ in scripts()]
    assert ask(dsn, "SELECT version FROM voxtier.schema_version ORDER BY 1") == numbers


def test_migrations_are_numbered_without_gaps() -> None:
    assert [number for number, _, _ in scripts()] == list(range(1, len(scripts()) + 1))


def test_a_newer_database_is_refused(dsn: str) -> None:
    with FrameStore(dsn) as store:
        store.sources()
    ask(dsn, "INSERT INTO voxtier.schema_version VALUES (999, 'future')")
    with pytest.raises(ConfigError, match=r"version 999.*upgrade voxtier"):
        FrameStore(dsn).sources()


def test_a_failed_migration_leaves_nothing_and_can_be_repeated(dsn: str) -> None:
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


@pytest.fixture
def role(dsn: str, postgres: str) -> Iterator[str]:
    """A connection string of a role that may do nothing but connect."""
    ask(postgres, "CREATE ROLE somebody LOGIN")
    yield psycopg.conninfo.make_conninfo(dsn, user="somebody")
    ask(dsn, "DROP OWNED BY somebody")
    ask(postgres, "DROP ROLE somebody")


def test_the_reader_role_reads_and_touches_and_may_not_write(dsn: str, role: str) -> None:
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


def test_the_builder_role_writes_without_ownership(dsn: str, role: str) -> None:
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
def test_grants_refuse_names_that_are_no_identifiers(name: str) -> None:
    with pytest.raises(ConfigError, match="not a name for SQL"):
        grants(name, "reader")


def test_a_role_that_may_not_make_the_schema_is_told(role: str) -> None:
    with pytest.raises(ConfigError, match="may not do that: permission denied for database"):
        FrameStore(role).sources()


def other_majors() -> list[Programs]:
    """Installed PostgreSQL of other versions than the default one, oldest first."""
    found = [programs for folder in _folders() if (programs := _inspect(folder))]
    return sorted((p for p in found if p.major != found[0].major), key=lambda p: p.major)


@pytest.mark.skipif(not other_majors(), reason="only one version of PostgreSQL is installed")
def test_every_statement_runs_on_the_oldest_installed_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.fixture
def long_roles(dsn: str) -> Iterator[list[str]]:
    """Names whose first 55 characters are the same, one of them no longer than that."""
    names = [f"{'b' * 55}{end}" for end in ("", "-one", "-two")]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in names:
            connection.execute(f'CREATE ROLE "{name}" LOGIN')
        yield names
        for name in names:
            connection.execute(f'DROP OWNED BY "{name}" CASCADE')
            connection.execute(f'DROP ROLE "{name}"')


@pytest.mark.parametrize("old", [0, 1, 2])
def test_builders_with_long_names_each_have_their_policy(
    dsn: str, store: FrameStore, long_roles: list[str], old: int
) -> None:
    """An earlier version cut the name of the policy, here that of one of the roles."""
    store.upsert("s", list(results(2)))
    ask(dsn, "UPDATE voxtier.file SET allowed_groups = '{staff}'")
    ask(dsn, f'CREATE POLICY "all_for_{"b" * 55}" ON voxtier.file TO "{long_roles[old]}" USING (true)')
    for _ in range(2):
        for role in long_roles:
            for statement in grants(role, "builder"):
                ask(dsn, statement)
    for role in long_roles:
        seen = ask(psycopg.conninfo.make_conninfo(dsn, user=role), "SELECT count(*) FROM voxtier.file")
        assert seen == [(2,)]
    policies = ask(
        dsn, "SELECT roles::text[] FROM pg_policies WHERE policyname LIKE 'all_for_b%' AND tablename = 'file'"
    )
    assert sorted(policies) == sorted(([role],) for role in long_roles)

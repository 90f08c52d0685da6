"""Roles with few rights, and rights revoked at run time: an answer, or a message that names the remedy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask, ct, results, run_migrations
from voxtier import _core
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import FrameReader, FrameStore, LakebaseUtils, read_tables
from voxtier.frames.memory.ranking import preload_rows, ranked_files
from voxtier.frames.store import migrations
from voxtier.frames.store.grants import grant_script, grants
from voxtier.frames.store.migrations import migrate, respelling
from voxtier.frames.store.search_index import Making, SearchIndex

SOURCE = "c.s.t"
_numbers = itertools.count()


class Role:
    """A role that may do nothing but connect."""

    def __init__(self, admin: str) -> None:
        self.admin = admin
        self.name = f"limited_{next(_numbers)}"
        self.dsn = psycopg.conninfo.make_conninfo(admin, user=self.name)
        [(self.database,)] = ask(admin, "SELECT current_database()")
        self.ask("CREATE ROLE ROLE! LOGIN")

    def ask(self, *statements: str) -> None:
        """Run statements as the administrator; ROLE! and DATABASE! stand for the names."""
        for statement in statements:
            ask(self.admin, statement.replace("ROLE!", self.name).replace("DATABASE!", self.database))


@pytest.fixture
def role(dsn: str, postgres: str) -> Iterator[Role]:
    role = Role(dsn)
    yield role
    role.ask("ALTER ROLE ROLE! LOGIN", "DROP OWNED BY ROLE! CASCADE")
    ask(postgres, f"DROP ROLE {role.name}")


def test_the_owner_of_the_schema_needs_no_right_on_the_database(role: Role) -> None:
    role.ask("REVOKE CREATE ON DATABASE DATABASE! FROM PUBLIC", "CREATE SCHEMA voxtier AUTHORIZATION ROLE!")
    role.ask("CREATE SCHEMA s AUTHORIZATION ROLE!")
    with FrameStore(role.dsn) as store, LakebaseUtils(dsn=role.dsn, uc_table_name=SOURCE) as lakebase:
        assert store.upsert(SOURCE, results(3)).inserted == 3
        assert lakebase.create_frames_view() == "s.dicom_frames"
    with FrameStore(role.dsn) as store:
        assert store.get(SOURCE, "/1") == TABLE


def test_a_role_that_may_not_make_the_schema_is_told_both_ways_out(role: Role) -> None:
    remedy = (
        rf"GRANT CREATE ON DATABASE {role.database} TO {role.name}; or CREATE SCHEMA voxtier "
        rf"AUTHORIZATION {role.name};"
    )
    with pytest.raises(ConfigError, match=remedy):
        FrameStore(role.dsn).sources()
    role.ask(remedy.split("; or ")[1])
    with FrameStore(role.dsn) as store:
        assert store.sources() == []


def test_a_role_that_does_not_own_an_older_index_is_told_who_does(role: Role) -> None:
    role.ask("CREATE SCHEMA voxtier", "CREATE TABLE voxtier.schema_version AS SELECT 1 AS version")
    role.ask("GRANT USAGE ON SCHEMA voxtier TO ROLE!", "GRANT SELECT ON voxtier.schema_version TO ROLE!")
    told = (
        r"schema version 1, .* does not own it: run any command .* as voxtier on the primary server first, "
        rf"or ALTER its tables and functions OWNER TO {role.name}$"
    )
    for right in (
        "SELECT 1",
        "GRANT CREATE ON SCHEMA voxtier TO ROLE!",
        "ALTER SCHEMA voxtier OWNER TO ROLE!",
    ):
        role.ask(right)
        with pytest.raises(ConfigError, match=told):
            FrameStore(role.dsn).sources()


def test_an_owner_of_the_tables_who_may_make_no_others_is_told_what_helps(role: Role) -> None:
    role.ask("CREATE SCHEMA voxtier", "CREATE TABLE voxtier.schema_version AS SELECT 1 AS version")
    role.ask("GRANT USAGE ON SCHEMA voxtier TO ROLE!", "ALTER TABLE voxtier.schema_version OWNER TO ROLE!")
    for dsn in (role.dsn, role.admin):
        with pytest.raises(ConfigError, match=f"GRANT CREATE ON SCHEMA voxtier TO {role.name}; as voxtier"):
            FrameStore(dsn).sources()
    role.ask("DROP TABLE voxtier.schema_version", "GRANT CREATE ON SCHEMA voxtier TO ROLE!")
    run_migrations(role.dsn, 1, 7, makes_schema=False)
    role.ask("REVOKE TEMPORARY ON DATABASE DATABASE! FROM PUBLIC")
    remedy = f"GRANT TEMPORARY ON DATABASE {role.database} TO {role.name};"
    for dsn in (role.dsn, role.admin):
        with pytest.raises(ConfigError, match=f"{remedy} as the owner of the database first"):
            FrameStore(dsn).sources()
    role.ask(remedy)
    with FrameStore(role.admin) as store:
        assert store.sources() == []


def test_an_upgrade_takes_all_the_time_that_it_needs(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """What limits a role's questions does not cut it off, and holds again behind it."""
    role.ask("CREATE SCHEMA voxtier AUTHORIZATION ROLE!", "ALTER ROLE ROLE! SET statement_timeout = '61s'")
    role.ask("ALTER ROLE ROLE! SET transaction_timeout = '62s'")
    run_migrations(role.dsn, 1, 7, makes_schema=False)
    limits = "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')"
    seen: list[Any] = []

    def respell(connection: psycopg.Connection[Any]) -> None:
        seen.append(connection.execute(limits).fetchone())
        respelling.respell(connection)

    monkeypatch.setattr(migrations, "respell", respell)
    with psycopg.connect(role.dsn, autocommit=True) as connection:
        migrate(connection)
        seen.append(connection.execute(limits).fetchone())
    assert seen == [("0", "0"), ("61s", "62s")]


OWNERS = """
SELECT DISTINCT owned_by::regrole::text FROM (
    SELECT relowner, relnamespace FROM pg_class UNION ALL SELECT proowner, pronamespace FROM pg_proc
    UNION ALL SELECT typowner, typnamespace FROM pg_type
) AS made (owned_by, space) WHERE space = 'voxtier'::regnamespace
"""


@pytest.fixture
def member(role: Role, postgres: str) -> Iterator[Role]:
    """A member of the other role, who owns the schema."""
    member = Role(role.admin)
    member.ask("CREATE SCHEMA voxtier AUTHORIZATION " + role.name, f"GRANT {role.name} TO ROLE!")
    yield member
    member.ask("DROP OWNED BY ROLE! CASCADE")
    ask(postgres, f"DROP ROLE {member.name}")


@pytest.mark.parametrize("who", ["a member", "a member who does not inherit", "a superuser"])
def test_what_another_role_makes_for_the_owner_is_the_owners(role: Role, member: Role, who: str) -> None:
    run_migrations(role.dsn, 1, 6, makes_schema=False)
    if who == "a member who does not inherit":
        member.ask(
            f"REVOKE {role.name} FROM ROLE!", "ALTER ROLE ROLE! NOINHERIT", f"GRANT {role.name} TO ROLE!"
        )
        member.ask(
            "GRANT USAGE ON SCHEMA voxtier TO ROLE!", "GRANT SELECT ON voxtier.schema_version TO ROLE!"
        )
    with psycopg.connect(member.admin if who == "a superuser" else member.dsn, autocommit=True) as connection:
        migrate(connection)
    assert ask(role.admin, OWNERS) == [(role.name,)]
    with FrameStore(role.dsn) as store:
        assert store.upsert(SOURCE, results(2)).inserted == 2
    ask(role.dsn, "".join(grants(member.name, "builder")))


@pytest.mark.parametrize("remedy", ["the statements", "the member", "a superuser"])
def test_an_owner_of_whose_index_a_member_owns_a_part_is_told_what_helps(
    role: Role, member: Role, remedy: str
) -> None:
    run_migrations(role.dsn, 1, 6, makes_schema=False)
    run_migrations(member.dsn, 7, 7)
    ask(member.dsn, "CREATE VIEW voxtier.of_her_own AS SELECT 1")
    told = rf"{member.name}, run (ALTER TABLE voxtier.slide_map OWNER TO {role.name};)$"
    with pytest.raises(ConfigError, match=told) as refused:
        FrameStore(role.dsn).sources()
    if remedy == "the statements":
        ask(member.dsn, str(refused.value).partition("run ")[2])
    else:
        with FrameStore(member.dsn if remedy == "the member" else role.admin) as store:
            assert store.sources() == []
    with FrameStore(role.dsn) as store:
        assert store.upsert(SOURCE, results(2)).inserted == 2
    assert set(ask(role.admin, OWNERS)) == {(role.name,), (member.name,)}
    [(owner,)] = ask(role.admin, "SELECT viewowner FROM pg_views WHERE viewname = 'of_her_own'")
    assert owner == member.name


def test_a_search_index_of_another_role_does_not_stop_the_owner(role: Role, member: Role) -> None:
    run_migrations(role.dsn, 1, 7, makes_schema=False)
    ask(role.admin, resources.files("voxtier.frames.store").joinpath("search_index.sql").read_text())
    with FrameStore(role.dsn) as store:
        assert store.upsert(SOURCE, results(2)).inserted == 2
    with FrameStore(role.admin) as store:
        search = SearchIndex(store)
        assert search.making() is Making.DETACHED
        search.switch_on(SOURCE)
        assert search.holds(SOURCE)


def test_the_printed_script_is_enough_where_the_public_may_do_nothing(role: Role, postgres: str) -> None:
    role.ask("REVOKE ALL ON DATABASE DATABASE! FROM PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    others = [Role(role.admin), Role(role.admin)]
    owner, builder, reader = [role, *others]
    script = grant_script(owner.name, builder.name, reader.name, database=role.database)
    first, later = script.split("-- as limited")
    role.ask(first)
    with FrameStore(owner.dsn) as store:
        assert store.sources() == []
    ask(owner.dsn, "--" + later)
    with FrameStore(builder.dsn) as store:
        assert store.upsert(SOURCE, results(3)).inserted == 3
        assert store.upsert(SOURCE, results(4), force=True)[:2] == (1, 3)
        assert store.delete(SOURCE, ["/3"]) == 1
    with FrameStore(reader.dsn) as store:
        assert store.get(SOURCE, "/1") == TABLE
        assert store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW]) == []
    for other in others:
        role.ask(f"DROP OWNED BY {other.name}")
        ask(postgres, f"DROP ROLE {other.name}")


def test_a_builder_without_temporary_tables_is_told(role: Role) -> None:
    with FrameStore(role.admin) as store:
        store.sources()
    role.ask("".join(grants(role.name, "builder")), "REVOKE TEMPORARY ON DATABASE DATABASE! FROM PUBLIC")
    with FrameStore(role.dsn) as store:
        remedy = f"GRANT TEMPORARY ON DATABASE {role.database} TO {role.name};"
        with pytest.raises(ConfigError, match=remedy):
            store.upsert(SOURCE, results(3))
        role.ask(remedy)
        assert store.upsert(SOURCE, results(3)).inserted == 3


REVOKED = {
    "the schema": "REVOKE USAGE ON SCHEMA voxtier FROM ROLE!",
    "all tables": "REVOKE ALL ON ALL TABLES IN SCHEMA voxtier FROM ROLE!",
    "reading": "REVOKE SELECT ON ALL TABLES IN SCHEMA voxtier FROM ROLE!",
    "writing": "REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA voxtier FROM ROLE!",
    "functions": "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA voxtier FROM PUBLIC",
    "connecting": "REVOKE CONNECT ON DATABASE DATABASE! FROM PUBLIC; SELECT pg_terminate_backend(pid) "
    "FROM pg_stat_activity WHERE usename = 'ROLE!'",
    "logging in": "ALTER ROLE ROLE! NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE usename = 'ROLE!'",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", REVOKED)
def test_rights_that_are_revoked_at_run_time_end_in_an_answer_or_a_remedy(
    role: Role, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    path = tmp_path / "1.dcm"
    path.write_bytes(ct(uid="1.2.3"))
    with FrameStore(role.admin) as store:
        store.upsert(SOURCE, [*results(3), *read_tables([str(path)])])
    role.ask("".join(grants(role.name, "builder")))
    store, lakebase = FrameStore(role.dsn), LakebaseUtils(dsn=role.dsn, uc_table_name=SOURCE)
    questions: dict[str, Callable[[], Any]] = {
        "get": lambda: store.get(SOURCE, "/1") == TABLE,
        "file_states": lambda: store.file_states(SOURCE, ["/1"])[0] is not None,
        "recall": lambda: store.recall(SOURCE, "/1", with_series=True) is not None,
        "by_sop_instance": lambda: len(store.by_sop_instance("1.2.3")) == 1,
        "by_series": lambda: store.by_series("1") == [],
        "summary": lambda: store.summary(SOURCE).total.files >= 3,
        "refused_files": lambda: list(store.refused_files(SOURCE)) == [],
        "ranked_files": lambda: len(ranked_files(store, SOURCE)) >= 3,
        "preload_rows": lambda: sum(map(len, preload_rows(store, SOURCE, 5))) > 0,
        "touch": lambda: store.touch([_core.file_key(SOURCE, "/1")], [1], [NOW]) == [],
        "upsert": lambda: store.upsert(SOURCE, results(1), force=True).updated == 1,
        "delete": lambda: store.delete(SOURCE, ["/2"]) == 1,
        "retrieve": lambda: lakebase.retrieve_frame_range("/1", 0) is not None,
        "insert": lambda: lakebase.insert_frame_range("/c", 0, 1, 2, 3) is None,
    }
    for question in ("get", "retrieve"):
        assert questions[question]()
    for each in (store, lakebase.store):  # a session that cannot be had is waited for
        assert each.database._pool is not None
        each.database._sizes["timeout"] = each.database._pool.timeout = 0.1
    role.ask(*REVOKED[what].split("; "))
    remedies = "voxtier db grants|GRANT |check the server, --dsn, VOXTIER_DSN"
    refused = []
    for name, question in questions.items():
        try:
            assert question(), name
        except (ConfigError, BackendError) as error:
            assert any(each in str(error) for each in remedies.split("|")), str(error)
            refused.append(name)
    assert refused, "nothing was refused"
    with FrameReader(store, SOURCE, publish=False) as reader:
        assert len(reader.frame(str(path), 0)) == 16
    lakebase.close()
    store.close()

"""A search index that the frame index does not keep right any more: not used until made anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from frames.gateway.search.test_search import files as files  # a fixture
from frames.gateway.search.test_search_index import asked as asked  # a fixture
from frames.gateway.search.test_search_index import fill
from frames.gateway.serving import index
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import Making, SearchIndex
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded.programs import find_programs

pytestmark = pytest.mark.usefixtures("files")
PAGE = Path(__file__).parents[4] / "docs" / "howto" / "back-up.md"
# Of docs/howto/back-up.md: how to dump and to restore, with the search index and without it.
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if not language]
WITH_SEARCH, WITHOUT_SEARCH = COMMANDS[:2], COMMANDS[2:]
Shell = Callable[[str, str], None]


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Run commands of the page; a database is named by its connection string."""
    folder, programs = tmp_path_factory.mktemp("dumps"), find_programs().folder
    if not (programs / "pg_dump").exists():
        pytest.skip("this PostgreSQL comes without pg_dump")
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def run(commands: str, dsn: str) -> None:
        done = subprocess.run(
            ["bash", "-ec", commands],
            cwd=folder,
            env=environment | {"VOXTIER_DSN": dsn},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "error" in done.stderr) == (0, False), done.stderr

    return run


def execute(dsn: str, *statements: str) -> None:
    """Run statements as a superuser, by one session."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        for statement in statements:
            owner.execute(statement.encode())


def answers(store: FrameStore) -> list[Any]:
    return [
        Search().answer(store, "default", parse(level, query), "/dicomweb")
        for level in ("studies", "series", "instances")
        for query in ("", "PatientName=M*")
    ]


def check_is_made_anew(store: FrameStore, asked: list[str]) -> None:
    """Check that headers answer until the search index is made anew, which answers the same."""
    made = SearchIndex(store)
    assert made.making() is Making.DETACHED
    assert not made.is_complete("default")
    by_headers = answers(store)
    assert not asked
    fill(store)
    assert answers(store) == by_headers
    assert len(asked) == 6


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE voxtier_search.instance DROP CONSTRAINT instance_key_fkey"],
        [
            "ALTER TABLE voxtier_search.instance DROP CONSTRAINT instance_key_fkey, ADD CONSTRAINT "
            "instance_key_fkey FOREIGN KEY (key) REFERENCES voxtier.file ON DELETE CASCADE NOT VALID"
        ],
        ["DROP TRIGGER search_insert ON voxtier.file"],
        ["ALTER TABLE voxtier.file DISABLE TRIGGER search_delete"],
        # As `pg_restore --data-only --disable-triggers` does.
        ["ALTER TABLE voxtier.file DISABLE TRIGGER ALL", "ALTER TABLE voxtier.file ENABLE TRIGGER ALL"],
    ],
    ids=["no key", "key not valid", "no trigger", "disabled trigger", "triggers enabled again"],
)
def test_what_does_not_keep_it_right_keeps_it_from_use(
    store: FrameStore, dsn: str, tmp_path: Path, asked: list[str], statements: list[str]
) -> None:
    fill(store)
    execute(dsn, statements[0])
    execute(dsn, "DELETE FROM voxtier.file WHERE path LIKE '%/1.dcm'")
    index(store, [tmp_path / "1.dcm"])
    execute(dsn, *statements[1:])
    check_is_made_anew(store, asked)


@pytest.mark.parametrize("commands", [WITH_SEARCH, WITHOUT_SEARCH], ids=["both schemas", "without"])
def test_a_restored_dump_answers_what_it_answered(
    store: FrameStore, dsn: str, tmp_path: Path, asked: list[str], shell: Shell, commands: list[str]
) -> None:
    fill(store)
    right, has_search = answers(store), commands is WITH_SEARCH
    dump, restore = commands
    shell(dump, dsn)
    store.delete("default", [str(tmp_path / "1.dcm")])
    assert answers(store) != right
    other = f"{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}_other"
    execute(dsn, f"CREATE DATABASE {other} TEMPLATE template0")
    try:
        for restored in (dsn, make_conninfo(dsn, dbname=other)):
            shell(restore, restored)
            with FrameStore(restored) as again:
                del asked[:]
                assert SearchIndex(again).is_complete("default") == has_search
                assert (SearchIndex(again).making() is not Making.NONE) == has_search
                assert answers(again) == right
                assert len(asked) == 6 * has_search
                again.delete("default", [str(tmp_path / "1.dcm")])  # the triggers are back as well
                assert answers(again) != right
    finally:
        execute(dsn, f"DROP DATABASE {other} WITH (FORCE)")


def test_an_index_of_frames_restored_without_its_search_index_leaves_one_that_is_not_used(
    store: FrameStore, dsn: str, tmp_path: Path, asked: list[str], shell: Shell
) -> None:
    shell(WITHOUT_SEARCH[0].replace("frames.dump", "before.dump"), dsn)
    fill(store)
    store.query("INSERT INTO voxtier.source (name) VALUES ('later') RETURNING 1", ())
    SearchIndex(store).switch_on("later")
    shell(WITHOUT_SEARCH[0], dsn)
    store.delete("default", [str(tmp_path / "1.dcm")])
    execute(dsn, "DROP SCHEMA voxtier CASCADE")
    shell('pg_restore --single-transaction --dbname="$VOXTIER_DSN" frames.dump', dsn)
    check_is_made_anew(store, asked)
    execute(dsn, "DROP SCHEMA voxtier CASCADE")
    shell('pg_restore --single-transaction --dbname="$VOXTIER_DSN" before.dump', dsn)
    del asked[:]
    check_is_made_anew(store, asked)
    store.query("INSERT INTO voxtier.source (name) VALUES ('of that number') RETURNING 1", ())
    assert not SearchIndex(store).holds("of that number")


def test_schemas_that_were_restored_one_by_one_leave_a_search_index_that_is_not_used(
    store: FrameStore, dsn: str, asked: list[str], shell: Shell
) -> None:
    fill(store)
    for schema in ("voxtier", "voxtier_search"):
        shell(f'pg_dump --schema={schema} --format=custom --file={schema}.dump "$VOXTIER_DSN"', dsn)
    execute(dsn, "DROP SCHEMA voxtier, voxtier_search CASCADE")
    # The first one ends with errors: it lacks the functions of triggers.
    shell('! pg_restore --dbname="$VOXTIER_DSN" voxtier.dump 2> /dev/null', dsn)
    shell('pg_restore --dbname="$VOXTIER_DSN" voxtier_search.dump', dsn)
    check_is_made_anew(store, asked)


def test_a_session_that_loads_as_a_replica_changes_the_search_index(
    store: FrameStore, dsn: str, asked: list[str]
) -> None:
    made = fill(store)
    as_replica = "SET session_replication_role = replica"
    execute(dsn, as_replica, "DELETE FROM voxtier.file WHERE path LIKE '%/1.dcm'")
    by_search = answers(store)
    assert len(asked) == 6
    moved = (
        "CREATE TEMPORARY TABLE moved AS SELECT * FROM voxtier.file WHERE path LIKE '%/2.dcm'",
        "DELETE FROM voxtier.file WHERE path LIKE '%/2.dcm'",
        "INSERT INTO voxtier.file SELECT * FROM moved",
    )
    execute(dsn, as_replica, *moved)
    assert not made.is_complete("default")
    assert sum(fill_search_index(made, "default")) == 1
    assert answers(store) == by_search
    assert made.drop()
    assert answers(store) == by_search


def test_an_emptied_index_of_frames_empties_the_search_index(
    store: FrameStore, dsn: str, tmp_path: Path
) -> None:
    made = fill(store)
    execute(dsn, "TRUNCATE voxtier.file CASCADE")
    for table in ("instance", "series", "study", "header"):
        assert store.query(f"SELECT count(*) FROM voxtier_search.{table}", ()) == [(0,)], table
    index(store, [tmp_path / "1.dcm"])
    assert not made.is_complete("default")
    assert sum(fill_search_index(made, "default")) == 1
    by_search = answers(store)
    assert made.drop()
    assert answers(store) == by_search


def test_index_runs_and_doctor_say_that_it_is_not_used(store: FrameStore, dsn: str, tmp_path: Path) -> None:
    fill(store)
    execute(dsn, "DROP TRIGGER search_update ON voxtier.file")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "voxtier", *arguments, "--dsn", dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    told = "does not keep it right since a dump was restored or triggers were disabled"
    for arguments in (("index", str(tmp_path / "1.dcm")), ("doctor",)):
        said = run(*arguments)
        assert told in said
        assert "`voxtier index --search`" in said
    assert told not in run("index", str(tmp_path), "--search")
    assert SearchIndex(store).is_complete("default")

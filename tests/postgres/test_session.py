"""Sessions that their role, database or environment sets up: the same answers, or a clear refusal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from frames.store.rows.index_rows import ask, ct
from voxtier.errors import BackendError, ConfigError, NotFoundError
from voxtier.frames import FrameReader, FrameStore, LakebaseUtils, read_tables

SOURCE = "c.s.t"
PATHS = "SELECT path, allowed_groups FROM voxtier.file"
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

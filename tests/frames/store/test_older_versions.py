"""Records and index databases that every released version wrote, read by today's code."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from fixtures.stored_frames import read_index, read_records, restore_index, write_index, write_records
from fixtures.versions import VERSIONS, as_json, thaw
from frames.store.rows.index_rows import NOW, TABLE, ask, results, run_migrations
from voxtier._core import file_key
from voxtier.frames import LakebaseUtils, TableResult
from voxtier.frames.store.search_index import Making, SearchIndex
from voxtier.frames.store.store import FrameStore

PATHS = ["/a/b/1.dcm", "/a/b/2.dcm", "/1", "x", "s3://bücket/ä/é\n/1", "/a\\b/\\x41/%s"]
# Each row that a key names, and what it says of its file, by the file.
ROWS = [
    f"""SELECT name, path, {columns} FROM {table} AS t JOIN voxtier.{named} USING (key)
        JOIN voxtier.source ON source.source_id = {named}.source_id ORDER BY 1, 2, 3"""
    for table, columns, named in (
        ("voxtier.file_stats", "access_count, last_used_at", "file"),
        ("voxtier.file_stats", "access_count, last_used_at", "claim"),
        ("voxtier.slide_map", "map", "file"),
        ("voxtier.claimed_frame", "frame, start_pos", "claim"),
        ("voxtier_search.instance", "header_id", "file"),
    )
]
# What else a migration of keys might lose.
SCHEMA = (
    "SELECT indexdef FROM pg_indexes WHERE schemaname LIKE 'voxtier%%' ORDER BY 1",
    """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid::regclass::text LIKE 'voxtier%%' ORDER BY 1, 2""",
    "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
    "SELECT proname FROM pg_proc WHERE pronamespace = 'voxtier'::regnamespace ORDER BY 1",
)


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_an_older_version_give_its_tables(version: str, tmp_path: Path) -> None:
    folder, wanted = thaw(version, "records", tmp_path)
    assert len(wanted) > 30
    assert as_json(read_records(folder)) == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_an_index_of_an_older_version_is_migrated_and_gives_its_rows(
    version: str, tmp_path: Path, dsn: str
) -> None:
    folder, wanted = thaw(version, "index", tmp_path)
    restore_index(folder, dsn)
    assert as_json(read_index(dsn)) == wanted


def test_todays_records_and_index_hold_what_the_newest_fixtures_hold(tmp_path: Path, dsn: str) -> None:
    """Else `fixtures/make.py` no longer writes what it is meant to."""
    new = tmp_path / "new"
    new.mkdir()
    write_records(new)
    assert as_json(read_records(new)) == thaw(VERSIONS[-1], "records", tmp_path)[1]
    write_index(new, dsn)
    assert as_json(read_index(dsn)) == thaw(VERSIONS[-1], "index", tmp_path)[1]


def test_keys_of_an_older_version_are_made_anew_wherever_they_stand(dsn: str) -> None:
    fill(dsn)
    before = {question: ask(dsn, question) for question in (*ROWS, *SCHEMA)}
    assert all(before[question] for question in ROWS)
    make_keys_old(dsn)
    with FrameStore(dsn) as store:
        for source in ("s", "t"):
            assert store.get_many(source, PATHS) == [TABLE] * len(PATHS)
        assert store.slide_maps("s", PATHS) == {PATHS[0]: b"map"}
        assert {question: ask(dsn, question) for question in before} == before
        assert store.delete("s", PATHS) == len(PATHS)
        for table in ("voxtier.slide_map", "voxtier_search.instance"):
            assert ask(dsn, f"SELECT FROM {table}") == []


def fill(dsn: str) -> None:
    """Write two sources, and to every table that has keys."""
    with FrameStore(dsn) as store, LakebaseUtils(dsn=dsn, uc_table_name="c") as lakebase:
        for source in ("s", "t"):
            store.upsert(source, [TableResult(path, TABLE, None) for path in PATHS])
            keys = [file_key(source, path) for path in PATHS[::2]]
            store.touch(keys, range(1, 4), [NOW] * 3)
        assert store.keep_slide_maps("s", {PATHS[0]: b"map"}) == {PATHS[0]}
        ranges = [{"frame_number": n, "start_pos": n, "end_pos": 9, "pixel_data_pos": 0} for n in range(2)]
        for path in PATHS:
            lakebase.insert_frame_ranges(path, ranges)
        lakebase.touch_frame_ranges_batch([PATHS[1]])
        SearchIndex(store).switch_on("s")
        ask(dsn, "ALTER TABLE voxtier.file ENABLE TRIGGER USER")  # as older versions had those of search
        store.query(
            """INSERT INTO voxtier_search.header (source_id, digest, attributes, names)
            SELECT source_id, '', '{}', '{}' FROM voxtier.source WHERE name = 's' RETURNING 1""",
            (),
        )
        store.query(
            """INSERT INTO voxtier_search.instance (key, header_id, is_read, attributes)
            SELECT key, header_id, true, '{}' FROM voxtier.file JOIN voxtier_search.header USING (source_id)
            RETURNING 1""",
            (),
        )


def make_keys_old(dsn: str) -> None:
    """Give every row the key of schema versions 1 to 7, and the database the last of them."""
    references = {
        "voxtier.slide_map": "voxtier.file",
        "voxtier_search.instance": "voxtier.file",
        "voxtier.claimed_frame": "voxtier.claim",
    }
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE voxtier.file DISABLE TRIGGER USER")
        for table in ("voxtier.file", "voxtier.claim"):
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT key_by_folder".encode())
        for table in references:
            name = f"{table.partition('.')[2]}_key_fkey"
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
        for source in ("s", "t", "c"):
            for path in PATHS:
                old = hashlib.blake2b(f"{source}\0{path}".encode(), digest_size=16).digest()
                keys = UUID(bytes=old), UUID(bytes=file_key(source, path))
                for table in ("voxtier.file", "voxtier.claim", "voxtier.file_stats", *references):
                    connection.execute(f"UPDATE {table} SET key = %s WHERE key = %s".encode(), keys)
        for table, other in references.items():
            connection.execute(
                f"ALTER TABLE {table} ADD FOREIGN KEY (key) REFERENCES {other} ON DELETE CASCADE".encode()
            )
        connection.execute("ALTER TABLE voxtier.file ENABLE TRIGGER USER")
        connection.execute("DELETE FROM voxtier.schema_version WHERE version >= 8")


def test_a_process_of_an_older_version_cannot_write_under_its_keys(dsn: str) -> None:
    fill(dsn)
    old = UUID(bytes=hashlib.blake2b(b"s\0/a/b/1.dcm", digest_size=16).digest())
    for table in ("voxtier.file", "voxtier.claim"):
        with pytest.raises(psycopg.errors.CheckViolation, match="key_by_folder"):
            ask(dsn, f"UPDATE {table} SET key = %s WHERE path = '/a/b/1.dcm'", old)


# A row of schema version 7, as it stands in the index and the search index.
ROW = """
INSERT INTO voxtier.source (name) VALUES ('s');
INSERT INTO voxtier.file (key, inserted_at, source_id, status, kind, method, verified, offsets_in,
    frame_count, parser_version, path)
VALUES ('00000000-0000-0000-0000-000000000001', now(), 1, 'ok', 'native', 'native', 'all', 'file',
    0, 2, '/a/b')
"""
SEARCHED = """
INSERT INTO voxtier_search.header (source_id, digest, attributes, names) VALUES (1, '', '{}', '{}');
INSERT INTO voxtier_search.instance SELECT key, header_id, true, '{}' FROM voxtier.file, voxtier_search.header
"""


@pytest.mark.parametrize("left", ["by itself", "beside another index", "with files that are gone"])
def test_a_search_index_that_a_restore_left_behind_does_not_stop_the_upgrade(dsn: str, left: str) -> None:
    run_migrations(dsn, 1, 7)
    ask(dsn, ROW)
    ask(dsn, resources.files("voxtier.frames.store").joinpath("search_index.sql").read_text())
    ask(dsn, SEARCHED)
    if left == "with files that are gone":
        ask(dsn, "SET session_replication_role = replica; DELETE FROM voxtier.file")
    else:
        ask(dsn, "DROP SCHEMA voxtier CASCADE")
        run_migrations(dsn, 1, 7)
    if left == "beside another index":
        ask(dsn, ROW.replace("000001", "000002"))
    with FrameStore(dsn) as store:
        store.upsert("s", results(2))
        search = SearchIndex(store)
        assert search.making() is Making.DETACHED
        search.switch_on("s")
        assert search.holds("s")
        assert search.making() is Making.CURRENT
        assert search.complete("s") is False
        assert search.drop()


@pytest.mark.parametrize("version", [0, 2, 7])
def test_a_publication_of_all_tables_does_not_stop_the_upgrade(dsn: str, version: int) -> None:
    if version:
        run_migrations(dsn, 1, version)
    if version == 7:
        ask(dsn, ROW)
        ask(dsn, "INSERT INTO voxtier.file_stats SELECT key, now(), 3 FROM voxtier.file")
        ask(dsn, "ALTER TABLE voxtier.file_stats REPLICA IDENTITY FULL")
    ask(dsn, "CREATE PUBLICATION everything FOR ALL TABLES")
    with FrameStore(dsn) as store:
        assert store.sources() == (["s"] if version == 7 else [])
        store.upsert("s", results(2))
        assert store.delete("s", ["/1"]) == 1
    identity = dict(ask(dsn, "SELECT relname, relreplident::text FROM pg_class WHERE relname LIKE 'file%%'"))
    assert identity["file"] == "d"
    assert identity["file_stats"] == ("f" if version == 7 else "d")

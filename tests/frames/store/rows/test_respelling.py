"""Rules, rows and claims that earlier versions kept in other spellings of their paths, after an upgrade."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from frames.store.rows.index_rows import NOW, TABLE, ask
from voxtier._core import file_key
from voxtier.frames import LakebaseUtils, TableResult
from voxtier.frames.sources.address import as_indexed
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.migrations.respelling import _RIGHT
from voxtier.frames.store.search_index import Making, SearchIndex
from voxtier.frames.store.store import FrameStore

SOURCE = "c.s.t"
# Prefix, group, whether in force.
RULES = [
    ("/a//secret/", "doctors", True),
    ("/a///secret//deep/", "nurses", True),
    ("/a/./dots/", "doctors", True),
    ("dbfs:/vol/", "doctors", True),
    ("s3a://b/secret/", "doctors", True),
    ("gcs://b/", "doctors", False),
    ("http://Host:80/Patient A/%7Ex", "doctors", True),
    ("/a//both/", "doctors", True),
    ("/a/both/", "doctors", True),
    ("/a/both/", "nurses", True),
    ("/a//later/", "doctors", False),
    ("/a/later/", "doctors", True),
    ("/a//apart/", "doctors", True),
    ("/a/apart/", "nurses", True),
    ("/plain/", "doctors", True),
    ("/a/.", "doctors", True),
    ("", "readers", True),
]
RULES_AFTER = [
    ("/a/secret/", "doctors", True, None),
    ("/a/secret/deep/", "nurses", True, None),
    ("/a/dots/", "doctors", True, None),
    ("/vol/", "doctors", True, None),
    ("s3://b/secret/", "doctors", True, None),
    ("gs://b/", "doctors", False, None),
    ("http://host:80/Patient%20A/~x", "doctors", True, None),
    ("/a/both/", "doctors", True, None),
    ("/a/later/", "doctors", True, None),
    ("/a/apart/", "doctors", True, "false"),
    ("/plain/", "doctors", True, None),
    ("/a/.", "doctors", True, None),
    ("", "readers", True, None),
]
# Path and groups of rows, and of what is left of them.
ROWS = [
    ("/a//secret/1.dcm", ["doctors"]),
    ("/a/secret/1.dcm", ["readers"]),
    ("/a/secret/deep/1.dcm", ["readers"]),
    ("/a/dots/1.dcm", None),
    ("/a/./dots/1.dcm", ["doctors"]),
    ("dbfs:/vol/1.dcm", ["doctors"]),
    ("s3://b/secret/1.dcm", ["readers"]),
    ("gs://b/1.dcm", ["readers"]),
    ("http://Host:80/Patient A/%7ex/ä.dcm", ["doctors"]),
    ("/a/both/1.dcm", ["doctors", "nurses"]),
    ("/a//apart/1.dcm", ["doctors"]),
    ("/a/apart/1.dcm", ["nurses"]),
    ("/plain/1.dcm", ["doctors", "given"]),
    ("/plain/../plain/2.dcm", ["doctors", "given"]),
    ("/other/1.dcm", ["readers"]),
    ("x//1.dcm", ["readers"]),
]
ROWS_AFTER = {
    "/a/secret/1.dcm": ["doctors"],
    "/a/secret/deep/1.dcm": ["nurses"],
    "/a/dots/1.dcm": ["doctors"],
    "/vol/1.dcm": ["doctors"],
    "s3://b/secret/1.dcm": ["doctors"],
    "gs://b/1.dcm": ["readers"],
    "http://host:80/Patient%20A/~x/%C3%A4.dcm": ["doctors"],
    "/a/both/1.dcm": ["doctors"],
    "/a/apart/1.dcm": [],
    "/plain/1.dcm": ["doctors", "given"],
    "/plain/2.dcm": ["doctors", "given"],
    "/other/1.dcm": ["readers"],
    "x//1.dcm": ["readers"],
}
UNDER_RULES = {
    "/a/secret/new.dcm": {"doctors"},
    "/a//secret/new.dcm": {"doctors"},
    "s3://b/secret/new.dcm": {"doctors"},
    "http://host:80/Patient%20A/~x/new.dcm": {"doctors"},
    "/a/apart/new.dcm": set(),
    "/other/new.dcm": {"readers"},
}
GROUPS = ("doctors", "nurses", "readers", "given")


def key(path: str) -> UUID:
    return UUID(bytes=file_key(SOURCE, path))


def add_row(dsn: str, path: str, groups: list[str] | None) -> None:
    """Add a row as an earlier version did that knew of no other spelling."""
    with FrameStore(dsn) as store:
        store.upsert(SOURCE, [TableResult(path, TABLE, None)])
    ask(dsn, "UPDATE voxtier.file SET allowed_groups = %s WHERE key = %s", groups, key(path))


def add_rule(
    dsn: str, prefix: str, group: str, in_force: object = True, condition: str | None = None
) -> None:
    ask(
        dsn,
        """INSERT INTO voxtier.access_rule
            (source_id, path_prefix, group_name, in_force, uc_filter_sql, access_type)
        SELECT source_id, %s, %s, %s, %s::text, CASE WHEN %s::text IS NULL THEN 'full' ELSE 'conditional' END
        FROM voxtier.source""",
        prefix,
        group,
        in_force,
        condition,
        condition,
    )


def add_claim(dsn: str, path: str, groups: list[str] | None, *starts: int) -> None:
    ask(
        dsn,
        """INSERT INTO voxtier.claim (key, source_id, path, inserted_at, allowed_groups)
        SELECT %s, source_id, %s, clock_timestamp(), %s FROM voxtier.source""",
        key(path),
        path,
        groups,
    )
    for frame, start in enumerate(starts):
        ask(dsn, "INSERT INTO voxtier.claimed_frame VALUES (%s, %s, %s, 999)", key(path), frame, start)


def upgrade(dsn: str, *, since: int = 10) -> None:
    """Run the migrations from that number on, once more."""
    ask(dsn, "DELETE FROM voxtier.schema_version WHERE version >= %s", since)
    with FrameStore(dsn) as store:
        store.sources()


def groups_of(dsn: str, table: str = "file") -> dict[str, list[str] | None]:
    return dict(ask(dsn, f"SELECT path, allowed_groups FROM voxtier.{table}"))


@pytest.fixture(autouse=True)
def made(dsn: str) -> None:
    with FrameStore(dsn) as store:
        store.upsert(SOURCE, [TableResult("/first", TABLE, None)])
        store.delete(SOURCE, ["/first"])


@pytest.mark.parametrize("since", [9, 10])
def test_rules_and_rows_are_found_and_guarded_in_the_spelling_of_the_index(dsn: str, since: int) -> None:
    for rule in RULES:
        add_rule(dsn, *rule)
    for path, groups in ROWS:
        add_row(dsn, path, groups)
    upgrade(dsn, since=since)
    rules = ask(dsn, "SELECT path_prefix, group_name, in_force, uc_filter_sql FROM voxtier.access_rule")
    assert sorted(map(str, rules)) == sorted(map(str, RULES_AFTER))
    assert groups_of(dsn) == ROWS_AFTER
    with FrameStore(dsn) as store:
        assert store.get_many(SOURCE, list(ROWS_AFTER)) == [TABLE] * len(ROWS_AFTER)
        for path, allowed in UNDER_RULES.items():
            seen = {g for g in GROUPS if GroupStore(store, [g]).may_read(SOURCE, as_indexed(path), None)}
            assert seen == allowed, path
    upgrade(dsn)
    assert groups_of(dsn) == ROWS_AFTER


def test_a_condition_holds_beside_that_of_another_spelling(dsn: str) -> None:
    add_rule(dsn, "/a//x/", "doctors", condition="a = 1")
    add_rule(dsn, "/a/./x/", "doctors")
    add_rule(dsn, "/a/x/", "doctors", condition="b = 2 -- and no more")
    for prefix, uids in (("/a//x/", ["1", "2"]), ("/a/x/", ["2", "3"])):
        ask(
            dsn,
            """INSERT INTO voxtier.rule_instance SELECT rule_id, unnest(%s::text[])
            FROM voxtier.access_rule WHERE path_prefix = %s""",
            uids,
            prefix,
        )
    upgrade(dsn)
    [rule] = ask(dsn, "SELECT path_prefix, access_type, uc_filter_sql FROM voxtier.access_rule")
    assert rule == ("/a/x/", "conditional", "(\na = 1\n) AND (\nb = 2 -- and no more\n)")
    assert ask(dsn, "SELECT sop_instance_uid FROM voxtier.rule_instance") == [("2",)]


def test_claims_are_found_with_their_frames_and_the_stricter_groups(dsn: str) -> None:
    add_claim(dsn, "s3a://b/m.dcm", ["doctors"], 7)
    add_claim(dsn, "/v//n.dcm", ["doctors", "nurses"], 7, 8)
    add_claim(dsn, "/v/./n.dcm", ["doctors", "readers"])
    add_claim(dsn, "/v/n.dcm", None, 9)
    add_claim(dsn, "/v//o.dcm", ["doctors"])
    add_claim(dsn, "/v/o.dcm", ["nurses"])
    add_claim(dsn, "/plain.dcm", ["nurses"], 5)
    upgrade(dsn)
    assert groups_of(dsn, "claim") == {
        "s3://b/m.dcm": ["doctors"],
        "/v/n.dcm": ["doctors"],
        "/v/o.dcm": [],
        "/plain.dcm": ["nurses"],
    }
    with LakebaseUtils(dsn=dsn, uc_table_name=SOURCE) as lakebase:
        for path, start in (("s3a://b/m.dcm", 7), ("/v//n.dcm", 9), ("/v/n.dcm", 9)):
            found = lakebase.retrieve_frame_range(path, 0, user_groups=["doctors"])
            assert found is not None
            assert found["start_pos"] == start
            assert lakebase.retrieve_frame_range(path, 0, user_groups=["nurses"]) is None
        assert lakebase.retrieve_frame_range("/plain.dcm", 0, user_groups=["nurses"]) is not None


def test_a_row_that_the_index_added_beside_a_claim_gets_the_groups_of_the_claim(dsn: str) -> None:
    add_claim(dsn, "http://h/Patient A/1.dcm", ["doctors"])
    add_row(dsn, "http://h/Patient%20A/1.dcm", None)
    add_claim(dsn, "http://h/Patient A/2.dcm", ["doctors"])
    upgrade(dsn)
    assert groups_of(dsn) == {"http://h/Patient%20A/1.dcm": ["doctors"]}
    with FrameStore(dsn) as store:
        for number in (1, 2):
            path = f"http://h/Patient%20A/{number}.dcm"
            assert GroupStore(store, ["doctors"]).may_read(SOURCE, path, None)
            assert not GroupStore(store, ["others"]).may_read(SOURCE, path, None)


def test_accesses_are_added_and_the_search_index_reads_such_files_again(dsn: str) -> None:
    paths = ["/v//1.dcm", "/v/1.dcm", "/v//2.dcm", "/v/3.dcm"]
    for path in paths:
        add_row(dsn, path, None)
    with FrameStore(dsn) as store:
        store.touch([file_key(SOURCE, path) for path in paths], [1, 2, 4, 8], [NOW] * 4)
        search = SearchIndex(store)
        search.switch_on(SOURCE)
        ask(dsn, "UPDATE voxtier_search.source SET is_complete = true")
    upgrade(dsn)
    counted = "SELECT path, access_count FROM voxtier.file_stats JOIN voxtier.file USING (key) ORDER BY 1"
    assert ask(dsn, counted) == [("/v/1.dcm", 3), ("/v/2.dcm", 4), ("/v/3.dcm", 8)]
    with FrameStore(dsn) as store:
        search = SearchIndex(store)
        assert search.holds(SOURCE)
        assert search.making() is Making.CURRENT
        assert not search.is_complete(SOURCE)
        assert {each.path for each in search.missing(SOURCE)} == {"/v/1.dcm", "/v/2.dcm", "/v/3.dcm"}


def test_paths_that_are_left_out_are_spelled_right(dsn: str) -> None:
    """Else what is not fetched would stay as it is."""
    parts = [
        "",
        "a",
        ".a",
        ".",
        "..",
        "ä\n",
        "a.b",
        "%41",
        "%2F",
        "%c3",
        "A b",
        "a~",
        "x+y",
        "?",
        "h:80",
        "H",
    ]
    starts = [
        "/",
        "//",
        "",
        "s3://",
        "S3://",
        "s3a://",
        "az://",
        "http://",
        "https://",
        "HTTPS://",
        "dbfs:/",
        "file:/",
    ]
    paths = [f"{start}{one}/{two}" for start in starts for one in parts for two in parts]
    right = [
        path for (path,) in ask(dsn, f"SELECT p FROM unnest(%s::text[]) AS p WHERE p ~ '{_RIGHT}'", paths)
    ]
    assert len(right) > 300
    assert [path for path in right if as_indexed(path) != path] == []


def test_a_process_of_an_older_version_reads_nothing_for_groups(dsn: str) -> None:
    """By its keys and spellings nothing is found any more, as if nobody had restricted the file."""
    with pytest.raises(psycopg.errors.RaiseException, match="start this process anew"):
        ask(dsn, "SELECT voxtier.may_read(%s, %s, '/a/b', NULL, '{doctors}')", key("/a/b"), SOURCE)


def test_a_key_of_another_path_opens_nothing(dsn: str) -> None:
    question = "SELECT voxtier.groups_may_read(%s, %s, '/a/b', NULL, '{doctors}')"
    assert ask(dsn, question, key("/a/b"), SOURCE) == [(True,)]
    assert ask(dsn, question, key("/x/b"), SOURCE) == [(False,)]

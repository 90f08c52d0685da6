"""Groups, access rules and roles: who sees and writes which rows."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.databricks.groups.locks import waits_for_lock
from frames.dicom.catalogue import TABLE, native, write_files
from voxtier.errors import ConfigError
from voxtier.frames import LakebaseUtils, read_table
from voxtier.frames.databricks.lakebase.backend import keys_of
from voxtier.frames.dicom.table import TableResult
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.grants import grant_script
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.statements import lock_groups
from voxtier.frames.store.store import FrameStore

ODD_GROUPS = ["radiology, thorax", "{a}", 'quote"d', "O'Brien", "NULL", "back\\slash", "röntgen"]


def test_groups_of_the_user_decide_even_for_the_owner(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    path = files["native"]
    for group in ODD_GROUPS:
        assert lakebase.upsert_access_rule(TABLE, group, path_prefix=path) == 1
        assert lakebase.retrieve_frame_range(path, 0, user_groups=[group]) is not None
        assert (
            lakebase.retrieve_frame_range(path, 0, user_groups=group.split(",") if "," in group else ["x"])
            is None
        )
        assert lakebase.retrieve_frame_range(path, 0, user_groups=[]) is None
        assert lakebase.retrieve_frame_range(path, 0) is not None  # the owner, for nobody in particular
        assert lakebase.touch_frame_ranges(path, user_groups=["x"]) == 0
        assert lakebase.touch_frame_ranges(path, user_groups=[group]) == 1
        assert lakebase.retrieve_instance_path(None, None, "2.25.1.1", user_groups=["x"]) is None
        lakebase.execute_query("DELETE FROM voxtier.access_rule")
    ranked = lakebase.get_preload_priority_list(user_groups=["x"])
    assert path not in {row["filename"] for row in ranked}
    assert len(ranked) == 2
    with pytest.raises(ConfigError, match="list of names"):
        lakebase.retrieve_frame_range(path, 0, user_groups="radiology")


def test_a_file_that_is_indexed_and_claimed_counts_once(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    both, indexed = write_files(tmp_path, 2)
    for path in (both, "/claimed.dcm"):
        lakebase.insert_frame_range(path, 0, 0, 9, 0)
    FileIndexer(lakebase.store, source=TABLE).index_batch([both, indexed])
    assert lakebase.upsert_access_rule(TABLE, "staff") == 3
    assert lakebase.upsert_access_rule(TABLE, "staff") == 0
    assert lakebase.reset_allowed_groups() == 3
    for table, count in (("file", 2), ("claim", 2)):
        groups = f"SELECT count(*) FROM voxtier.{table} WHERE allowed_groups IS NULL"
        assert lakebase.rows(groups, None) == [(count,)]


def test_rules_hold_for_files_indexed_later(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    early = write_files(tmp_path / "trial", 2)
    indexer = FileIndexer(lakebase.store, source=TABLE)
    indexer.index_batch(early)
    assert lakebase.upsert_access_rule(TABLE, "staff", description="the clinic") == 2
    assert lakebase.upsert_access_rule(TABLE, "trial team", path_prefix=str(tmp_path / "trial")) == 2
    late = write_files(tmp_path / "trial", 1, first=2) + write_files(tmp_path / "ward", 1, first=3)
    indexer.index_batch(late)
    full = {"access_type": "full", "uc_filter_sql": None}
    assert lakebase.get_access_rules() == [
        {"group_name": "staff", **full, "description": "the clinic", "path_prefix": ""},
        {"group_name": "trial team", **full, "description": None, "path_prefix": str(tmp_path / "trial")},
    ]
    assert set(lakebase.retrieve_frame_ranges_batch(early + late, user_groups=["staff"])) == {late[1]}
    assert set(lakebase.retrieve_frame_ranges_batch(early + late, user_groups=["trial team"])) == {
        *early,
        late[0],
    }
    Path(early[0]).write_bytes(native(50, 9))
    indexer.index_batch(early)  # a changed file keeps its groups
    assert early[0] not in lakebase.retrieve_frame_ranges_batch(early, user_groups=["staff"])
    lakebase.insert_frame_range(str(tmp_path / "trial" / "claim.dcm"), 0, 0, 9, 0)
    assert (
        lakebase.retrieve_frame_range(str(tmp_path / "trial" / "claim.dcm"), 0, user_groups=["staff"]) is None
    )
    assert lakebase.reset_allowed_groups() == 5
    assert lakebase.get_access_rules() == []
    assert len(lakebase.retrieve_frame_ranges_batch(early + late, user_groups=[])) == 4


@pytest.fixture
def roles(dsn: str, lakebase: LakebaseUtils) -> Iterator[dict[str, str]]:
    """Connection strings of the three roles, with the rights of the script."""
    lakebase.get_latest_metrics()  # the schema is there
    names = {what: f"{what}-{os.getpid()}@example.org" for what in ("owner", "builder", "reader")}
    database = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    script = grant_script(names["owner"], names["builder"], names["reader"], database=database)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in names.values():
            connection.execute(f'CREATE ROLE "{name}" LOGIN')
        connection.execute(script.encode())
        connection.execute(script.encode())  # again does no harm
        yield {what: psycopg.conninfo.make_conninfo(dsn, user=name) for what, name in names.items()}
        for name in names.values():
            connection.execute(f'DROP OWNED BY "{name}" CASCADE')
            connection.execute(f'DROP ROLE "{name}"')


def test_builder_and_reader_roles_do_what_they_may_and_no_more(
    lakebase: LakebaseUtils, roles: dict[str, str], tmp_path: Path
) -> None:
    paths = write_files(tmp_path, 3)
    lakebase.upsert_access_rule(TABLE, "staff, day", path_prefix=paths[0])
    with LakebaseUtils(dsn=roles["builder"], uc_table_name=TABLE) as builder:
        indexer = FileIndexer(builder.store, source=TABLE)
        assert {report.status for report in indexer.index_batch(paths)} == {"ok"}
        Path(paths[0]).write_bytes(native(60, 8))
        assert [report.status for report in indexer.index_batch(paths)].count("unchanged") == 2
        assert builder.store.delete(TABLE, [paths[2]]) == 1
    with LakebaseUtils(dsn=roles["reader"], uc_table_name=TABLE) as reader:
        assert set(reader.retrieve_frame_ranges_batch(paths)) == {paths[1]}
        assert set(reader.retrieve_frame_ranges_batch(paths, user_groups=["staff, day"])) == {
            paths[0],
            paths[1],
        }
        assert set(reader.retrieve_frame_ranges_batch(paths, user_groups=["staff", "day"])) == {paths[1]}
        assert reader.touch_frame_ranges_batch(paths) == 1
        assert reader.touch_frame_ranges(paths[0], user_groups=["staff, day"]) == 1
        view = "SELECT DISTINCT filename FROM voxtier.dicom_frames"
        assert reader.execute_and_fetch_query(view) == [(paths[1],)]
        assert reader.rows(view + " ORDER BY 1", (), ["staff, day"]) == [(paths[0],), (paths[1],)]
        for forbidden in ("DELETE FROM voxtier.file", "UPDATE voxtier.file SET allowed_groups = NULL"):
            with pytest.raises(ConfigError, match="may not"):
                reader.execute_query(forbidden)
        with pytest.raises(ConfigError, match="may not"):
            reader.reset_allowed_groups()


def test_a_role_without_a_policy_writes_only_rows_that_it_may_see(
    lakebase: LakebaseUtils, roles: dict[str, str], dsn: str
) -> None:
    """A role with the right to write but no policy of its own writes what it may see, and nothing else."""
    lakebase.execute_query("SELECT 1")
    name = psycopg.conninfo.conninfo_to_dict(roles["owner"])["user"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'GRANT USAGE ON SCHEMA voxtier TO "{name}"')
        connection.execute(f'GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA voxtier TO "{name}"')
    with LakebaseUtils(dsn=roles["owner"], uc_table_name=TABLE) as writer:
        staff = ["staff, day"]
        writer.insert_frame_range("a.dcm", 0, 0, 9, 0, allowed_groups=staff)
        writer.insert_frame_range("a.dcm", 1, 10, 19, 0, allowed_groups=staff)
        assert writer.retrieve_frame_range("a.dcm", 1) is None
        assert writer.retrieve_frame_range("a.dcm", 1, user_groups=["staff, day"]) is not None
        assert writer.touch_frame_ranges("a.dcm", user_groups=["staff, day"]) == 1
        assert writer.touch_frame_ranges("a.dcm", user_groups=["others"]) == 0
        with pytest.raises(ConfigError, match="may not"):
            writer.insert_frame_range("a.dcm", 0, 0, 99, 0, user_groups=["others"])
        with pytest.raises(ConfigError, match="may not"):
            writer.insert_frame_range(
                "b.dcm", 0, 0, 99, 0, allowed_groups=["staff, day"], user_groups=["others"]
            )
        assert writer.retrieve_frame_range("a.dcm", 0, user_groups=["staff, day"])["end_pos"] == 9  # type: ignore[index]


SECRET = ("s3://bucket/secret/m.dcm", "/data/secret/m.dcm")
SPELLINGS = [
    ("s3a://bucket/secret/", "s3a://bucket/secret/m.dcm"),
    ("S3N://bucket/sec", "s3n://bucket/secret/m.dcm"),
    ("dbfs:/data//secret/", "dbfs:/data//secret/m.dcm"),
    ("//data/./secret/m", "//data/secret/./m.dcm"),
    ("file:///data/x/../secret/", "file:/data/secret/m.dcm"),
    ("/data/secret/", "/data/x/../secret/m.dcm"),
]


def add_row(lakebase: LakebaseUtils, path: str) -> None:
    """Add a row as an index run does."""
    lakebase.store.upsert(TABLE, [TableResult(path, read_table(native(1)), None)])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("prefix", "named"), SPELLINGS)
def test_rules_claims_and_look_ups_mean_a_file_however_it_is_named(
    lakebase: LakebaseUtils, prefix: str, named: str, *, late: bool
) -> None:
    """The oracle is the spelling of the index, which `SECRET` is written in."""
    path = SECRET["bucket" not in named]
    if not late:
        add_row(lakebase, path)
    lakebase.upsert_access_rule(TABLE, "readers")
    assert lakebase.upsert_access_rule(TABLE, "vip", path_prefix=prefix) == (not late)
    assert path.startswith(lakebase.get_access_rules()[1]["path_prefix"])
    add_row(lakebase, path)
    for name in (path, named):
        assert lakebase.retrieve_frame_range(name, 0, user_groups=["readers"]) is None
        assert lakebase.retrieve_frame_range(name, 0, user_groups=["vip"]) is not None
        assert list(lakebase.retrieve_frame_ranges_batch([name], user_groups=["vip"])) == [name]
        [instance] = lakebase.retrieve_instance_paths_by_local_paths([name], user_groups=["vip"]).values()
        assert instance["path"] == path
        assert lakebase.retrieve_instance_paths_by_local_paths([name], user_groups=["readers"]) == {}
        assert lakebase.touch_frame_ranges(name, user_groups=["vip"]) == 1
        assert lakebase.touch_frame_ranges(name, user_groups=["readers"]) == 0


@pytest.mark.parametrize("named", [*(named for _, named in SPELLINGS), "m.dcm", "./x/../m.dcm"])
def test_a_claim_is_of_the_file_that_is_indexed(
    lakebase: LakebaseUtils, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "m.dcm") if "secret" not in named else SECRET["bucket" not in named]
    entry = {"local_path": named, "sop_instance_uid": "2.25.1.1"}
    assert lakebase.insert_instance_paths_batch([entry], allowed_groups=["vip"]) == 1
    lakebase.insert_frame_range(named, 0, 5, 9, 0, allowed_groups=["vip"])
    assert lakebase.retrieve_frame_range(named, 0, user_groups=["vip"])["start_pos"] == 5  # type: ignore[index]
    add_row(lakebase, path)
    for name in (path, named):
        assert lakebase.retrieve_frame_range(name, 0, user_groups=["readers"]) is None
        assert lakebase.retrieve_frame_range(name, 0, user_groups=["vip"])["start_pos"] > 5  # type: ignore[index]


@pytest.mark.parametrize("again", ["rule", "synchronisation", "the rule itself", "nothing"])
def test_a_rule_in_an_old_spelling_goes_on_guarding_rows_of_that_spelling(
    lakebase: LakebaseUtils, dsn: str, again: str
) -> None:
    """Earlier versions indexed such paths as they were written; a migration spells both as the index does."""
    row = "/data//secret/1.dcm"
    add_row(lakebase, row)
    lakebase.upsert_access_rule(TABLE, "vip", path_prefix="/data/secret/")
    lakebase.execute_query(
        "UPDATE voxtier.access_rule SET path_prefix = '/data//secret/' WHERE path_prefix = '/data/secret/'"
    )
    lakebase.execute_query("UPDATE voxtier.file SET allowed_groups = '{vip}'")
    lakebase.execute_query("DELETE FROM voxtier.schema_version WHERE version >= 9")
    with FrameStore(dsn) as upgraded:
        upgraded.sources()
    if again == "rule":
        lakebase.upsert_access_rule(TABLE, "others", path_prefix="/elsewhere/")
    elif again == "the rule itself":
        lakebase.upsert_access_rule(TABLE, "vip", path_prefix="/data//secret/")
    elif again == "synchronisation":
        no_condition: Any = object()  # so that nothing is asked
        lakebase.sync_uc_row_filters(sql_client=no_condition)
    add_row(lakebase, "/data/secret/2.dcm")
    for path in ("/data/secret/1.dcm", "/data/secret/2.dcm"):
        [(groups,)] = lakebase.rows("SELECT allowed_groups FROM voxtier.file WHERE path = %s", (path,))
        assert groups == ["vip"], path
    prefixes = {rule["path_prefix"] for rule in lakebase.get_access_rules()}
    assert prefixes - {"/elsewhere/"} == {"/data/secret/"}


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("secret/", "give an absolute path"),
        ("s3a:/bucket/", "give an absolute path"),
        ("/data/secret/..", "end the folder with a slash"),
        ("/data/.", "end the folder with a slash"),
        ("s3a://bucket//secret/", "write one slash"),
        ("s3://bucket/x/../secret/", "write one slash"),
        ("/nul\0", "path_prefix"),
    ],
)
def test_a_prefix_that_no_indexed_file_has_is_refused(lakebase: LakebaseUtils, prefix: str, why: str) -> None:
    """Such a rule would guard nothing, and nobody would be told."""
    with pytest.raises(ConfigError, match=why):
        lakebase.upsert_access_rule(TABLE, "vip", path_prefix=prefix)
    assert lakebase.get_access_rules() == []


UID = read_table(native(1)).sop_instance_uid
RIGHTS: dict[str, Callable[[LakebaseUtils, str], object]] = {
    "rule": lambda lake, _: lake.upsert_access_rule(TABLE, "staff"),
    "claim": lambda lake, path: lake.insert_frame_range(path, 0, 0, 9, 0, allowed_groups=["staff"]),
    "instance": lambda lake, path: lake.insert_instance_paths_batch(
        [{"local_path": path}], allowed_groups=["staff"]
    ),
}


@pytest.mark.parametrize("what", RIGHTS)
def test_groups_that_are_set_while_a_run_writes_reach_the_files_of_that_run(
    lakebase: LakebaseUtils, dsn: str, what: str
) -> None:
    """Whoever comes first: a batch of the run, or the change of groups."""
    add_row(lakebase, "/early.dcm")
    row = read_table(native(1))
    with psycopg.connect(dsn) as run:  # a batch that is not committed yet
        run.execute(lock_groups(TABLE).encode())
        thread = threading.Thread(target=RIGHTS[what], args=(lakebase, "/late.dcm"))
        thread.start()
        assert waits_for_lock(dsn)
        run.execute(
            "INSERT INTO voxtier.file SELECT (jsonb_populate_record(f, jsonb_build_object('path', %s::text, "
            "'key', %s::uuid))).* FROM voxtier.file AS f",
            ("/late.dcm", keys_of(TABLE, ["/late.dcm"])[0]),
        )
    thread.join()
    assert lakebase.retrieve_frame_range("/late.dcm", 0, user_groups=["others"]) is None
    assert lakebase.retrieve_frame_range("/late.dcm", 0, user_groups=["staff"]) is not None
    lakebase.execute_query("TRUNCATE voxtier.file, voxtier.claim, voxtier.access_rule CASCADE")
    with psycopg.connect(dsn) as change:  # a change that takes its time
        change.execute(lock_groups(TABLE, exclusive=True).encode())
        results = [TableResult("/late.dcm", row, None)]
        thread = threading.Thread(target=lakebase.store.upsert, args=(TABLE, results))
        thread.start()
        assert waits_for_lock(dsn)
        change.execute(
            "INSERT INTO voxtier.access_rule (source_id, path_prefix, group_name) "
            "SELECT source_id, '', 'staff' FROM voxtier.source"
        )
    thread.join()
    assert lakebase.retrieve_frame_range("/late.dcm", 0, user_groups=["others"]) is None
    assert lakebase.retrieve_frame_range("/late.dcm", 0, user_groups=["staff"]) is not None


def seen_by(lakebase: LakebaseUtils, path: str) -> set[str]:
    """Return which of four groups see a file, by each way to ask."""
    groups = ("staff", "ward", "readers", "others")
    seen = {g for g in groups if lakebase.retrieve_frame_range(path, 0, user_groups=[g]) is not None}
    instances = lakebase.retrieve_instance_paths_by_local_paths
    assert seen == {g for g in groups if instances([path], user_groups=[g])}
    assert seen == {g for g in groups if GroupStore(lakebase.store, [g]).may_read(TABLE, path, UID)}
    return seen


@pytest.mark.parametrize("claim", ["instance", "claim"])
def test_groups_of_claims_hold_whenever_the_file_is_indexed(lakebase: LakebaseUtils, claim: str) -> None:
    RIGHTS[claim](lakebase, "/first.dcm")
    for path in ("/first.dcm", "/second.dcm"):
        add_row(lakebase, path)
    assert seen_by(lakebase, "/second.dcm") == {"staff", "ward", "readers", "others"}
    RIGHTS[claim](lakebase, "/second.dcm")
    for path in ("/first.dcm", "/second.dcm"):
        assert seen_by(lakebase, path) == {"staff"}
        lakebase.insert_instance_paths_batch([{"local_path": path}], allowed_groups=["ward"])
        assert seen_by(lakebase, path) == {"staff", "ward"}
        lakebase.insert_frame_range(path, 0, 0, 9, 0)  # of no groups: as before
        assert seen_by(lakebase, path) == {"staff", "ward"}


@pytest.mark.parametrize("order", list(itertools.permutations(["claim", "index"])))
def test_claims_add_to_the_groups_of_rules_that_hold(lakebase: LakebaseUtils, order: tuple[str, ...]) -> None:
    lakebase.upsert_access_rule(TABLE, "readers")
    lakebase.upsert_access_rule(TABLE, "others", "conditional", "modality = 'CT'")
    lakebase.execute_query(  # the condition found another instance, which the claim names by mistake
        "INSERT INTO voxtier.rule_instance SELECT rule_id, '1.2.3' FROM voxtier.access_rule "
        "WHERE group_name = 'others'"
    )
    for step in order:
        if step == "index":
            add_row(lakebase, "/a.dcm")
        else:
            entry = {"local_path": "/a.dcm", "sop_instance_uid": "1.2.3"}
            lakebase.insert_instance_paths_batch([entry], allowed_groups=["ward"])
    assert seen_by(lakebase, "/a.dcm") == {"readers", "ward"}


@pytest.mark.parametrize("how", ["claim", "instance", "rule", "by hand"])
def test_a_file_that_is_away_for_a_while_comes_back_with_its_groups(
    lakebase: LakebaseUtils, how: str
) -> None:
    path = "/away.dcm"
    add_row(lakebase, path)
    add_row(lakebase, "/open.dcm")
    if how == "by hand":
        lakebase.execute_query("UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE path = %s", (path,))
    else:
        RIGHTS[how](lakebase, path)
    before = seen_by(lakebase, path)
    assert lakebase.store.prune(TABLE, is_gone=lambda _: True, force=True) == 2
    assert lakebase.retrieve_frame_range(path, 0) is None  # nothing else of it stays
    assert lakebase.retrieve_instance_paths_for_preload() == {}
    kept = lakebase.rows("SELECT path, allowed_groups FROM voxtier.claim", ())
    assert kept == ([] if how == "rule" else [(path, ["staff"])])
    assert not GroupStore(lakebase.store, ["others"]).may_read(TABLE, path, UID)
    add_row(lakebase, path)
    assert seen_by(lakebase, path) == before == {"staff"}
    lakebase.reset_allowed_groups()
    assert seen_by(lakebase, path) == {"staff", "ward", "readers", "others"}

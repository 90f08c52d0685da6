"""Groups, access rules and roles: who sees and writes which rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from frames.dicom.catalogue import TABLE, native, write_files
from voxtier.errors import ConfigError
from voxtier.frames import (
    LakebaseUtils,
)
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.grants import grant_script

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

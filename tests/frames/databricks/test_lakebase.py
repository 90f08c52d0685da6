"""The published Lakebase interface over a real PostgreSQL: shapes, claims, ranks, groups, rights, import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.dicom.catalogue import fragmented, native, without_pixels, write_files
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import (
    CachePriorityScorer,
    LakebaseUtils,
    compute_bot_from_local_path,
    read_frame,
    read_table,
)
from voxtier.frames.databricks.lakebase import ImportReport, import_dicom_frames
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.grants import grant_script

TABLE = "main.pixels.object_catalog"


@pytest.fixture
def lakebase(dsn: str) -> Iterator[LakebaseUtils]:
    with LakebaseUtils(dsn=dsn, uc_table_name=TABLE) as lakebase:
        yield lakebase


@pytest.fixture
def files(tmp_path: Path, lakebase: LakebaseUtils) -> dict[str, str]:
    """Four kinds of files, indexed, by their names."""
    contents = {
        "native": native(1, 3), "parts": fragmented(2), "report": without_pixels(3), "cut": native(4, 3)[:-20]
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
    paths = {name: str(tmp_path / f"{name}.dcm") for name in contents}
    FileIndexer(lakebase.store, source=TABLE).index_batch(paths.values())
    return paths


def test_a_file_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "parts.dcm"
    path.write_bytes(fragmented(1))
    found = compute_bot_from_local_path(f"dbfs:{path}")
    assert (found["num_frames"], found["transfer_syntax_uid"]) == (3, "1.2.840.10008.1.2.4.50")
    assert [frame["frame_number"] for frame in found["frames"]] == [0, 1, 2]
    assert [frame.get("fragment_count", 1) for frame in found["frames"]] == [2, 1, 3]
    single = found["frames"][1]
    content = path.read_bytes()
    assert content[single["start_pos"] : single["end_pos"] + 1] == read_frame(path, read_table(path), 1)
    assert content[single["pixel_data_pos"] :][:4] == b"\xe0\x7f\x10\x00"
    (tmp_path / "report.dcm").write_bytes(without_pixels(1))
    with pytest.raises(ValueError, match="status no_pixels"):
        compute_bot_from_local_path(str(tmp_path / "report.dcm"))
    with pytest.raises(OSError, match="io_error"):
        compute_bot_from_local_path(str(tmp_path / "missing.dcm"))


def test_frames_that_were_indexed(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    path, content = files["native"], Path(files["native"]).read_bytes()
    frame = lakebase.retrieve_frame_range(path, 1)
    assert frame is not None
    assert set(frame) == {"start_pos", "end_pos", "pixel_data_pos"}
    assert content[frame["start_pos"] : frame["end_pos"] + 1] == read_frame(path, read_table(path), 1)
    assert lakebase.retrieve_frame_range(path, 3) is None
    assert lakebase.retrieve_frame_range(path, -1) is None
    every = lakebase.retrieve_all_frame_ranges(f"dbfs:{path}")
    syntax = {"transfer_syntax_uid": "1.2.840.10008.1.2.1"}
    assert every == [row | syntax for row in compute_bot_from_local_path(path)["frames"]]
    assert lakebase.retrieve_max_frame_range(path, 1) == {
        "max_frame_idx": 1,
        "max_start_pos": frame["start_pos"],
    }
    assert lakebase.retrieve_max_frame_range(path, [0, 7]) == {
        "max_frame_idx": 2, "max_start_pos": frame["start_pos"] + 16
    }  # fmt: skip
    many = lakebase.retrieve_frame_ranges_batch([*files.values(), "/no/such.dcm"])
    assert {name: len(many.get(path, [])) for name, path in files.items()} == {
        "native": 3, "parts": 3, "report": 0, "cut": 1
    }  # fmt: skip
    assert lakebase.retrieve_all_frame_ranges("/no/such.dcm") is None
    assert lakebase.retrieve_frame_range(path, 0, "main.pixels.other") is None
    assert lakebase.retrieve_frame_range(path, 0, table="other_frames") is None


def test_the_view_and_the_methods_agree(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    assert lakebase.create_frames_view() == "pixels.dicom_frames"
    rows = lakebase.execute_and_fetch_query(
        "SELECT filename, frame, start_pos, end_pos, pixel_data_pos FROM pixels.dicom_frames ORDER BY 1, 2"
    )
    expected = [
        (path, *(row[name] for name in ("frame_number", "start_pos", "end_pos", "pixel_data_pos")))
        for path, found in sorted(lakebase.retrieve_frame_ranges_batch(list(files.values())).items())
        for row in found
    ]
    assert rows == expected
    lakebase.execute_query("CREATE TABLE pixels.taken (x int)")
    with pytest.raises(BackendError, match="taken"):
        lakebase.create_frames_view(table="taken")


def test_frames_that_somebody_inserts(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    name = '/Volumes/it\'s/a "slide"; --.dcm'
    lakebase.insert_frame_ranges(name, [])
    assert lakebase.retrieve_all_frame_ranges(name) is None
    big = 2**31 + 16
    lakebase.insert_frame_range(name, 4, big, big + 99, big - 20)
    assert lakebase.retrieve_frame_range(name, 4) == {
        "start_pos": big, "end_pos": big + 99, "pixel_data_pos": big - 20
    }  # fmt: skip
    assert lakebase.retrieve_all_frame_ranges(name) == [
        {"frame_number": 4, "start_pos": big, "end_pos": big + 99, "pixel_data_pos": big - 20}
    ]
    rows = [
        {"frame_number": number, "start_pos": 100 * number, "end_pos": 100 * number + 99, "pixel_data_pos": 1}
        for number in (0, 1, 4, 4)
    ]
    for _ in range(2):
        lakebase.insert_frame_ranges(name, rows, TABLE, "1.2.3")
    found = lakebase.retrieve_all_frame_ranges(name)
    assert found == [row | {"transfer_syntax_uid": "1.2.3"} for row in rows[:3]]
    assert lakebase.retrieve_max_frame_range(name, 3) == {"max_frame_idx": 1, "max_start_pos": 100}
    assert lakebase.touch_frame_ranges(name) == 1
    view = lakebase.execute_and_fetch_query(
        "SELECT frame, verified, access_count FROM voxtier.dicom_frames ORDER BY frame"
    )
    assert view == [(0, "none", 1), (1, "none", 1), (4, "none", 1)]


def test_what_was_read_comes_before_what_was_said(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, 1)
    lakebase.insert_frame_range(path, 9, 0, 10, 0)
    assert lakebase.retrieve_frame_range(path, 9) is not None
    FileIndexer(lakebase.store, source=TABLE).index_batch([path])
    assert lakebase.retrieve_frame_range(path, 9) is None
    assert len(lakebase.retrieve_all_frame_ranges(path) or []) == 1
    assert lakebase.execute_and_fetch_query("SELECT frame, verified FROM voxtier.dicom_frames") == [
        (0, "all")
    ]
    lakebase.store.delete(TABLE, [path])
    assert lakebase.retrieve_frame_range(path, 9) is None  # not the old claim again


@pytest.mark.parametrize(
    "row",
    [
        {"frame_number": -1, "start_pos": 0, "end_pos": 1, "pixel_data_pos": 0},
        {"frame_number": 0, "start_pos": 10, "end_pos": 8, "pixel_data_pos": 0},
        {"frame_number": 0, "start_pos": -1, "end_pos": 8, "pixel_data_pos": 0},
        {"frame_number": 0, "start_pos": 0, "end_pos": 2**63, "pixel_data_pos": 0},
        {"frame_number": 0, "start_pos": 0.5, "end_pos": 2, "pixel_data_pos": 0},
        {"frame_number": 2**31, "start_pos": 0, "end_pos": 2, "pixel_data_pos": 0},
        {"start_pos": 0, "end_pos": 2, "pixel_data_pos": 0},
    ],
)
def test_impossible_rows_are_refused_whole(lakebase: LakebaseUtils, row: dict[str, Any]) -> None:
    good = {"frame_number": 0, "start_pos": 0, "end_pos": 7, "pixel_data_pos": 0}
    with pytest.raises(ConfigError, match=r"frame_ranges\[1\]"):
        lakebase.insert_frame_ranges("x.dcm", [good, row])
    assert lakebase.retrieve_all_frame_ranges("x.dcm") is None


def test_touches_write_one_row_a_file_whatever_its_frames(
    lakebase: LakebaseUtils, files: dict[str, str]
) -> None:
    assert lakebase.touch_frame_ranges(files["native"]) == 1
    assert lakebase.touch_frame_ranges_batch([files["native"], files["parts"], "/no/such.dcm"]) == 2
    counts = {row["filename"]: row["access_count"] for row in lakebase.get_preload_priority_list()}
    assert counts == {files["native"]: 2, files["parts"]: 1, files["cut"]: 0}


def test_the_priority_list_is_the_scorers(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    paths = write_files(tmp_path, 30)
    FileIndexer(lakebase.store, source=TABLE).index_batch(paths)
    now = datetime.now(UTC)
    for number, path in enumerate(paths):
        age = timedelta(hours=(number * 7919) % 90)
        lakebase.execute_query(
            "UPDATE voxtier.file SET inserted_at = %s WHERE path = %s",
            (now - timedelta(hours=number % 4 * 50), path),
        )
        if number % 3:
            lakebase.store.touch(
                [
                    lakebase.execute_and_fetch_query("SELECT key FROM voxtier.file WHERE path = %s", (path,))[
                        0
                    ][0].bytes
                ],
                [number % 5 + 1],
                [now - age],
            )
    scorer = CachePriorityScorer(lakebase)
    before = datetime.now(UTC)
    listed = scorer.get_preload_list(TABLE)
    after = datetime.now(UTC)

    def score(row: dict[str, Any], at: datetime) -> float:
        return scorer.score(row["last_used_at"], row["inserted_at"], row["access_count"], at)

    again = sorted((-score(row, after), row["filename"]) for row in listed)
    assert [row["filename"] for row in listed] == [name for _, name in again]
    for row in listed:  # a score falls with time: it is that of a moment in between
        assert score(row, after) * (1 - 1e-9) <= row["priority_score"] <= score(row, before) * (1 + 1e-9)
    assert {row["filename"] for row in listed} == set(paths)
    best = scorer.get_preload_list(TABLE, 7)
    assert best[0].keys() == {
        "filename", "frame_count", "transfer_syntax_uid", "last_used_at", "inserted_at", "access_count",
        "priority_score", "frames",
    }  # fmt: skip
    assert [row["filename"] for row in scorer.get_preload_list(TABLE, 7)] == [
        row["filename"] for row in listed[:7]
    ]
    for row in listed[:3]:
        assert row["frames"] == compute_bot_from_local_path(row["filename"])["frames"]
        assert row["frame_count"] == len(row["frames"])
    assert lakebase.get_preload_priority_list("main.pixels.nothing") == []
    assert lakebase.get_preload_priority_list(limit=0) == []


def test_paths_of_instances(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    elsewhere = {
        "local_path": "/archive/7.dcm", "study_instance_uid": "2.25.2", "series_instance_uid": "2.25.3.0",
        "sop_instance_uid": "2.25.1.7", "num_frames": 12,
    }  # fmt: skip
    known = {"local_path": files["native"], "sop_instance_uid": "9.9", "num_frames": 99}
    for _ in range(2):
        assert lakebase.insert_instance_paths_batch([elsewhere, known]) == 2
    assert lakebase.insert_instance_paths_batch([]) == 0

    assert lakebase.retrieve_instance_path("2.25.1.7") == elsewhere
    assert lakebase.retrieve_instance_path("2.25.1.7", "2.25.2", "2.25.3.0") == elsewhere
    assert lakebase.retrieve_instance_path("2.25.1.7", "2.25.9") is None
    native_row = lakebase.retrieve_instance_path("2.25.1.1")
    assert native_row == {
        "local_path": files["native"], "study_instance_uid": "2.25.2", "series_instance_uid": "2.25.3.0",
        "sop_instance_uid": "2.25.1.1", "num_frames": 3,
    }  # fmt: skip
    assert lakebase.retrieve_instance_path("9.9") is None  # the file itself says otherwise
    series = lakebase.retrieve_instance_paths_by_series("2.25.3.0")
    assert [row["local_path"] for row in series] == sorted(["/archive/7.dcm", *files.values()])
    assert lakebase.retrieve_instance_paths_by_series("2.25.3.0", "no such study") == []
    by_path = lakebase.retrieve_instance_paths_by_local_paths(["/archive/7.dcm", files["native"], "/none"])
    assert by_path == {"/archive/7.dcm": elsewhere, files["native"]: native_row}
    lakebase.touch_frame_ranges(files["parts"])
    preload = lakebase.retrieve_instance_paths_for_preload(limit=2)
    assert [row["local_path"] for row in preload] == [files["parts"], "/archive/7.dcm"]
    with pytest.raises(ConfigError, match=r"instances\[0\] has no local_path"):
        lakebase.insert_instance_paths_batch([{"sop_instance_uid": "1"}])
    with pytest.raises(ConfigError, match="NUL"):
        lakebase.insert_instance_paths_batch([{"local_path": "a\0b"}])


def test_metrics(lakebase: LakebaseUtils) -> None:
    for number in range(3):
        lakebase.insert_metrics("gateway", {"hits": number})
    lakebase.insert_metrics("builder", {"files": {"a": [1, 2]}})
    assert [row["metrics"] for row in lakebase.get_latest_metrics("gateway", 2)] == [{"hits": 2}, {"hits": 1}]
    latest = lakebase.get_latest_metrics()
    assert (latest[0]["source"], latest[0]["metrics"], len(latest)) == (
        "builder",
        {"files": {"a": [1, 2]}},
        4,
    )
    with pytest.raises(ValueError, match="JSON"):
        lakebase.insert_metrics("gateway", {"rate": float("nan")})


@pytest.mark.parametrize(
    "name",
    [
        'x"; DROP TABLE voxtier.file; --',
        "a b",
        "",
        "a..b",
        "a.b.c.d",
        "1a",
        "ü.b.c",
        "a.b." + "x" * 64,
        "a.b.c\n",
        "a.b.c;",
    ],
)
def test_names_are_identifiers(lakebase: LakebaseUtils, name: str) -> None:
    if name:
        with pytest.raises(ConfigError, match=r"identifier|catalog\.schema\.table"):
            lakebase.retrieve_frame_range("x.dcm", 0, name)
    with pytest.raises(ConfigError, match=r"identifier|catalog"):
        lakebase.create_frames_view(TABLE, name)
    with pytest.raises(ConfigError, match=r"identifier|catalog"):
        lakebase.touch_frame_ranges("x.dcm", table=name)


def test_a_catalogue_must_be_named(dsn: str) -> None:
    with LakebaseUtils(dsn=dsn) as lakebase, pytest.raises(ConfigError, match="name the catalogue"):
        lakebase.retrieve_frame_range("x.dcm", 0)
    with pytest.raises(ConfigError, match="max_connections=0"):
        LakebaseUtils(dsn=dsn, min_connections=0, max_connections=0)


ODD_GROUPS = ["radiology, thorax", "{a}", 'quote"d', "O'Brien", "NULL", "back\\slash", "röntgen"]


def test_groups_of_the_user_decide_even_for_the_owner(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    path = files["native"]
    for group in ODD_GROUPS:
        assert lakebase.upsert_access_rule(TABLE, [group, "everywhere"], path) == 1
        assert lakebase.retrieve_frame_range(path, 0, user_groups=[group]) is not None
        assert (
            lakebase.retrieve_frame_range(path, 0, user_groups=group.split(",") if "," in group else ["x"])
            is None
        )
        assert lakebase.retrieve_frame_range(path, 0, user_groups=[]) is None
        assert lakebase.retrieve_frame_range(path, 0) is not None  # the owner, for nobody in particular
        assert lakebase.touch_frame_ranges(path, user_groups=["x"]) == 0
        assert lakebase.touch_frame_ranges(path, user_groups=[group]) == 1
        assert lakebase.retrieve_instance_path("2.25.1.1", user_groups=["x"]) is None
        lakebase.upsert_access_rule(TABLE, ["nobody"], path)
    ranked = lakebase.get_preload_priority_list(user_groups=["x"])
    assert path not in {row["filename"] for row in ranked}
    assert len(ranked) == 2
    with pytest.raises(ConfigError, match="hide the rows from everyone"):
        lakebase.upsert_access_rule(TABLE, [], path)
    with pytest.raises(ConfigError, match="list of names"):
        lakebase.retrieve_frame_range(path, 0, user_groups="radiology")


def test_rules_hold_for_files_that_come_later(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    early = write_files(tmp_path / "trial", 2)
    indexer = FileIndexer(lakebase.store, source=TABLE)
    indexer.index_batch(early)
    assert lakebase.upsert_access_rule(TABLE, ["staff"]) == 2
    assert lakebase.upsert_access_rule(TABLE, ["trial team"], str(tmp_path / "trial")) == 2
    late = write_files(tmp_path / "trial", 1, first=2) + write_files(tmp_path / "ward", 1, first=3)
    indexer.index_batch(late)
    assert lakebase.get_access_rules() == [
        {"path_prefix": "", "allowed_groups": ["staff"]},
        {"path_prefix": str(tmp_path / "trial"), "allowed_groups": ["trial team"]},
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


def test_three_roles(lakebase: LakebaseUtils, roles: dict[str, str], tmp_path: Path) -> None:
    paths = write_files(tmp_path, 3)
    lakebase.upsert_access_rule(TABLE, ["staff, day"], paths[0])
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


def test_writing_under_the_policy(lakebase: LakebaseUtils, roles: dict[str, str], dsn: str) -> None:
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


ORIGIN = """
CREATE SCHEMA pixels;
CREATE TABLE pixels.dicom_frames (
    filename text, frame int, start_pos bigint, end_pos bigint, pixel_data_pos int, uc_table_name text,
    transfer_syntax_uid text, inserted_at timestamp DEFAULT now(), last_used_at timestamp,
    access_count int DEFAULT 0,
    allowed_groups text[] DEFAULT '{}', PRIMARY KEY (filename, frame, uc_table_name));
"""


def test_import_of_a_table_with_a_row_per_frame(lakebase: LakebaseUtils, dsn: str, tmp_path: Path) -> None:
    right, wrong, gone, text = (str(tmp_path / f"{name}.dcm") for name in ("right", "wrong", "gone", "text"))
    Path(right).write_bytes(native(1, 3))
    Path(wrong).write_bytes(fragmented(2))
    Path(text).write_bytes(b"not an image" * 40)
    rows = [
        (right, row["frame_number"], row["start_pos"], row["end_pos"])
        for row in compute_bot_from_local_path(right)["frames"]
    ]
    rows += [(wrong, frame, 100 + frame, 200 + frame) for frame in range(3)]
    rows += [(f"dbfs:{gone}", frame, 1000 * frame, 1000 * frame + 999) for frame in (0, 2)]
    rows += [(text, 0, 0, 9), ("a" * 3000, 0, 0, 9)]
    used = datetime(2025, 5, 1, tzinfo=UTC)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ORIGIN)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO pixels.dicom_frames (filename, frame, start_pos, end_pos, pixel_data_pos, "
                "uc_table_name, inserted_at, last_used_at, access_count) "
                "VALUES (%s, %s, %s, %s, 7, %s, '2024-01-01', %s, 3)",
                [(*row, TABLE, used) for row in rows],
            )
        connection.execute(
            "UPDATE pixels.dicom_frames SET allowed_groups = %s WHERE filename = %s", (["a,b", "{c}"], right)
        )
    for _ in range(2):  # again does no harm
        *_, report = import_dicom_frames(lakebase, "pixels.dicom_frames", batch_size=2)
        assert report == ImportReport(files=5, verified=2, differing=1, unverified=1, refused=2)
    assert lakebase.retrieve_all_frame_ranges(right) == [
        row | {"transfer_syntax_uid": "1.2.840.10008.1.2.1"}
        for row in compute_bot_from_local_path(right)["frames"]
    ]
    assert [row.get("fragment_count", 1) for row in lakebase.retrieve_all_frame_ranges(wrong) or []] == [
        2,
        1,
        3,
    ]
    assert [row["start_pos"] for row in lakebase.retrieve_all_frame_ranges(gone) or []] == [0, 2000]
    assert lakebase.retrieve_all_frame_ranges(text) is None
    assert lakebase.retrieve_frame_range(right, 0, user_groups=["{c}"]) is not None
    assert lakebase.retrieve_frame_range(right, 0, user_groups=["a"]) is None
    assert lakebase.retrieve_frame_range(wrong, 0, user_groups=[]) is not None
    by_name = {row["filename"]: row for row in lakebase.get_preload_priority_list()}
    assert (by_name[right]["access_count"], by_name[right]["last_used_at"]) == (3, used)
    assert by_name[right]["inserted_at"].year == 2024
    verified = dict(
        lakebase.execute_and_fetch_query("SELECT DISTINCT filename, verified FROM voxtier.dicom_frames")
    )
    assert verified == {right: "all", wrong: "all", gone: "none"}
    Path(gone).write_bytes(native(3, 5))  # the file turns up: the next run of the index heals it
    FileIndexer(lakebase.store, source=TABLE).index_batch([gone])
    assert len(lakebase.retrieve_all_frame_ranges(gone) or []) == 5


def test_import_says_what_is_missing(lakebase: LakebaseUtils) -> None:
    with pytest.raises(ConfigError, match="there is no such table"):
        list(import_dicom_frames(lakebase, "pixels.nothing"))
    lakebase.execute_query("CREATE TABLE half (filename text, frame int)")
    with pytest.raises(ConfigError, match="no column start_pos, end_pos"):
        list(import_dicom_frames(lakebase, "half"))
    lakebase.execute_query("CREATE TABLE bare (filename text, frame int, start_pos bigint, end_pos bigint)")
    with pytest.raises(ConfigError, match="name the source"):
        list(import_dicom_frames(lakebase, "bare"))
    lakebase.execute_query("INSERT INTO bare VALUES ('/gone.dcm', 0, 5, 9)")
    *_, report = import_dicom_frames(lakebase, "bare", default_source=TABLE)
    assert report == ImportReport(files=1, unverified=1)

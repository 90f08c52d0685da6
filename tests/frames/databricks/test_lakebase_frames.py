"""The published Lakebase interface over a real PostgreSQL: ranges, claims, ranks, instances, metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frames.dicom.catalogue import TABLE, fragmented, without_pixels, write_files
from voxtier.errors import BackendError, ConfigError
from voxtier.frames import (
    CachePriorityScorer,
    LakebaseUtils,
    compute_bot_from_local_path,
    read_frame,
    read_table,
)
from voxtier.frames.indexing.run import FileIndexer


def test_ranges_of_a_file_without_an_index(tmp_path: Path) -> None:
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


def test_ranges_of_indexed_files_are_those_of_their_frames(
    lakebase: LakebaseUtils, files: dict[str, str]
) -> None:
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


def test_an_iterator_gives_what_a_list_does(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    """It is checked first, and gone through only once."""
    paths = list(files.values())
    found = lakebase.retrieve_frame_ranges_batch(paths)
    assert found
    assert lakebase.retrieve_frame_ranges_batch(iter(paths)) == found  # type: ignore[arg-type]
    groups = ["staff"]
    ranked = lakebase.get_preload_priority_list(user_groups=groups)
    assert ranked
    again = lakebase.get_preload_priority_list(user_groups=iter(groups))  # type: ignore[arg-type]
    assert [row["filename"] for row in again] == [row["filename"] for row in ranked]
    with pytest.raises(ConfigError, match="no name of a group"):
        lakebase.insert_frame_range("/x.dcm", 0, 0, 9, 0, allowed_groups=iter(["\0"]))  # type: ignore[arg-type]


def test_the_view_and_the_methods_give_equal_ranges(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
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


def test_a_view_is_not_taken_from_another_source(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    """Schemas of two catalogues may have one name, and a view of a database has no catalogue."""
    for _ in range(2):  # that of the same source is created again
        assert lakebase.create_frames_view(TABLE) == "pixels.dicom_frames"
    for other in (f"dev.{TABLE[5:]}", f"{TABLE}2", TABLE[:-1]):
        with pytest.raises(BackendError, match=r"pixels\.dicom_frames shows another source"):
            lakebase.create_frames_view(other)
    query = "SELECT DISTINCT uc_table_name FROM pixels.dicom_frames"
    assert lakebase.rows(query, ()) == [(TABLE,)]
    assert lakebase.create_frames_view("dev.pixels.catalog", "dev_frames") == "pixels.dev_frames"
    lakebase.execute_query("CREATE VIEW pixels.own AS SELECT 1 AS x")
    with pytest.raises(BackendError, match="another source"):
        lakebase.create_frames_view(table="own")


def test_a_source_is_meant_in_any_case(lakebase: LakebaseUtils, files: dict[str, str]) -> None:
    path, odd = files["native"], "Main.`PIXELS`.Object_Catalog"
    assert lakebase.upsert_access_rule(odd, "staff") == 4
    assert lakebase.store.sources() == [TABLE]
    for name in (TABLE, odd):
        assert lakebase.retrieve_frame_range(path, 0, name, user_groups=["others"]) is None
        assert lakebase.retrieve_frame_range(path, 0, name, user_groups=["staff"]) is not None
    lakebase.insert_frame_range("/a.dcm", 0, 0, 9, 0, "Dev.Pixels.Catalog")  # new: as it is written
    assert lakebase.store.sources() == ["Dev.Pixels.Catalog", TABLE]
    assert lakebase.retrieve_frame_range("/a.dcm", 0, "dev.pixels.catalog") is not None
    lakebase.insert_frame_range("/b.dcm", 0, 0, 9, 0, "dev.pixels.catalog", table="Other")
    assert lakebase.retrieve_frame_range("/b.dcm", 0, "Dev.pixels.catalog", table="other") is not None
    FileIndexer(lakebase.store, source="dev.pixels.catalog").index_batch([path])  # by its exact name
    for name in ("Dev.Pixels.Catalog", "dev.pixels.catalog"):
        assert lakebase.get_access_rules(name) == []
    with pytest.raises(ConfigError, match="several sources"):
        lakebase.get_access_rules("DEV.pixels.catalog")


def test_inserted_ranges_come_back_until_they_are_replaced(lakebase: LakebaseUtils, tmp_path: Path) -> None:
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


def test_an_indexed_file_hides_what_was_inserted_for_it(lakebase: LakebaseUtils, tmp_path: Path) -> None:
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


def test_what_was_inserted_is_hidden_from_those_too_who_may_not_see_what_was_read(
    lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    """A claim names another instance, which its group may see, than the file holds."""
    (path,), lost = write_files(tmp_path, 1), str(tmp_path / "lost.dcm")
    lakebase.upsert_access_rule(TABLE, "g", "conditional", "c")
    lakebase.sync_uc_row_filters(TABLE, SimpleNamespace(execute=lambda *_, **__: [("9.9.9",), ("9.9.8",)]))
    for name, uid in ((path, "9.9.9"), (lost, "9.9.8")):
        lakebase.insert_instance_paths_batch([{"local_path": name, "sop_instance_uid": uid}])
        lakebase.insert_frame_range(name, 0, 7, 9, 0)

    def known() -> dict[str, set[str]]:
        """Return what each method, and the view, tells the group of."""
        asking, found = ["g"], {}
        found["frames"] = set(lakebase.retrieve_frame_ranges_batch([path, lost], user_groups=asking))
        found["frame"] = {p for p in (path, lost) if lakebase.retrieve_frame_range(p, 0, user_groups=asking)}
        found["touched"] = {p for p in (path, lost) if lakebase.touch_frame_ranges(p, user_groups=asking)}
        by_uid = (
            lakebase.retrieve_instance_path(None, None, u, user_groups=asking) for u in ("9.9.9", "9.9.8")
        )
        found["instances"] = {each["path"] for each in by_uid if each}
        by_path = lakebase.retrieve_instance_paths_by_local_paths([path, lost], user_groups=asking)
        found["by path"] = {each["path"] for each in by_path.values()}
        view = lakebase.execute_and_fetch_query("SELECT filename FROM voxtier.dicom_frames", None, asking)
        return found | {"view": {name for (name,) in view}}

    assert all(names == {path, lost} for names in known().values())
    FileIndexer(lakebase.store, source=TABLE).index_batch([path, lost])
    assert all(names == {lost} for names in known().values()), known()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frame_number": -1}, "frame_number must .* got -1"),
        ({"frame_number": 2**31}, "frame_number must .* got 2147483648"),
        ({"frame_number": None}, "frame_number must .* got None"),
        ({"start_pos": 10, "end_pos": 8}, r"start_pos 10 and end_pos 8: use start_pos <= end_pos \+ 1"),
        ({"start_pos": -1}, "start_pos must .* got -1"),
        ({"start_pos": 0.5}, r"start_pos must .* got 0\.5"),
        ({"start_pos": True}, "start_pos must .* got True"),
        ({"end_pos": 2**63 - 1}, "end_pos must .* got 9223372036854775807"),
        ({"end_pos": -2}, "end_pos must .* got -2"),
        ({"pixel_data_pos": -1}, "pixel_data_pos must .* got -1"),
        ({"pixel_data_pos": "x"}, "pixel_data_pos must .* got 'x'"),
        ({"pixel_data_pos": 2**63}, "pixel_data_pos must .* got 9223372036854775808"),
    ],
)
def test_a_batch_with_an_impossible_range_is_refused_as_a_whole(
    lakebase: LakebaseUtils, changes: dict[str, Any], named: str
) -> None:
    good = {"frame_number": 0, "start_pos": 0, "end_pos": 7, "pixel_data_pos": 0}
    with pytest.raises(ConfigError, match=rf"^frame_ranges\[1\]: {named}"):
        lakebase.insert_frame_ranges("x.dcm", [good, good | changes])
    assert lakebase.retrieve_all_frame_ranges("x.dcm") is None


def test_touches_write_one_row_a_file_whatever_its_frames(
    lakebase: LakebaseUtils, files: dict[str, str]
) -> None:
    assert lakebase.touch_frame_ranges(files["native"]) == 1
    assert lakebase.touch_frame_ranges_batch([files["native"], files["parts"], "/no/such.dcm"]) == 2
    counts = {row["filename"]: row["access_count"] for row in lakebase.get_preload_priority_list()}
    assert counts == {files["native"]: 2, files["parts"]: 1, files["cut"]: 0}


def test_the_priority_list_follows_the_scorer(lakebase: LakebaseUtils, tmp_path: Path) -> None:
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
    assert len(lakebase.get_preload_priority_list(limit=np.int64(3))) == 3


def test_instances_are_found_by_uid_series_path_and_priority(
    lakebase: LakebaseUtils, files: dict[str, str]
) -> None:
    elsewhere = {
        "local_path": "/archive/7.dcm", "study_instance_uid": "2.25.2", "series_instance_uid": "2.25.3.0",
        "sop_instance_uid": "2.25.1.7", "num_frames": 12,
    }  # fmt: skip
    known = {"local_path": files["native"], "sop_instance_uid": "9.9", "num_frames": 99}
    for _ in range(2):
        assert lakebase.insert_instance_paths_batch([elsewhere, known]) == 2
    assert lakebase.insert_instance_paths_batch([]) == 0

    elsewhere["path"] = elsewhere["local_path"]
    study, series = "2.25.2", "2.25.3.0"
    assert lakebase.retrieve_instance_path(study, series, "2.25.1.7", TABLE) == elsewhere
    assert lakebase.retrieve_instance_path(None, None, "2.25.1.7") == elsewhere
    assert lakebase.retrieve_instance_path("2.25.9", series, "2.25.1.7") is None
    assert lakebase.retrieve_instance_path(study, series, "2.25.1.7", "main.pixels.other") is None
    assert lakebase.retrieve_instance_path(study, series, "2.25.1.7", table="others") is None
    native_row = lakebase.retrieve_instance_path(study, series, "2.25.1.1")
    assert native_row == {
        "path": files["native"], "local_path": files["native"], "study_instance_uid": study,
        "series_instance_uid": series, "sop_instance_uid": "2.25.1.1", "num_frames": 3,
    }  # fmt: skip
    assert lakebase.retrieve_instance_path(None, None, "9.9") is None  # the file itself says otherwise
    by_series = lakebase.retrieve_instance_paths_by_series(study, series, TABLE)
    assert by_series is not None
    assert [row["path"] for row in by_series.values()] == sorted(["/archive/7.dcm", *files.values()])
    assert all(row["sop_instance_uid"] == uid for uid, row in by_series.items())
    assert lakebase.retrieve_instance_paths_by_series("no such study", series) is None
    by_path = lakebase.retrieve_instance_paths_by_local_paths(
        ["/archive/7.dcm", f"dbfs:{files['native']}", "/none"], TABLE
    )
    assert by_path == {"2.25.1.7": elsewhere, "2.25.1.1": native_row}
    lakebase.touch_frame_ranges(files["parts"])
    preload = lakebase.retrieve_instance_paths_for_preload(TABLE, 2)
    assert [row["path"] for row in preload.values()] == [files["parts"], "/archive/7.dcm"]
    with pytest.raises(ConfigError, match=r"entries\[0\] has no local_path"):
        lakebase.insert_instance_paths_batch([{"sop_instance_uid": "1"}])
    with pytest.raises(ConfigError, match="NUL"):
        lakebase.insert_instance_paths_batch([{"local_path": "a\0b"}])


def test_rows_under_another_table_have_rules_of_their_own_and_are_never_left_open(
    lakebase: Any,
) -> None:
    other, first, later, asked = "frames_v2", "/c/1.dcm", "/c/2.dcm", []
    there, asking = {"table": other}, {"table": other, "user_groups": ["x"]}
    entries = [{"local_path": path, "sop_instance_uid": f"1.{path[3]}"} for path in (first, later)]
    frame = {"frame_number": 0, "start_pos": 0, "end_pos": 9}
    lakebase.insert_frame_range(first, 0, 0, 9, 0, **there)  # no rules yet: open, as everywhere
    lakebase.insert_instance_paths_batch(entries[:1], **there)
    lakebase.upsert_access_rule(TABLE, "staff")
    for insert in (
        lambda **groups: lakebase.insert_frame_range(later, 0, 0, 9, 0, **there, **groups),
        lambda **groups: lakebase.insert_frame_ranges(later, [frame], TABLE.upper(), **there, **groups),
        lambda **groups: lakebase.insert_instance_paths_batch(entries[1:], **there, **groups),
    ):
        with pytest.raises(ConfigError, match=rf"(?i){TABLE}.*table='{other}'.*allowed_groups.*access_rule"):
            insert()
        insert(allowed_groups=["ward"])
    assert lakebase.retrieve_frame_range(later, 0, **asking) is None
    assert lakebase.retrieve_frame_range(first, 0, **asking) is not None

    rule = ("x", "conditional", "c")
    assert lakebase.upsert_access_rule(TABLE, *rule, path_prefix=first, **there) == 1
    assert [rule["group_name"] for rule in lakebase.get_access_rules()] == ["staff"]
    assert [rule["group_name"] for rule in lakebase.get_access_rules(**there)] == ["x"]
    assert lakebase.retrieve_frame_range(first, 0, **asking) is None
    client = SimpleNamespace(execute=lambda query, **_: asked.append(query) or [("1.1",)])
    assert lakebase.sync_uc_row_filters(TABLE, client, **there)
    assert f"\nFROM `{TABLE.replace('.', '`.`')}`\n" in asked[0]
    assert lakebase.retrieve_frame_range(first, 0, **asking) is not None
    lakebase.reset_allowed_groups(**there)
    assert (lakebase.get_access_rules(**there), len(lakebase.get_access_rules())) == ([], 1)
    lakebase.insert_frame_range(later, 0, 0, 9, 0, **there)  # who reset its rules wants it open


def test_metrics_come_back_newest_first(lakebase: LakebaseUtils) -> None:
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
def test_names_that_are_no_identifiers_are_refused(lakebase: LakebaseUtils, name: str) -> None:
    if name:
        with pytest.raises(ConfigError, match=r"identifier|catalog\.schema\.table"):
            lakebase.retrieve_frame_range("x.dcm", 0, name)
    with pytest.raises(ConfigError, match=r"identifier|catalog"):
        lakebase.create_frames_view(TABLE, name)
    with pytest.raises(ConfigError, match=r"identifier|catalog"):
        lakebase.touch_frame_ranges("x.dcm", table=name)


def test_a_call_without_a_catalogue_is_refused(dsn: str) -> None:
    with LakebaseUtils(dsn=dsn) as lakebase, pytest.raises(ConfigError, match="name the catalogue"):
        lakebase.retrieve_frame_range("x.dcm", 0)
    with pytest.raises(ConfigError, match="max_connections=0"):
        LakebaseUtils(dsn=dsn, min_connections=0, max_connections=0)

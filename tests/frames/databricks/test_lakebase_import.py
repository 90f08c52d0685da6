"""The import of the predecessor's table, which has a row for each frame."""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.dicom.catalogue import TABLE, fragmented, native, write_files
from voxtier.errors import ConfigError
from voxtier.frames import (
    LakebaseUtils,
    compute_bot_from_local_path,
)
from voxtier.frames.databricks.lakebase import ImportReport, import_dicom_frames
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.groups import GroupStore
from voxtier.postgres.database import Database

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


def test_import_names_the_missing_table_column_or_source(lakebase: LakebaseUtils) -> None:
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


def import_table(lakebase: LakebaseUtils, *rows: dict[str, object], batch_size: int = 500) -> ImportReport:
    """Import rows, each of one frame with good positions unless it says otherwise."""
    lakebase.execute_query("DROP SCHEMA IF EXISTS pixels CASCADE")
    lakebase.execute_query(ORIGIN)
    lakebase.execute_query("ALTER TABLE pixels.dicom_frames DROP CONSTRAINT dicom_frames_pkey")
    for column in ("filename", "frame", "uc_table_name"):
        lakebase.execute_query(f"ALTER TABLE pixels.dicom_frames ALTER {column} DROP NOT NULL")
    lakebase.execute_query("ALTER TABLE pixels.dicom_frames ALTER pixel_data_pos TYPE bigint")
    good = {"frame": 0, "start_pos": 10, "end_pos": 19, "pixel_data_pos": 2, "uc_table_name": TABLE}
    for row in rows:
        values = good | row
        columns, places = ", ".join(values), ", ".join(["%s"] * len(values))
        lakebase.execute_query(
            f"INSERT INTO pixels.dicom_frames ({columns}) VALUES ({places})", list(values.values())
        )
    *_, report = import_dicom_frames(lakebase, "pixels.dicom_frames", batch_size=batch_size)
    return report


def seen_by(lakebase: LakebaseUtils, path: str) -> set[str]:
    """Return which of three groups may read a file, over HTTP as by look-up, and see its row."""
    groups = {"staff", "ward", "others"}
    seen = {g for g in groups if GroupStore(lakebase.store, [g]).may_read(TABLE, path, None)}
    rows = "SELECT 1 FROM voxtier.{} WHERE path = %s AND NOT voxtier.may_see(allowed_groups)"
    for table in ("file", "claim"):
        assert not {g for g in seen if lakebase.rows(rows.format(table), (path,), [g])}
    return seen


@pytest.mark.parametrize("state", ["read", "refused", "no image", "gone", "impossible"])
def test_imported_groups_hold_for_files_of_all_states(
    lakebase: LakebaseUtils, tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.dcm")
    contents = {"read": native(1), "refused": fragmented(2)[:-200], "no image": b"not an image" * 40}
    if state in contents:
        Path(path).write_bytes(contents[state])
    held = []
    index_batch = FileIndexer.index_batch

    def watched(*arguments: Any) -> Any:  # nor are they open to others for a moment
        reports = index_batch(*arguments)
        held.append(seen_by(lakebase, path))
        return reports

    monkeypatch.setattr(FileIndexer, "index_batch", watched)
    row = {"filename": path, "allowed_groups": ["staff"], "start_pos": 99 if state == "impossible" else 10}
    import_table(lakebase, row)
    assert seen_by(lakebase, path) == {"staff"}
    Path(path).write_bytes(native(1, 2))  # the file turns up
    FileIndexer(lakebase.store, source=TABLE).index_batch([path])
    assert seen_by(lakebase, path) == {"staff"}
    assert held == [{"staff"}] * 2
    assert lakebase.retrieve_frame_range(path, 0, user_groups=["others"]) is None
    assert lakebase.retrieve_frame_range(path, 0, user_groups=["staff"]) is not None


@pytest.mark.parametrize("batch_size", [1, 500])
@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([(0, None), (1, ["staff"])], {"staff"}),
        ([(0, ["staff", "ward"]), (1, ["ward"]), (2, [])], {"ward"}),
        ([(0, ["staff"]), (1, ["ward"])], set()),
        ([("", ["staff"]), ("dbfs:", None)], {"staff"}),
        ([("dbfs:", ["staff"]), ("", None)], {"staff"}),
        ([("", ["staff", "ward"]), ("file://", ["ward"]), ("/", None)], {"ward"}),
        ([("", ["staff"]), ("file:", ["ward"])], set()),
        ([(0, None), (1, []), ("/", None)], {"staff", "ward", "others"}),
        ([(0, [None, ""])], set()),
    ],
)
def test_a_file_is_for_the_groups_that_all_its_rows_allow(
    lakebase: LakebaseUtils, tmp_path: Path, rows: list[tuple[Any, Any]], seen: set[str], batch_size: int
) -> None:
    path = str(tmp_path / "a.dcm")
    Path(path).write_bytes(native(1, 3))
    given = [
        {"filename": f"{which if isinstance(which, str) else ''}{path}", "allowed_groups": groups}
        | {"frame": which if isinstance(which, int) else 0}
        for which, groups in rows
    ]
    for _ in range(2):
        import_table(lakebase, *given, batch_size=batch_size)
        assert seen_by(lakebase, path) == seen


def test_a_rule_in_force_decides_over_imported_groups(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    read, gone = str(tmp_path / "a.dcm"), str(tmp_path / "gone.dcm")
    Path(read).write_bytes(native(1))
    rows = [{"filename": path, "allowed_groups": ["ward"]} for path in (read, gone)]
    import_table(lakebase, *rows)
    assert seen_by(lakebase, read) == seen_by(lakebase, gone) == {"ward"}
    lakebase.upsert_access_rule(TABLE, "staff")
    import_table(lakebase, *rows)
    assert seen_by(lakebase, read) == seen_by(lakebase, gone) == {"staff"}


ODD_ROWS: list[dict[str, object]] = [
    {"start_pos": None}, {"end_pos": None}, {"frame": None}, {"frame": -1}, {"filename": None},
    {"pixel_data_pos": -1}, {"end_pos": 2**63 - 1}, {"start_pos": -1}, {"uc_table_name": "a b"},
    {"uc_table_name": ""}, {"filename": ""},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_ROWS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 500])
def test_an_odd_row_is_counted_and_the_rest_is_imported(
    lakebase: LakebaseUtils, odd: dict[str, object], batch_size: int
) -> None:
    rows = [{"filename": "/gone/a.dcm"}, {"filename": "/gone/b.dcm"} | odd, {"filename": "/gone/c.dcm"}]
    report = import_table(lakebase, *rows, batch_size=batch_size)
    assert report == ImportReport(files=3, unverified=2, refused=1)
    for path in ("/gone/a.dcm", "/gone/c.dcm"):
        assert lakebase.retrieve_frame_range(path, 0) is not None
    assert lakebase.store.sources() == [TABLE]


def test_each_report_keeps_its_numbers_and_each_source_its_indexer(
    lakebase: LakebaseUtils, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    init = FileIndexer.__init__

    def noted(indexer: FileIndexer, *arguments: Any, **named: Any) -> None:
        made.append(named["source"])
        init(indexer, *arguments, **named)

    monkeypatch.setattr(FileIndexer, "__init__", noted)
    files = [(f"/gone/{number}.dcm", name) for number in range(3) for name in (TABLE, "a.b.c")]
    import_table(lakebase, *({"filename": path, "uc_table_name": name} for path, name in files))
    assert sorted(made) == ["a.b.c", TABLE]
    reports = list(import_dicom_frames(lakebase, "pixels.dicom_frames", batch_size=1))
    assert reports == [ImportReport(files=files, unverified=files) for files in range(1, 7)]
    assert len(made) == 4


def test_times_that_python_does_not_know_are_left_out(lakebase: LakebaseUtils) -> None:
    odd = {"inserted_at": "infinity", "last_used_at": "4713-01-01 BC"}
    report = import_table(lakebase, {"filename": "/gone/a.dcm"} | odd)
    assert report == ImportReport(files=1, unverified=1)


def test_a_row_without_a_source_needs_one(lakebase: LakebaseUtils) -> None:
    with pytest.raises(ConfigError, match=r"/gone/b\.dcm.*no uc_table_name"):
        import_table(lakebase, {"filename": "/a.dcm"}, {"filename": "/gone/b.dcm", "uc_table_name": None})
    assert lakebase.store.sources() == []
    *_, report = import_dicom_frames(lakebase, "pixels.dicom_frames", default_source="other")
    assert report == ImportReport(files=2, unverified=2)
    assert lakebase.store.sources() == [TABLE, "other"]


@pytest.mark.parametrize(
    ("rights", "sees_all"),
    [
        ("GRANT SELECT ON pixels.dicom_frames TO {role}", False),
        ("ALTER TABLE pixels.dicom_frames OWNER TO {role}, FORCE ROW LEVEL SECURITY", False),
        ("GRANT CREATE ON SCHEMA pixels TO {role}", False),
        ("ALTER TABLE pixels.dicom_frames OWNER TO {role}", True),
        ("GRANT SELECT ON pixels.dicom_frames TO {role}; ALTER ROLE {role} BYPASSRLS", True),
    ],
)
def test_a_table_that_its_reader_sees_in_part_is_not_imported(
    lakebase: LakebaseUtils, dsn: str, rights: str, sees_all: bool
) -> None:
    import_table(lakebase)
    role, open_to_all = f"importer_{os.getpid()}", "CREATE POLICY open ON pixels.dicom_frames USING ({})"
    paths = [f"/gone/{number}.dcm" for number in range(3)]
    rows = "INSERT INTO pixels.dicom_frames VALUES (%s, 0, 1, 2, 0, %s, NULL, NULL, NULL, 0, %s)"
    reader = Database(psycopg.conninfo.make_conninfo(dsn, user=role))
    with psycopg.connect(dsn, autocommit=True) as connection:
        for path, groups in zip(paths, (None, ["ward"], ["staff"]), strict=True):
            connection.execute(rows, (path, TABLE, groups))
        connection.execute("ALTER TABLE pixels.dicom_frames ENABLE ROW LEVEL SECURITY")
        connection.execute(open_to_all.format("allowed_groups IS NULL").encode())
        connection.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA pixels TO {role}".encode())
        try:
            connection.execute(rights.format(role=role).encode())
            imported = import_dicom_frames(lakebase, "pixels.dicom_frames", from_database=reader)
            if sees_all:
                assert list(imported)[-1] == ImportReport(files=3, unverified=3)
            else:
                with pytest.raises(
                    ConfigError, match=r"pixels\.dicom_frames in .*: .*all its rows: .*BYPASS"
                ):
                    list(imported)
                assert lakebase.store.sources() == []
        finally:
            reader.close()
            connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def test_spellings_of_a_file_are_imported_alike_on_pages_of_any_size(
    lakebase: LakebaseUtils, tmp_path: Path
) -> None:
    gone, (read,) = str(tmp_path / "gone.dcm"), write_files(tmp_path, 1)
    day = [datetime(2025, 5, number, tzinfo=UTC) for number in range(1, 5)]
    names = [gone, gone, f"dbfs:{gone}", f"file://{gone}", f"/{gone}", read, f"dbfs:{read}"]
    frames, uses, used = [0, 1, 2, 1, 3, 0, 0], [90, 90, 1, 7, 0, 4, 2], [3, 3, 1, 0, 2, 0, 1]
    rows: list[dict[str, object]] = [
        {"filename": name, "frame": frame, "start_pos": 10 * place, "end_pos": 10 * place + 9}
        | {"access_count": count, "last_used_at": day[at], "inserted_at": day[at]}
        for place, (name, frame, count, at) in enumerate(zip(names, frames, uses, used, strict=True))
    ]
    rows.append({"filename": f"file:{gone}", "start_pos": -1})

    kept = (("file", read), ("claim", gone))

    def state(batch_size: int) -> list[Any]:
        for table in ("file", "claim", "file_stats"):
            lakebase.execute_query(f"DELETE FROM voxtier.{table}")
        report = import_table(lakebase, *rows, batch_size=batch_size)
        stats = "SELECT path, access_count, last_used_at, f.inserted_at FROM voxtier.{} AS f "
        stats += "JOIN voxtier.file_stats USING (key) WHERE path = %s"
        found = [lakebase.rows(stats.format(table), (path,)) for table, path in kept]
        return [report, lakebase.retrieve_all_frame_ranges(gone), *found]

    one, *others = [state(batch_size) for batch_size in (1, 2, 3, 500)]
    assert others == [one] * 3
    report, ranges, of_file, of_claim = one
    assert report == ImportReport(files=7, verified=2, differing=2, unverified=4, refused=1)
    # Pages are in the order of names: of a frame in two spellings the later stays.
    starts = {frame: 10 * place for _, frame, place in sorted(zip(names[:5], frames, itertools.count()))}
    assert {each["frame_number"]: each["start_pos"] for each in ranges} == starts
    assert of_file == [(read, 4, day[1], day[0])]
    assert of_claim == [(gone, 90, day[3], day[0])]

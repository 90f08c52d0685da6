"""The import of the predecessor's table, which has a row for each frame."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from frames.dicom.catalogue import TABLE, fragmented, native
from voxtier.errors import ConfigError
from voxtier.frames import (
    LakebaseUtils,
    compute_bot_from_local_path,
)
from voxtier.frames.databricks.lakebase import ImportReport, import_dicom_frames
from voxtier.frames.indexing.run import FileIndexer

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

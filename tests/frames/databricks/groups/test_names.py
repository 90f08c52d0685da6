"""A table of Unity Catalog has one source, in whatever case it is written: its rules hold for all of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from frames.databricks.groups.locks import waits_for_lock
from frames.dicom.catalogue import TABLE, write_files
from voxtier.errors import ConfigError
from voxtier.frames import LakebaseUtils
from voxtier.frames.databricks.lakebase import groups as group_methods
from voxtier.frames.databricks.lakebase import import_dicom_frames
from voxtier.frames.databricks.spark import BOTCacheBuilder
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store import statements

ODD = "Main.Pixels.Object_Catalog"


def import_row(lakebase: LakebaseUtils, path: str, *names: str, batch_size: int = 500) -> None:
    lakebase.execute_query(
        "CREATE TABLE IF NOT EXISTS public.origin "
        "(filename text, frame int, start_pos bigint, end_pos bigint, uc_table_name text)"
    )
    for number, name in enumerate(names):
        row = (path + str(number), name)
        lakebase.execute_query("INSERT INTO public.origin VALUES (%s, 0, 0, 9, %s)", row)
    *_, report = import_dicom_frames(lakebase, "public.origin", batch_size=batch_size)
    assert (report.files, report.unverified) == (len(names), len(names))


def index_by_spark(dsn: str, path: str) -> None:
    session: Any = None  # asked for nothing where there is a dsn
    [status] = BOTCacheBuilder(TABLE, dsn=dsn)._task(session).statuses([path])
    assert status["status"] == "cached"


def insert_instances(lakebase: LakebaseUtils, path: str, *names: str) -> None:
    entries = [
        {"local_path": path + str(number), "sop_instance_uid": str(number), "uc_table_name": name}
        for number, name in enumerate(names)
    ]
    assert lakebase.insert_instance_paths_batch(entries) == len(names)


WRITERS: dict[str, Callable[[LakebaseUtils, str, str], object]] = {
    "frames": lambda lake, _, path: lake.insert_frame_range(path, 0, 0, 9, 0),
    "instances": lambda lake, _, path: insert_instances(lake, path, TABLE),
    "rule": lambda lake, *_: lake.upsert_access_rule(TABLE, "team"),
    "row filter": lambda lake, *_: lake.sync_uc_row_filters(TABLE),
    "import": lambda lake, _, path: import_row(lake, path, TABLE),
    "spark": lambda _, dsn, path: index_by_spark(dsn, path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.usefixtures("_in_this_process")
def test_of_two_writers_at_once_the_later_one_takes_the_name_of_the_other(
    lakebase: LakebaseUtils, dsn: str, tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_methods, "row_filter_groups", lambda *_: ["team"])
    [path] = write_files(tmp_path, 1)
    lakebase.store.sources()  # the schema is there
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as pool:
        other.execute(statements.LOCK_NAME.encode(), {"name": ODD})
        other.execute(statements.ADD_SOURCE.encode(), {"name": ODD})
        written = pool.submit(WRITERS[writer], lakebase, dsn, path)
        assert waits_for_lock(dsn)
        other.commit()
        written.result()
    assert lakebase.store.sources() == [ODD]
    rows = "SELECT FROM voxtier.{} JOIN voxtier.source USING (source_id)"
    found = [table for table in ("file", "claim", "access_rule") if lakebase.rows(rows.format(table), ())]
    wanted = {"rule": "access_rule", "row filter": "access_rule", "spark": "file"}
    assert wanted.get(writer, "claim") in found


@pytest.mark.parametrize("batch_size", [500, 1])
def test_an_import_of_a_table_in_two_cases_is_of_one_source(lakebase: LakebaseUtils, batch_size: int) -> None:
    import_row(lakebase, "/Volumes/", ODD, TABLE, TABLE.upper(), batch_size=batch_size)
    assert lakebase.store.sources() == [ODD]
    assert lakebase.upsert_access_rule(TABLE, "team") == 3
    for name in (ODD, TABLE):
        asked = ["/Volumes/0", "/Volumes/1", "/Volumes/2"]
        assert len(lakebase.retrieve_frame_ranges_batch(asked, name, user_groups=["team"])) == 3
        assert lakebase.retrieve_frame_ranges_batch(asked, name, user_groups=["others"]) == {}


def test_instances_of_a_table_in_two_cases_are_of_one_source(lakebase: LakebaseUtils) -> None:
    insert_instances(lakebase, "/Volumes/", ODD, TABLE, TABLE.upper())
    assert lakebase.store.sources() == [ODD]
    assert lakebase.upsert_access_rule(TABLE, "team") == 3


def test_what_is_refused_adds_no_source(lakebase: LakebaseUtils) -> None:
    entry = {"local_path": "/a.dcm", "uc_table_name": ODD}
    for call in (
        lambda: lakebase.insert_instance_paths_batch([entry, {"local_path": ""}]),
        lambda: lakebase.insert_frame_range("/a.dcm", 0, 9, 0, 0),
        lambda: lakebase.upsert_access_rule(TABLE, "team", "some"),
    ):
        with pytest.raises(ConfigError):
            call()
    assert lakebase.store.sources() == []


def test_plain_sources_have_a_case(lakebase: LakebaseUtils, tmp_path: Path) -> None:
    """Those of `voxtier index --source`, which are no tables of the catalogue."""
    paths = write_files(tmp_path, 1)
    for name in ("Scanner", "scanner"):
        FileIndexer(lakebase.store, source=name).index_batch(paths)
    assert lakebase.store.sources() == ["Scanner", "scanner"]

"""The notebook's flow: a second run takes only new files, a killed run is finished by the next, exactly."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from frames.dicom.catalogue import TABLE, frames_of, native, without_pixels, write_files
from voxtier.frames import LakebaseUtils
from voxtier.frames.databricks.spark import BOTCacheBuilder
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.store import FrameStore

SCRIPT = Path(__file__).parents[3] / "examples" / "spark_ingest.py"


@pytest.fixture(scope="module")
def notebook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spark_ingest", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_run_of_the_notebook_takes_only_new_files(
    notebook: ModuleType, spark: Any, dsn: str, tmp_path: Path
) -> None:
    files, catalogue, results = tmp_path / "files", tmp_path / "catalogue", tmp_path / "results"
    paths = write_files(files, 6)
    (files / "report.dcm").write_bytes(without_pixels(90))
    (files / "broken.dcm").write_bytes(b"not an image" * 30)
    (files / "notes.txt").write_text("hello")
    (files / os.fsdecode(b"l\xe4t.dcm")).write_bytes(native(91))
    builder = BOTCacheBuilder(TABLE, dsn=dsn)

    def run(files: Path = files) -> int:
        added = notebook.add_to_catalogue(spark, files, catalogue)
        notebook.index_new_files(spark, builder, catalogue, results, tmp_path / "checkpoint")
        return int(added)

    (catalogue / "_temporary" / "0").mkdir(parents=True)  # of a run that was killed before it wrote a file
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 0
    with LakebaseUtils(dsn=dsn, uc_table_name=TABLE) as lakebase:
        assert notebook.report(spark, lakebase, TABLE, results)["summary"] == []
        assert run() == 10
        found = notebook.report(spark, lakebase, TABLE, results)
        assert found["summary"] == [
            {"status": "cached", "reason": None, "count": 6},
            {"status": "error", "reason": None, "count": 2},
            {"status": "skipped", "reason": "no_pixels", "count": 1},
        ]
        broken, unnamed = found["errors"]
        assert (broken["local_path"], unnamed["local_path"]) == (
            str(files / "broken.dcm"), str(files / "l\N{REPLACEMENT CHARACTER}t.dcm")
        )  # fmt: skip
        assert "not_dicom" in broken["error"]
        assert "not UTF-8" in unnamed["error"]
        lakebase.touch_frame_ranges(paths[4])
        assert run() == 0
        assert spark.read.parquet(str(results)).count() == 9
        new = write_files(files, 2, first=6)
        assert run() == 2
        rows = spark.read.parquet(str(results)).collect()
        assert sorted(row.local_path for row in rows if row.local_path in new) == new
        assert len(rows) == 11

        frame = notebook.preview(spark, lakebase, TABLE, limit=3)
        assert frame.schema["frames"].dataType.elementType["start_pos"].dataType.typeName() == "long"
        assert frame.schema["access_count"].dataType.typeName() == "long"
        best = frame.collect()
        assert best[0].filename == paths[4]
        assert (len(best), len(best[0].frames), best[0].access_count) == (3, frames_of(paths[4]), 1)


# Once there are rows, writers wait for whoever holds the lock: no stall lets the run end before it is killed.
HOLD_THE_SECOND_BATCH = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM voxtier.file) THEN PERFORM pg_advisory_xact_lock_shared(4711); END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER hold BEFORE INSERT ON voxtier.file FOR EACH STATEMENT EXECUTE FUNCTION hold();
"""


def test_a_run_killed_in_mid_batch_is_finished_by_the_next(
    notebook: ModuleType,
    spark: Any,
    dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first run dies with its JVM; the second runs the script in the session of the other tests."""
    paths = write_files(tmp_path / "files", 200)
    for start in range(0, len(paths), 100):  # two batches
        rows = [(start + i, path, "dcm") for i, path in enumerate(paths[start : start + 100])]
        frame = spark.createDataFrame(rows, notebook.CATALOGUE).coalesce(1)
        frame.write.mode("append").parquet(str(tmp_path / "catalogue"))
    arguments = ["--files", str(tmp_path / "files"), "--work", str(tmp_path), "--dsn", dsn]
    with FrameStore(dsn) as store:
        store.sources()
    with psycopg.connect(dsn, autocommit=True) as holding:
        holding.execute(HOLD_THE_SECOND_BATCH)
        holding.execute("SELECT pg_advisory_lock(4711)")
        with open(tmp_path / "said", "wb") as said_by_first:
            first = subprocess.Popen(
                [sys.executable, SCRIPT, *arguments],
                start_new_session=True,
                stdout=said_by_first,
                stderr=subprocess.STDOUT,
            )
        try:
            while rows_of(dsn) < 100:
                assert first.poll() is None, (tmp_path / "said").read_text()[-3000:]
                time.sleep(0.05)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
        assert rows_of(dsn) == 100

    monkeypatch.setattr(spark, "stop", lambda: None)
    assert notebook.main(arguments) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["added"] == 0
    assert (len(said["summary"]), said["errors"]) == (1 + (said["summary"][0]["count"] < len(paths)), [])
    rows = spark.read.parquet(str(tmp_path / "results")).collect()
    assert sorted(row.local_path for row in rows) == paths  # each path once
    assert {row.local_path: json.loads(row.bot_cache_status)["num_frames"] for row in rows} == {
        path: frames_of(path) for path in paths
    }
    with FrameStore(dsn) as store:
        FileIndexer(store, source="local").index_batch(paths)
        assert store.get_many(TABLE, paths) == store.get_many("local", paths)
        assert store.summary(TABLE).total == store.summary("local").total


def rows_of(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM voxtier.file").fetchone()
        return int(row[0]) if row else 0


def test_without_a_named_database_the_embedded_server_is_used(spark: Any, tmp_path: Path) -> None:
    paths = write_files(tmp_path / "files", 2)
    frame = spark.createDataFrame([(path,) for path in paths], "local_path string")
    rows = BOTCacheBuilder(TABLE).transform(frame).collect()
    assert {json.loads(row.bot_cache_status)["status"] for row in rows} == {"cached"}
    with LakebaseUtils(uc_table_name=TABLE) as lakebase:
        assert lakebase.store.database.is_embedded
        assert len(lakebase.retrieve_frame_ranges_batch(paths)) == 2

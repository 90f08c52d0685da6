"""The index job on Spark: statuses against the local run, isolation, secrets, streams, Spark Connect."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from pyspark import cloudpickle
from pyspark.errors import PythonException

from frames.dicom.catalogue import TABLE, fragmented, frames_of, native, without_pixels, write_files
from voxtier.errors import ConfigError
from voxtier.frames import LakebaseUtils
from voxtier.frames.databricks.spark import BOTCacheBuilder, local_session
from voxtier.frames.indexing.run import FileIndexer
from voxtier.frames.store.store import FrameStore


def statuses(builder: BOTCacheBuilder, spark: Any, paths: list[str | None]) -> dict[str | None, Any]:
    """What the builder says of each path; the input in two partitions."""
    frame = spark.createDataFrame([(path,) for path in paths], "local_path string").repartition(2)
    rows = builder.transform(frame).collect()
    assert sorted(row.local_path or "" for row in rows) == sorted(path or "" for path in paths)
    return {row.local_path: json.loads(row.bot_cache_status) for row in rows}


def test_each_kind_of_row_gets_its_status(
    spark: Any, dsn: str, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / 'it\'s a "slide" %s; -- ü – 像.DCM'
    odd.write_bytes(native(1, 2))
    contents = {
        "plain.dcm": native(2),
        "parts.dcm": fragmented(3),
        "report.dcm": without_pixels(4),
        "cut.dcm": native(5, 3)[:-20],
        "text.dcm": b"not an image at all, but long enough to be looked at" * 9,
        "empty.dcm": b"",
        "notes.txt": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    at = {name: str(tmp_path / name) for name in [*contents, "missing.dcm"]}
    paths = [str(odd), *at.values(), at["plain.dcm"], f"dbfs:{at['plain.dcm']}", None, "", "  "]
    (tmp_path / "relative.dcm").write_bytes(native(6, 2))
    paths.append("./relative.dcm")
    monkeypatch.chdir(tmp_path)  # not the working folder of the workers
    builder = BOTCacheBuilder(TABLE, dsn=dsn)

    found = statuses(builder, spark, paths)

    assert found[str(odd)] == {"status": "cached", "num_frames": 2}
    assert found[at["plain.dcm"]] in CACHED_OR_SKIPPED
    assert found[f"dbfs:{at['plain.dcm']}"] in CACHED_OR_SKIPPED
    assert found[at["parts.dcm"]] == {"status": "cached", "num_frames": 3}
    assert found[at["report.dcm"]] == {"status": "skipped", "reason": "no_pixels", "num_frames": 0}
    assert found[at["cut.dcm"]] == {"status": "partial", "num_frames": 3, "truncated_from": 1}
    assert found[at["notes.txt"]] == {"status": "skipped", "reason": "not_dcm"}
    assert found["./relative.dcm"] == {"status": "cached", "num_frames": 2}
    assert store.get(TABLE, str(tmp_path / "relative.dcm")) is not None
    for name in ("text.dcm", "empty.dcm", "missing.dcm"):
        assert found[at[name]]["status"] == "error"
        assert 0 < len(found[at[name]]["error"]) <= 500
    for nothing in (None, "", "  "):
        assert found[nothing] == {"status": "skipped", "reason": "empty_path"}

    # The local run over the same files is the oracle of the rows.
    FileIndexer(store, source="local").index_batch([str(odd), *list(at.values())[:-2], at["missing.dcm"]])
    for path in (str(odd), at["plain.dcm"], at["parts.dcm"], at["report.dcm"], at["cut.dcm"]):
        assert store.get(TABLE, path) == store.get("local", path)
        assert store.get(TABLE, path) is not None
    assert {error.path: error.kind for error in store.refused_files(TABLE)} == {
        error.path: error.kind for error in store.refused_files("local")
    }


# The same file may be met by two tasks at once: both tell the truth of their moment.
CACHED_OR_SKIPPED = [
    {"status": "cached", "num_frames": 1},
    {"status": "skipped", "reason": "already_cached", "num_frames": 1},
]


def test_a_second_run_takes_what_changed_and_what_failed(
    spark: Any, dsn: str, store: FrameStore, tmp_path: Path
) -> None:
    paths = write_files(tmp_path, 12)
    broken = Path(paths[3])
    content = broken.read_bytes()
    broken.write_bytes(b"")
    builder = BOTCacheBuilder(TABLE, dsn=dsn)
    first = statuses(builder, spark, paths)
    assert first.pop(str(broken))["status"] == "error"
    assert first == {path: {"status": "cached", "num_frames": frames_of(path)} for path in first}

    broken.write_bytes(content)
    Path(paths[5]).write_bytes(native(99, 7))
    before = versions(dsn)
    second = statuses(builder, spark, paths)

    assert second.pop(paths[3]) == {"status": "cached", "num_frames": frames_of(paths[3])}
    assert second.pop(paths[5]) == {"status": "cached", "num_frames": 7}
    assert second == {
        path: {"status": "skipped", "reason": "already_cached", "num_frames": frames_of(path)}
        for path in second
    }
    written = {path for path, version in versions(dsn).items() if version != before[path]}
    assert written == {paths[3], paths[5]}
    assert len(store.get(TABLE, paths[5])) == 7  # type: ignore[arg-type]

    third = statuses(BOTCacheBuilder(TABLE, dsn=dsn, skip_existing=False), spark, paths)
    assert {status["status"] for status in third.values()} == {"cached"}
    assert store.summary(TABLE).total.files == 12


def test_a_file_has_one_row_and_each_spelling_its_status(
    spark: Any, dsn: str, store: FrameStore, tmp_path: Path, lakebase: LakebaseUtils
) -> None:
    """A folder that ends in a slash, and "/" and a name: no row escapes the rule of the folder."""
    [path] = write_files(tmp_path / "secret", 1)
    lakebase.upsert_access_rule(TABLE, "readers")
    lakebase.upsert_access_rule(TABLE, "vip", path_prefix=f"{tmp_path}/secret/")
    name = Path(path).name
    spellings = [
        f"{tmp_path}//secret/{name}",
        f"/{path}",
        f"dbfs:{tmp_path}/./secret//../secret/{name}",
        f"dbfs:file://{path}",
    ]
    found = statuses(BOTCacheBuilder(TABLE, dsn=dsn), spark, [*spellings, path])
    assert found.keys() == {*spellings, path}
    assert all(status["num_frames"] == 1 for status in found.values())
    assert store.summary(TABLE).total.files == 1
    for each in [*spellings, path]:
        assert lakebase.retrieve_frame_range(each, 0, user_groups=["readers"]) is None
        assert lakebase.retrieve_frame_range(each, 0, user_groups=["vip"]) is not None


def versions(dsn: str) -> dict[str, tuple[str, str]]:
    """The version of each row: another one after any write."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT path, xmin::text, ctid::text FROM voxtier.file").fetchall()
    return {path: (xmin, ctid) for path, xmin, ctid in rows}


def test_other_columns_pass_and_partitions_follow_the_input(spark: Any, dsn: str, tmp_path: Path) -> None:
    paths = write_files(tmp_path, 6)
    frame = spark.createDataFrame(
        [(number, path, {"k": [number]}, "old") for number, path in enumerate(paths)],
        "id long, path string, nested map<string, array<int>>, status string",
    ).repartition(3)
    plain = BOTCacheBuilder(TABLE, dsn=dsn, inputCol="path", outputCol="status").transform(frame)
    assert plain.columns == ["id", "path", "nested", "status"]
    rows = sorted(plain.collect())
    assert [(row.id, row.path, row.nested) for row in rows] == [
        (number, path, {"k": [number]}) for number, path in enumerate(paths)
    ]
    assert all(json.loads(row.status)["status"] == "cached" for row in rows)
    assert plain.rdd.getNumPartitions() == 3
    spread = BOTCacheBuilder(TABLE, dsn=dsn, inputCol="path", partitions=2).transform(frame)
    assert spread.rdd.getNumPartitions() == 2


def test_the_column_of_extensions_filters_first_and_by_extensions_only(
    spark: Any, dsn: str, tmp_path: Path
) -> None:
    (path,) = write_files(tmp_path, 1)
    bare = tmp_path / "slide"
    bare.write_bytes(native(7))
    rows = [(path, "dcm"), (path, ".DCM"), (str(bare), "zip"), (str(bare), None)]
    frame = spark.createDataFrame(rows, "local_path string, Extension string").coalesce(1)
    found = BOTCacheBuilder(TABLE, dsn=dsn).transform(frame).collect()
    assert sorted(row.Extension for row in found) == [".DCM", "dcm"]
    everything = BOTCacheBuilder(TABLE, dsn=dsn, filter_extension=None).transform(frame).collect()
    assert len(everything) == 4
    assert {json.loads(row.bot_cache_status)["num_frames"] for row in everything} == {1}
    assert path.endswith("0.dcm")
    known = {"status": "skipped", "reason": "already_cached", "num_frames": 1}
    other = {"status": "skipped", "reason": "not_dcm"}
    of_an_end = BOTCacheBuilder(TABLE, dsn=dsn, filter_extension="0.dcm").transform(frame).collect()
    assert [json.loads(row.bot_cache_status) for row in of_an_end] == [known, known, other, other]


def test_names_of_columns_are_of_one_column_where_spark_says_so(spark: Any, dsn: str, tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, 1)
    frame = spark.createDataFrame([("old", 1, path)], "Bot_Cache_Status string, id long, Local_Path string")
    written = BOTCacheBuilder(TABLE, dsn=dsn).transform(frame)
    assert written.columns == ["id", "Local_Path", "bot_cache_status"]
    written.write.parquet(str(tmp_path / "results"))
    [row] = spark.read.parquet(str(tmp_path / "results")).collect()
    assert (row.id, row.Local_Path, json.loads(row.bot_cache_status)["status"]) == (1, path, "cached")
    with pytest.raises(ConfigError, match="there are 2 columns 'id'"):
        BOTCacheBuilder(TABLE, dsn=dsn, inputCol="id").transform(frame.withColumnRenamed("Local_Path", "ID"))

    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        with pytest.raises(ConfigError, match="there is no column 'local_path'"):
            BOTCacheBuilder(TABLE, dsn=dsn).transform(frame)
        kept = BOTCacheBuilder(TABLE, dsn=dsn, inputCol="Local_Path").transform(frame)
        assert kept.columns == ["Bot_Cache_Status", "id", "Local_Path", "bot_cache_status"]
    finally:
        spark.conf.unset("spark.sql.caseSensitive")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputCol": "path"}, "there is no column 'path': set inputCol to one of local_path, size"),
        ({"inputCol": "size"}, "the column 'size' is bigint: it must hold paths as text"),
        ({"uc_table_name": ""}, "no identifier"),
        ({"uc_table_name": 'a.b.c"; DROP TABLE x'}, "no identifier"),
        ({"uc_table_name": "a.b.c.d"}, "write catalog.schema.table"),
    ],
)
def test_wrong_columns_and_names_are_refused_before_anything_runs(
    spark: Any, dsn: str, change: dict[str, Any], message: str
) -> None:
    frame = spark.createDataFrame([("x.dcm", 1)], "local_path string, size long")
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        BOTCacheBuilder(**{"uc_table_name": TABLE, "dsn": dsn, **change}).transform(frame)


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"batch_size": 0}, {"partitions": -1}, {"verify": "none"}, {"dsn": "http://x"}],
)
def test_options_out_of_range_are_config_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        BOTCacheBuilder(TABLE, **options)


def test_no_secret_in_closure_pickle_plan_or_saved_builder(
    spark: Any, dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2-is-the-password"
    builder = BOTCacheBuilder(
        TABLE, token=secret, dsn=psycopg.conninfo.make_conninfo(dsn, password=secret), threads=3
    )
    frame = builder.transform(spark.createDataFrame([("x.dcm",)], "local_path string"))
    frame.explain(extended=True)
    builder.write().overwrite().save(str(tmp_path / "saved"))
    saved = b"".join(part.read_bytes() for part in (tmp_path / "saved").rglob("*") if part.is_file())
    for held in (cloudpickle.dumps(builder._task(spark)), pickle.dumps(builder), saved):
        assert secret.encode() not in held
    assert secret not in capfd.readouterr().out + builder.explainParams() + repr(builder)
    assert b"pixels-lakebase" in saved


def test_a_saved_builder_loads_with_equal_parameters(spark: Any, dsn: str, tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, 1)
    builder = BOTCacheBuilder(
        TABLE,
        outputCol="verdict",
        filter_extension=None,
        skip_existing=False,
        dsn=dsn,
        threads=2,
        partitions=1,
    )
    builder.save(str(tmp_path / "saved"))
    loaded = BOTCacheBuilder.load(str(tmp_path / "saved"))
    assert loaded.uid == builder.uid
    assert {param.name: value for param, value in loaded.extractParamMap().items()} == {
        param.name: value for param, value in builder.extractParamMap().items()
    }
    frame = spark.createDataFrame([(path,)], "local_path string")
    assert json.loads(loaded.transform(frame).collect()[0].verdict)["status"] == "cached"
    assert builder.copy({builder.outputCol: "other"}).transform(frame).columns[-1] == "other"


def test_a_replayed_stream_batch_changes_nothing(
    spark: Any, dsn: str, store: FrameStore, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "images", 8)
    catalogue, results = str(tmp_path / "catalogue"), str(tmp_path / "results")

    def add(new: list[str]) -> None:
        frame = spark.createDataFrame([(path,) for path in new], "local_path string")
        frame.coalesce(1).write.mode("append").parquet(catalogue)

    def run() -> None:
        stream = spark.readStream.schema("local_path string").parquet(catalogue)
        query = (
            BOTCacheBuilder(TABLE, dsn=dsn).transform(stream).writeStream.format("parquet")
            .option("path", results).option("checkpointLocation", str(tmp_path / "checkpoint"))
            .trigger(availableNow=True).start()
        )  # fmt: skip
        query.awaitTermination()

    add(paths[:5])
    run()
    assert spark.read.parquet(results).count() == 5
    add(paths[5:])
    run()
    rows = spark.read.parquet(results).collect()
    assert sorted(row.local_path for row in rows) == paths
    assert {json.loads(row.bot_cache_status)["status"] for row in rows} == {"cached"}
    run()
    assert spark.read.parquet(results).count() == 8

    # The last batch is forgotten and comes again, as after a crash between writing and committing.
    newest = max((tmp_path / "checkpoint" / "commits").glob("[0-9]*"), key=lambda part: int(part.name))
    newest.unlink()
    (newest.parent / f".{newest.name}.crc").unlink()
    before = versions(dsn)
    run()
    assert versions(dsn) == before
    assert spark.read.parquet(results).count() == 8
    assert store.summary(TABLE).total.files == 8


def test_a_dead_database_stops_the_task_and_says_why(spark: Any, tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, 1)
    builder = BOTCacheBuilder(TABLE, dsn="host=127.0.0.1 port=9 dbname=nowhere user=nobody")
    with pytest.raises(
        PythonException, match=r"(?s)BackendError: 127.0.0.1:9, database nowhere.*check the server"
    ):
        statuses(builder, spark, [path])


def test_credentials_are_functions_that_workers_can_import() -> None:
    with pytest.raises(ConfigError, match="able to import"):
        BOTCacheBuilder(TABLE, credentials=lambda: {"user": "me"})
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        BOTCacheBuilder(TABLE, credentials="no.such.module:function")
    builder = BOTCacheBuilder(TABLE, credentials=os.getcwd)  # type: ignore[arg-type]
    assert builder.getOrDefault("credentials") == "posix:getcwd"


def test_without_a_database_only_local_spark_may_use_the_embedded_server(
    spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = BOTCacheBuilder(TABLE)
    destination = builder._task(spark).destination
    assert destination.home == os.environ["VOXTIER_HOME"]
    assert destination.secret is None

    cluster = SimpleNamespace(conf={"spark.master": "spark://host:7077"})
    with pytest.raises(ConfigError, match="name the database with dsn= or VOXTIER_DSN"):
        builder._task(cluster)  # type: ignore[arg-type]
    monkeypatch.setenv("VOXTIER_DSN", "postgresql://someone:secret@db.example/index")
    destination = builder._task(spark).destination
    assert destination.dsn is not None
    assert "secret" not in destination.dsn
    assert destination.secret is not None
    assert destination.secret.reveal() == {"password": "secret"}


def test_missing_or_old_java_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Spark needs Java, and JAVA_HOME=.* install Java 17"):
        local_session()
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    java.chmod(0o755)
    with pytest.raises(ConfigError, match=r"Spark needs Java 17, .* is Java 8"):
        local_session()


def test_missing_pyspark_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['pyspark'] = None\n"
        "try:\n    from voxtier.frames import BOTCacheBuilder\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pyspark is not installed: pip install 'voxtier[spark]'"


CONNECT = """
import json, sys
from pyspark.sql import SparkSession
from voxtier.frames import BOTCacheBuilder
url, dsn, folder, *paths = sys.argv[1:]
spark = SparkSession.builder.remote(url).getOrCreate()
assert "connect" in type(spark).__module__
frame = spark.createDataFrame([(path,) for path in paths], "local_path string")
builder = BOTCacheBuilder("main.pixels.object_catalog", dsn=dsn)
builder.save(folder + "/saved")
rows = BOTCacheBuilder.load(folder + "/saved").transform(frame).collect()
frame.write.parquet(folder + "/catalogue")
stream = spark.readStream.schema("local_path string").parquet(folder + "/catalogue")
query = (builder.transform(stream).writeStream.format("parquet").option("path", folder + "/results")
    .option("checkpointLocation", folder + "/checkpoint").trigger(availableNow=True).start())
query.awaitTermination()
again = spark.read.parquet(folder + "/results").collect()
parts = [[sorted(json.loads(row.bot_cache_status).items()) for row in part] for part in (rows, again)]
print(json.dumps(parts))
spark.stop()
"""


def test_saved_builder_and_stream_work_over_spark_connect(
    spark: Any, connect_url: str, dsn: str, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "images", 3)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, connect_url, dsn, str(tmp_path), *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert sorted(map(str, first)) == sorted(
        str([["num_frames", frames_of(path)], ["status", "cached"]]) for path in paths
    )
    assert all(["reason", "already_cached"] in status for status in second)

"""The notebook's cells on a fresh index, a Spark that refuses settings, and one choice of the database."""

from __future__ import annotations

import copy
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pyarrow
import pytest
from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql.types import (
    ArrayType,
    FloatType,
    IntegerType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from frames.dicom.catalogue import TABLE, native, write_files
from voxtier.errors import ConfigError
from voxtier.frames import BOTCacheBuilder, LakebaseUtils
from voxtier.frames.databricks.place import choose_place
from voxtier.frames.databricks.spark_task import Destination, MaskedValues, open_store
from voxtier.frames.store.store import FrameStore


def test_spark_infers_the_types_of_the_priority_list_of_a_fresh_index(
    spark: Any, lakebase: LakebaseUtils, files: dict[str, str], tmp_path: Path
) -> None:
    bare = tmp_path / "without meta.dcm"  # says no transfer syntax
    bare.write_bytes(native(9, 2)[132:])
    lakebase.insert_frame_range("/elsewhere.dcm", 0, 0, 9, 0)
    listed = lakebase.get_preload_priority_list(uc_table_name=TABLE, limit=500)
    frame = spark.createDataFrame(listed)
    rows = {row.filename: row for row in frame.collect()}
    assert set(rows) == {files[name] for name in ("native", "parts", "cut")}
    assert isinstance(frame.schema["last_used_at"].dataType, TimestampType)
    assert rows[files["native"]].frames[2]["frame_number"] == 2

    of_a_frame = StructType(
        [
            StructField(name, IntegerType())
            for name in ("frame_number", "start_pos", "end_pos", "pixel_data_pos")
        ]
    )
    types = {
        "filename": StringType(), "frame_count": IntegerType(), "transfer_syntax_uid": StringType(),
        "last_used_at": TimestampType(), "inserted_at": TimestampType(), "access_count": IntegerType(),
        "priority_score": FloatType(), "frames": ArrayType(of_a_frame),
    }  # fmt: skip
    schema = StructType([StructField(name, kind) for name, kind in types.items()])
    assert spark.createDataFrame(listed, schema=schema).count() == 3
    texts = [
        {name: str(row[name]) if row[name] else None for name in ("last_used_at", "inserted_at")}
        for row in listed
    ]
    assert spark.createDataFrame(texts).count() == 3


def as_text(frame: Any) -> list[tuple[str, ...]]:
    """Return the rows of a frame, whatever its columns are named and hold."""
    places = [f"c{number}" for number in range(len(frame.columns))]
    return [tuple(row) for row in frame.toDF(*places).selectExpr(*(f"string({c})" for c in places)).collect()]


@pytest.mark.parametrize("name", ["local_path", "file.path", "`file.path`", "`tick``ed`"])
def test_columns_of_any_names_and_types_pass(spark: Any, dsn: str, tmp_path: Path, name: str) -> None:
    """As beside the published job's function of one column."""
    (path,), column = write_files(tmp_path, 1), name if name.startswith("`") else f"`{name}`"
    frame = spark.sql(f"""SELECT 'old' AS `a.status`, 1 AS `file.size`, 1 AS a, '2' AS a, 3 AS `column_0`,
        '{path}' AS {column}, INTERVAL '1-2' YEAR TO MONTH AS age, CAST(NULL AS INTERVAL YEAR) AS none,
        INTERVAL '7' MONTH AS month,
        array(map(INTERVAL -'3' YEAR, named_struct('x', INTERVAL '5' MONTH, 'y.z', 2))) AS nested,
        named_struct('a', 1, 'a', array(named_struct('b', '2', 'b', 3))) AS twice, 'older' AS `A.Status`,
        TIMESTAMP'0001-01-01 00:00:00' - INTERVAL '1' DAY AS early""")
    done = BOTCacheBuilder(TABLE, dsn=dsn, inputCol=name, outputCol="a.status").transform(frame)
    kept = [place for place, each in enumerate(frame.columns) if each.lower() != "a.status"]
    assert done.schema.fields[:-1] == [frame.schema.fields[place] for place in kept]
    assert done.columns[-1] == "a.status"
    [before], [after] = as_text(frame), as_text(done)
    assert after[:-1] == tuple(before[place] for place in kept)
    assert json.loads(after[-1])["status"] == "cached"


def test_a_column_that_arrow_cannot_hold_is_named(spark: Any, dsn: str) -> None:
    frame = spark.sql("SELECT 'x.dcm' AS local_path, array(make_interval(1, 2)) AS span")
    with pytest.raises(ConfigError, match=r"the column 'span' holds calendar intervals.*leave it out"):
        BOTCacheBuilder(TABLE, dsn=dsn).transform(frame)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0), ("threads", None), ("batch_size", 0), ("partitions", -1), ("verify", "x"),
        ("verify", None), ("prepare", "x"), ("s3_keys", "x"), ("s3_keys", None), ("inputCol", ""),
        ("outputCol", None), ("lakebase_instance_name", ""), ("skip_existing", None),
    ],
)  # fmt: skip
def test_parameters_given_later_are_checked_too(name: str, value: object) -> None:
    builder = BOTCacheBuilder(TABLE, dsn="host=x")
    with pytest.raises(ConfigError, match=name):
        builder.copy({getattr(builder, name): value})._task(LOCAL)  # type: ignore[arg-type]


def test_none_means_the_same_however_it_is_given() -> None:
    may_be_none = ("filter_extension", "host", "credentials", "partitions", "prepare")
    builder = BOTCacheBuilder(TABLE, dsn="host=x", **dict.fromkeys(may_be_none))
    given = BOTCacheBuilder(TABLE, dsn="host=x")
    later = given.copy({getattr(given, name): None for name in may_be_none})
    assert later._task(LOCAL) == builder._task(LOCAL)  # type: ignore[arg-type]
    assert later._task(LOCAL).options.extension is None  # type: ignore[arg-type]


def test_no_setting_of_spark_is_changed(
    spark: Any, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As serverless Spark, which refuses what it does not know."""

    def refuse(_self: object, key: str, *_: object) -> None:
        raise PySparkException(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available.")

    monkeypatch.setattr(type(spark.conf), "set", refuse)
    monkeypatch.setattr(type(spark.conf), "get", refuse)
    (path,) = write_files(tmp_path, 1)
    secret = "hunter2"
    builder = BOTCacheBuilder(
        TABLE, dsn=psycopg.conninfo.make_conninfo(dsn, password=secret), token="dapi-secret"
    )
    frame = spark.createDataFrame([(path,)], "local_path string")
    [row] = builder.transform(frame).collect()
    assert json.loads(row.bot_cache_status)["status"] == "cached"
    task = builder._task(spark)
    assert task.destination.secret is not None
    assert task.destination.secret.reveal() == {"password": secret}, "the token is for another place"
    assert secret not in repr(task)
    assert secret.encode() not in cloudpickle.dumps(task)
    with pytest.raises(ConfigError, match="not in local mode"):
        BOTCacheBuilder(TABLE)._task(spark)


def test_masked_values_come_back_equal_and_are_masked_anew() -> None:
    values = {"password": "ü \N{GRINNING FACE} '\"\\", "token": ""}
    masked = MaskedValues(values)
    first, second = pickle.dumps(masked), pickle.dumps(masked)
    assert first != second
    again = pickle.loads(first)
    assert (again, again.reveal(), hash(again)) == (masked, values, hash(masked))
    assert again != MaskedValues({})


LOCAL = SimpleNamespace(conf={"spark.master": "local[2]"})


@pytest.mark.parametrize("given", ["dsn", "environment", "workspace", "token", "neither"])
def test_builder_and_utils_choose_one_database(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    for name in ("DATABRICKS_HOST", "DATABRICKS_RUNTIME_VERSION"):
        monkeypatch.delenv(name, raising=False)
    dsn = "host=db.example dbname=index"
    workspace = {"host": "https://workspace.example", "token": "dapi-x"}
    options: dict[str, Any] = {
        "dsn": {"dsn": dsn, **workspace}, "environment": workspace, "workspace": workspace,
        "token": {"token": "dapi-x"}, "neither": {},
    }[given]  # fmt: skip
    if given == "environment":
        monkeypatch.setenv("VOXTIER_DSN", dsn)
    destination = BOTCacheBuilder(TABLE, "an-instance", **options)._task(LOCAL).destination  # type: ignore[arg-type]
    with LakebaseUtils("an-instance", uc_table_name=TABLE, **options) as lakebase:
        database = lakebase.store.database
        assert database.is_embedded == (destination.home is not None) == (given == "neither")
        by_workspace = destination.instance is not None
        assert by_workspace == (database._credentials is not None) == (given in ("workspace", "token"))
        if destination.dsn:
            assert database.describe() == "db.example, database index"
            assert dict(psycopg.conninfo.conninfo_to_dict(destination.dsn)) == {
                "host": "db.example", "dbname": "index"
            }  # fmt: skip


@pytest.mark.parametrize(
    ("destination", "described"),
    [
        (Destination(home="/home/of/driver"), "the embedded server in /home/of/driver/postgres"),
        (Destination(dsn="host=named dbname=x"), "named, database x"),
        (Destination(dsn=""), "the local socket, database by default"),
        (
            Destination(dsn="", secret=MaskedValues({"password": "p"})),
            "the local socket, database by default",
        ),
        (Destination(credentials="builtins:dict"), "the local socket, database by default"),
        (Destination(instance="an-instance"), "the local socket, database by default"),
    ],
    ids=repr,
)
def test_a_worker_opens_what_the_driver_chose_whatever_its_own_environment_names(
    destination: Destination, described: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXTIER_DSN", "host=stale dbname=stale")
    monkeypatch.setenv("VOXTIER_HOME", "/stale")
    store = open_store(destination)
    assert store.database.describe() == described
    assert store.database.is_embedded == (destination.home is not None)


def test_a_copy_keeps_the_token_and_a_pickle_only_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABRICKS_HOST", "DATABRICKS_RUNTIME_VERSION"):
        monkeypatch.delenv(name, raising=False)
    builder = BOTCacheBuilder(TABLE, token="dapi-x")
    task = builder._task(LOCAL)  # type: ignore[arg-type]
    assert task.destination.secret == MaskedValues({"token": "dapi-x"})
    for copied in (builder.copy(), copy.copy(builder), copy.deepcopy(builder)):
        assert copied._task(LOCAL) == task  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(builder))
    assert again._task(LOCAL).destination == replace(task.destination, secret=None), "the workers have theirs"


def test_a_builder_pickled_by_an_earlier_version_goes_on_without_secrets() -> None:
    builder = BOTCacheBuilder(TABLE, dsn="host=one")
    old = BOTCacheBuilder.__new__(BOTCacheBuilder)
    old.__setstate__({**builder.__dict__, "_secrets": {}})
    assert old._task(LOCAL) == builder._task(LOCAL)  # type: ignore[arg-type]


def test_a_password_goes_only_to_the_server_that_it_was_given_with() -> None:
    builder = BOTCacheBuilder(TABLE, dsn="host=one password=first")
    for dsn, secret in {
        "host=one": MaskedValues({"password": "first"}),
        "host=two": None,
        "host=two password=second": MaskedValues({"password": "second"}),
    }.items():
        task = builder.copy({builder.dsn: dsn})._task(LOCAL)  # type: ignore[arg-type]
        assert task.destination.secret == secret


def test_a_provider_of_credentials_goes_before_a_workspace() -> None:
    assert choose_place(None, has_credentials=True, workspace=True) == ("credentials", None)
    assert choose_place("dbname=x", has_credentials=True, workspace=True) == ("dsn", "dbname=x")


def test_table_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_PIXELS_TABLE", "`my-catalog`.pixels.t")
    for name in ("", None):
        assert BOTCacheBuilder(name)._task(LOCAL).options.source == "my-catalog.pixels.t"  # type: ignore[arg-type]
    assert BOTCacheBuilder(TABLE)._task(LOCAL).options.source == TABLE  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"uc_table_name": 5}, {"lakebase_instance_name": None}, {"inputCol": 5}, {"outputCol": None},
        {"skip_existing": "yes"}, {"filter_extension": 5}, {"host": 5}, {"token": b"x"}, {"dsn": 5},
        {"threads": "many"}, {"threads": None}, {"batch_size": 1.5}, {"credentials": 5},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_config_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BOTCacheBuilder(**{"uc_table_name": TABLE, **wrong})


def run(builder: BOTCacheBuilder, paths: list[bytes | None]) -> list[dict[str, Any]]:
    """Run the builder's task in this process, over text as Spark's workers get it."""
    task = pickle.loads(cloudpickle.dumps(builder._task(LOCAL)))  # type: ignore[arg-type]
    column = pyarrow.array(paths, pyarrow.binary()).view(pyarrow.string())
    [batch] = task(iter([pyarrow.RecordBatch.from_arrays([column], names=["local_path"])]))
    assert batch.column("local_path").equals(column)
    return [json.loads(status) for status in batch.column("bot_cache_status").to_pylist()]


@pytest.mark.usefixtures("_in_this_process")
def test_a_path_that_is_not_utf_8_is_an_error_of_its_row(dsn: str, store: FrameStore, tmp_path: Path) -> None:
    odd = [
        os.fsencode(tmp_path) + name for name in (b"/l\xe4t.dcm", b"/cut\xf0\x9f.dcm", b"/\xed\xa0\x80.DCM")
    ]
    for path in odd:
        Path(os.fsdecode(path)).write_bytes(native(1, 2))
    [plain] = write_files(tmp_path, 1)
    found = run(
        BOTCacheBuilder(TABLE, dsn=dsn), [odd[0], plain.encode(), *odd, None, b"dbfs:/\xff", b"\xff.txt"]
    )
    refused = {"status": "error", "error": "invalid_argument: a path that is not UTF-8 cannot be stored"}
    skipped = {"status": "skipped", "reason": "not_dcm"}
    assert found[0] == found[2] == found[3] == found[4] == refused
    assert found[1]["status"] == "cached"
    assert found[5:] == [{"status": "skipped", "reason": "empty_path"}, skipped, skipped]
    assert store.summary(TABLE).total.files == 1
    assert list(store.refused_files(TABLE)) == []


@pytest.mark.usefixtures("_in_this_process")
def test_relative_paths_begin_in_the_folder_of_the_driver(
    dsn: str, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = write_files(tmp_path / "files", 1)
    monkeypatch.chdir(tmp_path)
    task = BOTCacheBuilder(TABLE, dsn=dsn)._task(LOCAL)  # type: ignore[arg-type]
    monkeypatch.chdir("/")  # as an executor, whose working folder is its own
    name = f"files/{Path(path).name}"
    found = task.statuses([name, f"dbfs:{name}", f"../{tmp_path.name}/{name}", path])
    assert [status["status"] for status in found] == ["cached"] * 4
    assert store.get(TABLE, path) is not None
    assert store.summary(TABLE).total.files == 1


def test_a_driver_in_a_removed_folder_indexes_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert BOTCacheBuilder(TABLE, dsn="host=x")._task(LOCAL).folder == "/"  # type: ignore[arg-type]

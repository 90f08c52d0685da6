"""The index job on Spark over a bucket: a real S3 server, whose keys only the driver has."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from typing import Any

import pytest

from frames.dicom.catalogue import TABLE, fragmented, native
from frames.sources.conftest import Bucket, _bucket, bucket  # noqa: F401 - fixtures
from volumes.store.s3_server import KEY, SECRET
from voxtier.errors import ConfigError
from voxtier.frames import read_table
from voxtier.frames.databricks.spark import BOTCacheBuilder
from voxtier.frames.databricks.spark_task import KeyedS3Config
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.store.store import FrameStore
from voxtier.system.s3_config import S3Config

CACHED, KNOWN = {"status": "cached"}, {"status": "skipped", "reason": "already_cached"}


def test_a_prefix_is_indexed_and_then_what_changed(
    spark: Any,
    bucket: Bucket,  # noqa: F811
    dsn: str,
    store: FrameStore,
) -> None:
    contents = {
        "a b.dcm": native(2, 2),
        "größe/parts.DCM": fragmented(3),
        "cut.dcm": native(5, 3)[:-20],
        "text.dcm": b"not an image at all, but long enough to be looked at" * 9,
        "notes.txt": b"hello",
    }
    at = {name: bucket.put(f"spark/{name}", content) for name, content in contents.items()}
    builder = BOTCacheBuilder(TABLE, dsn=dsn, s3_keys="driver")
    assert spark._jvm.System.getenv("AWS_ACCESS_KEY_ID") is None, "workers would have the keys anyway"

    def run(paths: Iterable[str]) -> dict[str, Any]:
        bucket.proxy.forget()
        frame = spark.createDataFrame([(path,) for path in paths], "local_path string").coalesce(1)
        return {
            row.local_path: json.loads(row.bot_cache_status) for row in builder.transform(frame).collect()
        }

    def asked(name: str) -> list[tuple[int, int]]:
        """Status and bytes of each answer for an object."""
        ends = name.rpartition("/")[2].replace(" ", "%20")
        return [(each.status, each.sent) for each in bucket.proxy.gets if each.path.endswith(ends)]

    listed = list(iter_files(["s3://frames/spark"], extension=None))
    assert sorted(listed) == sorted(at.values())
    missing = "s3://frames/spark/missing.dcm"
    found = run([*listed, missing])
    assert "no such object" in found.pop(missing)["error"]
    assert "not" in found.pop(at["text.dcm"])["error"]
    assert found == {
        at["a b.dcm"]: {**CACHED, "num_frames": 2},
        at["größe/parts.DCM"]: {**CACHED, "num_frames": 3},
        at["cut.dcm"]: {"status": "partial", "num_frames": 3, "truncated_from": 1},
        at["notes.txt"]: {"status": "skipped", "reason": "not_dcm"},
    }
    assert asked("notes.txt") == []
    for name in ("a b.dcm", "größe/parts.DCM", "cut.dcm"):  # the bytes in memory are the oracle of the rows
        table, expected = store.get(TABLE, at[name]), read_table(contents[name])
        assert table is not None
        assert [table.ranges(index) for index in range(len(table))] == [
            expected.ranges(index) for index in range(len(expected))
        ]

    replaced = native(7, 2)
    assert len(replaced) == len(contents["a b.dcm"])
    bucket.put("spark/a b.dcm", replaced)
    bucket.client.delete("spark/cut.dcm")
    found = run([at["a b.dcm"], at["größe/parts.DCM"], at["cut.dcm"]])
    assert "no such object" in found.pop(at["cut.dcm"])["error"]
    assert found == {
        at["a b.dcm"]: {**CACHED, "num_frames": 2},
        at["größe/parts.DCM"]: {**KNOWN, "num_frames": 3},
    }
    assert asked("parts.DCM") == [(304, 0)]
    assert asked("a b.dcm") == [(206, len(replaced))]
    table = store.get(TABLE, at["a b.dcm"])
    assert table is not None
    assert table.etag == read_table(at["a b.dcm"]).etag


def test_keys_of_the_driver_travel_masked_and_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    from pyspark import cloudpickle

    session: Any = None  # asked for nothing where there is a dsn
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert BOTCacheBuilder(TABLE, dsn=dsn)._task(session).options.s3 is None
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    builder = BOTCacheBuilder(TABLE, dsn=dsn, s3_keys="driver")
    task = builder._task(session)
    for held in (cloudpickle.dumps(task), pickle.dumps(builder), repr(task).encode()):
        assert SECRET.encode() not in held
        assert KEY.encode() not in held
    again = pickle.loads(cloudpickle.dumps(task))
    assert again == task, "one indexer of a worker serves both"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert again.options.s3.store_options() == {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "region": "eu-west-3",
        "endpoint": "http://127.0.0.1:8333",
        "virtual_hosted_style_request": False,
    }
    with pytest.raises(ConfigError, match="the driver has none: set AWS_ACCESS_KEY_ID"):
        builder._task(session)
    with pytest.raises(ConfigError, match="must be 'worker' or 'driver'"):
        BOTCacheBuilder(TABLE, s3_keys="both")  # type: ignore[arg-type]


def test_what_was_configured_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    config = S3Config(region="eu-north-1", endpoint="http://127.0.0.1:8333", timeout=7.0)
    keyed = KeyedS3Config.of_this_process(config)
    assert keyed.store_options() == config.store_options()
    assert (keyed.region, keyed.endpoint, keyed.timeout) == ("eu-north-1", "http://127.0.0.1:8333", 7.0)
    assert KeyedS3Config.of_this_process(S3Config(anonymous=True)).store_options()["skip_signature"] is True

"""One JVM for all tests of the room (a Spark session that is a Spark Connect server too), and an index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frames.dicom.catalogue import TABLE, fragmented, native, without_pixels
from voxtier.frames import LakebaseUtils
from voxtier.frames.indexing.run import FileIndexer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests of the session take as long as a busy machine needs.

    Their waits end when a child has ended or said something; the limit is for a JVM that hangs.
    """
    for item in items:
        if HERE in item.path.parents and "spark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session", autouse=True)
def _no_optimising_java() -> None:
    """Let a JVM compile once: in a minute of life it spends a third of its time on optimising.

    Nor does it verify Spark's classes, which takes it a tenth of its time.
    """
    unverified = "-XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"
    os.environ["JDK_JAVA_OPTIONS"] = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC {unverified}"


@pytest.fixture(scope="package")
def spark() -> Iterator[Any]:
    """Spark in local mode, its workers run by this Python."""
    from voxtier.frames.databricks.spark import local_session

    conf = {
        "spark.log.level": "ERROR",
        "spark.python.worker.idleTimeoutSeconds": "0",
        "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": "0",
    }
    # Workers have the environment of this moment: it decides nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXTIER_DSN", "host=127.0.0.1 port=9 dbname=of_an_earlier_moment")
        patch.setenv("VOXTIER_HOME", "/nowhere")
        session = local_session(conf=conf)
    yield session
    session.stop()


@pytest.fixture(scope="package")
def connect_url(spark: Any) -> str:
    """Where a Spark Connect client of another process reaches the session's JVM."""
    service = getattr(spark._jvm, "org.apache.spark.sql.connect.service.SparkConnectService$")
    return f"sc://127.0.0.1:{getattr(service, 'MODULE$').localPort()}"


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a task run here as in a worker, and close what it leaves open for the next task."""
    from voxtier.frames.databricks import spark_task

    monkeypatch.setattr(spark_task, "_indexers", {})
    yield
    for indexer in spark_task._indexers.values():
        indexer.store.close()


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

"""One Spark session for all tests of the room that need one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Spark in local mode, its workers run by this Python."""
    from voxtier.frames.databricks.spark import local_session

    session = local_session(conf={"spark.log.level": "ERROR", "spark.python.worker.idleTimeoutSeconds": "0"})
    yield session
    session.stop()

"""What every room's tests share: one embedded PostgreSQL server, and a fresh database in it for each test."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.folder_times import pytest_terminal_summary  # noqa: F401 - a hook of pytest

# A busy machine is no defect.
settings.register_profile("voxtier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("voxtier")

_numbers = itertools.count()

# What starts something dear that its tests share (a JVM, servers) runs in one process. By paths, as the
# process that hands tests out collects none; the marker of xdist is not seen with pytest 9.2.
TOGETHER = {
    "tests/frames/databricks/test_databricks.py": "spark",
    "tests/frames/databricks/test_spark": "spark",
    "tests/frames/sources/": "object store",
    "tests/postgres/test_standby.py": "standby",
    "tests/tree/test_blocks.py": "blocks",
    "tests/tree/test_docs.py": "pages",
    "tests/volumes/store/test_s3.py": "object store",
}


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out one by one, but for those that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/frames/gateway/"):
                return nodeid.partition("::")[0]  # a server or two for each file
            return next((group for place, group in TOGETHER.items() if nodeid.startswith(place)), nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside its room TileDB has nothing to say: an earlier test used it in the process that forks."""
    for item in items:
        if not item.nodeid.startswith("tests/volumes/"):
            item.add_marker(pytest.mark.filterwarnings("ignore:TileDB is a multithreading library"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Connection string of an embedded server in a folder of its own; no test sees the user's."""
    from voxtier.postgres.embedded import EmbeddedServer

    with tempfile.TemporaryDirectory(prefix="voxtier-tests-") as home:
        server = EmbeddedServer(Path(home))
        server.attach()
        yield server.conninfo()
        server.detach()


@pytest.fixture
def dsn(postgres: str) -> Iterator[str]:
    """Connection string of an empty database, dropped after the test."""
    import psycopg

    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield psycopg.conninfo.make_conninfo(postgres, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def _no_database_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VOXTIER_DSN", raising=False)
    monkeypatch.setenv("VOXTIER_HOME", str(tmp_path / "voxtier-home"))

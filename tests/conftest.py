"""What every room's tests share: one embedded PostgreSQL server, and a fresh database in it for each test."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.folder_times import pytest_terminal_summary  # noqa: F401 - a hook of pytest

# A busy machine is no defect.
settings.register_profile("voxtier", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("voxtier")

# Whoever runs the tests may have keys of stores.
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

_numbers = itertools.count()
_used_databases: list[str] = []

# What starts something dear that its tests share (a JVM, servers) runs in one process. By paths, as the
# process that hands tests out collects none; the marker of xdist is not seen with pytest 9.2.
TOGETHER = {
    "tests/frames/databricks/test_databricks.py": "spark",
    "tests/frames/databricks/test_spark": "spark",
    "tests/frames/sources/": "object store",
    "tests/postgres/test_standby.py": "standby",
    "tests/tree/test_blocks.py": "blocks",
    "tests/tree/test_docs.py": "pages",
    "tests/tree/test_imports.py": "graph",
    "tests/volumes/store/test_s3.py": "object store",
}

# What waits or takes long comes first, so that no process is left alone with it at the end.
FIRST = (
    *TOGETHER,
    "tests/frames/gateway/",
    "tests/postgres/",
    "tests/frames/serving/",
    "tests/volumes/store/",
    "tests/volumes/training/",
    "tests/tensors/making/",
)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out function by function, but for those that belong together."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            super().mark_test_complete(node, item_index, duration)
            # What is done is forgotten: for each test xdist counts all that a process has ever been given.
            scope = self._split_scope(self.registered_collections[node][item_index])
            if all(self.assigned_work[node].get(scope, {"": False}).values()):
                del self.assigned_work[node][scope]

        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/frames/gateway/"):
                return nodeid.partition("::")[0]  # a server or two for each file
            function = nodeid.partition("[")[0]
            return next((group for place, group in TOGETHER.items() if nodeid.startswith(place)), function)

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside its room TileDB has nothing to say: an earlier test used it in the process that forks."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    for item in items:
        if not item.nodeid.startswith("tests/volumes/"):
            item.add_marker(pytest.mark.filterwarnings("ignore:TileDB is a multithreading library"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported and collected stays: it is not looked through for garbage, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Connection string of an embedded server in a folder of its own; no test sees the user's."""
    import psycopg

    from voxtier.postgres.embedded import EmbeddedServer

    # In memory where there is room: each database is 300 small files.
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="tests-", dir=memory if has_room else None) as home:
        server = EmbeddedServer(Path(home))
        server.attach()
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # no test pulls the plug of the machine
            connection.execute("SELECT pg_reload_conf()")
        yield server.conninfo()
        server.detach()


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database folder as initdb leaves it, to be copied: no test waits for another initdb."""
    from voxtier.postgres.embedded import EmbeddedServer

    home = tmp_path_factory.mktemp("fresh")
    server = EmbeddedServer(home)
    server.attach()
    server.detach()
    return home


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """Name of a database in which a store was opened: its schema takes six times as long as the rest."""
    import psycopg

    from voxtier.frames import FrameStore

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE opened TEMPLATE template0")
        with FrameStore(psycopg.conninfo.make_conninfo(postgres, dbname="opened")) as store:
            store.sources()
        connection.execute("ALTER DATABASE opened ALLOW_CONNECTIONS false")
    return "opened"


@pytest.fixture
def dsn(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """Connection string of an empty database, or of one with a store's schema where a fixture opens a store.

    Tests that open a store by themselves and do not look at how its schema is made use `template`.

    Dropped before the next one is made, not at the end of its test: PostgreSQL would wait until the sessions
    of the test have ended.
    """
    import psycopg

    opens = not {"store", "lakebase", "template"}.isdisjoint(request.fixturenames)
    template = request.getfixturevalue("template") if opens else "template0"
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        while _used_databases:
            connection.execute(f"DROP DATABASE {_used_databases.pop()} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        yield psycopg.conninfo.make_conninfo(postgres, dbname=name)
        _used_databases.append(name)


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _no_database_of_the_user(monkeypatch: pytest.MonkeyPatch, _homes: Path) -> Iterator[None]:
    """A home of its own for each test, which few make: a folder made and removed is half of a test."""
    home = _homes / f"home-{next(_numbers)}"
    monkeypatch.delenv("VOXTIER_DSN", raising=False)
    monkeypatch.setenv("VOXTIER_HOME", str(home))
    yield
    if home.exists():
        shutil.rmtree(home, ignore_errors=True)  # of a database it is 40 MB


@pytest.fixture
def interrupt_main() -> Iterator[Callable[[], None]]:
    """Press Ctrl-C, from another thread; it goes on once the main thread has taken that."""
    taken: list[int] = []

    def take(number: int, _: object) -> None:
        taken.append(number)
        raise KeyboardInterrupt

    def send() -> None:
        before, deadline = len(taken), time.monotonic() + 60
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while len(taken) == before and time.monotonic() < deadline:
            time.sleep(0.001)

    handler = signal.signal(signal.SIGINT, take)
    yield send
    signal.signal(signal.SIGINT, handler)

"""A database behind a network that loses everything: noticed, waited for by no request, asked again later.

The client and a forwarder to the server's socket run in a network namespace of their own, whose loopback
device is switched off and on.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from frames.store.rows.index_rows import ct
from support.servers.forwarder import Forwarder
from voxtier.frames import FrameReader, FrameStore, read_tables
from voxtier.postgres.database import Database

IN_NAMESPACE = """
import subprocess, sys, threading, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from support.servers.forwarder import Forwarder
from voxtier.frames import FrameReader, FrameStore
from voxtier.postgres.database import Database

def network(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

network("up")
paths = sorted(map(str, Path(sys.argv[2]).glob("*.dcm")))
with Forwarder(sys.argv[1]) as forwarder:
    dsn = forwarder.dsn(tcp_user_timeout=1000, connect_timeout=2)
    store = FrameStore(Database(dsn, timeout=1))
    with FrameReader(store, "s", publish=False, index_seconds=5.0) as reader:
        reader.frame(paths[0], 0)
        assert reader.stats()["tier2"] == 1
        network("down")
        reader.index.budget_seconds = 0.25
        assert len(reader.frame(paths[1], 0)) == 16
        assert reader.stats()["degraded"]
        # The connection that asked is given up by TCP itself: no thread is left behind.
        while any(thread.name == "voxtier-index" for thread in threading.enumerate()):
            time.sleep(0.05)
        network("up")
        reader.index.budget_seconds = 5.0
        while reader.stats()["degraded"]:
            time.sleep(0.02)
        reader.frame(paths[2], 0)
        assert reader.stats()["tier2"] == 2, reader.stats()
    store.close()
print("done")
"""


def may_make_namespaces() -> bool:
    try:
        command = ["unshare", "--user", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def folder(dsn: str, tmp_path: Path) -> Path:
    """Three indexed files of a series each."""
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(ct(number, uid=f"1.{number + 1}", series=f"2.{number + 1}"))
    with FrameStore(dsn) as store:
        store.upsert("s", read_tables(map(str, paths)))
    return tmp_path


@pytest.mark.skipif(not may_make_namespaces(), reason="this system allows no network namespace, or has no ip")
def test_a_black_hole_is_left_alone_given_up_and_asked_again(dsn: str, folder: Path) -> None:
    tests = str(Path(__file__).parents[1])
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", IN_NAMESPACE]
    done = subprocess.run([*command, dsn, str(folder), tests], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.fixture
def forwarder(dsn: str) -> Iterator[Forwarder]:
    with Forwarder(dsn) as forwarder:
        yield forwarder


def options_of(connection: object) -> dict[str, int]:
    descriptor = connection.fileno()  # type: ignore[attr-defined]
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as copy:
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        found = {name: copy.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
        return found | {"SO_KEEPALIVE": copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}


def test_keepalives_and_the_user_timeout_are_set_on_tcp_connections(forwarder: Forwarder) -> None:
    expected = {
        "SO_KEEPALIVE": 1,
        "TCP_KEEPIDLE": 5,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 10_000,
    }
    for dsn, changed in (
        (forwarder.dsn(), {}),
        (forwarder.dsn(keepalives_idle=60), {"TCP_KEEPIDLE": 60}),
        (forwarder.dsn(tcp_user_timeout=500), {"TCP_USER_TIMEOUT": 500}),
    ):
        database = Database(dsn)
        with database.connection() as connection:
            assert options_of(connection) == expected | changed
        database.close()


def test_a_forwarder_that_stops_reading_holds_no_request(forwarder: Forwarder, folder: Path) -> None:
    paths = sorted(map(str, folder.glob("*.dcm")))
    with (
        FrameStore(forwarder.dsn()) as store,
        FrameReader(store, "s", publish=False, index_seconds=60.0) as reader,
    ):
        assert len(reader.frame(paths[0], 0)) == 16
        assert reader.index is not None
        forwarder.pause()
        reader.index.budget_seconds = 0.25
        assert len(reader.frame(paths[1], 0)) == 16
        assert reader.stats()["degraded"]
        forwarder.resume()
        reader.index.budget_seconds = 60.0
        while reader.stats()["degraded"]:
            threading.Event().wait(0.02)
        assert len(reader.frame(paths[2], 0)) == 16
        assert reader.stats()["tier2"] == 2


def test_a_reset_waits_for_no_thread_that_connects(forwarder: Forwarder) -> None:
    database = Database(forwarder.dsn())
    forwarder.pause()  # connections are accepted, and get no answer
    answers: list[object] = []
    hanging = threading.Thread(
        target=lambda: answers.append(database.run(lambda c: c.execute("SELECT 1").fetchone()))
    )
    hanging.start()
    while not forwarder.connections:
        threading.Event().wait(0.01)
    database.reset()
    forwarder.resume()
    hanging.join()
    assert answers == [(1,)]
    database.close()


def test_a_reader_closes_although_its_database_does_not_answer(forwarder: Forwarder, folder: Path) -> None:
    paths = sorted(map(str, folder.glob("*.dcm")))
    with FrameStore(forwarder.dsn()) as store:
        reader = FrameReader(store, "s", publish=False, index_seconds=60.0)
        reader.frame(paths[0], 0)
        forwarder.pause()
        reader._write_back.close(0.2)  # ten seconds by default
        forwarder.resume()
        reader.close()

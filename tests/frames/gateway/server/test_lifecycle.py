"""Start, stop, fork, and the database's end, while clients ask."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from frames.gateway.conftest import Connect, Start
from frames.gateway.serving import Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import dicom, element, pattern
from voxtier.errors import BackendError
from voxtier.frames import FrameCache, Gateway, read_table
from voxtier.frames.gateway.hot_set import HotSet
from voxtier.frames.store.store import FrameStore
from voxtier.system.durable import temporary_path

PATH = instance_path(STUDY, SERIES, "1.9")


@pytest.fixture
def file(tmp_path: Path, store: FrameStore) -> Path:
    """One instance in the index."""
    path = write(tmp_path, "a", "1.9")
    index(store, [path])
    return path


def test_a_gateway_starts_and_stops_many_times(file: Path, store: FrameStore) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(30):
        with Gateway(store, port=0, workers=2) as gateway:
            client = Client(gateway)
            assert client.frames(PATH, "1").status == 200
            client.connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("voxtier-gateway")]
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 8


def test_a_second_start_is_refused_and_leaves_memory_as_it_is(
    file: Path, store: FrameStore, tmp_path: Path
) -> None:
    saved = tmp_path / "hot"
    with Gateway(store, port=0, hot_set=saved, index_seconds=60) as gateway:
        client = Client(gateway)
        assert client.frames(PATH, "1").status == 200
        client.connection.close()
    assert saved.exists()
    gateway.reader.cache.invalidate(str(file))
    with pytest.raises(RuntimeError, match="or stopped: make another one"):
        gateway.start()
    assert str(file) not in gateway.reader.cache
    with Gateway(store, port=0, hot_set=saved) as running:
        running.reader.cache.invalidate(str(file))
        with pytest.raises(RuntimeError, match="was started before"):
            running.start()
        assert str(file) not in running.reader.cache


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "last",
    [
        "voxtier-gateway-0",
        "voxtier-gateway-2",
        "voxtier-write-back",
        "voxtier-status",
        "voxtier-hot-set",
        "voxtier-ready",
    ],
)
def test_a_start_that_is_left_by_an_exception_takes_back_what_it_began(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, error: BaseException
) -> None:
    begin, before = threading.Thread.start, set(threading.enumerate())

    def begin_or_fail(thread: threading.Thread) -> None:
        if thread.name == last:
            raise error
        begin(thread)

    gateway = Gateway(store, port=0, workers=2, hot_set=tmp_path / "hot")
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", begin_or_fail)
        with pytest.raises(type(error)):
            gateway.start()
    assert gateway.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((gateway.host, gateway.port), 10)
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("voxtier"):
            thread.join(60)
            assert not thread.is_alive(), thread.name
    gateway.stop()


def test_an_address_in_use_leaves_a_gateway_that_starts_elsewhere(file: Path, store: FrameStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = Gateway(store, port=taken.getsockname()[1], workers=2)
        with pytest.raises(OSError, match="in use"):
            gateway.start()
    with gateway:
        client = Client(gateway)
        assert client.frames(PATH, "1").status == 200
        client.connection.close()


def test_a_gateway_that_never_started_is_stopped(store: FrameStore) -> None:
    gateway = Gateway(store, port=0)
    gateway.stop()
    gateway.stop()


def test_an_open_request_is_finished_before_the_stop(file: Path, start: Start) -> None:
    gateway = start()
    client = Client(gateway)
    assert client.frames(PATH, "1").status == 200  # the connection is idle now
    gateway.stop(drain_seconds=10)
    with pytest.raises(OSError):
        Client(gateway).frames(PATH, "1")
    client.connection.close()


def test_a_forked_child_lives_and_the_parent_goes_on(file: Path, connect: Connect) -> None:
    client = connect()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert client.frames(PATH, "1").status == 200


def test_without_the_database_files_in_memory_are_served(
    file: Path, store: FrameStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    assert client.frames(PATH, "1").status == 200

    def fail(*_: object, **__: object) -> None:
        raise BackendError("no database")

    monkeypatch.setattr(store, "query", fail)
    monkeypatch.setattr(store, "probe", fail)
    assert client.frames(PATH, "2").parts()[0][1] == payload(2)
    missing = client.frames(instance_path(STUDY, SERIES, "1.10"), "1")
    assert (missing.status, missing.headers["retry-after"]) == (503, "1")
    assert client.get("/dicomweb/studies").status == 503
    assert json.loads(client.get("/status.json").body)["frames"]["degraded"] is True


def test_many_clients_at_once_get_their_own_frames(file: Path, start: Start) -> None:
    gateway = start(workers=2)
    faults: list[object] = []

    def ask(number: int) -> None:
        client = Client(gateway)
        for turn in range(100):
            frame = (number + turn) % 3 + 1
            if client.frames(PATH, str(frame)).parts()[0][1] != payload(frame):
                faults.append((number, turn))
        client.connection.close()

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert faults == []


def test_ctrl_c_lets_a_client_take_the_rest_of_its_body(tmp_path: Path, dsn: str, store: FrameStore) -> None:
    """The second one stops at once."""
    pixels = pattern(512 * 512 * 2) * 32
    attributes = described("1.9", rows=512, columns=512, bits=16, frames=32)
    file = tmp_path / "large.dcm"
    file.write_bytes(dicom([*attributes, element("PixelData", pixels)]).content)
    index(store, [file])
    request = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAccept: application/dicom\r\n\r\n".encode()
    for second in (False, True):
        command = [sys.executable, "-m", "voxtier", "serve", "--port", "0", "--dsn", dsn]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running,
            socket.socket() as client,
        ):
            port = int(running.stdout.readline().split(":")[2].split("/")[0])
            client.connect(("127.0.0.1", port))
            client.sendall(request)
            body = bytearray(client.recv(1000).partition(b"\r\n\r\n")[2])
            running.send_signal(signal.SIGINT)
            assert any("stopping" in line for line in running.stderr)
            if second:
                running.send_signal(signal.SIGINT)
                assert running.wait(60) in (130, -signal.SIGINT)
                continue
            while len(body) < file.stat().st_size:
                body += client.recv(1 << 20)
            assert body == file.read_bytes()
            client.close()
            assert running.wait(60) == 0


STOPS_FOR_AN_HOUR = """
import signal, sys
from voxtier.frames import FrameStore, Gateway
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
with FrameStore(sys.argv[1]) as store:
    gateway = Gateway(store, port=0).start()
    print(gateway.port, flush=True)
    sys.stdin.readline()
    try:
        gateway.stop(drain_seconds=3600)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


def can_connect(port: int) -> bool:
    with socket.socket() as another:
        return another.connect_ex(("127.0.0.1", port)) == 0


def test_a_signal_ends_the_time_of_open_requests(tmp_path: Path, dsn: str, store: FrameStore) -> None:
    pixels = pattern(512 * 512 * 2) * 64
    attributes = described("1.9", rows=512, columns=512, bits=16, frames=64)
    file = tmp_path / "large.dcm"
    file.write_bytes(dicom([*attributes, element("PixelData", pixels)]).content)
    index(store, [file])
    request = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAccept: application/dicom\r\n\r\n".encode()
    command = [sys.executable, "-c", STOPS_FOR_AN_HOUR, dsn]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as running, socket.socket() as client:
        port = int(running.stdout.readline())
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")  # and nothing more
        running.stdin.write("\n")
        running.stdin.flush()
        while can_connect(port):  # one that is stopping takes no more connections
            pass
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == "stopped\n"
        assert running.wait(60) == 0


def test_the_tables_in_memory_come_back_at_the_next_start(
    file: Path, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "home" / "hot"
    # Left by a gateway that was killed while it saved.
    dead = temporary_path(saved)
    dead = dead.with_name(dead.name.replace(str(os.getpid()), "999999999"))
    dead.parent.mkdir()
    dead.write_bytes(b"half")
    with Gateway(store, port=0, hot_set=saved, index_seconds=60) as gateway:
        client = Client(gateway)
        assert client.frames(PATH, "1").status == 200
        client.connection.close()
    assert list(saved.parent.iterdir()) == [saved]
    again = Gateway(store, port=0, hot_set=saved, index_seconds=60)
    monkeypatch.setattr(store, "recall", lambda *_, **__: None)  # the table can come from memory alone
    with again:
        assert str(file) in again.reader.cache
    with Gateway(store, port=0, hot_set=tmp_path / ("x" * 300), index_seconds=60) as gateway:
        assert gateway.url  # a file that cannot be is not needed
    saved.write_bytes(saved.read_bytes()[:-1])
    with Gateway(store, port=0, hot_set=saved, index_seconds=60) as gateway:
        assert gateway.reader.cache.table(str(file)) is None or gateway.reader.preload.progress()["loaded"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_kill_amid_a_save_leaves_the_hot_set_of_before(file: Path, tmp_path: Path) -> None:
    table, saved = read_table(file), tmp_path / "home" / "hot"
    cache = FrameCache(64 << 20)
    for number in range(2000):
        cache.put_table(f"{number}.dcm", table)
    for _ in range(5):
        killed = os.fork()
        if killed == 0:
            try:
                while True:
                    HotSet(cache, saved)._save()
            finally:
                os._exit(1)
        while not (saved.exists() and list(saved.parent.glob(".hot.*"))):  # it writes beside the last one
            assert os.waitpid(killed, os.WNOHANG) == (0, 0)
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        fresh = FrameCache(64 << 20)
        assert HotSet(fresh, saved).restore() == len(fresh) == 2000
    hot_set = HotSet(fresh, saved)
    hot_set.start()
    assert [path.name for path in saved.parent.iterdir()] == ["hot"]
    hot_set.stop()

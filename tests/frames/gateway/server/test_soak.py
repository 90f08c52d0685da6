"""Long runs (`make soak`): PostgreSQL killed, files replaced, slow readers, restarts, start and stop."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from frames.gateway.server.test_http2 import Client as Starved
from frames.gateway.server.test_load import BROKEN, peak
from frames.gateway.serving import STAR, Answer, Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, instance, payload, write
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore
from voxtier.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.soak
SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", "600"))
FILES, VERSIONS = 60, (900, 40_000, 200_000)
# What each frame may be, whatever version its file has.
PAYLOADS = {frame: {payload(frame, length) for length in VERSIONS} for frame in (1, 2, 3)}
BUDGET, IN_FLIGHT, SLACK = 16 << 20, 32 << 20, 64 << 20

SERVE = """
import signal, sys, threading
from voxtier.frames import FrameStore, Gateway
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with FrameStore(sys.argv[1]) as store:
    options = {"budget_bytes": int(sys.argv[3]), "in_flight_bytes": int(sys.argv[4]), "hot_set": sys.argv[5]}
    with Gateway(store, port=int(sys.argv[2]), workers=2, **options) as gateway:
        print(gateway.port, flush=True)
        stop.wait()
"""


class Load:
    """Clients that ask for random frames, and hold each against all versions that its file may have."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stopping = threading.Event()
        self.good = self.refused = self.broken = 0
        self.wrong: list[object] = []
        self._lock = threading.Lock()

    def ask(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stopping.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            with suppress(OSError, http.client.HTTPException):
                for _ in range(50):
                    self._ask_once(connection, rng)
            connection.close()
            with self._lock:
                self.broken += 1

    def _ask_once(self, connection: http.client.HTTPConnection, rng: random.Random) -> None:
        uid, frame = f"1.9.{rng.randrange(FILES)}", rng.randrange(3) + 1
        connection.request(
            "GET", f"{instance_path(STUDY, SERIES, uid)}/frames/{frame}", headers={"Accept": STAR}
        )
        got = connection.getresponse()
        headers = {name.lower(): text for name, text in got.getheaders()}
        self._count(Answer(got.status, headers, got.read()), uid, frame)

    def _count(self, answer: Answer, uid: str, frame: int) -> None:
        is_good = answer.status == 200
        if is_good:
            [(_, body)] = answer.parts()
            if body not in PAYLOADS[frame]:
                self.wrong.append((uid, frame, len(body)))
        elif answer.status not in (404, 503):
            self.wrong.append((uid, answer.status, answer.body[:200]))
        with self._lock:
            self.good += is_good
            self.refused += not is_good

    def ask_http2(self, seed: int) -> None:
        """Ask as `ask` does, over HTTP/2."""
        rng = random.Random(seed)
        while not self.stopping.is_set():
            url = f"http://127.0.0.1:{self.port}"
            with suppress(*BROKEN), httpx.Client(http1=False, http2=True, timeout=60) as client:
                for _ in range(50):
                    uid, frame = f"1.9.{rng.randrange(FILES)}", rng.randrange(3) + 1
                    path = f"{instance_path(STUDY, SERIES, uid)}/frames/{frame}"
                    got = client.get(url + path, headers={"Accept": STAR})
                    self._count(Answer(got.status_code, dict(got.headers), got.content), uid, frame)

    def take_nothing(self, seed: int) -> None:
        """Ask for frames by streams of HTTP/2 that have no room."""
        rng = random.Random(seed)
        while not self.stopping.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=60) as slow:
                client = Starved(slow)
                for _ in range(100):
                    path = instance_path(STUDY, SERIES, f"1.9.{rng.randrange(FILES)}")
                    client.ask(f"{path}/frames/1,2,3", STAR)
                client.send()
                while not (client.is_ended(1) or self.stopping.is_set()):
                    pass

    def dawdle(self, seed: int) -> None:
        """Ask for all of a file, and take it in small pieces."""
        rng = random.Random(seed)
        while not self.stopping.is_set():
            path = f"{instance_path(STUDY, SERIES, f'1.9.{rng.randrange(FILES)}')}/frames/1,2,3"
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=60) as slow:
                ask = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {STAR}\r\nConnection: close\r\n\r\n"
                slow.sendall(ask.encode())
                while slow.recv(4096) and not self.stopping.is_set():
                    time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Run a PostgreSQL server of this test alone: it is killed."""
    made = EmbeddedServer(tmp_path / "server")
    made.attach()
    yield made
    with suppress(Exception):
        made.detach()


def gateway_process(dsn: str, port: int, hot: Path) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-c", SERVE, dsn, str(port), str(BUDGET), str(IN_FLIGHT), str(hot)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        return process, int(said.readline())


def kill_postgres(folder: Path) -> None:
    """Kill the server process whose data lie below a folder, and wait until it is gone."""
    for pid_file in folder.rglob("postmaster.pid"):
        pid = int(pid_file.read_text().split()[0])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            while True:
                os.kill(pid, 0)
                time.sleep(0.05)


def is_up(dsn: str) -> bool:
    """Return whether a database takes connections."""
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.Error:
        return False
    return True


@pytest.mark.timeout(SECONDS * 2 + 600)
def test_no_byte_is_wrong_while_everything_around_fails(tmp_path: Path, server: EmbeddedServer) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    files = [write(folder, str(number), f"1.9.{number}") for number in range(FILES)]
    dsn = server.conninfo()
    with FrameStore(dsn) as store:
        index(store, files)
    process, port = gateway_process(dsn, 0, tmp_path / "hot")
    first = Client.__new__(Client)
    first.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    assert first.frames(instance_path(STUDY, SERIES, "1.9.0"), "1").status in (200, 503)
    first.connection.close()
    load, base, grown = Load(port), peak(process.pid), 0
    threads = [threading.Thread(target=load.ask, args=(seed,)) for seed in range(6)]
    threads += [threading.Thread(target=load.ask_http2, args=(seed,)) for seed in range(6, 8)]
    threads += [threading.Thread(target=load.dawdle, args=(seed,)) for seed in range(24)]
    threads += [threading.Thread(target=load.take_nothing, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    rng, restarts, kills, begun = random.Random(7), 0, 0, time.monotonic()
    try:
        while time.monotonic() - begun < SECONDS:
            time.sleep(0.2)
            assert process.poll() is None, "the gateway ended"
            number = rng.randrange(FILES)
            new = folder / "new"
            new.write_bytes(instance(f"1.9.{number}", length=rng.choice(VERSIONS)))
            new.replace(files[number])
            if rng.random() < 0.02:
                kill_postgres(tmp_path / "server")
                kills += 1
            if kills and not is_up(dsn):
                EmbeddedServer(tmp_path / "server").attach()  # another object: this one counts itself in
            if rng.random() < 0.01:
                grown = max(grown, peak(process.pid) - base)
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
                process, _ = gateway_process(dsn, port, tmp_path / "hot")
                restarts += 1
        grown = max(grown, peak(process.pid) - base)
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()
        process.kill()
        process.wait()
    print(f"{load.good:,} answers, {load.refused:,} refused, {kills} kills, {restarts} restarts")
    print(f"grown by {grown >> 20} MiB")
    assert load.wrong == []
    assert load.good > load.refused
    assert grown <= BUDGET + IN_FLIGHT + SLACK


@pytest.mark.timeout(3600)
def test_a_thousand_starts_and_stops(tmp_path: Path, store: FrameStore) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(1000):
        with Gateway(store, port=0, workers=2, index_seconds=60) as gateway:
            client = Client(gateway)
            assert client.frames(instance_path(STUDY, SERIES, "1.9"), "1").status == 200
            client.connection.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 8
    assert threading.active_count() < 20


@pytest.mark.timeout(120)
def test_a_request_that_never_ends_is_refused_after_ten_seconds(store: FrameStore) -> None:
    with (
        Gateway(store, port=0) as gateway,
        socket.create_connection((gateway.host, gateway.port), timeout=60) as slow,
    ):
        answer = b""
        for byte in b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000:
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            slow.settimeout(0.1)
            with suppress(TimeoutError):
                answer = slow.recv(1000)
                break
        assert answer.startswith(b"HTTP/1.1 408 ")

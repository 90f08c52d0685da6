"""Clients that misuse HTTP/2: streams without room, floods, idle connections. Others are served meanwhile."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings

from frames.gateway.server.test_load import IN_FLIGHT, SLACK, Process, forget_peak, peak, start
from frames.gateway.serving import STAR, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import dicom, element, pattern
from voxtier.frames.store.store import FrameStore

TILES, LARGE = instance_path(STUDY, SERIES, "1.9"), instance_path(STUDY, SERIES, "1.10")
FRAMES, SIZE = 16, 512 * 512 * 2
PIXELS = pattern(SIZE * FRAMES)
OCTETS = "application/octet-stream"


def serves(process: Process) -> bool:
    """Return whether new clients of both versions get the right bytes."""
    good = True
    for http2 in (False, True):
        url = f"http://127.0.0.1:{process.port}"
        with httpx.Client(http1=not http2, http2=http2, base_url=url, timeout=60) as client:
            tile = client.get(f"{TILES}/frames/2", headers={"Accept": "image/jpeg"})
            good &= tile.content == payload(2)
            large = client.get(f"{LARGE}/frames/3", headers={"Accept": OCTETS})
            good &= large.content == PIXELS[2 * SIZE : 3 * SIZE]
    return good


@pytest.fixture(scope="module")
def running(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Run a gateway over a file of tiles and one of large frames."""
    folder = tmp_path_factory.mktemp("http2")
    attributes = described("1.10", rows=512, columns=512, bits=16, frames=FRAMES)
    large = folder / "large.dcm"
    large.write_bytes(dicom([*attributes, element("PixelData", PIXELS)]).content)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE http2 TEMPLATE template0")
    dsn = psycopg.conninfo.make_conninfo(postgres, dbname="http2")
    with FrameStore(dsn) as store:
        index(store, [write(folder, "tiles", "1.9"), large])
    with start(dsn) as process:
        yield process


@pytest.fixture
def process(running: Process) -> Process:
    """Take the memory that the gateway has now as its highest so far."""
    assert serves(running)
    forget_peak(running.pid)
    return running


class Client:
    """An HTTP/2 connection whose streams have no room at first."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.h2 = H2Connection(H2Configuration(client_side=True))
        no_room = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
        self.h2.local_settings = Settings(client=True, initial_values=no_room)
        self.h2.initiate_connection()
        self.send()

    def send(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, path: str, accept: str) -> int:
        """Write a request; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        lines = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path)]
        self.h2.send_headers(stream, [*lines, ("accept", accept)], end_stream=True)
        return stream

    def is_ended(self, seconds: float) -> bool:
        """Return whether the gateway ends the connection in time."""
        self.socket.settimeout(seconds)
        with suppress(ConnectionError):
            try:
                while self.socket.recv(1 << 16):
                    pass
            except TimeoutError:
                return False
        return True


@pytest.mark.parametrize(
    ("method", "body", "status"), [("GET", b"", b"200"), ("GET", b"x", b"413"), ("POST", b"x", b"405")]
)
def test_an_empty_frame_behind_the_headers_is_no_body(
    process: Process, method: str, body: bytes, status: bytes
) -> None:
    """Some proxies end a request without a body so."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection:
        h2 = H2Connection(H2Configuration(client_side=True))
        h2.initiate_connection()
        lines = [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", "/health")]
        h2.send_headers(1, lines)
        connection.sendall(h2.data_to_send())
        h2.send_data(1, body, end_stream=True)
        connection.sendall(h2.data_to_send())
        found: list[bytes] = []
        while not found:
            received = connection.recv(65536)
            assert received, "the gateway closed the connection"
            for event in h2.receive_data(received):
                if isinstance(event, ResponseReceived):
                    found += [bytes(value) for name, value in event.headers if name == b":status"]
    assert found == [status]


def test_streams_without_room_hold_a_bounded_memory_and_lose_it(process: Process) -> None:
    """20 connections ask for 2,000 large frames and take none: more than the memory for pieces."""
    before = peak(process.pid)
    with ExitStack() as stack:
        waiting = []
        for _ in range(20):
            client = Client(stack.enter_context(process.connect()))
            for number in range(100):
                client.ask(f"{LARGE}/frames/{number % FRAMES + 1}", STAR)
            client.send()
            waiting.append(client)
        assert serves(process)
        # Memory is short: who takes nothing gives it back.
        assert waiting[0].is_ended(20)
        assert serves(process)
    assert peak(process.pid) - before <= IN_FLIGHT + SLACK


def test_streams_may_be_read_in_any_order(process: Process) -> None:
    """The last one first: the others, without room, may not hold what it needs."""
    with process.connect() as connection:
        client = Client(connection)
        streams = [client.ask(f"{LARGE}/frames/{number + 1}", OCTETS) for number in range(FRAMES)]
        client.h2.increment_flow_control_window(2 * FRAMES * SIZE)
        client.send()
        for number, stream in reversed(list(enumerate(streams))):
            client.h2.increment_flow_control_window(SIZE, stream)
            client.send()
            body, is_open = bytearray(), True
            while is_open:
                for event in client.h2.receive_data(connection.recv(1 << 16)):
                    assert not isinstance(event, (StreamReset, ConnectionTerminated)), event
                    if isinstance(event, DataReceived):
                        assert event.stream_id == stream
                        body += event.data
                    is_open &= not isinstance(event, StreamEnded)
                client.send()
            assert body == PIXELS[number * SIZE : (number + 1) * SIZE]


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return a frame of HTTP/2 (RFC 9113 4.1)."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
# Of HPACK's static table 2 is `:method: GET`, 6 `:scheme: http`, 4 `:path: /` (RFC 7541, appendix A).
GET_ROOT = b"\x82\x86\x84"
BEGUN = frame(HEADERS, END_HEADERS, 1, GET_ROOT)
REQUESTS = [frame(HEADERS, END_STREAM | END_HEADERS, each, GET_ROOT) for each in range(1, 20_001, 2)]
RESETS = [frame(RST_STREAM, 0, each, struct.pack(">I", 8)) for each in range(1, 20_001, 2)]
# A line without a place in the table: a name of one letter, a value of 255.
LINE = b"\x00\x01a\x7f\x80\x01" + b"b" * 255
FLOODS = {
    "pings": frame(PING, 0, 0, bytes(8)) * 20_000,
    "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 20_000,
    "window updates": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 20_000,
    "requests that are reset": b"".join(map(bytes.__add__, REQUESTS, RESETS)),
    "requests above the limit": b"".join(REQUESTS),
    "header lines without end": frame(HEADERS, END_STREAM, 1, GET_ROOT)
    + frame(CONTINUATION, 0, 1, LINE) * 20_000,
    "data of a body": BEGUN + frame(DATA, 0, 1, bytes(16_000)) * 500,
    "empty data": BEGUN + frame(DATA, 0, 1) * 100_000,
}


def test_floods_take_no_memory_and_others_are_served(process: Process) -> None:
    before = peak(process.pid)
    with ExitStack() as stack:
        for name, flood in FLOODS.items():
            for _ in range(4):
                attacker = stack.enter_context(process.connect())
                attacker.settimeout(0.2)
                # Nothing is read: the gateway may read no more, or end the connection.
                with suppress(OSError):
                    attacker.sendall(PREFACE + flood)
            assert serves(process), name
    assert peak(process.pid) - before <= SLACK


def resident(pid: int) -> int:
    """Return the memory that a process has now, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.usefixtures("many_descriptors")
def test_2000_idle_connections_take_little_memory(process: Process) -> None:
    before = resident(process.pid)
    request = f"GET {TILES}/frames/1 HTTP/1.1\r\nHost: x\r\nAccept: image/jpeg\r\n\r\n".encode()
    with ExitStack() as stack:
        idle = [stack.enter_context(process.connect()) for _ in range(2000)]
        for number, connection in enumerate(idle):
            connection.sendall(PREFACE if number % 2 else request)
        for connection in idle:
            assert connection.recv(1 << 16)
        assert serves(process)
        assert resident(process.pid) - before <= SLACK


@pytest.mark.soak
def test_idle_connections_leave_where_half_of_all_are_taken(
    tmp_path: Path, store: FrameStore, dsn: str
) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
    with start(dsn, few) as process, ExitStack() as stack:
        for _ in range(90):  # of 128
            idle = stack.enter_context(process.connect())
            idle.sendall(PREFACE)
        begun = time.monotonic()
        with suppress(ConnectionError):
            while idle.recv(1 << 16):
                pass
        assert 4 < time.monotonic() - begun < 20

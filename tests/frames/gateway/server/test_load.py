"""Many clients, slow clients, idle clients: bounded memory, right bytes."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from h2.exceptions import ProtocolError

from frames.gateway.conftest import Start
from frames.gateway.serving import STAR, Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import EXPLICIT_BE, EXPLICIT_LE, Element, Items, dicom, element, pattern
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

PATH = instance_path(STUDY, SERIES, "1.9")
FRAMES, SIZE = 16, 512 * 512 * 2
IN_FLIGHT, SLACK = 32 << 20, 64 << 20
SLOW = 24

# What a client gets when the gateway stops: the package h2 takes no ping behind a GOAWAY.
BROKEN = (httpx.TransportError, ProtocolError)

SERVE = """
import sys
from voxtier.cli.frames.serving.serve import bound_free_memory
from voxtier.frames import FrameStore, Gateway
bound_free_memory()
with FrameStore(sys.argv[1]) as store:
    with Gateway(store, port=0, workers=2, index_seconds=60, in_flight_bytes=int(sys.argv[2])) as gateway:
        print(gateway.port, flush=True)
        sys.stdin.read()
"""


@pytest.mark.usefixtures("many_descriptors")
def test_256_clients_are_served_beside_2000_idle_ones(
    tmp_path: Path, store: FrameStore, start: Start
) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    gateway = start(workers=2)
    idle = []
    for number in range(2000):
        idle.append(socket.create_connection((gateway.host, gateway.port), timeout=60))
        if number % 2:
            idle[-1].sendall(b"GET /dicomweb HTT")  # and nothing more
    request = f"GET {PATH}/frames/{{}} HTTP/1.1\r\nHost: x\r\nAccept: image/jpeg\r\n\r\n"

    async def ask(number: int) -> int:
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        good = 0
        for turn in range(4):
            frame = (number + turn) % 3 + 1
            writer.write(request.format(frame).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            good += await reader.readexactly(len(payload(frame))) == payload(frame)
        writer.close()
        return good

    async def ask_all() -> list[int]:
        return await asyncio.gather(*(ask(number) for number in range(256)))

    assert asyncio.run(ask_all()) == [4] * 256
    for connection in idle:
        connection.close()
    client = Client(gateway)
    assert client.frames(PATH, "1").status == 200
    client.connection.close()


def test_restarts_under_load_lose_no_byte(tmp_path: Path, store: FrameStore) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    good, wrong, stopping = collections.Counter[int](), [], threading.Event()

    def ask(number: int, port: int) -> None:
        """Ask over HTTP/1.1 and HTTP/2 in turns of connections."""
        for turn in itertools.count(number):
            version = {"http1": turn % 2 == 0, "http2": turn % 2 == 1}
            with (
                suppress(*BROKEN),
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, **version) as client,
            ):
                while not stopping.is_set():
                    frame = good[number] % 3 + 1
                    answer = client.get(f"{PATH}/frames/{frame}", headers={"Accept": "image/jpeg"})
                    if answer.content != payload(frame):
                        wrong.append((answer.status_code, answer.content[:200]))
                    good[number] += 1
            if stopping.wait(0.01):
                return

    port, asking = 0, []
    for restart in range(5):
        with Gateway(store, port=port, workers=2, index_seconds=60) as gateway:
            if restart == 0:
                port = gateway.port
                asking = [threading.Thread(target=ask, args=(number, port)) for number in range(4)]
                for thread in asking:
                    thread.start()
            wanted = {number: good[number] + 20 for number in range(4)}
            while any(good[number] < count for number, count in wanted.items()) and not wrong:
                time.sleep(0.01)
            if restart == 4:
                stopping.set()
                for thread in asking:
                    thread.join()
    assert wrong == []


def peak(pid: int) -> int:
    """Return the most memory that a process had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak(pid: int) -> None:
    """Take the memory that a process has now as its highest."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Process(NamedTuple):
    """A gateway in a process of its own."""

    port: int
    pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)


@contextmanager
def start(dsn: str, before: str = "") -> Iterator[Process]:
    """Run a gateway with little memory for answers, behind some lines of Python."""
    command = [sys.executable, "-c", before + SERVE, dsn, str(IN_FLIGHT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        yield Process(int(running.stdout.readline()), running.pid)
        running.stdin.close()
        assert running.wait(60) == 0


def test_a_long_header_is_sent_while_it_is_written(tmp_path: Path, store: FrameStore, dsn: str) -> None:
    """The header of a slide with 50,000 per-frame Items: more text than memory."""
    count = 50_000
    place = [Element(0x0040072A, "DS", "20.564 "), Element(0x0048021E, "SL", 4711)]
    item = Items([[Element(0x0048021A, "SQ", Items([place]))]])
    groups = Element(0x52009230, "SQ", item.encode(EXPLICIT_LE) * count)
    file = tmp_path / "slide.dcm"
    pixels = element("PixelData", pattern(16) * count)
    file.write_bytes(dicom([*described("1.9", frames=count), groups, pixels]).content)
    index(store, [file])
    with start(dsn) as process:
        url = f"http://127.0.0.1:{process.port}"
        assert urllib.request.urlopen(f"{url}/dicomweb/studies/{STUDY}/series").status == 200
        forget_peak(process.pid)
        before = peak(process.pid)
        with urllib.request.urlopen(f"{url}{PATH}/metadata") as answer:
            text = answer.read()
        grown = peak(process.pid) - before
    [header] = json.loads(text)
    shown = {"0040072A": {"vr": "DS", "Value": [20.564]}, "0048021E": {"vr": "SL", "Value": [4711]}}
    shown = {"0048021A": {"vr": "SQ", "Value": [shown]}}
    assert header["52009230"] == {"vr": "SQ", "Value": [shown] * count}
    assert grown < len(text)


def test_slow_readers_of_large_answers_share_a_budget(tmp_path: Path, store: FrameStore, dsn: str) -> None:
    """Big-endian frames are turned in memory: 24 answers of 8 MiB, of which 32 MiB hold some."""
    pixels = pattern(SIZE * FRAMES)
    attributes = described("1.9", rows=512, columns=512, bits=16, frames=FRAMES)
    file = tmp_path / "be.dcm"
    file.write_bytes(dicom([*attributes, element("PixelData", pixels)], EXPLICIT_BE).content)
    index(store, [file])
    numbers = ",".join(map(str, range(1, FRAMES + 1)))
    ask = f"GET {PATH}/frames/{{}} HTTP/1.1\r\nHost: x\r\nAccept: {STAR}\r\nConnection: close\r\n\r\n"
    request, small = ask.format(numbers).encode(), ask.format(1).encode()
    with start(dsn) as process:
        first = read_all(send(process, small))
        assert first.startswith(b"HTTP/1.1 200")
        before = peak(process.pid)
        waiting = [send(process, request) for _ in range(SLOW)]
        answers = [read_all(each) for each in waiting]
        refused = [each for each in answers if each.startswith(b"HTTP/1.1 503 ")]
        assert all(b"Retry-After: 1" in each for each in refused)  # they waited for 10 s
        answers += [read_all(send(process, request)) for _ in refused]
        grown = peak(process.pid) - before
    assert len(answers) - len(refused) == SLOW
    bodies = {each.partition(b"\r\n\r\n")[2] for each in answers if each not in refused}
    [answer] = bodies  # the same one, 24 times
    for frame in range(FRAMES):
        turned = bytearray(pixels[frame * SIZE : (frame + 1) * SIZE])
        turned[0::2], turned[1::2] = turned[1::2], turned[0::2]
        assert bytes(turned) in answer
    assert grown <= IN_FLIGHT + SLACK


def send(process: Process, request: bytes) -> socket.socket:
    connection = process.connect()
    connection.sendall(request)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    answer = bytearray()
    with connection:
        while block := connection.recv(1 << 20):
            answer += block
    return bytes(answer)

"""Many clients, slow clients, idle clients: bounded memory, right bytes."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frames.gateway.conftest import Start
from frames.gateway.serving import STAR, Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import EXPLICIT_BE, dicom, element, pattern
from voxtier.frames.store.store import FrameStore

PATH = instance_path(STUDY, SERIES, "1.9")
FRAMES, SIZE = 16, 512 * 512 * 2
IN_FLIGHT, SLACK = 32 << 20, 64 << 20
SLOW = 24

SERVE = """
import sys
from voxtier.frames import FrameStore, Gateway
with FrameStore(sys.argv[1]) as store:
    with Gateway(store, port=0, workers=2, index_seconds=60, in_flight_bytes=int(sys.argv[2])) as gateway:
        print(gateway.port, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process, which is client and server, have 2 descriptors for each of 2,000 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_000:
        pytest.skip(f"2,000 connections: the system allows {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
    request = f"GET {PATH}/frames/{{}} HTTP/1.1\r\nAccept: image/jpeg\r\n\r\n"

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


def peak(pid: int) -> int:
    """Return the most memory that a process had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_slow_readers_of_large_answers_share_a_budget(tmp_path: Path, store: FrameStore, dsn: str) -> None:
    """Big-endian frames are turned in memory: 24 answers of 8 MiB, of which 32 MiB hold some."""
    pixels = pattern(SIZE * FRAMES)
    attributes = described("1.9", rows=512, columns=512, bits=16, frames=FRAMES)
    file = tmp_path / "be.dcm"
    file.write_bytes(dicom([*attributes, element("PixelData", pixels)], EXPLICIT_BE).content)
    index(store, [file])
    numbers = ",".join(map(str, range(1, FRAMES + 1)))
    request = f"GET {PATH}/frames/{numbers} HTTP/1.1\r\nAccept: {STAR}\r\nConnection: close\r\n\r\n".encode()
    small = f"GET {PATH}/frames/1 HTTP/1.1\r\nAccept: {STAR}\r\nConnection: close\r\n\r\n".encode()
    command = [sys.executable, "-c", SERVE, dsn, str(IN_FLIGHT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as running:
        port = int(running.stdout.readline())
        first = read_all(send(port, small))
        assert first.startswith(b"HTTP/1.1 200")
        before = peak(running.pid)
        waiting = [send(port, request) for _ in range(SLOW)]
        answers = [read_all(each) for each in waiting]
        refused = [each for each in answers if each.startswith(b"HTTP/1.1 503 ")]
        assert all(b"Retry-After: 1" in each for each in refused)  # they waited for 10 s
        answers += [read_all(send(port, request)) for _ in refused]
        grown = peak(running.pid) - before
        running.stdin.close()
        assert running.wait(60) == 0
    assert len(answers) - len(refused) == SLOW
    bodies = {each.partition(b"\r\n\r\n")[2] for each in answers if each not in refused}
    [answer] = bodies  # the same one, 24 times
    for frame in range(FRAMES):
        turned = bytearray(pixels[frame * SIZE : (frame + 1) * SIZE])
        turned[0::2], turned[1::2] = turned[1::2], turned[0::2]
        assert bytes(turned) in answer
    assert grown <= IN_FLIGHT + SLACK


def send(port: int, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.sendall(request)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    answer = bytearray()
    with connection:
        while block := connection.recv(1 << 20):
            answer += block
    return bytes(answer)

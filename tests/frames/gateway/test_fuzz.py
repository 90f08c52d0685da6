"""Random requests: each gets a response of a known status, and the gateway goes on serving."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from frames.gateway.conftest import Start
from frames.gateway.serving import Client, index, instance_path
from frames.gateway.test_frames import SERIES, STUDY, write
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

PATH = instance_path(STUDY, SERIES, "1.9")
STATUSES = {200, 204, 206, 304, 400, 401, 404, 405, 406, 408, 413, 414, 416, 431}
PIECES = [
    *(
        "studies",
        "series",
        "instances",
        "frames",
        "metadata",
        "bulkdata",
        "dicomweb",
        "status",
        STUDY,
        SERIES,
    ),
    *(
        "1.9",
        "1",
        "1,2",
        "0",
        "%2C",
        "%00",
        "..",
        "%2e%2e",
        "%ff",
        "*",
        "?limit=1",
        "?PatientName=*",
        "?",
        "#",
        "",
    ),
    *(
        "7FE00010",
        "99999999",
        "1/1/1",
        "é",
        "a" * 300,
        "?accept=*/*",
        "?includefield=all",
        "?offset=9999999999",
    ),
]
HEADERS = {
    "Accept": [
        "*/*",
        "",
        ";",
        'multipart/related; type="',
        "image/jpeg;q=x",
        "a/b, " * 500,
        '"' * 50,
        "image/*",
    ],
    "Range": [
        "bytes=0-",
        "bytes=-1",
        "bytes=5-1",
        "bytes=99999999999999999999-",
        "bytes=,",
        "bytes=0-1,2-3",
        "x",
    ],
    "If-None-Match": ["*", '""', 'W/"', ",,,"],
    "If-Range": ['"x"', ""],
    "Accept-Encoding": ["gzip", "gzip;q=0", ";;;", "identity"],
    "Authorization": ["Bearer", "Bearer ", "x" * 100],
    "Origin": ["null", "http://a"],
    "Content-Length": ["0", "-1", "x"],
    "Connection": ["keep-alive", "Upgrade"],
}


def request(rng: random.Random) -> bytes:
    """Return a request that is nearly one."""
    path = rng.choice([PATH, "/dicomweb", "", f"{PATH}/frames"])
    path += "".join("/" + rng.choice(PIECES) for _ in range(rng.randrange(5)))
    method = rng.choice(["GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "", "G\0T"])
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {rng.choice(HEADERS[name])}" for name in rng.sample(list(HEADERS), rng.randrange(5))]
    text = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogateescape")
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        text += b"\r\n\r\n"
    return text


def ask(gateway: Gateway, text: bytes) -> bytes:
    """Send a request and read until the gateway closes."""
    with socket.create_connection((gateway.host, gateway.port), timeout=60) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while block := connection.recv(1 << 16):
                answer += block
        except ConnectionResetError:  # what stood behind a refused request was not read
            pass
        return answer


def test_random_requests_get_a_status(tmp_path: Path, store: FrameStore, start: Start) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    gateway = start()
    rng = random.Random(20261127)
    for number in range(1500):
        text = request(rng)
        answer = ask(gateway, text)
        if not answer and b"\r\n\r\n" not in text:
            continue
        assert answer.startswith(b"HTTP/1.1 "), (number, text, answer[:200])
        assert int(answer[9:12]) in STATUSES, (number, text, answer[:300])
    client = Client(gateway)
    assert client.frames(PATH, "1").status == 200
    client.connection.close()

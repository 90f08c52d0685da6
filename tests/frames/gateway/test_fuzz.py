"""Random requests: each gets a response of a known status, and the gateway goes on serving."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from frames.gateway.conftest import Start
from frames.gateway.serving import Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, payload, write
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
        "1,3",
        "3,2",
        "wado",
        "?requestType=WADO&objectUID=1.9",
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


def check(gateway: Gateway, text: bytes, number: int) -> None:
    """Ask, and hold the answer against what every answer is."""
    answer = ask(gateway, text)
    if not answer and b"\r\n\r\n" not in text:
        return
    assert answer.startswith(b"HTTP/1.1 "), (number, text, answer[:200])
    status = int(answer[9:12])
    assert status in STATUSES, (number, text, answer[:300])
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    is_head = text.startswith(b"HEAD")
    if b"Content-Length" in lines and not is_head:
        length = int(lines[b"Content-Length"])
        body, rest = body[:length], body[length:]
        assert len(body) == length, (number, text)
        # What stood behind the request may be another one.
        assert not rest or rest.startswith(b"HTTP/1.1 "), (number, text)
    path = text.partition(b"\r\n")[0].partition(b"?")[0]
    if status == 200 and b"/frames/" in path and body and b"multipart" in head:
        boundary = lines[b"Content-Type"].split(b"boundary=")[1]
        parts = body.split(b"--" + boundary)[1:-1]
        for part in parts:
            part_head, _, payload_ = part[:-2].partition(b"\r\n\r\n")
            frame = int(part_head.rpartition(b"/frames/")[2])
            assert payload_ == payload(frame), (number, text)


def test_random_requests_get_a_status(tmp_path: Path, store: FrameStore, start: Start) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    gateway = start()
    rng = random.Random(20261127)
    for number in range(1500):
        check(gateway, request(rng), number)
    client = Client(gateway)
    assert client.frames(PATH, "1").status == 200
    client.connection.close()

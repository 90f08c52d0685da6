"""A gateway over files that a test wrote, and a client that knows nothing of voxtier."""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from voxtier.frames import Gateway, read_tables
from voxtier.frames.store.store import FrameStore

STAR = 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'


class Answer(NamedTuple):
    """A response: status, header lines by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def parts(self) -> list[tuple[dict[str, str], bytes]]:
        """Split a multipart body (RFC 2046 5.1.1) into header lines and payloads."""
        boundary = self.headers["content-type"].split("boundary=")[1]
        delimiter = f"--{boundary}".encode()
        assert self.body.startswith(delimiter)
        assert self.body.endswith(delimiter + b"--\r\n")
        found = []
        for piece in self.body.split(delimiter)[1:-1]:
            assert piece.startswith(b"\r\n")
            assert piece.endswith(b"\r\n")
            head, _, payload = piece[2:-2].partition(b"\r\n\r\n")
            lines = (line.partition(": ") for line in head.decode().split("\r\n"))
            found.append(({name.lower(): value for name, _, value in lines}, payload))
        return found


class Client:
    """One connection with keep-alive."""

    def __init__(self, gateway: Gateway) -> None:
        self.connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=30)

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Send a request and read the whole answer."""
        self.connection.request(method, path, headers=dict(headers or {}))
        answer = self.connection.getresponse()
        body = answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def frames(self, path: str, frames: str, accept: str = STAR) -> Answer:
        """Ask for frames of the instance at a path of DICOMweb."""
        return self.get(f"{path}/frames/{frames}", {"Accept": accept})


def index(store: FrameStore, paths: Iterable[Path], source: str = "default") -> None:
    """Put the tables of files into the index."""
    store.upsert(source, read_tables([str(path) for path in paths], verify="all"))


def instance_path(study: str, series: str, instance: str) -> str:
    """Return the path of an instance below the gateway's root."""
    return f"/dicomweb/studies/{study}/series/{series}/instances/{instance}"

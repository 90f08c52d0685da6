"""A proxy before an object store: notes each request, adds latency, and fails as real stores do.

It forwards heads unchanged, so that signatures stay good, and knows of HTTP/1.1 what stores use of it.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Request:
    """A request that passed.

    Attributes
    ----------
    method, path : str
        As they were sent.
    headers : dict
        Names in lower case.
    status : int
        Status of the answer; 0 for none.
    sent : int
        Bytes of the answer's body that were sent.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        """The bytes that were asked for, half-open."""
        found = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) + 1) if found else None


@dataclass
class Fault:
    """What happens to a request instead of its answer.

    Attributes
    ----------
    status, code : int and str
        Answer with this status and this code of S3; 0: pass the store's answer on.
    region : str
        Named in the body of such an answer.
    cut : int or None
        Send so many bytes of the body, then reset the connection.
    hang : float
        Seconds of silence before anything is sent.
    headers : dict
        Headers of the answer that are replaced; None removes one.
    shorten : int
        Bytes that the body, its length told so, lacks at the end.
    edit : tuple of (bytes, bytes)
        Text of the body, and what stands in its place: of the same length.
    """

    status: int = 0
    code: str = ""
    region: str = ""
    cut: int | None = None
    hang: float = 0.0
    headers: dict[str, str | None] = field(default_factory=dict)
    shorten: int = 0
    edit: tuple[bytes, bytes] = (b"", b"")


@dataclass
class _Load:
    now: int = 0
    most: int = 0


class ObjectProxy:
    """A port before a server of this machine.

    Attributes
    ----------
    requests : list of Request
        All that passed since the last `forget`.
    latency : float
        Seconds that each answer waits.
    drop : tuple of str
        Headers of requests that the server does not get to see, in lower case.
    fault : callable or None
        Takes a request and returns a `Fault`, or None to let it pass.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.requests: list[Request] = []
        self.latency = 0.0
        self.drop: tuple[str, ...] = ()
        self.fault: Callable[[Request], Fault | None] | None = None
        self._load = _Load()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """Count from here, without faults."""
        self.requests, self.fault, self.latency = [], None, 0.0
        self._load = _Load()

    @property
    def in_flight(self) -> int:
        """Requests that are on their way."""
        return self._load.now

    @property
    def most_in_flight(self) -> int:
        """Requests at the same time, at most; not those that were on their way before."""
        return self._load.most

    @property
    def gets(self) -> list[Request]:
        """Requests for objects, not for lists."""
        return [
            each for each in self.requests if each.method in ("GET", "HEAD") and "list-type" not in each.path
        ]

    @property
    def moved(self) -> int:
        """Bytes of the bodies of objects."""
        return sum(each.sent for each in self.gets)

    def close(self) -> None:
        """Accept nothing more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            reader = stack.enter_context(stack.enter_context(client).makefile("rb"))
            while (head := _read_head(reader)) is not None:
                first, headers = _parse(head)
                method, path, _ = first.split(" ", 2)
                body = reader.read(int(headers.get("content-length", 0)))
                request = Request(method, path, headers)
                with self._lock:
                    self.requests.append(request)
                    load = self._load
                    load.now += 1
                    load.most = max(load.most, load.now)
                try:
                    if server is not None and select.select([server], [], [], 0)[0]:
                        server = None  # it closed the connection meanwhile: no client is to notice
                    if server is None:
                        server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target)))
                        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        answers = stack.enter_context(server.makefile("rb"))
                    for name in self.drop:
                        head = re.sub(rb"(?im)^" + name.encode() + rb":.*\r\n", b"", head)
                    if not self._answer(client, server, answers, head + body, request):
                        return
                finally:
                    with self._lock:
                        load.now -= 1

    def _answer(self, client, server, answers, sent: bytes, request: Request) -> bool:
        """Answer one request; False ends the connection."""
        fault = (self.fault and self.fault(request)) or Fault()
        time.sleep(self.latency + fault.hang)
        if fault.status:
            request.status = fault.status
            named = f"<Region>{fault.region}</Region>" if fault.region else ""
            body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code>{named}</Error>".encode()
            lines = "".join(f"{name}: {value}\r\n" for name, value in fault.headers.items())
            head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode()
            client.sendall(head + (b"" if request.method == "HEAD" else body))
            return True
        server.sendall(sent)
        head = _read_head(answers)
        if head is None:
            return False
        first, headers = _parse(head)
        request.status = int(first.split(" ")[1])
        length = (
            0 if request.method == "HEAD" or request.status in (204, 304) else headers.get("content-length")
        )
        if length is None:
            assert headers.get("transfer-encoding") == "chunked", headers
            body = b"".join(_read_chunks(answers))
            headers["content-length"] = str(len(body))
            del headers["transfer-encoding"]
        else:
            body = answers.read(int(length))
        if fault.edit[0]:
            body = body.replace(*fault.edit)
        if fault.shorten:
            body = body[: -fault.shorten]
            headers["content-length"] = str(len(body))
        for name, value in fault.headers.items():
            headers.pop(name.lower(), None)
            if value is not None:
                headers[name.lower()] = value
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        client.sendall(f"{first}\r\n{lines}\r\n".encode("latin-1"))
        part = body if fault.cut is None else body[: fault.cut]
        request.sent = len(part)
        client.sendall(part)
        if fault.cut is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            return False
        return True


def _read_head(reader) -> bytes | None:
    lines = []
    while line := reader.readline(1 << 16):
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return None


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _read_chunks(reader):
    while size := int(reader.readline().split(b";")[0], 16):
        yield reader.read(size)
        reader.readline()
    while reader.readline() not in (b"\r\n", b""):
        pass

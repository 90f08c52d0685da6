"""A real S3 server (seaweedfs) for the tests, behind a proxy that counts requests and can fail them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import IO

KEY, SECRET = "voxtier-key", "voxtier-secret-8a7b"
NEXT_KEY, NEXT_SECRET = "voxtier-next", "voxtier-secret-3c1d"


def free_port() -> int:
    """Return a port that is free and whose gRPC neighbour (port + 10000) exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port
        with socket.socket() as probe:
            port = 20_000 + port % 20_000
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class CountingProxy:
    """Forwards bytes to a server and notes the request lines that pass.

    In its own process: tiledb-py holds the GIL in some calls, so a thread of the test could not answer them.
    """

    def __init__(self, target: int, log: Path) -> None:
        self._log = log
        log.touch()
        self._start = self._orders = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(target), str(log)], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._process.stdout.readline())

    def forget(self) -> None:
        """Count from here."""
        self._start = self._log.stat().st_size

    @property
    def requests(self) -> list[bytes]:
        """Request lines since the last `forget`."""
        return self._log.read_bytes()[self._start :].splitlines()

    def fail(self, count: int, status: int = 503, code: str = "SlowDown") -> None:
        """Answer the next requests with an error; status 0 means: never answer them."""
        self._orders += 1
        self._order("faults", f"{self._orders} {count} {status} {code}")

    def deny(self, key: str = "") -> None:
        """Refuse what is signed with an access key, as a server does when it has expired."""
        self._order("denied", key)

    def _order(self, name: str, text: str) -> None:
        """Replace an order as a whole: the proxy reads it at any moment, and never writes it."""
        written = self._log.with_name(f"{name}.new")
        written.write_text(text)
        written.replace(self._log.with_name(name))

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


def serve(target: int, log: Path) -> None:
    """Accept and forward until terminated."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    faults = Faults(log.parent)
    with log.open("ab", buffering=0) as sink:
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", target))
            except OSError:
                client.close()
                continue
            threading.Thread(target=pump, args=(client, server, sink, faults), daemon=True).start()
            threading.Thread(target=pump, args=(server, client), daemon=True).start()


REQUEST = re.compile(rb"^(?:GET|PUT|HEAD|POST|DELETE) [^\r\n]* HTTP/1", re.M)
SCOPE = re.compile(rb"Credential=([^/]+)/\d+/([^/]+)/")


class Faults:
    """What the tests have ordered, by files beside the log; how much of it was done is kept here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._order, self._left = "", 0

    def answer(self, block: bytes) -> bytes | None:
        """Return the answer to a request that shall fail; empty means: none, for ever."""
        denied, faults = (self._read(name) for name in ("denied", "faults"))
        scope = SCOPE.search(block)
        if denied and scope and scope[1].decode() == denied:
            return response(400, "ExpiredToken")
        if not faults:
            return None
        order, count, status, code = faults.split()
        with self._lock:
            if order != self._order:
                self._order, self._left = order, int(count)
            self._left -= 1
            if self._left < 0:
                return None
        return response(int(status), code) if int(status) else b""

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return ""


def response(status: int, code: str) -> bytes:
    """Return an error as S3 words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>ordered by a test</Message></Error>"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


def pump(
    source: socket.socket, sink: socket.socket, log: IO[bytes] | None = None, faults: Faults | None = None
) -> None:
    """Forward one direction until it ends."""
    try:
        while block := source.recv(1 << 16):
            lines = [] if log is None else REQUEST.findall(block)
            for line in lines:
                scope = SCOPE.search(block)
                log.write(line + (b" " + b" ".join(scope.groups()) if scope else b" unsigned") + b"\n")
            failing = faults.answer(block) if lines else None
            if failing is not None:
                source.sendall(failing)
                if failing:
                    source.shutdown(socket.SHUT_WR)
                while source.recv(1 << 16):  # its body; a hanging request ends when the client gives up
                    pass
                return
            sink.sendall(block)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            with_suppressed_close(end)


def with_suppressed_close(end: socket.socket) -> None:
    """Close a socket that may be closed already."""
    try:  # noqa: SIM105
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


def start_server(folder: Path, bucket: str) -> Server:
    """Return a server that takes puts; a port that somebody else took meanwhile is a reason to try others."""
    for attempt in range(5):
        place = folder / str(attempt)
        place.mkdir()
        server = Server(place)
        try:
            server.wait_for_first_put(bucket)
        except BaseException:
            ended = server.has_ended
            log = (place / "log").read_text()
            server.stop()
            if not ended or attempt == 4:
                raise
            print(log[-2000:], file=sys.stderr)
        else:
            return server
    raise AssertionError


class Server:
    """One seaweedfs process with one bucket's worth of signed access."""

    def __init__(self, folder: Path) -> None:
        weed = Path(sys.executable).with_name("weed")
        self._folder = folder
        config = folder / "s3.json"
        keys = [{"accessKey": KEY, "secretKey": SECRET}, {"accessKey": NEXT_KEY, "secretKey": NEXT_SECRET}]
        identities = [
            {"name": "t", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]},
            {"name": "anonymous", "actions": ["Read:public", "List:public"]},
        ]
        config.write_text(json.dumps({"identities": identities}))
        ports = [free_port() for _ in range(4)]
        self.port = ports[3]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                str(weed),
                f"-logdir={folder}",
                "server",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-master.port={ports[0]}",
                f"-volume.port={ports[1]}",
                f"-filer.port={ports[2]}",
                "-s3",
                f"-s3.port={ports[3]}",
                f"-s3.config={config}",
                "-s3.port.iceberg=0",  # fixed ports of their own: a second server would die of them
                "-s3.port.lance=0",
                # Files of 64 MB are made as they are needed, and what is deleted keeps its place: the tests
                # of one worker filled twenty of them. A disk with 1 % left is no reason to refuse either.
                "-volume.max=1000",
                "-volume.minFreeSpace=64MiB",
                "-master.volumeSizeLimitMB=64",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.proxy = CountingProxy(self.port, folder / "requests")

    def wait_for_first_put(self, bucket: str, seconds: float = 200) -> None:
        """Wait until a put works: an open port does not mean that volumes can be assigned."""
        from obstore.store import S3Store

        deadline = time.monotonic() + seconds
        while True:
            try:
                client = S3Store(
                    bucket,
                    endpoint=f"http://127.0.0.1:{self.port}",
                    access_key_id=KEY,
                    secret_access_key=SECRET,
                    region="us-east-1",
                    virtual_hosted_style_request=False,
                    client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
                    retry_config={"max_retries": 0},
                )
                self._make_bucket(bucket)
                client.put("ready", b"1")
                return
            except Exception:
                if time.monotonic() > deadline or self.has_ended:
                    raise
                time.sleep(0.3)

    def _make_bucket(self, bucket: str) -> None:
        import tiledb

        vfs = tiledb.VFS(
            ctx=tiledb.Ctx(
                {
                    "vfs.s3.endpoint_override": f"127.0.0.1:{self.port}",
                    "vfs.s3.scheme": "http",
                    "vfs.s3.use_virtual_addressing": "false",
                    "vfs.s3.region": "us-east-1",
                    "vfs.s3.aws_access_key_id": KEY,
                    "vfs.s3.aws_secret_access_key": SECRET,
                    "vfs.s3.connect_max_tries": "1",
                }
            )
        )
        if not vfs.is_bucket(f"s3://{bucket}"):
            vfs.create_bucket(f"s3://{bucket}")

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the process that this object started."""
        self.proxy.close()
        self._process.kill()  # asked to end it takes ten seconds, and nobody needs its folder
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))

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
from pathlib import Path

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
        self._start = 0
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
        (self._log.parent / "faults").write_text(f"{count} {status} {code}" if count else "")

    def deny(self, key: str = "") -> None:
        """Refuse what is signed with an access key, as a server does when it has expired."""
        (self._log.parent / "denied").write_text(key)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()


def serve(target: int, log: Path) -> None:
    """Accept and forward until terminated."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    with log.open("ab", buffering=0) as sink:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", target))
            faults = Faults(log.parent)
            threading.Thread(target=pump, args=(client, server, sink, faults), daemon=True).start()
            threading.Thread(target=pump, args=(server, client), daemon=True).start()


REQUEST = re.compile(rb"^(?:GET|PUT|HEAD|POST|DELETE) [^\r\n]* HTTP/1", re.M)
SCOPE = re.compile(rb"Credential=([^/]+)/\d+/([^/]+)/")


class Faults:
    """What the tests have ordered, by files beside the log."""

    lock = threading.Lock()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def answer(self, block: bytes) -> bytes | None:
        """Return the answer to a request that shall fail; empty means: none, for ever."""
        with self.lock:
            denied, faults = self._folder / "denied", self._folder / "faults"
            scope = SCOPE.search(block)
            if denied.exists() and scope and scope[1].decode() == denied.read_text():
                return response(400, "ExpiredToken")
            if not faults.exists() or not faults.read_text():
                return None
            count, status, code = faults.read_text().split()
            faults.write_text(f"{int(count) - 1} {status} {code}" if int(count) > 1 else "")
            return response(int(status), code) if int(status) else b""


def response(status: int, code: str) -> bytes:
    """Return an error as S3 words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>ordered by a test</Message></Error>"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


def pump(source: socket.socket, sink: socket.socket, log=None, faults=None) -> None:
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
            [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={ports[0]}",  # noqa: E501
             f"-volume.port={ports[1]}", f"-filer.port={ports[2]}", "-s3", f"-s3.port={ports[3]}", f"-s3.config={config}",  # noqa: E501
             "-volume.max=20", "-master.volumeSizeLimitMB=64"],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.proxy = CountingProxy(self.port, folder / "requests")

    def wait_for_first_put(self, bucket: str, seconds: float = 40) -> None:
        """Wait until a put works: an open port does not mean that volumes can be assigned."""
        from obstore.store import S3Store

        deadline = time.monotonic() + seconds
        while True:
            try:
                client = S3Store(
                    bucket, endpoint=f"http://127.0.0.1:{self.port}", access_key_id=KEY, secret_access_key=SECRET,  # noqa: E501
                    region="us-east-1", virtual_hosted_style_request=False,
                    client_options={"allow_http": True}, retry_config={"max_retries": 0},
                )  # fmt: skip
                self._make_bucket(bucket)
                client.put("ready", b"1")
                return
            except Exception:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.3)

    def _make_bucket(self, bucket: str) -> None:
        import tiledb

        vfs = tiledb.VFS(
            ctx=tiledb.Ctx(
                {
                    "vfs.s3.endpoint_override": f"127.0.0.1:{self.port}", "vfs.s3.scheme": "http",
                    "vfs.s3.use_virtual_addressing": "false", "vfs.s3.region": "us-east-1",
                    "vfs.s3.aws_access_key_id": KEY, "vfs.s3.aws_secret_access_key": SECRET,
                    "vfs.s3.connect_max_tries": "1",
                }
            )
        )  # fmt: skip
        if not vfs.is_bucket(f"s3://{bucket}"):
            vfs.create_bucket(f"s3://{bucket}")

    def stop(self) -> None:
        """End the process that this object started."""
        self.proxy.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))

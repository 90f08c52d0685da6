"""A server that speaks the Hugging Face hub protocol on 127.0.0.1, and misbehaves when told to.

The hub answers as ``127.0.0.1``; bodies come from the "CDN", the same server as ``localhost``, because a
redirect to the same host is followed by the client's HEAD and loses ``X-Repo-Commit``.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "1" * 40


@dataclass
class Fault:
    """One misbehaviour of one response.

    kind: drop (after `at` bytes), corrupt (the byte at `at`), no_range, short (claims less), slow
    (`seconds` before every chunk), status (`at` = code), other_etag.
    """

    kind: str
    at: int = 0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    def __init__(self, repo: str = "some/CT-RATE") -> None:
        self.repo = repo
        self.files: dict[str, bytes] = {}
        self.plain: set[str] = set()  # paths that are no LFS files
        self.faults: dict[str, list[Fault]] = defaultdict(list)  # of bodies, by path
        self.api_faults: list[Fault] = []
        self.token: str | None = None
        self.commit = COMMIT
        self.seconds_per_chunk = 0.0
        self.chunk = 1 << 16
        self.held: set[str] = set()  # bodies whose last chunk waits for `release`
        self.release = threading.Event()
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, host + path, headers
        self.sent: Counter[str] = Counter()
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._answerer())
        server.daemon_threads = True
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answerer(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Answerer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:  # a killed client
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

            def note(self) -> None:
                host = self.headers.get("Host", "")
                hub.requests.append((self.command, host + self.path, dict(self.headers.items())))

            def reply(self, code: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def refused(self) -> bool:
                if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    self.reply(401, b"{}", X_Error_Code="GatedRepo", X_Error_Message="access is restricted")
                    return True
                return False

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_POST(self) -> None:
                self.note()
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                if self.api_fault() or self.refused():
                    return None
                match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self.path)
                if not match or match[1] != hub.repo:
                    return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
                if match[2] not in (hub.commit, "main"):
                    return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
                kind = self.headers.get("Content-Type", "")
                paths = (
                    json.loads(body)["paths"]
                    if "json" in kind
                    else urllib.parse.parse_qs(body.decode())["paths"]
                )
                rows = [hub.entry(path) for path in paths if path in hub.files]
                self.reply(200, json.dumps(rows).encode(), Content_Type="application/json")
                return None

            def api_fault(self) -> bool:
                if not hub.api_faults:
                    return False
                fault = hub.api_faults.pop(0)
                self.reply(fault.at, b"{}", **fault.headers)
                return True

            def do_GET(self) -> None:
                self.note()
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                if path.startswith("/api/"):
                    if self.api_fault() or self.refused():
                        return None
                    match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
                    if not match or match[1] != hub.repo:
                        return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
                    if match[2] not in (None, "main", hub.commit):
                        return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
                    siblings = [{"rfilename": name} for name in hub.files]
                    row = {"id": hub.repo, "sha": hub.commit, "siblings": siblings}
                    return self.reply(200, json.dumps(row).encode(), Content_Type="application/json")
                if path.startswith("/cdn/"):
                    return self.body(path.removeprefix("/cdn/"))
                match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                if self.refused():
                    return None
                if not match or match[1] != hub.repo or match[3] not in hub.files:
                    return self.reply(404, b"", X_Error_Code="EntryNotFound")
                content = hub.files[match[3]]
                where = f"http://localhost:{hub._server.server_port}/cdn/{urllib.parse.quote(match[3])}"
                self.reply(
                    302,
                    Location=where,
                    X_Repo_Commit=hub.commit,
                    X_Linked_Etag=f'"{hashlib.sha256(content).hexdigest()}"',
                    X_Linked_Size=str(len(content)),
                )
                return None

            def body(self, path: str) -> None:
                content = hub.files[path]
                fault = hub.faults[path].pop(0) if hub.faults[path] else Fault("none")
                if fault.kind == "status":
                    return self.reply(fault.at, b"", **fault.headers)
                etag = '"cdn-' + hashlib.md5(content).hexdigest() + '"'
                if fault.kind == "other_etag":
                    etag = '"other"'
                start = 0
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                fresh = self.headers.get("If-Range") in (None, etag)
                if asked and fresh and fault.kind != "no_range":
                    start = int(asked[1])
                if start > len(content):
                    return self.reply(416)
                if fault.kind == "corrupt":
                    content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
                rest = content[start : len(content) - (5 if fault.kind == "short" else 0)]
                self.send_response(206 if start else 200)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(rest)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if self.command == "HEAD":
                    return None
                for at in range(0, len(rest), hub.chunk):
                    chunk = rest[at : at + hub.chunk]
                    if fault.kind == "drop" and start + at + len(chunk) > fault.at:
                        chunk = rest[at : max(at, fault.at - start)]
                        self.wfile.write(chunk)
                        hub.sent[path] += len(chunk)
                        self.close_connection = True
                        self.wfile.flush()
                        self.connection.close()
                        return None
                    if path in hub.held and at + hub.chunk >= len(rest):
                        hub.release.wait()
                    time.sleep(fault.seconds if fault.kind == "slow" else hub.seconds_per_chunk)
                    try:
                        self.wfile.write(chunk)
                    except OSError:
                        return None
                    hub.sent[path] += len(chunk)
                return None

        return Answerer

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        row: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
        if path not in self.plain:
            sha = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 130}
        return row

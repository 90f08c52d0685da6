"""Google's and Microsoft's stores, by the servers that people test against: `make soak` installs both."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from frames.sources.images import ct, slide, tile
from volumes.store.s3_server import free_port
from voxtier.errors import SourceError
from voxtier.frames import FileIndexer, FrameReader, index_files, read_frame, read_table
from voxtier.frames.indexing.paths import iter_files
from voxtier.frames.sources import stores
from voxtier.frames.sources.requests import read_ahead
from voxtier.frames.store.store import FrameStore

pytest.importorskip("obstore")
pytestmark = pytest.mark.soak

SERVERS = Path(sys.prefix) / "clouds"
FRAMES, LENGTH = 60, 70_000
# The account that every copy of the server knows.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

Put = Callable[[str, bytes], None]


def google(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Put]:
    key = folder / "key.json"
    names = ("client_email", "private_key", "private_key_id")
    url = f"http://127.0.0.1:{port}"
    key.write_text(json.dumps({"gcs_base_url": url, "disable_oauth": True} | dict.fromkeys(names, "")))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(key))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")

    def post(path: str, body: bytes, kind: str) -> None:
        request = urllib.request.Request(url + path, body, {"Content-Type": kind}, method="POST")
        urllib.request.urlopen(request).close()

    def put(name: str, content: bytes) -> None:
        if not name:
            post("/storage/v1/b?project=p", b'{"name": "frames"}', "application/json")
        else:
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            post(f"/upload/storage/v1/b/frames/o?{query}", content, "application/octet-stream")

    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    return [str(SERVERS / "fake-gcs-server"), *options, "-public-host", f"127.0.0.1:{port}"], put


def azure(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Put]:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{port}")

    def put(name: str, content: bytes) -> None:
        """Make the container, which no client of objects can, or an object."""
        from obstore.store import from_url

        if name:
            from_url("az://frames").put(name, content)
            return
        headers = {
            "x-ms-date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}",
            "x-ms-version": "2021-08-06",
        }
        signed = "".join(f"{key}:{value}\n" for key, value in headers.items())
        text = f"PUT{12 * chr(10)}{signed}/{ACCOUNT}/{ACCOUNT}/frames\nrestype:container"
        digest = hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        connection = HTTPConnection("127.0.0.1", port)
        connection.request(
            "PUT", f"/{ACCOUNT}/frames?restype=container", headers=headers | {"Content-Length": "0"}
        )
        assert connection.getresponse().status == 201
        connection.close()

    program = SERVERS / "node_modules" / ".bin" / "azurite-blob"
    options = ["--location", str(folder), "--blobPort", str(port), "--skipApiVersionCheck", "--silent"]
    return [str(program), *options, "--disableTelemetry"], put


@pytest.fixture(params=[google, azure], ids=["gs", "az"])
def cloud(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Put]]:
    monkeypatch.setattr(stores, "_stores", {})
    command, put = request.param(tmp_path, free_port(), monkeypatch)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                put("", b"")
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
        yield f"{'gs' if request.param is google else 'az'}://frames", put
    finally:
        process.kill()
        process.wait()


def test_a_prefix_is_indexed_read_and_kept_up(cloud: tuple[str, Put], store: FrameStore) -> None:
    root, put = cloud

    def run() -> dict[str, int]:
        found = [
            report.status
            for part in index_files(FileIndexer(store), iter_files([f"{root}/ct"]))
            for report in part
        ]
        return {status: found.count(status) for status in set(found)}

    for number in range(20):
        put(f"ct/{number} ü.dcm", ct(number, f"2.25.{number}"))
    assert run() == {"ok": 20}
    assert run() == {"unchanged": 20}
    put("ct/7 ü.dcm", ct(99, "2.25.7"))
    assert run() == {"unchanged": 19, "ok": 1}
    with FrameReader(store, publish=False, index_seconds=60) as reader:
        for number in (0, 7, 19):
            content = ct(99 if number == 7 else number, f"2.25.{number}")
            assert reader.frame(f"2.25.{number}", 0) == read_frame(content, read_table(content), 0)


def test_a_slide_is_scrolled_and_replaced(cloud: tuple[str, Put], monkeypatch: pytest.MonkeyPatch) -> None:
    root, put = cloud
    put("slide.dcm", slide(FRAMES, LENGTH, "bot"))
    address = f"{root}/slide.dcm"
    with FrameReader(publish=False) as reader:
        for index in range(FRAMES // 2):
            assert reader.frame(address, index) == tile(index, LENGTH)
        put("slide.dcm", slide(FRAMES, 60_000, "eot"))
        monkeypatch.setattr(read_ahead, "_FRESH_SECONDS", 0.0)
        for index in range(FRAMES // 2, FRAMES):
            assert reader.frame(address, index) == tile(index, 60_000)


def test_what_is_not_there_is_named(cloud: tuple[str, Put]) -> None:
    root, _ = cloud
    with pytest.raises(SourceError, match=rf"{root}/none.dcm: status 404"):
        read_table(f"{root}/none.dcm")
    with pytest.raises(SourceError, match=r"://none/a.dcm: status 404"):
        read_table(f"{root.replace('frames', 'none')}/a.dcm")

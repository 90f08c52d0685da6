"""Web servers: an address is asked as it is written, and its row bears that name."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from frames.sources.images import ct
from voxtier.errors import SourceError
from voxtier.frames import FileIndexer, FrameReader, read_frame, read_metadata, read_table
from voxtier.frames.sources import stores
from voxtier.frames.sources.address import as_asked
from voxtier.frames.sources.listing import file_is_gone
from voxtier.frames.store.store import FrameStore

pytest.importorskip("obstore")

# The path that is written; the path that is asked. What a server does with either is its own affair.
SAME = (
    "a%2Fb.dcm", "a/b.dcm", "a%2Bb.dcm", "a+b.dcm", "a%281%29.dcm", "a(1).dcm", "a%3Ab%40c%3D%26.dcm",
    "a:b@c=&.dcm", "a%20b.dcm", "a%25b.dcm", "a%252Fb.dcm", "a%2525.dcm", "a%3Fb%23.dcm", "%E4.dcm",
    "%C3%A4.dcm", "a%5B1%5D.dcm", "a[1].dcm", "a%7Cb%5E.dcm", "a%5Cb.dcm", "x%0Ay.dcm", "%2F",
    "a%2F..%2Fb.dcm", "a/%2F/b.dcm", "b%2F..",
)  # fmt: skip
EQUIVALENT = {
    "a%2fb.dcm": "a%2Fb.dcm", "%61%2Ddcm%7e": "a-dcm~", "größe 1.dcm": "gr%C3%B6%C3%9Fe%201.dcm",
    "100%.dcm": "100%25.dcm", "a%zz": "a%25zz", 'a"<>`{}\\': "a%22%3C%3E%60%7B%7D%5C",
}  # fmt: skip


class Web(ThreadingHTTPServer):
    """Answers ranges of files by the path as it was sent, undecoded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        span = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
        headers = {"ETag": f'"{hash(content)}"', "Last-Modified": "Fri, 27 Nov 2020 00:00:00 GMT"}
        if content is None:
            status, body = 404, b""
        elif self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            status, body = 412, b""
        elif span is None:
            status, body = 200, content
        else:
            status, start, end = 206, int(span[1]), min(int(span[2]) + 1, len(content))
            body = content[start:end]
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(stores, "_stores", {})
    server = Web()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("written", "asked"), [*((each, each) for each in SAME), *EQUIVALENT.items()])
def test_an_address_is_asked_as_it_is_written(web: Web, written: str, asked: str) -> None:
    """A reserved character and its escape are not equivalent (RFC 3986, 2.2)."""
    content, address = ct(7), f"{web.url}/{written}"
    web.files[f"/{asked}"] = content
    table = read_table(address)
    assert read_frame(address, table, 0) == read_frame(content, table, 0)
    assert read_metadata(address) == read_metadata(content)
    assert set(web.asked) == {f"/{asked}"}
    assert not file_is_gone(address)
    assert as_asked(asked) == asked


@pytest.mark.parametrize(
    "path", ["", "a/", "/a", "a//b", ".", "a/../b", "a/%2E%2e/b", "%2e", "a\nb", "\udcff", "\ufffd"]
)
def test_a_path_that_the_client_would_change_is_refused(web: Web, path: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_table(f"{web.url}/{path}")
    assert caught.value.errno == 22
    assert web.asked == []


def test_rows_are_named_as_written_and_hold_their_own_object(web: Web, store: FrameStore) -> None:
    written = {f"{web.url}/a%2Fb.dcm": ct(1, "2.25.1"), f"{web.url}/a/b.dcm": ct(2, "2.25.2")}
    web.files = {address.removeprefix(web.url): content for address, content in written.items()}
    reports = list(FileIndexer(store, threads=2).index_batch(list(written)))
    assert {report.path for report in reports if report.status == "ok"} == set(written)
    with FrameReader(store, publish=False, index_seconds=60) as reader:
        for uid, (address, content) in zip(("2.25.1", "2.25.2"), written.items(), strict=True):
            right = read_frame(content, read_table(content), 0)
            assert reader.frame(address, 0) == reader.frame(uid, 0) == right


def test_a_row_of_a_version_that_decoded_the_address_is_made_anew(web: Web, store: FrameStore) -> None:
    """Its name is the same, its state that of the object that was read then."""
    address = f"{web.url}/a%2Fb.dcm"
    web.files = {"/a%2Fb.dcm": (other := ct(1, "2.25.1"))}
    list(FileIndexer(store, threads=1).index_batch([address]))
    web.files = {"/a%2Fb.dcm": (right := ct(2, "2.25.2")), "/a/b.dcm": other}
    with FrameReader(publish=False) as reader:
        assert reader.frame(address, 0) == read_frame(right, read_table(right), 0)
    [report] = FileIndexer(store, threads=1).index_batch([address])
    assert report.status == "ok"
    row = store.get("default", address)
    assert row is not None
    assert row.sop_instance_uid == "2.25.2"


def test_spellings_of_one_object_are_one_row(web: Web, store: FrameStore) -> None:
    """Else one of them would escape the rules of access on the other."""
    web.files = {"/~x/a%20b.dcm": ct(1, "2.25.1")}
    for path in ("/~x/a%20b.dcm", "/%7Ex/a b.dcm", "/%7ex/a%20b.dcm"):
        [report] = FileIndexer(store, threads=1).index_batch([f"{web.url}{path}"])
        assert report.error is None
    assert [each.path for each in store.results("default")] == [f"{web.url}/~x/a%20b.dcm"]

"""Keys that obstore cannot name do not end a listing: held against a plain S3 listing of any keys."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

pytest.importorskip("obstore")

from voxtier.errors import KeyFaultError
from voxtier.frames.sources import stores
from voxtier.frames.sources.key_faults import Unnamed, list_around_faults
from voxtier.frames.sources.stores import Listed, Store
from voxtier.system.s3_config import S3Config

_WRITTEN = "2026-01-02T03:04:05.000Z"


class _Server(ThreadingHTTPServer):
    """Lists keys as S3 does (ListObjectsV2); the servers that tests can install refuse or mend such keys.

    Attributes
    ----------
    keys : set of str
        The objects.
    page : int
        Entries in an answer.
    takes_start : bool
        Whether it begins where the client wants; Azure does not.
    lists : int
        Answers so far.
    """

    keys: set[str]
    page = 1000
    takes_start = True
    lists = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        key = unquote(urlsplit(self.path).path).partition("/bucket/")[2]
        self.send_response(200 if key in self.server.keys else 404)
        self.send_header("Content-Length", "7")
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.lists += 1
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        after = asked.get("start-after", "") if self.server.takes_start else ""
        after = asked.get("continuation-token", after)
        entries: dict[str, bool] = {}
        for key in sorted(self.server.keys):
            if key.startswith(prefix):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                entry = key if end < 0 else key[: end + 1]
                if entry > after:
                    entries.setdefault(entry, end >= 0)
        now = list(entries)[: self.server.page]
        parts = [
            f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>"
            if entries[entry]
            else f"<Contents><Key>{escape(entry)}</Key><LastModified>{_WRITTEN}</LastModified>"
            f'<ETag>"e"</ETag><Size>7</Size></Contents>'
            for entry in now
        ]
        if len(now) < len(entries):
            token = f"<NextContinuationToken>{escape(now[-1])}</NextContinuationToken>"
            parts.append(f"<IsTruncated>true</IsTruncated>{token}")
        body = f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def _server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(_server: _Server) -> _Server:
    _server.keys, _server.page, _server.takes_start = set(), 1000, True
    return _server


class _PlainStore(Store):
    """The store at the server; it signs nothing."""

    def __init__(self, port: int) -> None:
        super().__init__("s3://bucket", S3Config())
        self.port = port

    def _make_client(self) -> Any:
        from obstore.store import S3Store

        return S3Store(
            "bucket",
            endpoint=f"http://127.0.0.1:{self.port}",
            region="us-east-1",
            skip_signature=True,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
            retry_config={"max_retries": 0},
        )


@pytest.fixture
def store(server: _Server) -> Store:
    return _PlainStore(server.server_port)


def _is_faulty(key: str) -> bool:
    # The client drops one slash at each end.
    return any(part in ("", ".", "..") for part in key.removeprefix("/").removesuffix("/").split("/"))


def _fault_of(key: str) -> tuple[str, str]:
    """Return the folder of the first fault of a key, with its slash, and the key up to the fault's end."""
    parts = key.split("/")
    at = next(at for at, part in enumerate(parts) if part in ("", ".", ".."))
    folder = "".join(f"{part}/" for part in parts[:at])
    return folder, f"{folder}{parts[at]}/"


def _listed(store: Store, prefix: str = "") -> tuple[list[str], list[str]]:
    found = list(list_around_faults(store, prefix))
    return (
        [each.key for each in found if isinstance(each, Listed)],
        [each.start for each in found if isinstance(each, Unnamed)],
    )


def test_what_lies_around_a_fault_is_listed(server: _Server, store: Store) -> None:
    around = {"a/1", "a/b/1", "a/b/9/x", "a/b/0", "a/b-/1", "a/c", "b", "z/1/2"}
    server.keys = around | {"a/b//x", "a/b//y/z"}
    named, faulty = _listed(store)
    assert named == sorted(around)
    assert faulty == ["a/b//"]


@pytest.mark.parametrize(
    ("fault", "start"),
    [
        ("//x", "//"),
        ("/./x", "/./"),
        ("/../x", "/../"),
        ("//", "//"),
        ("/.//x", "/./"),
        ("/x/..", "/x/../"),
        ("/503 Smith//x", "/503 Smith//"),
    ],
)
@pytest.mark.parametrize("page", [1, 3, 1000])
def test_each_kind_of_fault(server: _Server, store: Store, fault: str, start: str, page: int) -> None:
    around = {f"{folder}{name}" for folder in ("", "p/", "p/q/", "p/q/r/") for name in ("0", "5/a", "x1")}
    server.keys, server.page = around | {f"p/q{fault}"}, page
    assert _listed(store) == (sorted(around), [f"p/q{start}"])
    assert _listed(store, "p/q/r") == (sorted(each for each in around if each.startswith("p/q/r/")), [])


def test_an_object_at_the_place_where_a_listing_goes_on(server: _Server, store: Store) -> None:
    server.keys = {"a//1", "a/0", "a/0/1", "a/00"}
    assert _listed(store, "a") == (["a/0", "a/0/1", "a/00"], ["a//"])
    server.keys = {"a//1", "a/0/1"}
    assert _listed(store, "a") == (["a/0/1"], ["a//"])


def test_any_keys(server: _Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes twice; nothing is missing but what begins like a fault, or beside one with less than '/'.

    More may be missing, but is an error, where there are faults in a folder and in one below it.
    """
    dice = random.Random(17)
    names = ("", ".", "..", "-", ".x", "0", "1", "a", "b", "é", "+")
    weights = (1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2)
    complete = 0
    for _ in range(400):
        server.page = dice.choice((1, 2, 3, 7, 1000))
        keys = {
            "/".join(dice.choices(names, weights, k=dice.randint(1, 5))) for _ in range(dice.randint(1, 20))
        }
        monkeypatch.setattr(stores, "_LISTED_AT_ONCE", server.page)  # else it waits for 1,000, and loses them
        # The client takes those with a slash at an end for others.
        server.keys = {key for key in keys if key and not (key[0] == "/" or key[-1] == "/")}
        good = {key for key in server.keys if not _is_faulty(key)}
        folders = {_fault_of(key)[0] for key in server.keys - good}
        named, starts, nested, is_complete = [], set(), set(), True
        try:
            for each in list_around_faults(store, ""):
                if isinstance(each, Listed):
                    named.append(each.key)
                else:
                    assert each.start not in starts
                    starts.add(each.start)
        except KeyFaultError:
            is_complete = False
            nested = {a for a in folders if any(b != a and b.startswith(a) for b in folders)}
            assert nested
        complete += is_complete
        assert named == sorted(set(named))
        assert set(named) <= good
        assert starts <= {_fault_of(key)[1] for key in server.keys - good}
        for key in server.keys - set(named):
            if key not in good and _fault_of(key)[1] in starts:
                continue
            above = [folder for folder in folders if key.startswith(folder)]
            beside = any(key.removeprefix(folder) < "/" for folder in above)
            assert beside or (not is_complete and nested.intersection(above)), key
    assert 100 < complete < 400


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_control_codes_hide_what_is_before_them(server: _Server, store: Store, page: int) -> None:
    server.keys, server.page = {"a/1", "b\tc.dcm", "b\td/x", "b /1", "c\t/1", "c", "d/1"}, page
    found = []
    with pytest.raises(KeyFaultError, match="illegal"):
        found.extend(list_around_faults(store, ""))
    named = [each.key for each in found if isinstance(each, Listed)]
    assert named == sorted(set(named))
    assert {"d/1"} <= set(named) <= {"a/1", "b /1", "c", "d/1"}
    assert [each.start for each in found if isinstance(each, Unnamed)] == ["b\t", "c\t"]


@pytest.mark.parametrize("page", [1, 2, 1000])
@pytest.mark.parametrize("more", [{"/z"}, {"/"}, {"/z0", "/z1", "/z2", "/z3"}])
def test_a_slash_at_the_beginning_is_an_error_where_a_fault_is_met(
    server: _Server, store: Store, page: int, more: set[str]
) -> None:
    """The client drops it, so that the order of the keys is another than it seems."""
    server.keys, server.page = {"a//x", "a/1", "b/1"} | more, page
    with pytest.raises(KeyFaultError, match="a//x"):
        list(list_around_faults(store, ""))
    assert _listed(store, "a") == (["a/1"], ["a//"])


@pytest.mark.parametrize(
    ("keys", "page", "named"),
    [
        ({"/r/1", "/r/2", "/s//3", "a/1", "b/1", "t/1"}, 2, ["a/1", "b/1", "t/1"]),
        ({"a-/x", "a/", "b//y"}, 2, ["a", "a-/x"]),
        ({"a/1/", "a/1//x"}, 1, ["a/1"]),
        ({"z/1/", "z/./1"}, 1, ["z/1"]),
    ],
)
def test_slashes_at_ends_are_neither_lost_nor_twice(
    server: _Server,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    keys: set[str],
    page: int,
    named: list[str],
) -> None:
    monkeypatch.setattr(stores, "_LISTED_AT_ONCE", page)
    server.keys, server.page = keys, page
    found = [each.key for each in list_around_faults(store, "") if isinstance(each, Listed)]
    assert sorted(each for each in found if not each.startswith("r/")) == named


def test_a_fault_costs_some_requests_however_many_folders_there_are(server: _Server, store: Store) -> None:
    around = {
        f"{study:03}/{series}/{number}" for study in range(400) for series in range(3) for number in (1, 2)
    }
    server.keys, server.page, server.lists = around | {"050/1//x", "051/1//x"}, 100, 0
    assert _listed(store) == (sorted(around), ["050/1//", "051/1//"])
    assert server.lists < 150  # some of them: the folders that one answer names


def test_many_faults_are_told_as_a_number(
    server: _Server, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    server.keys = {f"{study:02}//x" for study in range(30)}
    assert len(_listed(store)[1]) == 30
    assert len(caplog.records) == 11
    assert caplog.records[-1].getMessage().endswith("20 more such faults")


def test_a_folder_that_is_listed_from_its_beginning_each_time_is_an_error_at_the_end(
    server: _Server, store: Store
) -> None:
    server.keys, server.takes_start = {"a/1", "a/b//x", "a/b/1", "a/c", "b/1"}, False
    found = []
    with pytest.raises(KeyFaultError, match=r"a/b//x.*copy that object"):
        found.extend(list_around_faults(store, ""))
    assert {each.key for each in found if isinstance(each, Listed)} == {"a/1", "a/c", "b/1"}


def test_the_user_is_told_what_is_not_listed(
    server: _Server, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    server.keys = {"a//x", "a/1", "b/./x"}
    _listed(store)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("s3://bucket/a//: the client cannot name keys that begin so.")
    assert told[1].startswith("s3://bucket/b/./: ")

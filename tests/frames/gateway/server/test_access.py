"""Who may ask, from where, and for what: tokens, origins, roots, sources, methods, limits."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from frames.gateway.conftest import Connect, Start
from frames.gateway.serving import STAR, Client, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, payload, write
from voxtier.cli.frames.serving.settings import read_tokens
from voxtier.errors import ConfigError
from voxtier.frames import Gateway
from voxtier.frames.store.store import FrameStore

PATH = instance_path(STUDY, SERIES, "1.9")
TOKEN, OTHER = "a-token-of-the-tests-1", "a-token-of-the-tests-2"


@pytest.fixture
def file(tmp_path: Path, store: FrameStore) -> Path:
    """An instance in the sources ``default`` and ``second``."""
    (tmp_path / "served").mkdir()
    path = write(tmp_path / "served", "a", "1.9")
    index(store, [path])
    index(store, [path], "second")
    return path


def test_an_open_address_needs_tokens_or_a_proxy(store: FrameStore) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        Gateway(store, host="0.0.0.0")
    with pytest.raises(ConfigError, match="one source"):
        Gateway(store, [])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "fifteen-letters",
        "sixteen letters with blanks",
        "of-two-lines-and\nmore",
        "ümläutümläutümläut",
    ],
)
def test_a_token_that_is_guessed_or_cannot_be_sent_is_refused(
    store: FrameStore, tmp_path: Path, token: str
) -> None:
    with pytest.raises(ConfigError, match="number 2: a token ") as refused:
        Gateway(store, tokens={TOKEN: [], token: "default"})
    assert len(token) < 2 or token not in str(refused.value)
    if token and len(token.split()) == 1:
        (tmp_path / "tokens").write_text(f"{TOKEN}\n{token} default\n")
        with pytest.raises(ConfigError, match="line 2: a token "):
            read_tokens(str(tmp_path / "tokens"))


@pytest.mark.parametrize("root", ["nowhere", "served/nowhere", "served/a/b", "", "no\0where"])
def test_a_root_that_is_not_there_is_refused(
    file: Path, store: FrameStore, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(file.parent.parent)
    for roots in (root, ["served", root]):
        with pytest.raises(ConfigError, match=r"^roots: "):
            Gateway(store, roots=roots)
    Gateway(store, roots=["served", file, Path("served/../served/"), ".", "s3://nowhere/yet"])


def test_a_token_is_good_for_its_sources(file: Path, connect: Connect) -> None:
    client = connect(["default", "second"], tokens={TOKEN: [], OTHER: ["second"]})
    frame = f"{PATH}/frames/1"
    for headers in (
        {},
        {"Authorization": "Bearer wrong-token-of-tests"},
        {"Authorization": f"Basic {TOKEN}"},
    ):
        answer = client.get(frame, headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert client.get(frame, {"Authorization": f"Bearer {TOKEN}"}).status == 200
    assert client.get(f"/second{frame}", {"Authorization": f"bearer {OTHER}"}).status == 200
    assert client.get(frame, {"Authorization": f"Bearer {OTHER}"}).status == 404
    assert client.get(f"/third{frame}", {"Authorization": f"Bearer {TOKEN}"}).status == 404
    for page in ("/", "/status.json", "/metrics", "/dicomweb/studies"):
        assert client.get(page).status == 401
    assert client.get("/health").status == 200


def test_a_token_does_not_tell_of_the_sources_that_it_does_not_open(
    file: Path, tmp_path: Path, connect: Connect
) -> None:
    (tmp_path / "index.html").write_text("<p>viewer</p>")
    client = connect(["default", "second"], tokens={TOKEN: [], OTHER: ["second"]}, viewer=tmp_path)
    headers = {"Authorization": f"Bearer {OTHER}"}
    for path in (f"{PATH}/frames/1", "/dicomweb/studies", "/dicomweb/none", "/wado?requestType=WADO"):
        hidden, missing = (client.get(f"/{name}{path}", headers) for name in ("default", "third"))
        assert (hidden.status, hidden.body) == (missing.status, missing.body) == (404, missing.body), path
    for token, sources in ((TOKEN, ["default", "second"]), (OTHER, ["second"])):
        headers = {"Authorization": f"Bearer {token}"}
        assert json.loads(client.get("/status.json", headers).body)["frames"]["sources"] == sources
        assert viewer_sources(client, headers) == [
            {"name": name, "isDefault": name == "default"} for name in sources
        ]


def viewer_sources(client: Client, headers: dict[str, str]) -> object:
    """Return the sources that the viewer's configuration names."""
    first = client.get("/app-config.js", headers).body.splitlines()[0]
    return json.loads(first.removeprefix(b"const sources = ").removesuffix(b";"))


@pytest.mark.parametrize("as_given", [str, Path])
def test_one_root_counts_as_one(
    file: Path, tmp_path: Path, store: FrameStore, connect: Connect, as_given: type
) -> None:
    """Not as its letters, of which ``/`` is a root that holds all files."""
    index(store, [write(tmp_path, "b", "1.10")])
    client = connect(roots=as_given(file.parent))
    assert client.frames(PATH, "1").status == 200
    assert client.frames(instance_path(STUDY, SERIES, "1.10"), "1").status in (404, 503)


def test_one_source_of_a_token_counts_as_one(file: Path, store: FrameStore, connect: Connect) -> None:
    for source in ("ab", "a", "b"):
        index(store, [file], source)
    client = connect(["default", "ab", "a", "b"], tokens={TOKEN: "ab"})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    found = {name: client.get(f"/{name}{PATH}/frames/1", headers).status for name in ("ab", "a", "b")}
    assert found == {"ab": 200, "a": 404, "b": 404}


@pytest.mark.parametrize("given", ["https://viewer.example", iter(["https://viewer.example"])])
def test_one_origin_counts_as_one_and_an_iterator_keeps_its_own(
    file: Path, connect: Connect, given: str | Iterator[str]
) -> None:
    client = connect(cors_origins=given)
    allowed = client.get(f"{PATH}/frames/1", {"Origin": "https://viewer.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://viewer.example"


def test_other_origins_are_named_exactly(file: Path, connect: Connect) -> None:
    client = connect(cors_origins=["https://viewer.example"])
    allowed = client.get(f"{PATH}/frames/1", {"Origin": "https://viewer.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://viewer.example"
    assert "ETag" in allowed.headers["access-control-expose-headers"]
    refused = client.get(f"{PATH}/frames/9", {"Origin": "https://viewer.example"})
    assert refused.status == 404
    assert refused.headers["access-control-allow-origin"] == "https://viewer.example"
    other = client.get(f"{PATH}/frames/1", {"Origin": "https://viewer.example.evil"})
    assert "access-control-allow-origin" not in other.headers
    preflight = client.get(f"{PATH}/frames/1", {"Origin": "https://viewer.example"}, method="OPTIONS")
    assert preflight.status == 204
    assert preflight.headers["access-control-max-age"] == "7200"


def test_a_file_outside_of_the_roots_is_not_opened(
    tmp_path: Path, file: Path, store: FrameStore, connect: Connect
) -> None:
    outside = write(tmp_path, "b", "1.10")
    (tmp_path / "served" / "link.dcm").symlink_to(outside)
    linked = write(tmp_path, "c", "1.11")
    (tmp_path / "served" / "c.dcm").symlink_to(linked)
    index(store, [outside, tmp_path / "served" / "c.dcm"])
    client = connect(roots=[tmp_path / "served"])
    assert client.frames(PATH, "1").status == 200
    unknown = client.frames(instance_path(STUDY, SERIES, "1.99"), "1")
    for uid in ("1.10", "1.11"):
        answer = client.frames(instance_path(STUDY, SERIES, uid), "1")
        assert answer.status == 404
        assert (answer.body == unknown.body) == (uid == "1.10")  # a link below the root is there
        assert str(tmp_path).encode() not in answer.body
    free = connect()
    assert free.frames(instance_path(STUDY, SERIES, "1.10"), "1").status == 200


def test_a_root_may_be_where_a_link_of_another_leads(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    """Both were named: their order does not matter."""
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    (data / "link").symlink_to(other)
    file = write(data / "link", "a", "1.12")
    index(store, [file])
    path = instance_path(STUDY, SERIES, "1.12")
    assert connect(roots=[data]).frames(path, "1").status == 404
    for roots in ([data, data / "link"], [data / "link", data], [data, file], [file]):
        assert connect(roots=roots).frames(path, "1").status == 200


def test_any_source_has_its_address(file: Path, store: FrameStore, connect: Connect) -> None:
    for name in ("dicomweb", "wado"):
        index(store, [file], name)
    client = connect(["default", "dicomweb", "wado"])
    for name in ("dicomweb", "wado", "default"):
        assert client.frames(f"/{name}{PATH}", "1").status == 200, name
        assert client.get(f"/{name}/dicomweb/studies").status == 200, name
    assert client.get("/dicomweb/dicomweb/other").status == 404
    assert client.get("/dicomweb/other").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_is_written(file: Path, connect: Connect, method: str) -> None:
    answer = connect().get(PATH, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def raw(gateway: Gateway, request: bytes) -> bytes:
    """Send bytes and read until the gateway closes."""
    with socket.create_connection((gateway.host, gateway.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    return answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"1," * 500_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 30_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET http://elsewhere:80/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET HTTPS://elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://elsewhere/nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
    ],
)
def test_requests_beyond_the_limits(file: Path, start: Start, request_: bytes, status: int) -> None:
    gateway = start()
    answer = raw(gateway, request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert raw(gateway, b"GET /health HTTP/1.0\r\n\r\n").endswith(b"ok\n")


@pytest.mark.parametrize(
    "framing", ["Content-Length: 3000000", "Transfer-Encoding: chunked", "Expect: 100-continue"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "SEARCH"])
def test_a_method_that_is_not_served_is_refused_as_that_with_its_body(
    file: Path, start: Start, method: str, framing: str
) -> None:
    """RFC 9110 15.5.6. A STOW-RS client would take 413 for the limit of a proxy."""
    gateway = start()
    head = f"{method} /dicomweb/studies HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
    head += "" if "Length" in framing or "chunked" in framing else "Content-Length: 3000000\r\n"
    body = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000
    answer = raw(gateway, head.encode() + b"\r\n" + body)
    assert answer.count(b"HTTP/1.1 ") == 1  # the body is no request
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer


def test_a_client_of_http_1_0_gets_no_chunks(file: Path, start: Start) -> None:
    """RFC 9112 6.1: what it does not know; the end of the connection is the end of the body."""
    gateway = start()
    series = PATH.rpartition("/instances/")[0]
    for path, option in ((series, "keep-alive"), (f"{series}/metadata", "close"), (PATH, "close")):
        ask = f"GET {path} HTTP/1.0\r\nConnection: {option}\r\n\r\n"
        head, _, old = raw(gateway, ask.encode()).partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert head.startswith(b"HTTP/1.1 200 ")
        with closing(http.client.HTTPConnection(gateway.host, gateway.port, timeout=30)) as connection:
            connection.request("GET", path)
            assert old == connection.getresponse().read()


def test_pipelined_requests_are_answered_in_order(file: Path, start: Start) -> None:
    gateway = start()
    ask = f"GET {PATH}/frames/{{}} HTTP/1.1\r\nHost: x\r\nAccept: image/jpeg\r\n{{}}\r\n"
    answer = raw(
        gateway, "".join(ask.format(n, "Connection: close\r\n" if n == 3 else "") for n in (1, 2, 3)).encode()
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    places = [answer.index(payload(n)) for n in (1, 2, 3)]
    assert places == sorted(places)


def test_a_request_in_single_bytes_is_read(file: Path, start: Start) -> None:
    gateway = start()
    with socket.create_connection((gateway.host, gateway.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_the_viewers_files_stay_in_their_folder(tmp_path: Path, file: Path, start: Start) -> None:
    viewer = tmp_path / "viewer"
    viewer.mkdir()
    (viewer / "index.html").write_text("<p>viewer</p>")
    (viewer / "app.js").write_text("1")
    (tmp_path / "secret.js").write_text("secret")
    (viewer / "link.js").symlink_to(tmp_path / "secret.js")
    gateway = start(["default", "second"], viewer=viewer)
    client = Client(gateway)
    assert client.get("/").body == b"<p>viewer</p>"
    for mode in ("viewer", "microscopy"):
        assert client.get(f"/{mode}?StudyInstanceUIDs=1").body == b"<p>viewer</p>"
        assert f"'{mode}'".encode() in client.get("/status").body
    script = client.get("/app.js").headers
    assert script["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/app.js", {"If-None-Match": script["etag"]})
    assert (again.status, again.body, again.headers["cache-control"]) == (304, b"", "no-cache")
    (viewer / "app.js").write_text("2")
    assert client.get("/app.js", {"If-None-Match": script["etag"]}).body == b"2"
    assert viewer_sources(client, {}) == [
        {"name": "default", "isDefault": True},
        {"name": "second", "isDefault": False},
    ]
    assert b'data-viewer="yes"' in client.get("/status").body
    for path in (
        "/../secret.js",
        "/%2e%2e/secret.js",
        "/link.js",
        "/..%2fsecret.js",
        "//secret.js",
        "/none.js",
    ):
        assert client.get(path).status == 404, path
    assert client.frames(PATH, "1", STAR).status == 200
    client.connection.close()

"""WADO-URI (PS3.18 9): one instance, named by the query."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest

from frames.gateway.conftest import Connect
from frames.gateway.serving import Client, index
from frames.gateway.wado.test_frames import SERIES, STUDY, write
from support.builders import JPEG
from voxtier.frames.store.store import FrameStore

ASKED = {
    "requestType": "WADO",
    "studyUID": STUDY,
    "seriesUID": SERIES,
    "objectUID": "1.9",
    "contentType": "application/dicom",
}


def ask(client: Client, changes: dict[str, str | None], root: str = "/wado") -> tuple[int, str, bytes]:
    query = urlencode({name: value for name, value in (ASKED | changes).items() if value is not None})
    answer = client.get(f"{root}?{query}")
    return answer.status, answer.headers.get("content-type", ""), answer.body


def test_an_instance_is_named_by_the_query(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    file = write(tmp_path, "a", "1.9")
    index(store, [file])
    index(store, [file], "second")
    client = connect(["default", "second"])
    whole = (200, f"application/dicom;transfer-syntax={JPEG.uid}", file.read_bytes())
    assert ask(client, {}) == whole
    assert ask(client, {}, "/second/wado") == whole
    assert ask(client, {"contentType": None}) == whole
    assert ask(client, {"contentType": "image/jpeg,application/dicom"}) == whole
    assert ask(client, {"transferSyntax": JPEG.uid}) == whole
    for changes, status in (
        ({"requestType": None}, 400),
        ({"requestType": "wado"}, 400),
        ({"studyUID": None}, 400),
        ({"seriesUID": ""}, 400),
        ({"objectUID": "../1"}, 400),
        ({"anonymize": "yes"}, 400),
        ({"frameNumber": "1"}, 400),
        ({"contentType": "image/jpeg"}, 406),
        ({"transferSyntax": "1.2.840.10008.1.2.1"}, 406),
        ({"objectUID": "1.10"}, 404),
        ({"seriesUID": "1.2.3.5"}, 404),
        ({"studyUID": "1.2.4"}, 404),
    ):
        assert ask(client, changes)[0] == status, changes
    assert ask(client, {}, "/third/wado")[0] == 404
    path = f"/wado?{urlencode(ASKED)}"
    part = client.get(path, {"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, file.read_bytes()[10:20])
    assert client.get(path, {"If-None-Match": part.headers["etag"]}).status == 304


@pytest.mark.parametrize("accept", ["image/jpeg", "text/html"])
def test_without_a_type_in_the_query_the_header_decides(
    tmp_path: Path, store: FrameStore, connect: Connect, accept: str
) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    query = urlencode({name: value for name, value in ASKED.items() if name != "contentType"})
    assert connect().get(f"/wado?{query}", {"Accept": accept}).status == 406

"""Status 304 has the header lines of status 200 that RFC 9110 15.4.5 names, whatever is asked for."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest

from frames.gateway.conftest import Connect
from frames.gateway.serving import STAR, index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described
from frames.gateway.wado.test_object import ASKED
from support.builders import JPEG, Element, Fragments, dicom, element, jpeg
from voxtier.frames.store.store import FrameStore

NAMED = ("content-location", "etag", "vary", "cache-control", "expires")  # the rest is of the day
PATH = instance_path(STUDY, SERIES, "1.9")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{PATH}/frames/1", "application/octet-stream; transfer-syntax=*"),
        (f"{PATH}/frames/1,2", STAR),
        (PATH, "application/dicom; transfer-syntax=*"),
        (PATH, 'multipart/related; type="application/dicom"; transfer-syntax=*'),
        (f"{PATH}/metadata", "application/dicom+json"),
        (f"{PATH}/bulkdata/00282000", "application/octet-stream"),
        (f"{PATH}/bulkdata/00282000", 'multipart/related; type="application/octet-stream"'),
        (f"{PATH}/bulkdata/7FE00010", STAR),
        (f"/wado?{urlencode(ASKED)}", "*/*"),
    ],
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_what_a_cache_must_know_comes_with_304_too(
    tmp_path: Path, store: FrameStore, connect: Connect, path: str, accept: str, encoding: str
) -> None:
    profile = Element(0x00282000, "OB", bytes(2000))
    pixels = element("PixelData", Fragments([jpeg(900), jpeg(902)]))
    file = tmp_path / "a.dcm"
    file.write_bytes(dicom([*described("1.9", frames=2), profile, pixels], JPEG).content)
    index(store, [file])
    client = connect(cors_origins=["https://viewer.example"])
    asked = {"Accept": accept, "Accept-Encoding": encoding}
    first = client.get(path, asked)
    assert first.status == 200, first.body
    again = client.get(path, asked | {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    wanted = {name: value for name, value in first.headers.items() if name in NAMED}
    assert {"etag", "vary", "cache-control"} <= wanted.keys()
    assert {name: value for name, value in again.headers.items() if name in NAMED} == wanted

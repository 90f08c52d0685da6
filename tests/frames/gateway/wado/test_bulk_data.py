"""The values that BulkDataURIs name: every URI of a header leads to the bytes that pydicom reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from frames.gateway.conftest import Connect
from frames.gateway.serving import index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import JPEG, MPEG4, Element, Fragments, Items, dicom, element, jpeg, pattern
from voxtier.frames.store.store import FrameStore

SHIPPED = [
    "CT_small.dcm",
    "waveform_ecg.dcm",
    "image_dfl.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "liver_1frame.dcm",
]


def uris(header: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each URI of a header and the place that it names: tags and numbers of Items."""
    for value in header.values():
        if "BulkDataURI" in value:
            yield value["BulkDataURI"], value["BulkDataURI"].rpartition("/bulkdata/")[2].split("/")
        for item in value.get("Value", []) if value["vr"] == "SQ" else []:
            yield from uris(item)


def value_at(dataset: pydicom.Dataset, place: list[str]) -> bytes:
    """Return the bytes of the element at a place, little endian."""
    for tag, number in zip(place[:-1:2], place[1::2], strict=True):
        dataset = dataset[int(tag, 16)].value[int(number) - 1]
    found = dataset[int(place[-1], 16)]
    raw = found.value if isinstance(found.value, bytes) else str(found.value).encode()
    if not dataset.original_encoding[1] and found.VR == "OW":
        raw = b"".join(raw[at : at + 2][::-1] for at in range(0, len(raw), 2))
    return raw


@pytest.mark.parametrize("name", SHIPPED)
def test_every_uri_of_a_header_leads_to_its_value(
    tmp_path: Path, store: FrameStore, connect: Connect, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(Path(str(get_testdata_file(name))).read_bytes())
    index(store, [path])
    dataset = pydicom.dcmread(path)
    client = connect()
    instance = instance_path(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    [header] = json.loads(client.get(f"{instance}/metadata").body)
    found = list(uris(header))
    assert found
    for uri, place in found:
        answer = client.get(uri, {"Accept": "application/octet-stream"})
        assert answer.status == 200, (uri, answer.body)
        assert answer.body == value_at(dataset, place), uri
        [(_, part)] = client.get(
            uri, {"Accept": 'multipart/related; type="application/octet-stream"'}
        ).parts()
        assert part == answer.body
        half = len(answer.body) // 2
        ranged = client.get(uri, {"Accept": "application/octet-stream", "Range": f"bytes={half}-"})
        assert (ranged.status, ranged.body) == (206, answer.body[half:])
        assert client.get(uri, {"If-None-Match": answer.headers["etag"], "Accept": "*/*"}).status == 304


def test_a_video_is_one_stream_with_ranges(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    stream = pattern(100_000)
    path = tmp_path / "video.dcm"
    pixels = element("PixelData", Fragments([stream[:60_000], stream[60_000:]]))
    path.write_bytes(dicom([*described("1.9", frames=30), pixels], MPEG4).content)
    index(store, [path])
    client = connect()
    uri = f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010"
    answer = client.get(uri, {"Accept": "video/mp4"})
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "video/mp4", stream)
    ranged = client.get(uri, {"Accept": "*/*", "Range": "bytes=59000-60999"})
    assert (ranged.status, ranged.body) == (206, stream[59_000:61_000])


def test_compressed_pixels_are_their_frames(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    answer = connect().get(f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010")
    assert [part for _, part in answer.parts()] == [payload(1), payload(2), payload(3)]


@pytest.mark.parametrize(("count", "size"), [(3000, 20), (5000, 4)])  # the second: less than is read at once
def test_pixels_of_more_frames_than_a_list_may_name_are_one_value(
    tmp_path: Path, store: FrameStore, connect: Connect, count: int, size: int
) -> None:
    sent = [jpeg(size, number % 250 + 1) for number in range(count)]
    elements = [*described("1.9", frames=len(sent)), element("PixelData", Fragments(sent))]
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(elements, JPEG).content)
    index(store, [path])
    client = connect()
    uri = f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010"
    answer = client.get(uri)
    assert (answer.status, [part for _, part in answer.parts()]) == (200, sent)
    assert client.get(uri, {"If-None-Match": answer.headers["etag"]}).status == 304
    listed = ",".join(str(number + 1) for number in range(513))
    assert client.frames(instance_path(STUDY, SERIES, "1.9"), listed).status == 413


@pytest.mark.parametrize(
    ("accept", "sent"),
    [
        ("application/octet-stream", "application/octet-stream"),
        ("video/mp4;transfer-syntax=1.2, */*;q=0", "video/mp4"),
        ("application/octet-stream, video/mp4;q=0", "application/octet-stream"),
        ("video/*", "video/mp4"),
        ("image/jpeg", None),
    ],
)
def test_a_value_goes_out_as_what_it_is_or_as_octets(
    tmp_path: Path, store: FrameStore, connect: Connect, accept: str, sent: str | None
) -> None:
    path = tmp_path / "video.dcm"
    path.write_bytes(
        dicom([*described("1.9", frames=30), element("PixelData", Fragments([pattern(100)]))], MPEG4).content
    )
    index(store, [path])
    answer = connect().get(f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010", {"Accept": accept})
    if sent is None:
        assert answer.status == 406
    else:
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, sent, pattern(100))


def test_fragments_beside_the_image_are_not_its_frames(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    icon = [element("Rows", 4), element("PixelData", Fragments([pattern(30), pattern(20)]), "OB")]
    own = [
        Element(0x00290010, "LO", "ACME"),
        Element(0x00291010, "OB", Fragments([b"private fragment"])),
        element("IconImageSequence", Items([icon])),
        element("PixelData", Fragments([jpeg(20, 1), jpeg(26, 2)])),
    ]
    elements = sorted([*described("1.9", frames=2), *own], key=lambda each: each.tag)
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(elements, JPEG).content)
    index(store, [path])
    client = connect()
    instance = instance_path(STUDY, SERIES, "1.9")
    [header] = json.loads(client.get(f"{instance}/metadata").body)
    wanted = {"00880200/1/7FE00010": pattern(30) + pattern(20), "00291010": b"private fragment"}
    found = {"/".join(place): client.get(uri) for uri, place in uris(header)}
    assert [part for _, part in found.pop("7FE00010").parts()] == [jpeg(20, 1), jpeg(26, 2)]
    assert {place: answer.body for place, answer in found.items()} == wanted


def test_a_value_of_a_replaced_file_has_another_entity_tag(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    def content(seed: int) -> bytes:
        return dicom([*described("1.9"), element("PixelData", pattern(16, seed))]).content

    path = tmp_path / "a.dcm"
    path.write_bytes(content(1))
    os.utime(path, ns=(1, 1))
    index(store, [path])
    uri = f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010"
    old = connect().get(uri)
    assert old.body == pattern(16, 1)
    (tmp_path / "new").write_bytes(content(2))
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").replace(path)
    known = {"If-None-Match": old.headers["etag"]}
    answer = connect().get(uri, known)  # a gateway that has not opened the old one
    assert (answer.status, answer.body) == (200, pattern(16, 2))
    spliced = connect().get(uri, {"Range": "bytes=8-", "If-Range": old.headers["etag"]})
    assert spliced.status == 200


@pytest.mark.parametrize("place", ["00100010", "99990010", "x", "7FE00010/1", "52009230/1/00420011", "", "/"])
def test_a_place_without_bulk_data_is_404(
    tmp_path: Path, store: FrameStore, connect: Connect, place: str
) -> None:
    index(store, [write(tmp_path, "a", "1.9")])
    answer = connect().get(f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/{place}")
    assert answer.status == 404
    assert re.search(rb'"kind":"[a-z_]+"', answer.body)

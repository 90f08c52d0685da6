"""Frames over HTTP: the bytes that the file holds, in the form that the client takes."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from frames.dicom.cases import CASES
from frames.gateway.conftest import Connect
from frames.gateway.serving import STAR, index, instance_path
from support.builders import (
    EXPLICIT_BE,
    JPEG,
    Element,
    Fragments,
    Syntax,
    dicom,
    element,
    image,
    jpeg,
    pattern,
)
from voxtier.errors import VoxtierError
from voxtier.frames import FrameTable, read_frame, read_table
from voxtier.frames.store.store import FrameStore

STUDY, SERIES = "1.2.3", "1.2.3.4"
LOSSLESS = Syntax("1.2.840.10008.1.2.4.70")


def write(folder: Path, name: str, uid: str, syntax: Syntax = JPEG, **options: object) -> Path:
    """Write an instance of the study and series of these tests."""
    path = folder / f"{name}.dcm"
    path.write_bytes(instance(uid, syntax, **options))
    return path


def instance(uid: str, syntax: Syntax = JPEG, frames: int = 3, length: int = 900) -> bytes:
    """Return an instance of JPEG frames."""
    payloads = [jpeg(length + 2 * number, seed=number) for number in range(frames)]
    pixels = element("PixelData", Fragments(payloads))
    return dicom([*described(uid, frames=frames), pixels], syntax).content


def described(uid: str, **options: int) -> list[Element]:
    """Return the attributes of an image of the study and series of these tests."""
    uids = {"SOPInstanceUID": uid, "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    own = {each.tag: each for each in (element(name, value) for name, value in uids.items())}
    return [own.get(each.tag, each) for each in image(**options)]


def aligned(table: FrameTable, content: bytes, frame: int) -> bytes:
    """Return a frame as PS3.18 8.7.3.3.1 wants it: from bit 0, little endian."""
    raw = read_frame(content, table, frame)
    bits = table.rows * table.columns * table.samples_per_pixel * table.bits_allocated
    if table.kind == "native" and bits % 8:
        unpacked = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        first = bits * frame % 8
        return np.packbits(unpacked[first : first + bits], bitorder="little").tobytes()
    if table.transfer_syntax_uid == EXPLICIT_BE.uid and table.bits_allocated > 8:
        return np.frombuffer(raw, f">u{table.bits_allocated // 8}").byteswap().tobytes()
    position = table.pixel_data_pos or 0
    if table.transfer_syntax_uid == EXPLICIT_BE.uid and content[position + 4 : position + 6] == b"OW":
        assert len(raw) % 2 == 0
        return np.frombuffer(raw, ">u2").byteswap().tobytes()
    return raw


def test_every_reference_case_is_served_as_it_is_read(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    """Each case is a source of its own: many hold the same SOP Instance UID."""
    cases = {case.name: case for case in CASES if len(case.content) < 300_000}
    for name, case in cases.items():
        path = tmp_path / name
        path.write_bytes(case.content)
        index(store, [path], name)
    client = connect(list(cases))
    served = 0
    for name, case in cases.items():
        try:
            table = read_table(case.content, verify="all")
        except VoxtierError:
            continue
        uids = (table.study_instance_uid, table.series_instance_uid, table.sop_instance_uid)
        if not all(uids):
            continue
        path = f"/{name}{instance_path(*uids)}"
        for frame in range(min(len(table), 20)):
            answer = client.frames(path, str(frame + 1))
            if table.kind == "video":
                assert answer.status == 406, name
                continue
            try:
                wanted = aligned(table, case.content, frame)
            except VoxtierError:
                assert answer.status == 404, name
                continue
            assert answer.status == 200, (name, answer.body)
            [(_, payload)] = answer.parts()
            assert payload == wanted, (name, frame)
            served += 1
        assert client.frames(path, str(len(table) + 1)).status == 404, name
    assert served > 500


@pytest.fixture
def path(tmp_path: Path, store: FrameStore) -> str:
    """An instance of three frames in the index."""
    index(store, [write(tmp_path, "a", "1.2.3.4.5")])
    return instance_path(STUDY, SERIES, "1.2.3.4.5")


def payload(frame: int, length: int = 900) -> bytes:
    """Return the bytes of a frame of `instance`, counted from 1."""
    return jpeg(length + 2 * (frame - 1), seed=frame - 1)


def test_frames_come_in_the_order_asked(path: str, connect: Connect) -> None:
    client = connect()
    answer = client.frames(path, "3,1,2")
    assert [body for _, body in answer.parts()] == [payload(3), payload(1), payload(2)]
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["content-type"].startswith(
        'multipart/related; type="application/octet-stream"; boundary='
    )
    heads = [head for head, _ in answer.parts()]
    assert heads[0]["content-type"] == f"application/octet-stream;transfer-syntax={JPEG.uid}"
    assert heads[0]["content-location"] == f"{path}/frames/3"


def test_a_single_frame_may_come_alone(path: str, connect: Connect) -> None:
    client = connect()
    answer = client.frames(path, "2", "image/jpeg")
    assert (answer.status, answer.body) == (200, payload(2))
    assert answer.headers["content-type"] == f"image/jpeg;transfer-syntax={JPEG.uid}"
    assert client.frames(path, "1,2", "image/jpeg").status == 406


@pytest.mark.parametrize("frames", ["0", "-1", "1.5", "a", "1,", ",2", "1,,2", "1,1", "4294967297", "%31"])
def test_a_bad_list_of_frames_is_400(path: str, connect: Connect, frames: str) -> None:
    assert connect().frames(path, frames).status == 400


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("*/*", 200),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", 200),
        (STAR, 200),
        ('multipart/related; type="image/jpeg"', 200),
        (f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG.uid}', 200),
        ('multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.90', 406),
        ("application/dicom+json, multipart/related; type=application/octet-stream; transfer-syntax=*", 200),
        ("image/jpeg;q=0", 406),
        ("image/jp2", 406),
        ("text/html", 406),
    ],
)
def test_accept_decides(path: str, connect: Connect, accept: str | None, status: int) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert connect().get(f"{path}/frames/1", headers).status == status


def test_the_query_may_say_accept(path: str, connect: Connect) -> None:
    client = connect()
    answer = client.get(f"{path}/frames/1?accept=image%2Fjpeg", {"Accept": "text/html"})
    assert (answer.status, answer.body) == (200, payload(1))


def test_a_lossless_frame_needs_its_syntax_or_a_star(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    index(store, [write(tmp_path, "a", "1.9", LOSSLESS)])
    path = instance_path(STUDY, SERIES, "1.9")
    client = connect()
    refused = client.frames(path, "1", 'multipart/related; type="application/octet-stream"')
    assert refused.status == 406
    assert LOSSLESS.uid.encode() in refused.body
    assert client.frames(path, "1", STAR).status == 200


def test_a_known_entity_tag_costs_no_body(path: str, connect: Connect) -> None:
    client = connect()
    first = client.frames(path, "1")
    again = client.get(f"{path}/frames/1", {"Accept": STAR, "If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    other = client.get(f"{path}/frames/2", {"Accept": STAR, "If-None-Match": first.headers["etag"]})
    assert other.status == 200
    assert client.frames(path, "1").body == first.body  # the boundary too is no chance


def test_a_range_of_the_answer(path: str, connect: Connect) -> None:
    client = connect()
    whole = client.frames(path, "1,2")
    middle = len(whole.body) // 2
    first = client.get(f"{path}/frames/1,2", {"Accept": STAR, "Range": f"bytes=0-{middle - 1}"})
    rest = client.get(f"{path}/frames/1,2", {"Accept": STAR, "Range": f"bytes={middle}-"})
    assert (first.status, rest.status) == (206, 206)
    assert first.body + rest.body == whole.body
    assert rest.headers["content-range"] == f"bytes {middle}-{len(whole.body) - 1}/{len(whole.body)}"
    assert client.get(f"{path}/frames/1", {"Accept": STAR, "Range": "bytes=99999-"}).status == 416


def test_head_says_what_get_would(path: str, connect: Connect) -> None:
    client = connect()
    whole = client.frames(path, "1")
    head = client.get(f"{path}/frames/1", {"Accept": STAR}, method="HEAD")
    assert head.body == b""
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == whole.headers[name]


def test_an_instance_of_another_series_is_not_there(path: str, connect: Connect) -> None:
    client = connect()
    assert client.frames(instance_path(STUDY, "1.2.3.9", "1.2.3.4.5"), "1").status == 404
    assert client.frames(instance_path("1.2.9", SERIES, "1.2.3.4.5"), "1").status == 404
    assert client.frames(instance_path(STUDY, SERIES, "1.2.3.4.6"), "1").status == 404
    assert client.frames(instance_path(STUDY, SERIES, "no-uid"), "1").status == 400
    assert client.frames(path, "1").status == 200


def test_a_replaced_file_is_never_mixed(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    file = write(tmp_path, "a", "1.9", length=900)
    index(store, [file])
    path = instance_path(STUDY, SERIES, "1.9")
    client = connect()
    old = client.frames(path, "2")
    assert old.parts()[0][1] == payload(2)
    replacement = tmp_path / "new"
    replacement.write_bytes(instance("1.9", length=1800))
    replacement.replace(file)
    os.utime(file, ns=(1, 1))
    for _ in range(40):  # the path is looked at once a second
        new = client.frames(path, "2")
        [(_, body)] = new.parts()
        assert body in (payload(2), payload(2, 1800))
        if body == payload(2, 1800):
            break
        assert new.headers["etag"] == old.headers["etag"]
        time.sleep(0.1)
    assert body == payload(2, 1800)
    assert new.headers["etag"] != old.headers["etag"]


def test_a_file_that_now_holds_another_instance_is_not_served(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    file = write(tmp_path, "a", "1.9")
    index(store, [file])
    file.write_bytes(instance("1.10"))
    client = connect()
    assert client.frames(instance_path(STUDY, SERIES, "1.9"), "1").status == 404


def test_a_file_that_was_corrected_where_it_is_has_its_new_uids(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    """Programs that save a file over itself keep its number in the file system."""
    file = write(tmp_path, "a", "1.9")
    index(store, [file])
    client = connect()
    assert client.frames(instance_path(STUDY, SERIES, "1.9"), "1").status == 200
    number = file.stat().st_ino
    for study, uid in (("1.77", "1.9"), ("1.77", "1.10"), (STUDY, "1.9")):
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = study, uid
        dataset.save_as(file)
        assert file.stat().st_ino == number
        index(store, [file])
        path = instance_path(study, SERIES, uid)
        assert client.frames(path, "2").parts()[0][1] == payload(2)
        assert client.get(path, {"Accept": "application/dicom"}).body == file.read_bytes()
        [header] = json.loads(client.get(f"{path}/metadata").body)
        assert header["0020000D"]["Value"] == [study]


@pytest.mark.parametrize(
    ("place", "accept"),
    [
        ("", "application/dicom"),
        ("", 'multipart/related; type="application/dicom"'),
        ("/frames/1", "application/octet-stream"),
        ("/frames/1,2", STAR),
        ("/bulkdata/7FE00010", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("range_", [None, "bytes=100-"])
def test_a_file_that_is_overwritten_while_it_is_sent_breaks_the_answer_off(
    tmp_path: Path, store: FrameStore, connect: Connect, place: str, accept: str, range_: str | None
) -> None:
    """Never a complete answer of two files: the client that has begun to read sees it end too soon."""
    size = 8000
    attributes = described("1.9", rows=size, columns=size // 2, frames=2)
    old, new = (
        dicom([*attributes, element("PixelData", bytes([fill]) * size**2)]).content for fill in (1, 2)
    )
    file = tmp_path / "a.dcm"
    file.write_bytes(old)
    index(store, [file])
    client = connect()
    path = instance_path(STUDY, SERIES, "1.9") + place
    headers = {"Accept": accept} | ({"Range": range_} if range_ else {})
    assert len(client.get(path, headers).body) > size**2 // 3
    client.connection.request("GET", path, headers=headers)
    answer = client.connection.getresponse()
    assert answer.status == (206 if range_ else 200)
    begun = answer.read(1 << 20)
    with open(file, "r+b") as stream:
        stream.write(new)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        assert begun + answer.read() == b"two files"


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize(
    ("bits", "frames", "options"),
    [
        (8, 1, {"rows": 3, "columns": 3}),
        (8, 5, {"rows": 4, "columns": 4}),
        (8, 1, {"rows": 3, "columns": 3, "samples": 3}),
        (8, 2, {"rows": 3, "columns": 2, "samples": 3}),
        (1, 1, {"rows": 3, "columns": 8}),
        (1, 5, {"rows": 8, "columns": 16}),
    ],
)
def test_words_of_big_endian_are_turned_however_few_bits_a_sample_has(
    tmp_path: Path,
    store: FrameStore,
    connect: Connect,
    vr: str,
    bits: int,
    frames: int,
    options: dict[str, int],
) -> None:
    """PS3.5 7.3: OW is words of 16 bits, OB is not."""
    pixels = options["rows"] * options["columns"] * options.get("samples", 1)
    little = pattern((pixels * bits * frames + 7) // 8)
    little += b"\0" * (len(little) % 2)
    stored = np.frombuffer(little, ">u2").byteswap().tobytes() if vr == "OW" else little
    path = tmp_path / "a.dcm"
    attributes = described("1.9", frames=frames, bits=bits, **options)
    path.write_bytes(dicom([*attributes, element("PixelData", stored, vr)], EXPLICIT_BE).content)
    index(store, [path])
    bit_array = np.unpackbits(np.frombuffer(little, np.uint8), bitorder="little")
    size = pixels * bits
    wanted = [
        np.packbits(bit_array[n * size : (n + 1) * size], bitorder="little").tobytes() for n in range(frames)
    ]
    client = connect()
    numbers = list(range(frames, 0, -1))
    answer = client.frames(instance_path(STUDY, SERIES, "1.9"), ",".join(map(str, numbers)))
    assert [body for _, body in answer.parts()] == [wanted[number - 1] for number in numbers]
    bulk = client.get(f"{instance_path(STUDY, SERIES, '1.9')}/bulkdata/7FE00010").body
    assert bulk == little


def test_a_big_endian_file_of_pydicom_is_served_as_pydicom_reads_it(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    path = Path(str(get_testdata_file("SC_rgb_small_odd_big_endian.dcm")))
    dataset = pydicom.dcmread(path)
    index(store, [path])
    uids = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
    [(_, frame)] = connect().frames(instance_path(*uids), "1").parts()
    assert frame == dataset.pixel_array.tobytes()


def test_large_frames_are_sent_whole(tmp_path: Path, store: FrameStore, connect: Connect) -> None:
    pixels = pattern(512 * 512 * 2 * 3)
    attributes = described("1.9", rows=512, columns=512, bits=16, frames=3)
    content = dicom([*attributes, element("PixelData", pixels)]).content
    file = tmp_path / "ct.dcm"
    file.write_bytes(content)
    index(store, [file])
    client = connect()
    answer = client.frames(instance_path(STUDY, SERIES, "1.9"), "3,1")
    size = 512 * 512 * 2
    assert [body for _, body in answer.parts()] == [pixels[2 * size :], pixels[:size]]
    alone = client.frames(instance_path(STUDY, SERIES, "1.9"), "2", "application/octet-stream")
    assert alone.body == pixels[size : 2 * size]
    assert alone.headers["content-type"] == "application/octet-stream;transfer-syntax=1.2.840.10008.1.2.1"

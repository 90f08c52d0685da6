"""The conformance table of PS3.18 8 and 10: request, status, header lines. One gateway answers all rows."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from frames.dicom.cases import CASES
from frames.gateway.conftest import Begin
from frames.gateway.serving import STAR, Client, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, described, write
from support.builders import EXPLICIT_BE, EXPLICIT_LE, JPEG, dicom, element, pattern
from support.oracles import pydicom_truth
from voxtier.frames import FrameReader, FrameTable, read_table

UID, LARGE = "1.9", "1.10"
PATH = instance_path(STUDY, SERIES, UID)
FRAME, SERIES_PATH = f"{PATH}/frames/1", f"/dicomweb/studies/{STUDY}/series/{SERIES}"
OCTETS = "application/octet-stream"
JSON = "application/dicom+json"
SIZE = 512 * 512 * 2


class Case(NamedTuple):
    """A request and what its answer must be."""

    name: str
    path: str
    accept: str | None
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    sent: Mapping[str, str] = MappingProxyType({})
    method: str = "GET"


ANY = {"content-type": 'multipart/related; type="image/jpeg"'}
RAW = {"content-type": f'multipart/related; type="{OCTETS}"'}
ONE = {"content-type": f"image/jpeg;transfer-syntax={JPEG.uid}"}
TABLE = [
    Case("no Accept", FRAME, None, 200, ANY),
    Case("any type", FRAME, "*/*", 200, ANY),
    Case("unquoted type", FRAME, f"multipart/related; type={OCTETS}; transfer-syntax=*", 200, RAW),
    Case("quoted type", FRAME, f'multipart/related; type="{OCTETS}"; transfer-syntax=*', 200, RAW),
    Case("quoted star", FRAME, STAR, 200, RAW),
    Case("names in any case", FRAME, f"MULTIPART/Related;Type={OCTETS};Transfer-SYNTAX=*", 200, RAW),
    Case("no blank", FRAME, f"multipart/related;type=image/jpeg;transfer-syntax={JPEG.uid}", 200, ANY),
    Case("JSON first", FRAME, f"{JSON}, multipart/related; type={OCTETS}; transfer-syntax=*", 200, RAW),
    Case("a lossy frame without a syntax", FRAME, f'multipart/related; type="{OCTETS}"', 200, RAW),
    Case("frame without parts", FRAME, "*/*, multipart/related;q=0", 200, ONE),
    Case("frames without parts", f"{PATH}/frames/1,2", "*/*, multipart/related;q=0", 406),
    Case("weight 0", FRAME, "image/jpeg;q=0", 406),
    Case("the higher weight", FRAME, "image/jpeg;q=0.1, multipart/related;type=image/jpeg;q=0.9", 200, ANY),
    Case(
        "another syntax",
        FRAME,
        'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.90',
        406,
    ),
    Case(
        "Implicit VR is never sent",
        FRAME,
        f"multipart/related;type={OCTETS};transfer-syntax=1.2.840.10008.1.2",
        406,
    ),
    Case("unknown type", FRAME, "image/png", 406),
    Case("any application type", FRAME, "application/*", 200, {"content-type": f"{OCTETS};transfer-syntax="}),
    Case("any multipart", f"{PATH}/frames/1,2", "multipart/*", 200, ANY),
    Case("rendered and DICOM types", FRAME, f"image/png, {STAR}", 200, RAW),
    Case("a type in the query", f"{FRAME}?accept=image/jpeg", "text/html", 200, ONE),
    Case("single part", FRAME, "image/jpeg", 200, ONE),
    Case("single part of two frames", f"{PATH}/frames/1,2", "image/jpeg", 406),
    Case("encoded comma", f"{PATH}/frames/3%2C1", STAR, 200, RAW),
    Case("frame past the end", f"{PATH}/frames/4", STAR, 404),
    Case("one of two past the end", f"{PATH}/frames/1,4", STAR, 404),
    *(
        Case(f"frame list {frames!r}", f"{PATH}/frames/{frames}", STAR, 400)
        for frames in ("0", "-1", "1.5", "a", "1,", ",2", "1,,2", "1,1", "+1", "%201", "1%00", "4294967296")
    ),
    Case("too many frames", f"{PATH}/frames/{','.join(map(str, range(1, 600)))}", STAR, 413),
    Case("a list of 10^6 characters", f"{PATH}/frames/{'1,' * 500_000}1", STAR, 414),
    Case("another series", FRAME.replace(SERIES, "1.2.3.9"), STAR, 404),
    Case("another study", FRAME.replace(f"/{STUDY}/", "/1.2.9/"), STAR, 404),
    Case("unknown instance", FRAME.replace(UID, "1.99"), STAR, 404),
    Case("no UID", FRAME.replace(UID, "a"), STAR, 400),
    Case("a UID of 65 digits", FRAME.replace(UID, "1" * 65), STAR, 400),
    Case(
        "known entity tag",
        FRAME,
        STAR,
        304,
        {"cache-control": "private, max-age=3600"},
        {"If-None-Match": "*"},
    ),
    Case("another entity tag", FRAME, STAR, 200, RAW, {"If-None-Match": '"a"'}),
    Case("If-Match of anything", FRAME, STAR, 200, RAW, {"If-Match": "*"}),
    Case("If-Match of another", FRAME, STAR, 412, {}, {"If-Match": '"a", "b"'}),
    Case("If-Match and a range", FRAME, STAR, 412, {}, {"If-Match": '"a"', "Range": "bytes=0-9"}),
    Case("If-Match goes first", FRAME, STAR, 412, {}, {"If-Match": '"a"', "If-None-Match": "*"}),
    Case("If-Match of an instance", PATH, None, 412, {}, {"If-Match": '"a"'}),
    Case("If-Match of headers", f"{PATH}/metadata", None, 412, {}, {"If-Match": '"a"'}),
    Case("If-Match of bulk data", f"{PATH}/bulkdata/7FE00010", "*/*", 412, {}, {"If-Match": '"a"'}),
    Case("range", FRAME, STAR, 206, {"content-length": "10"}, {"Range": "bytes=0-9"}),
    Case("range past the end", FRAME, STAR, 416, {}, {"Range": "bytes=99999-"}),
    Case("two ranges", FRAME, STAR, 200, RAW, {"Range": "bytes=0-1,4-5"}),
    Case("range of another representation", FRAME, STAR, 200, RAW, {"Range": "bytes=0-1", "If-Range": '"a"'}),
    Case("head", FRAME, STAR, 200, RAW, method="HEAD"),
    Case("head of what is not there", f"{PATH}/frames/9", STAR, 404, method="HEAD"),
    Case(
        "options", FRAME, None, 204, {"access-control-allow-methods": "GET, HEAD, OPTIONS"}, method="OPTIONS"
    ),
    Case("nothing is stored", "/dicomweb/studies", None, 405, {"allow": "GET, HEAD, OPTIONS"}, method="POST"),
    Case("nothing is deleted", PATH, None, 405, method="DELETE"),
    Case(
        "instance in parts", PATH, None, 200, {"content-type": 'multipart/related; type="application/dicom"'}
    ),
    Case(
        "instance alone",
        PATH,
        "application/dicom",
        200,
        {"content-type": "application/dicom;transfer-syntax="},
    ),
    Case("instance as an image", PATH, "image/jpeg", 406),
    Case("instance of another syntax", PATH, "application/dicom; transfer-syntax=1.2.840.10008.1.2", 406),
    Case(
        "instance of another syntax, or a page",
        PATH,
        "application/dicom; transfer-syntax=1.2.840.10008.1.2, text/html",
        406,
    ),
    Case(
        "instance of its syntax, and nothing else",
        PATH,
        f"application/dicom; transfer-syntax={JPEG.uid}, */*;q=0",
        200,
        {"content-type": "application/dicom;transfer-syntax="},
    ),
    Case(
        "instance of any syntax but its own",
        PATH,
        f"application/dicom; transfer-syntax=*, application/dicom; transfer-syntax={JPEG.uid};q=0",
        406,
    ),
    Case(
        "instance without parts",
        PATH,
        "*/*, multipart/related;q=0",
        200,
        {"content-type": "application/dicom;transfer-syntax="},
    ),
    Case("series without parts", SERIES_PATH, "*/*, multipart/related;q=0", 406),
    Case(
        "series but one syntax of it",
        SERIES_PATH,
        f"application/dicom; transfer-syntax=*, application/dicom; transfer-syntax={JPEG.uid};q=0",
        406,
    ),
    Case("series", SERIES_PATH, None, 200, {"transfer-encoding": "chunked"}),
    Case("series of any syntax", SERIES_PATH, "application/dicom; transfer-syntax=*", 200),
    # It holds a JPEG file and a native one.
    Case("series of one syntax", SERIES_PATH, f"application/dicom; transfer-syntax={JPEG.uid}", 406),
    Case(
        "series of two syntaxes",
        SERIES_PATH,
        f"application/dicom;transfer-syntax={JPEG.uid}, application/dicom;transfer-syntax={EXPLICIT_LE.uid}",
        200,
    ),
    Case("series that is not there", f"/dicomweb/studies/{STUDY}/series/1.1", None, 404),
    Case("metadata", f"{PATH}/metadata", JSON, 200, {"content-type": JSON}),
    Case("metadata as JSON", f"{SERIES_PATH}/metadata", "application/json", 200, {"content-type": JSON}),
    Case("metadata alone", f"{PATH}/metadata", f"{JSON};transfer-syntax=1.2, */*;q=0", 200),
    Case("metadata refused", f"{PATH}/metadata", f"*/*, {JSON};q=0", 406),
    Case("metadata as XML", f"{PATH}/metadata", 'multipart/related; type="application/dicom+xml"', 406),
    Case(
        "metadata zipped",
        f"{PATH}/metadata",
        JSON,
        200,
        {"content-encoding": "gzip"},
        {"Accept-Encoding": "gzip"},
    ),
    Case("frames are never zipped", FRAME, STAR, 200, RAW, {"Accept-Encoding": "gzip"}),
    Case("bulk data", f"{instance_path(STUDY, SERIES, LARGE)}/bulkdata/7FE00010", "*/*", 200),
    Case("bulk data that is not there", f"{PATH}/bulkdata/00420011", "*/*", 404),
    Case("search", "/dicomweb/studies", JSON, 200, {"content-type": JSON, "cache-control": "no-cache"}),
    Case("search without a result", "/dicomweb/studies?PatientID=nobody", JSON, 204),
    Case("search by a bad attribute", "/dicomweb/studies?Foo=1", JSON, 400),
    Case("search refused", "/dicomweb/studies", f"*/*, {JSON};q=0", 406),
    Case("search as XML", "/dicomweb/studies", "application/dicom+xml", 406),
    Case("fuzzy search", "/dicomweb/studies?fuzzymatching=true", JSON, 200, {"warning": "299 "}),
    Case("more results", "/dicomweb/instances?limit=1", JSON, 200, {"warning": "299 "}),
    Case("unknown resource", "/dicomweb/patients", None, 404),
    Case("rendered", f"{FRAME}/rendered", None, 404),
    Case("not UTF-8", "/dicomweb/studies?PatientName=%ff", JSON, 400),
]


# Forms in which frames are stored (cases of the parser), and the type and syntax in which they are sent.
FORMS = {
    "n01_explicit_le": (OCTETS, "1.2.840.10008.1.2.1"),
    "n02_implicit_le_3f": (OCTETS, "1.2.840.10008.1.2.1"),
    "n03_explicit_be_2f": (OCTETS, "1.2.840.10008.1.2.1"),
    "n50_deflated_2f": (OCTETS, "1.2.840.10008.1.2.1"),
    "n18_odd_frame_padded": (OCTETS, "1.2.840.10008.1.2.1"),
    "n10_1bit_unaligned_4f": (OCTETS, "1.2.840.10008.1.2.1"),
    "n12_ybr422_2f": (OCTETS, "1.2.840.10008.1.2.1"),
    "e01_bot_1to1": ("image/jpeg", "1.2.840.10008.1.2.4.50"),
    "e02_nobot_1to1": ("image/jpeg", "1.2.840.10008.1.2.4.50"),
    "e03_rle_nobot": ("image/dicom-rle", "1.2.840.10008.1.2.5"),
    "e04_bot_multifrag": ("image/jpeg", "1.2.840.10008.1.2.4.50"),
    "e10_eot": ("image/jpeg", "1.2.840.10008.1.2.4.50"),
    "e34_htj2k_1to1": ("image/jphc", "1.2.840.10008.1.2.4.201"),
}
CASES_BY_NAME = {case.name: case for case in CASES}
UNREADABLE = {"x_cut_bot_in_frame_1": (2, 404), "e31_video_1frag_100f": (1, 406)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of an instance of three JPEG frames, one of three large ones, and stored forms."""
    made = tmp_path_factory.mktemp("conformance")
    write(made, "a", UID)
    attributes = described(LARGE, rows=512, columns=512, bits=16, frames=3)
    content = dicom([*attributes, element("PixelData", pattern(SIZE * 3))]).content
    (made / "b.dcm").write_bytes(content)
    for name in (*FORMS, *UNREADABLE):
        (made / name).write_bytes(CASES_BY_NAME[name].content)
    return made


@pytest.fixture(scope="module")
def client(begin: Begin, folder: Path) -> Iterator[Client]:
    """Connect to the gateway of all rows; a stored form is a source, as many hold the same UID."""
    forms = {name: [folder / name] for name in (*FORMS, *UNREADABLE)}
    client = Client(begin({"default": [folder / "a.dcm", folder / "b.dcm"], **forms}))
    yield client
    client.connection.close()


def form(name: str) -> tuple[FrameTable, str]:
    """Return the table of a stored form, and the path of its instance."""
    table = read_table(CASES_BY_NAME[name].content, verify="all")
    uids = (table.study_instance_uid, table.series_instance_uid, table.sop_instance_uid)
    return table, f"/{name}{instance_path(*uids)}"


def ask(client: Client, case: Case) -> tuple[int, dict[str, str], bytes]:
    headers = dict(case.sent) | ({} if case.accept is None else {"Accept": case.accept})
    answer = client.get(case.path, headers, case.method)
    return answer.status, answer.headers, answer.body


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
def test_row(client: Client, case: Case) -> None:
    status, headers, body = ask(client, case)
    assert status == case.status, body[:500]
    for name, value in case.headers.items():
        assert headers[name].startswith(value), (name, headers)
    assert status == 414 or headers["x-content-type-options"] == "nosniff"  # before it is read
    assert "date" in headers
    if status in (204, 304) or case.method == "HEAD":
        assert body == b""
    elif "chunked" not in headers.get("transfer-encoding", ""):
        assert int(headers["content-length"]) == len(body)
    if status >= 400 and case.method != "HEAD":
        assert set(json.loads(body)["error"]) == {"kind", "detail"}
        assert headers["cache-control"] == "no-store"
    elif "frames/" in case.path and status in (200, 304) and case.method == "GET":
        assert headers["etag"].startswith('"')
        assert "Accept" in headers["vary"]


@pytest.mark.parametrize(("name", "media_type", "syntax"), [(name, *form) for name, form in FORMS.items()])
def test_a_stored_form_is_sent_as_pydicom_and_the_reader_read_it(
    client: Client, folder: Path, name: str, media_type: str, syntax: str
) -> None:
    """In its own type, and as octets for whoever takes any syntax; 1-bit frames begin at bit 0."""
    table, path = form(name)
    with FrameReader(publish=False) as reader:
        read = reader.frames(str(folder / name), range(len(table)), align=True)
    read = [_little_endian(frame, table) for frame in read]
    assert read == _truth(folder / name, table)
    for accept, sent in (("*/*", media_type), (STAR, OCTETS)):
        answer = client.frames(path, ",".join(map(str, range(1, len(table) + 1))), accept)
        assert answer.status == 200, answer.body
        assert [body for _, body in answer.parts()] == read
        assert {head["content-type"] for head, _ in answer.parts()} == {f"{sent};transfer-syntax={syntax}"}
    alone = client.frames(path, "1", media_type)
    assert (alone.status, alone.body) == (200, read[0])
    assert alone.headers["content-type"] == f"{media_type};transfer-syntax={syntax}"


def _little_endian(frame: bytes, table: FrameTable) -> bytes:
    if table.transfer_syntax_uid == EXPLICIT_BE.uid and table.bits_allocated > 8:
        return np.frombuffer(frame, f">u{table.bits_allocated // 8}").byteswap().tobytes()
    return frame


def _truth(path: Path, table: FrameTable) -> list[bytes]:
    """Return the frames as pydicom cuts them, little endian, from bit 0."""
    if table.bits_allocated == 1:
        frames = pydicom.dcmread(path).pixel_array
        return [np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in frames]
    return [_little_endian(frame, table) for frame in pydicom_truth(path.read_bytes()).frames]


@pytest.mark.parametrize(("name", "frame", "status"), [(name, *row) for name, row in UNREADABLE.items()])
def test_a_frame_that_cannot_be_sent_is_refused_with_a_kind(
    client: Client, name: str, frame: int, status: int
) -> None:
    _, path = form(name)
    answer = client.frames(path, str(frame))
    assert answer.status == status
    assert json.loads(answer.body)["error"]["kind"]


def test_bodies_are_those_of_the_reader_and_of_pydicom(client: Client, folder: Path) -> None:
    with FrameReader(publish=False) as reader:
        for uid, name, count in ((UID, "a.dcm", 3), (LARGE, "b.dcm", 3)):
            data = pydicom.dcmread(folder / name)
            if uid == UID:
                theirs = list(generate_frames(data.PixelData, number_of_frames=count))
            else:
                theirs = [data.PixelData[SIZE * frame : SIZE * (frame + 1)] for frame in range(count)]
            for order in itertools.permutations(range(count)):
                asked = ",".join(str(frame + 1) for frame in order)
                parts = client.frames(instance_path(STUDY, SERIES, uid), asked).parts()
                assert [body for _, body in parts] == [theirs[frame] for frame in order]
                assert theirs == reader.frames(str(folder / name), range(count))


def test_ranges_join_to_the_whole(client: Client) -> None:
    path = f"{instance_path(STUDY, SERIES, LARGE)}/frames/2,3"
    whole = client.get(path, {"Accept": STAR}).body
    parts = []
    for start in range(0, len(whole), 65_536 * 3):
        sent = {"Accept": STAR, "Range": f"bytes={start}-{start + 65_536 * 3 - 1}"}
        parts.append(client.get(path, sent).body)
    assert b"".join(parts) == whole


def test_a_known_entity_tag_reads_nothing_of_the_file(client: Client) -> None:
    """What is read of files by this process, which is the gateway: /proc/self/io counts it."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = f"{instance_path(STUDY, SERIES, LARGE)}/frames/1"
    etag = client.get(path, {"Accept": STAR}).headers["etag"]
    spent = []
    for sent in ({"If-None-Match": etag}, {}):
        before = bytes_read()
        for _ in range(8):
            client.get(path, {"Accept": f'multipart/related; type="{OCTETS}"', **sent})
        spent.append(bytes_read() - before)
    assert spent[0] < SIZE < spent[1]


def test_zipped_headers_are_the_plain_ones(client: Client) -> None:
    for path in (f"{PATH}/metadata", f"{SERIES_PATH}/metadata"):
        plain = client.get(path, {"Accept": JSON})
        zipped = client.get(path, {"Accept": JSON, "Accept-Encoding": "gzip"})
        assert gzip.decompress(zipped.body) == plain.body
        assert zipped.headers.get("etag", "a") != plain.headers.get("etag", "b")
    etag = client.get(f"{PATH}/metadata", {"Accept": JSON}).headers["etag"]
    assert client.get(f"{PATH}/metadata", {"Accept": JSON, "If-None-Match": etag}).status == 304

"""Files without preamble or File Meta Information are sent as files of PS3.10 (7.1), which clients read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from frames.gateway.conftest import Connect
from frames.gateway.serving import index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY
from support.builders import (
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    Element,
    Syntax,
    dicom,
    element,
    file_meta,
    image,
    pattern,
)
from voxtier.frames.store.store import FrameStore

BEGINS: dict[str, Callable[[Syntax], bytes]] = {
    "nothing": lambda syntax: b"",
    "meta information alone": file_meta,
    "a prefix without preamble": lambda syntax: b"DICM" + file_meta(syntax),
    "a preamble without meta information": lambda syntax: bytes(128) + b"DICM",
    "all of it": lambda syntax: b"\x07" * 128 + b"DICM" + file_meta(syntax),
}


WITHOUT_META = {"nothing", "a preamble without meta information"}


def elements(uid: str, frames: int = 2) -> list[Element]:
    uids = {"SOPInstanceUID": uid, "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    own = {each.tag: each for each in (element(name, value) for name, value in uids.items())}
    made = [own.get(each.tag, each) for each in image(frames=frames)]
    return [*made, element("PixelData", pattern(16 * frames, 3))]


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE], ids=lambda syntax: syntax.uid)
@pytest.mark.parametrize("begin", BEGINS)
def test_every_file_is_one_that_pydicom_reads(
    tmp_path: Path, store: FrameStore, connect: Connect, begin: str, syntax: Syntax
) -> None:
    whole = dicom(elements("1.9"), syntax).content
    data_set = dicom(elements("1.9"), syntax, start=b"").content
    file = tmp_path / "a"
    file.write_bytes(BEGINS[begin](syntax) + data_set)
    (tmp_path / "b").write_bytes(dicom(elements("1.10"), syntax).content)
    index(store, [file, tmp_path / "b"])
    client = connect()
    path = instance_path(STUDY, SERIES, "1.9")
    answer = client.get(path, {"Accept": "application/dicom"})
    assert answer.status == 200
    found = pydicom.dcmread(io.BytesIO(answer.body))  # without force
    assert found == pydicom.dcmread(io.BytesIO(whole))
    assert found.file_meta.TransferSyntaxUID == syntax.uid
    assert answer.body.endswith(data_set)
    if begin == "all of it":
        assert answer.body == file.read_bytes()
    else:
        assert answer.body[:132] == bytes(128) + b"DICM"
    if begin in WITHOUT_META:
        assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
        assert found.file_meta.MediaStorageSOPClassUID == found.SOPClassUID
        assert found.file_meta.FileMetaInformationGroupLength == len(answer.body) - len(data_set) - 144
    part = client.get(path, {"Accept": "application/dicom", "Range": "bytes=120-219"})
    assert (part.status, part.body) == (206, answer.body[120:220])
    asked = {"requestType": "WADO", "studyUID": STUDY, "seriesUID": SERIES, "objectUID": "1.9"}
    assert client.get(f"/wado?{urlencode(asked)}", {"Accept": "application/dicom"}).body == answer.body
    root = f"http://{client.connection.host}:{client.connection.port}/dicomweb"
    series = DICOMwebClient(root).retrieve_series(STUDY, SERIES)
    assert {each.SOPInstanceUID for each in series} == {"1.9", "1.10"}

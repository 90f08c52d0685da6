"""Headers and instances (WADO-RS): what pydicom reads from the file, and the file itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pydicom
import pytest

from frames.gateway.conftest import Connect
from frames.gateway.serving import index, instance_path
from frames.gateway.wado.test_frames import SERIES, STUDY, instance, write
from support.builders import JPEG
from voxtier.frames import read_metadata
from voxtier.frames.store.store import FrameStore

UIDS = ["1.7.1", "1.7.2", "1.7.3"]


@pytest.fixture
def files(tmp_path: Path, store: FrameStore) -> list[Path]:
    """Three instances of one series."""
    found = [write(tmp_path, uid, uid) for uid in UIDS]
    index(store, found)
    return found


def test_a_series_has_the_headers_of_all_its_files(files: list[Path], connect: Connect) -> None:
    client = connect()
    for path in (
        f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata",
        f"/dicomweb/studies/{STUDY}/metadata",
    ):
        answer = client.get(path, {"Accept": "application/dicom+json"})
        assert answer.status == 200
        headers = json.loads(answer.body)
        uri = f"/dicomweb/studies/{STUDY}/series/{SERIES}/instances/{{}}/bulkdata"
        assert headers == [
            read_metadata(file, bulk_data_uri=uri.format(uid), with_transfer_syntax=True)
            for uid, file in zip(UIDS, files, strict=True)
        ]
        assert headers[0]["7FE00010"]["BulkDataURI"] == uri.format(UIDS[0]) + "/7FE00010"
        zipped = client.get(path, {"Accept-Encoding": "gzip"})
        assert zipped.headers["content-encoding"] == "gzip"
        assert gzip.decompress(zipped.body) == answer.body


def test_one_instance_has_one_header(files: list[Path], connect: Connect) -> None:
    client = connect()
    path = f"{instance_path(STUDY, SERIES, UIDS[1])}/metadata"
    answer = client.get(path)
    [header] = json.loads(answer.body)
    wanted = pydicom.dcmread(files[1], stop_before_pixels=True).to_json_dict()
    assert {tag: header[tag] for tag in header if tag not in ("00083002", "7FE00010")} == wanted
    assert client.get(path, {"If-None-Match": answer.headers["etag"]}).status == 304
    assert client.get(path, {"Accept": "text/html"}).status == 406


def test_a_file_that_is_gone_leaves_the_others(files: list[Path], connect: Connect) -> None:
    files[1].unlink()
    answer = connect().get(f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata")
    assert [header["00080018"]["Value"] for header in json.loads(answer.body)] == [[UIDS[0]], [UIDS[2]]]


def test_a_file_that_cannot_be_looked_at_is_not_left_out(files: list[Path], connect: Connect) -> None:
    files[1].unlink()
    files[1].symlink_to(files[1])  # "too many levels", for root too
    client = connect()
    series = f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata"
    answer = client.get(series)
    assert (answer.status, json.loads(answer.body)["error"]["kind"]) == (503, "io_error")
    files[1].unlink()
    assert len(json.loads(client.get(series).body)) == 2


def test_a_series_of_which_nothing_is_left_is_404(files: list[Path], connect: Connect) -> None:
    for file in files:
        file.unlink()
    assert connect().get(f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata").status == 404


def test_an_instance_of_two_studies_is_there_in_both(
    tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    places = [("1.1", "1.1.1"), ("1.2", "1.2.1"), ("1.1", "1.1.2")]
    files = []
    for number, (study, series) in enumerate(places):
        dataset = pydicom.dcmread(write(tmp_path, str(number), "1.9"))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.save_as(tmp_path / f"{number}.dcm")
        files.append(tmp_path / f"{number}.dcm")
    index(store, files)
    client = connect()
    for (study, series), file in [*zip(places, files, strict=True)] * 2:
        answer = client.get(instance_path(study, series, "1.9"), {"Accept": "application/dicom"})
        assert (answer.status, answer.body) == (200, file.read_bytes())
        assert client.frames(instance_path(study, series, "1.9"), "1").status == 200
    assert client.frames(instance_path("1.2", "1.1.1", "1.9"), "1").status == 404


def test_an_unknown_series_is_404(files: list[Path], connect: Connect) -> None:
    client = connect()
    assert client.get(f"/dicomweb/studies/{STUDY}/series/1.9/metadata").status == 404
    assert client.get(f"/dicomweb/studies/{STUDY}/series/x/metadata").status == 400


def test_an_instance_is_the_file(files: list[Path], connect: Connect) -> None:
    client = connect()
    path = instance_path(STUDY, SERIES, UIDS[0])
    alone = client.get(path, {"Accept": "application/dicom"})
    assert (alone.status, alone.body) == (200, files[0].read_bytes())
    assert alone.headers["content-type"] == f"application/dicom;transfer-syntax={JPEG.uid}"
    [(_, part)] = client.get(path).parts()
    assert part == files[0].read_bytes()
    ranged = client.get(path, {"Accept": "application/dicom", "Range": "bytes=100-299"})
    assert (ranged.status, ranged.body) == (206, files[0].read_bytes()[100:300])
    other = client.get(path, {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"})
    assert other.status == 406


def test_a_series_is_all_its_files(files: list[Path], connect: Connect) -> None:
    client = connect()
    for path in (f"/dicomweb/studies/{STUDY}/series/{SERIES}", f"/dicomweb/studies/{STUDY}"):
        parts = client.get(path, {"Accept": 'multipart/related; type="application/dicom"'}).parts()
        assert [body for _, body in parts] == [file.read_bytes() for file in files]


def test_a_file_that_holds_another_instance_is_left_out(files: list[Path], connect: Connect) -> None:
    files[0].write_bytes(instance("1.8"))
    client = connect()
    headers = json.loads(client.get(f"/dicomweb/studies/{STUDY}/series/{SERIES}/metadata").body)
    assert len(headers) == 2
    assert client.get(f"{instance_path(STUDY, SERIES, UIDS[0])}/metadata").status == 404

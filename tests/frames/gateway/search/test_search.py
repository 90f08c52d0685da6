"""Searches (QIDO-RS), held against a naive loop over pydicom's data sets."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from frames.gateway.conftest import Connect
from frames.gateway.serving import Answer, Client, index
from voxtier.frames.store.store import FrameStore

SHIPPED = [
    "CT_small.dcm",
    "MR_small.dcm",
    "JPEG2000.dcm",
    "SC_rgb_rle_16bit.dcm",
    "liver_1frame.dcm",
    "rtplan.dcm",
    "waveform_ecg.dcm",
    "examples_ybr_color.dcm",
]
NEW_STUDIES = 5


@pytest.fixture
def files(tmp_path: Path, store: FrameStore) -> list[Dataset]:
    """Files that pydicom ships, and one study of them in several series."""
    found = []
    for name in SHIPPED:
        path = tmp_path / name
        path.write_bytes(Path(str(get_testdata_file(name))).read_bytes())
        found.append(path)
    for number in range(12):
        dataset = pydicom.dcmread(found[0])
        dataset.StudyInstanceUID = f"1.2.3.{number % NEW_STUDIES}"
        dataset.SeriesInstanceUID = f"1.2.3.{number % NEW_STUDIES}.{number % 2}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{number}"
        dataset.PatientName = f"Müller^Änne {number % NEW_STUDIES}"
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.StudyDate = f"202611{10 + number % NEW_STUDIES}"
        dataset.InstanceNumber = number
        path = tmp_path / f"{number}.dcm"
        dataset.save_as(path)
        found.append(path)
    index(store, found)
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in found]


def search(client: Client, path: str) -> list[dict[str, Any]]:
    """Return the results of a search; none for status 204."""
    answer: Answer = client.get(f"/dicomweb/{path}", {"Accept": "application/dicom+json"})
    if answer.status == 204:
        assert answer.body == b""
        return []
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/dicom+json"
    found: list[dict[str, Any]] = json.loads(answer.body)
    for result in found:
        assert list(result) == sorted(result)
    return found


def values(results: list[dict[str, Any]], tag: str) -> list[Any]:
    """Return the first value of an attribute of each result."""
    return [result[tag]["Value"][0] for result in results]


def test_every_study_series_and_instance_is_found(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    series: dict[str, set[str]] = defaultdict(set)
    instances: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for file in files:
        series[file.StudyInstanceUID].add(file.SeriesInstanceUID)
        instances[file.StudyInstanceUID].add((file.SeriesInstanceUID, file.SOPInstanceUID))
    studies = search(client, "studies")
    assert values(studies, "0020000D") == sorted(series)
    for study in studies:
        [uid] = values([study], "0020000D")
        assert values([study], "00201206") == [len(series[uid])]
        assert values([study], "00201208") == [len(instances[uid])]
        assert values([study], "00081190") == [f"/dicomweb/studies/{uid}"]
        assert values(search(client, f"studies/{uid}/series"), "0020000E") == sorted(series[uid])
        in_order = [instance for _, instance in sorted(instances[uid])]
        assert values(search(client, f"studies/{uid}/instances"), "00080018") == in_order
    assert len(search(client, "instances")) == len(files)
    assert len(search(client, "series")) == sum(map(len, series.values()))


def test_results_hold_the_attributes_of_the_files(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    by_uid = {file.SOPInstanceUID: file for file in files}
    for result in search(client, "instances?includefield=PatientName&includefield=00100020,StudyDate"):
        file = by_uid[result["00080018"]["Value"][0]]
        assert result["00083002"]["Value"] == [file.file_meta.TransferSyntaxUID]
        wanted = file.to_json_dict()
        for tag in ("00080016", "00100010", "00100020", "00080020", "00280010"):
            assert result.get(tag) == wanted.get(tag), (file.filename, tag)


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("PatientName=M*ller*", lambda file: str(file.get("PatientName", "")).startswith("Müller")),
        ("PatientName=m%C3%BCller%5E%C3%A4nne%202", lambda file: file.get("PatientName") == "Müller^Änne 2"),
        ("00100010=*nne*", lambda file: "nne" in str(file.get("PatientName", "")).lower()),
        ("StudyDate=20261111-20261113", lambda file: "20261111" <= str(file.get("StudyDate")) <= "20261113"),
        ("StudyDate=-20051231", lambda file: "" < str(file.get("StudyDate") or "") <= "20051231"),
        ("StudyDate=20261112", lambda file: file.get("StudyDate") == "20261112"),
        ("Modality=CT", lambda file: file.get("Modality") == "CT"),
        ("Modality=?R", lambda file: len(file.get("Modality", "")) == 2 and file.Modality[1] == "R"),
        ("PatientID=nobody", lambda _: False),
        ("PatientID=", lambda _: True),
        ("StudyInstanceUID=1.2.3.1,1.2.3.2", lambda file: file.StudyInstanceUID in ("1.2.3.1", "1.2.3.2")),
        ("StudyInstanceUID=1.2.3.1%5C1.2.3.4", lambda file: file.StudyInstanceUID in ("1.2.3.1", "1.2.3.4")),
        ("StudyInstanceUID=1.2.3.1&Modality=MR", lambda _: False),
    ],
)
def test_matching(files: list[Dataset], connect: Connect, query: str, matches: Any) -> None:
    found = search(connect(), f"instances?{query}")
    assert set(values(found, "00080018")) == {file.SOPInstanceUID for file in files if matches(file)}


@pytest.mark.parametrize("condition", ["", "Modality=CT&"])
def test_pages_lose_and_repeat_nothing(files: list[Dataset], connect: Connect, condition: str) -> None:
    client = connect()
    whole = search(client, f"instances?{condition}")
    pages = []
    for offset in range(0, len(whole) + 3, 3):
        pages += search(client, f"instances?{condition}limit=3&offset={offset}")
    assert pages == whole


@pytest.mark.parametrize("query", ["Foo=1", "limit=a", "limit=-1", "StudyInstanceUID=a", "0010=1"])
def test_a_bad_query_is_400(files: list[Dataset], connect: Connect, query: str) -> None:
    assert connect().get(f"/dicomweb/studies?{query}").status == 400


def test_an_unknown_study_has_no_series(files: list[Dataset], connect: Connect) -> None:
    assert search(connect(), "studies/1.9.9/series") == []


def test_a_value_that_looks_like_sql_finds_nothing(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    assert search(client, "studies?PatientName='%3B%20DROP%20TABLE%20voxtier.file%3B--") == []
    assert search(client, "studies?PatientName=%25s%7B0%7D%5B") == []
    assert search(client, "studies")


def test_searches_read_no_header_outside_of_the_roots(
    tmp_path: Path, files: list[Dataset], connect: Connect
) -> None:
    (tmp_path / "root").mkdir()
    client = connect(roots=[tmp_path / "root", tmp_path / "0.dcm"])
    for query in ("", "?includefield=all"):
        found = {each["00080018"]["Value"][0]: each for each in search(client, f"instances{query}")}
        assert len(found) == len(files)
        assert [uid for uid, each in found.items() if "00280010" in each] == ["1.2.4.0"]
    assert values(search(client, "instances?PatientName=M*"), "00080018") == ["1.2.4.0"]

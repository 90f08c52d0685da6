"""Searches (QIDO-RS), held against a naive loop over pydicom's data sets."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from frames.gateway.conftest import Connect
from frames.gateway.serving import Answer, Client, index
from voxtier.errors import BackendError, ConfigError
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
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


@cache
def contents() -> dict[str, bytes]:
    """Return files that pydicom ships, and one study of them in several series, by their names."""
    found = {name: Path(str(get_testdata_file(name))).read_bytes() for name in SHIPPED}
    for number in range(12):
        dataset = pydicom.dcmread(BytesIO(found[SHIPPED[0]]))
        dataset.StudyInstanceUID = f"1.2.3.{number % NEW_STUDIES}"
        dataset.SeriesInstanceUID = f"1.2.3.{number % NEW_STUDIES}.{number % 2}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{number}"
        dataset.PatientName = f"Müller^Änne {number % NEW_STUDIES}"
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.StudyDate = f"202611{10 + number % NEW_STUDIES}"
        dataset.InstanceNumber = number
        file = BytesIO()
        dataset.save_as(file)
        found[f"{number}.dcm"] = file.getvalue()
    return found


@cache
def datasets() -> tuple[Dataset, ...]:
    """Return what pydicom reads of them."""
    return tuple(pydicom.dcmread(BytesIO(each), stop_before_pixels=True) for each in contents().values())


@pytest.fixture
def files(tmp_path: Path, store: FrameStore) -> list[Dataset]:
    """The files above, indexed: what pydicom reads of them, which no test changes."""
    for name, content in contents().items():
        (tmp_path / name).write_bytes(content)
    index(store, [tmp_path / name for name in contents()])
    return list(datasets())


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
            assert result.get(tag) == wanted.get(tag), (file.SOPInstanceUID, tag)


@pytest.mark.parametrize(
    ("query", "is_matched"),
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
        ("Modality=CT,MR", lambda file: file.get("Modality") in ("CT", "MR")),
        ("Modality=US%5CM?%5C", lambda file: str(file.get("Modality")) in ("US", "MR")),
    ],
)
def test_matching(files: list[Dataset], connect: Connect, query: str, is_matched: Any) -> None:
    found = search(connect(), f"instances?{query}")
    assert set(values(found, "00080018")) == {file.SOPInstanceUID for file in files if is_matched(file)}


def test_lists_of_uids_lone_wildcards_numbers_and_computed_attributes(
    files: list[Dataset], connect: Connect
) -> None:
    client = connect()
    cases: list[tuple[str, Any]] = [
        ("SOPClassUID=1.2.840.10008.5.1.4.1.1.2,1.2", lambda file: file.SOPClassUID.endswith(".1.1.2")),
        ("SOPClassUID=1.2%5C1.2.840.10008.5.1.4.1.1.4", lambda file: file.SOPClassUID.endswith(".1.1.4")),
        ("FrameOfReferenceUID=1.2,1.3", lambda _: False),
        ("StudyDate=*", lambda _: True),
        ("SeriesNumber=*", lambda _: True),
        ("InstanceNumber=**", lambda _: True),
        ("InstanceNumber=05", lambda file: file.get("InstanceNumber") == 5),
        ("SliceThickness=5.0", lambda file: file.get("SliceThickness") == 5),
        ("Modality.PatientID=1", lambda _: False),
        ("PatientName.PatientID=A", lambda _: False),
        ("Rows.Columns=1", lambda _: False),
        ("InstanceAvailability=ONLINE", lambda _: True),
        ("InstanceAvailability=OFFLINE", lambda _: False),
        (
            "AvailableTransferSyntaxUID=1.2.840.10008.1.2.1,1.2",
            lambda file: file.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1",
        ),
    ]
    for query, is_matched in cases:
        wanted = {file.SOPInstanceUID for file in files if is_matched(file)}
        assert set(values(search(client, f"instances?{query}"), "00080018")) == wanted, query


def test_studies_of_one_of_several_modalities_are_found(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    wanted = {file.StudyInstanceUID for file in files if file.get("Modality") in ("CT", "MR")}
    for query in ("ModalitiesInStudy=CT,MR", "ModalitiesInStudy=CT%5CMR", "ModalitiesInStudy=C?,,MR"):
        assert set(values(search(client, f"studies?{query}"), "0020000D")) == wanted, query


@pytest.mark.parametrize("condition", ["", "Modality=CT&"])
def test_pages_lose_and_repeat_nothing(files: list[Dataset], connect: Connect, condition: str) -> None:
    client = connect()
    whole = search(client, f"instances?{condition}")
    pages = []
    for offset in range(0, len(whole) + 3, 3):
        pages += search(client, f"instances?{condition}limit=3&offset={offset}")
    assert pages == whole


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "number", ["1000000000", "2147483647", "9223372036854775808", "9" * 5000, "0" * 20 + "3"]
)
def test_limits_and_offsets_of_many_digits_are_numbers(
    store: FrameStore, connect: Connect, number: str
) -> None:
    client = connect()
    whole = search(client, "instances")
    is_small = number.endswith("3")
    assert search(client, f"instances?limit={number}") == whole[: 3 if is_small else None]
    for condition in ("", "&Modality=CT", "&includefield=all"):
        left = search(client, f"instances?offset={number}{condition}")
        assert bool(left) == is_small
    SearchIndex(store).switch_on("default")
    list(fill_search_index(SearchIndex(store), "default"))
    for condition in ("", "&Modality=CT"):
        assert bool(search(client, f"instances?offset={number}{condition}")) == is_small


@pytest.mark.usefixtures("files")
def test_character_set_and_offset_from_utc_of_a_search_match_everything(connect: Connect) -> None:
    """PS3.4 C.2.2.2, C.2.2.2.5: they say how the other keys are meant."""
    client = connect()
    whole = search(client, "studies")
    for key in ("TimezoneOffsetFromUTC=%2B0100", "00080201=-0500", "SpecificCharacterSet=ISO_IR%20192"):
        assert search(client, f"studies?{key}") == whole, key


def test_studies_and_series_are_found_by_their_counts(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    of_series = Counter(file.SeriesInstanceUID for file in files)
    wanted = {uid for uid, count in of_series.items() if count == 2}
    assert wanted
    assert set(values(search(client, "series?NumberOfSeriesRelatedInstances=2"), "0020000E")) == wanted
    of_study = Counter(file.StudyInstanceUID for file in files)
    for count in (1, 2, 3, 9):
        wanted = {uid for uid, instances in of_study.items() if instances == count}
        query = f"NumberOfStudyRelatedInstances={count}&NumberOfStudyRelatedSeries=*"
        assert set(values(search(client, f"studies?{query}"), "0020000D")) == wanted
    pairs = {(file.StudyInstanceUID, file.SeriesInstanceUID) for file in files}
    wanted = {uid for uid, count in Counter(study for study, _ in pairs).items() if count == 2}
    assert set(values(search(client, "studies?NumberOfStudyRelatedSeries=2"), "0020000D")) == wanted


@pytest.mark.parametrize(
    ("level", "query"),
    [
        ("studies", "AvailableTransferSyntaxUID=1.2"),
        ("studies", "NumberOfSeriesRelatedInstances=1"),
        ("studies/1.2/series", "AvailableTransferSyntaxUID=1.2"),
    ],
)
def test_what_is_computed_for_lower_levels_is_refused(level: str, query: str) -> None:
    with pytest.raises(ConfigError, match=r"is known of a \w+( or instance)? alone"):
        parse(level, query)


NOT_LITERAL = "The {} parameter is not supported. Only literal matching has been performed."
IGNORED = "Query parameters that are not supported have been ignored."
MORE = "There are additional results that can be requested"


def test_what_is_not_supported_is_said(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    for query, sentences in (
        ("", []),
        ("fuzzymatching=false&accept=application/dicom%2Bjson", []),
        ("emptyvaluematching=true", [NOT_LITERAL.format("emptyvaluematching")]),
        ("multiplevaluematching=TRUE", [NOT_LITERAL.format("multiplevaluematching")]),
        ("fuzzymatching=true&limit=1", [NOT_LITERAL.format("fuzzymatching"), MORE]),
        ("_=1699", [IGNORED]),
        ("orderby=StudyDate&limit=1", [IGNORED, MORE]),
    ):
        answer = client.get(f"/dicomweb/studies?{query}")
        assert answer.status == 200
        wanted = f'299 voxtier "{" ".join(sentences)}"' if sentences else None
        assert answer.headers.get("warning") == wanted


def test_copies_of_an_instance_are_one(
    files: list[Dataset], tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    client = connect()
    questions = ("studies", "series", "instances", "instances?limit=5&offset=3", "instances?Modality=CT")
    before = {question: search(client, question) for question in questions}
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("0.dcm", "5.dcm", "MR_small.dcm"):
        (copies / name).write_bytes((tmp_path / name).read_bytes())
    index(store, copies.iterdir())
    assert {question: search(client, question) for question in questions} == before
    of_series = [file.SOPInstanceUID for file in files if file.SeriesInstanceUID == "1.2.3.0.0"]
    path = "/dicomweb/studies/1.2.3.0/series/1.2.3.0.0"
    metadata = json.loads(client.get(f"{path}/metadata").body)
    assert sorted(values(metadata, "00080018")) == sorted(of_series)
    parts = client.get(path, {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'})
    assert len(parts.parts()) == len(of_series)


def test_a_file_that_was_away_is_asked_again(
    files: list[Dataset], tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    client = connect()
    away = tmp_path / "away"
    (tmp_path / "3.dcm").rename(away)
    assert "1.2.4.3" not in values(search(client, "instances?PatientName=M*"), "00080018")
    away.rename(tmp_path / "3.dcm")
    assert "1.2.4.3" in values(search(client, "instances?PatientName=M*"), "00080018")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "query", ["PatientName=M*", "ManufacturerModelName=RHAPSODE", "PatientName=M*&includefield=all"]
)
def test_a_store_that_is_slow_holds_no_search_for_long_and_the_next_one_goes_on(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    now, read = [0.0], search_module.read_indexed
    wanted = parse("instances", query)
    right = Search().answer(store, "default", wanted, "")
    assert right[0]

    def slow(*arguments: str) -> Any:
        now[0] += 11
        return read(*arguments)

    monkeypatch.setattr(search_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(search_module, "read_indexed", slow)
    searches = Search()
    for tried in range(1, 7):  # three of twenty headers each
        with pytest.raises(
            BackendError, match=r"headers were read in 25 s, and the next search goes on there"
        ):
            searches.answer(store, "default", wanted, "")
        assert now[0] == tried * 33
    assert searches.answer(store, "default", wanted, "") == right


def test_a_study_is_found_by_its_next_file_while_the_first_is_away(
    files: list[Dataset], tmp_path: Path, store: FrameStore, connect: Connect
) -> None:
    wanted = [values([each], "0020000D") for each in search(connect(), "studies?PatientName=M*")]
    assert len(wanted) == NEW_STUDIES
    for number in range(NEW_STUDIES):
        (tmp_path / f"{number}.dcm").rename(tmp_path / f"{number}.away")
    client = connect()  # another one, that has no header of them in memory
    found = search(client, "studies?PatientName=M*&ModalitiesInStudy=CT")
    assert [values([each], "0020000D") for each in found] == wanted
    left = {f"1.2.3.{number % NEW_STUDIES}.{number % 2}" for number in range(NEW_STUDIES, 12)}
    assert set(values(search(client, "series?PatientName=M*"), "0020000E")) == left


@pytest.mark.parametrize(
    "query",
    ["Foo=1", "limit=a", "limit=-1", "StudyInstanceUID=a", "0010=1", "patientname=A", "patientID.x=1"],
)
def test_a_bad_query_is_400(files: list[Dataset], connect: Connect, query: str) -> None:
    assert connect().get(f"/dicomweb/studies?{query}").status == 400


def test_an_unknown_study_has_no_series(files: list[Dataset], connect: Connect) -> None:
    assert search(connect(), "studies/1.9.9/series") == []


def test_a_value_that_looks_like_sql_finds_nothing(files: list[Dataset], connect: Connect) -> None:
    client = connect()
    assert search(client, "studies?PatientName='%3B%20DROP%20TABLE%20voxtier.file%3B--") == []
    assert search(client, "studies?PatientName=%25s%7B0%7D%5B") == []
    assert search(client, "studies")


def test_searches_find_nothing_outside_of_the_roots(
    tmp_path: Path, files: list[Dataset], connect: Connect
) -> None:
    (tmp_path / "root").mkdir()
    client = connect(roots=[tmp_path / "root", tmp_path / "0.dcm"])
    for query in ("", "?includefield=all"):
        found = {each["00080018"]["Value"][0]: each for each in search(client, f"instances{query}")}
        assert [uid for uid, each in found.items() if "00280010" in each] == list(found) == ["1.2.4.0"]
    assert values(search(client, "instances?PatientName=M*"), "00080018") == ["1.2.4.0"]

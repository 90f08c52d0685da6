"""Headers that searches read and keep: no bulk data, within bounds, and what a slow search says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from frames.gateway.conftest import Connect
from frames.gateway.serving import index
from voxtier.errors import TooBroadError, UnfinishedError
from voxtier.frames.gateway.search import results as results_module
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.headers import KeptHeaders
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing import headers as reading
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

MOST_VALUE, LARGE = 16 << 10, 1 << 20
BULK = {"00291010", "00420011", "0040A160", "30060050", "7FE00010"}  # beyond what is small


@pytest.fixture
def files(tmp_path: Path, store: FrameStore) -> list[Dataset]:
    """Ten instances of one series, each with megabytes of bulk data; the last one has a title of its own."""
    written = []
    for number in range(10):
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{number}"
        dataset.DocumentTitle = "last" if number == 9 else "t"
        dataset.BodyPartExamined = "CHEST"
        dataset.ImageComments = "m" * 10_240
        dataset.EncapsulatedDocument = bytes(LARGE)
        dataset.TextValue = "v" * LARGE
        dataset.ContourData = [0.5] * (MOST_VALUE // 4 + 2)  # a byte more than a small value
        dataset.add_new(0x00290010, "LO", "VENDOR")
        dataset.add_new(0x00291010, "OB", bytes(LARGE))
        dataset.add_new(0x00291011, "OB", bytes(MOST_VALUE))
        item = Dataset()
        item.RequestedProcedureID, item.TextValue = "P1", "n" * LARGE
        dataset.RequestAttributesSequence = [item]
        dataset.save_as(tmp_path / f"{number}.dcm")
        written.append(dataset)
    index(store, tmp_path.iterdir())
    return written


def small(dataset: Dataset) -> dict[str, Any]:
    """Return what pydicom reads of a data set, but for its bulk data."""
    found: dict[str, Any] = json.loads(dataset.to_json(bulk_data_threshold=10 * LARGE))
    for tag in (*BULK, "FFFCFFFC"):  # padding says nothing
        del found[tag]
    del found["00400275"]["Value"][0]["0040A160"]
    return found


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how long the texts of headers are that the core writes."""
    lengths: list[int] = []
    read = reading._core.read_metadata_json

    def note(*arguments: Any, **options: Any) -> bytes:
        text: bytes = read(*arguments, **options)
        lengths.append(len(text))
        return text

    monkeypatch.setattr(reading._core, "read_metadata_json", note)
    return lengths


def answer(searches: Search, store: FrameStore, query: str, level: str = "instances") -> list[dict[str, Any]]:
    return searches.answer(store, "default", parse(level, query), "")[0]


@pytest.mark.parametrize(
    "query",
    [
        "includefield=DocumentTitle",
        "DocumentTitle=t",
        "includefield=all",
        f"includefield={','.join(sorted(BULK))}",
        "0040A160=v*",
        "includefield=RequestAttributesSequence",
    ],
)
@pytest.mark.parametrize("level", ["instances", "series", "studies"])
def test_bulk_data_is_neither_read_nor_kept_nor_returned(
    store: FrameStore, files: list[Dataset], longest: list[int], level: str, query: str
) -> None:
    searches = Search()
    found = answer(searches, store, query, level)
    assert bool(found) == (not query.startswith("0040A160"))  # nothing matches by it
    for result in found:
        assert not BULK & result.keys()
    # All that is small: a text of LT, 16 KiB in base64, and some kilobytes.
    assert max(longest) < 60_000
    assert searches.headers.bytes < 60_000 * len(files)
    if "all" not in query:
        assert searches.headers.bytes < 3_000 * len(files)


def test_what_is_small_is_returned_as_the_file_has_it(store: FrameStore, files: list[Dataset]) -> None:
    named = "includefield=ImageComments,00290010,00291011,RequestAttributesSequence,PatientWeight"
    for query in ("includefield=all", named, "ImageComments=m*m&includefield=all"):
        found = answer(Search(), store, query)
        assert len(found) == len(files)
        for dataset, result in zip(files, found, strict=True):
            wanted = small(dataset)
            if query == named:
                tags = {"00204000", "00290010", "00291011", "00400275", "00101030"}
                assert tags <= result.keys()
                wanted = {tag: each for tag, each in wanted.items() if tag in result}
            else:
                assert wanted.keys() <= result.keys()
            for tag, each in wanted.items():
                assert result[tag] == each, tag


def test_the_search_index_holds_no_bulk_data(
    store: FrameStore, files: list[Dataset], longest: list[int]
) -> None:
    by_headers = answer(Search(), store, "includefield=RequestAttributesSequence")
    made = SearchIndex(store)
    made.switch_on("default")
    assert sum(fill_search_index(made, "default")) == len(files)
    assert max(longest) < 60_000
    searches = Search()
    assert answer(searches, store, "includefield=RequestAttributesSequence") == by_headers
    assert searches.counts()["index"] == 1


@pytest.mark.usefixtures("files")
def test_an_answer_that_is_too_long_is_refused_and_a_page_of_it_is_not(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    whole = json.loads(client.get("/dicomweb/instances?includefield=all").body)
    monkeypatch.setattr(results_module, "_MOST_FOUND", 100_000)
    for condition in ("", "&DocumentTitle=*", "&ModalitiesInStudy=CT"):
        refused = client.get(f"/dicomweb/instances?includefield=all{condition}")
        assert refused.status == 413
        assert refused.headers["cache-control"] == "no-store"
        error = json.loads(refused.body)["error"]
        assert error["kind"] == "too_broad"
        assert "limit and offset" in error["detail"]
    pages = []
    for offset in range(len(whole)):
        answer = client.get(f"/dicomweb/instances?includefield=all&limit=1&offset={offset}")
        pages += json.loads(answer.body)
    assert pages == whole
    assert len(json.loads(client.get("/dicomweb/instances").body)) == len(whole)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the files that are read, each of which takes eleven seconds: three of them for each search."""
    now, original, names = [0.0], search_module.read_indexed, list[str]()

    def slow(path: str, *arguments: Any) -> Any:
        now[0] += 11
        names.append(Path(path).stem)
        return original(path, *arguments)

    monkeypatch.setattr(search_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(search_module, "read_indexed", slow)
    return names


def tries(searches: Search, store: FrameStore, query: str, most: int = 10) -> tuple[list[str], int]:
    """Ask until there is an answer: return what was said meanwhile, and how many results there are."""
    said: list[str] = []
    for _ in range(most):
        try:
            return said, len(answer(searches, store, query))
        except UnfinishedError as error:
            said.append(str(error))
    return said, -1


@pytest.mark.usefixtures("files")
def test_a_header_is_read_once_for_each_attribute_that_is_new(store: FrameStore, read: list[str]) -> None:
    searches = Search()
    for query, results, reads in (
        ("DocumentTitle=t", 9, 10),
        ("DocumentTitle=t&PatientName=*", 9, 0),
        ("DocumentTitle=last", 1, 0),
        ("BodyPartExamined=CHEST", 10, 10),
        ("DocumentTitle=t&BodyPartExamined=CHEST", 9, 0),
        ("StationName=*&Laterality=*", 10, 10),  # one is not there: that is known of it
        ("Laterality=*&StationName=*&DocumentTitle=last", 1, 0),
        ("includefield=all", 10, 10),
        ("ImageComments=m*&DocumentTitle=t", 9, 0),
    ):
        read.clear()
        assert tries(searches, store, query)[1] == results
        assert len(read) == reads, query
        assert len(set(read)) == len(read)


@pytest.mark.usefixtures("files")
def test_a_search_of_more_than_is_kept_gets_as_far_as_it_can_and_says_so(
    store: FrameStore, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptHeaders, "most", 5)
    searches = Search()
    said, results = tries(searches, store, "DocumentTitle=last", 4)
    assert results == -1
    assert [each.split()[0] for each in said] == ["3", "6", "8", "8"]
    assert said[0].endswith("the next search goes on there")
    for each in said[1:]:
        assert "no more than 5 headers of 64 MiB are kept" in each
        assert each.endswith("by their UIDs")
    assert len(searches.headers.kept) == 5
    # What it used makes room for the next search, and what a search names is found.
    uids = "SOPInstanceUID=1.2.4.8,1.2.4.9"  # and the header of one for the modalities of the study
    assert tries(searches, store, f"DocumentTitle=last&{uids}") == ([], 1)
    assert len(searches.headers.kept) == 5
    read.clear()
    assert tries(searches, store, f"DocumentTitle=last&{uids}") == ([], 1)
    assert not read


@pytest.mark.usefixtures("files")
def test_what_is_kept_has_a_bound_in_bytes(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptHeaders, "most_bytes", 100_000)
    searches = Search()
    for query in ("", "includefield=all", "DocumentTitle=t", "includefield=all&limit=2", ""):
        assert answer(searches, store, query)
        held = [len(each.text) for each in searches.headers.kept.values()]
        assert 0 < sum(held) == searches.headers.bytes <= 100_000


@pytest.mark.usefixtures("files", "read")
def test_a_search_index_is_named_where_it_would_help(store: FrameStore, tmp_path: Path) -> None:
    remedy = "voxtier index --search"
    for query, roots, groups, is_named in (
        ("PatientName=nobody", [], None, True),
        ("PatientName=nobody", [str(tmp_path)], None, True),
        ("PatientName=nobody", [str(tmp_path / f"{number}.dcm") for number in range(5)], None, False),
        ("PatientName=nobody", [], ["staff"], False),
        ("DocumentTitle=nobody", [], None, False),
        ("PatientName=nobody&includefield=all", [], None, False),
    ):
        with pytest.raises(UnfinishedError, match=r"^3 of (10|5) headers") as caught:
            Search(roots).answer(store, "default", parse("instances", query), "", groups)
        assert (remedy in str(caught.value)) == is_named, (query, roots, groups)


@pytest.mark.usefixtures("files", "read")
def test_clients_are_told_how_far_a_search_came(connect: Connect) -> None:
    client = connect()
    for done in (3, 6, 9):
        refused = client.get("/dicomweb/instances?DocumentTitle=last")
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        detail = json.loads(refused.body)["error"]["detail"]
        assert detail == f"{done} of 10 headers were read in 25 s, and the next search goes on there"
    [found] = json.loads(client.get("/dicomweb/instances?DocumentTitle=last").body)
    assert found["00080018"]["Value"] == ["1.2.4.9"]


@pytest.mark.usefixtures("files")
def test_too_long_an_answer_is_an_error_for_python_too(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "_MOST_FOUND", 1000)
    with pytest.raises(TooBroadError, match="ask for fewer at a time"):
        answer(Search(), store, "")

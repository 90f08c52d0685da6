"""What results hold of the study and series above them, held against a naive loop over pydicom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.errors import InvalidDicomError

from frames.gateway.serving import index
from voxtier.errors import BackendError
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

MODALITIES, SERIES, INSTANCES, OF_SERIES = "00080061", "00201206", "00201208", "00201209"
OF_STUDY = {MODALITIES, SERIES, INSTANCES}
# By name of a file: study, series, instance, modality. The series 1.3.1 is in two studies; what a file says
# of a series is what its first one says; 9.dcm and 91.dcm are copies.
FILES = {
    "0": ("1.2.1", "1.3.1", "1.4.0", "CT"),
    "1": ("1.2.1", "1.3.1", "1.4.1", "CT"),
    "2": ("1.2.1", "1.3.2", "1.4.2", "MR"),
    "3": ("1.2.2", "1.3.1", "1.4.3", "MR"),
    "4": ("1.2.2", "1.3.1", "1.4.4", "PT"),
    "5": ("1.2.2", "1.3.1", "1.4.5", "MR"),
    "6": ("1.2.3", "1.3.4", "1.4.6", "CT"),
    "7": ("1.2.3", "1.3.5", "1.4.7", "SM"),
    "8": ("1.2.3", "1.3.5", "1.4.8", "SM"),
    "9": ("1.2.3", "1.3.5", "1.4.9", "SM"),
    "90": ("1.2.4", "1.3.6", "1.4.10", ""),
    "91": ("1.2.3", "1.3.5", "1.4.9", "SM"),
    "92": ("1.2.1", "1.3.2", "1.4.2", "MR"),
}
TARGETS = [
    "series",
    "instances",
    "studies/1.2.1/series",
    "studies/1.2.2/instances",
    "studies/1.2.3/instances",
    "studies/1.2.3/series/1.3.5/instances",
]


class Result(NamedTuple):
    """A result by its UIDs, and what is counted of its study and series by tag."""

    uids: tuple[str, ...]
    counts: dict[str, list[Any]]


@pytest.fixture
def folder(tmp_path: Path, store: FrameStore) -> Path:
    for name, (study, series, instance, modality) in FILES.items():
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
        dataset.Modality = modality
        # What an archive counted once: none of it is told.
        dataset.ModalitiesInStudy, dataset.NumberOfStudyRelatedSeries = ["XX"], 77
        dataset.NumberOfStudyRelatedInstances = dataset.NumberOfSeriesRelatedInstances = 99
        dataset.save_as(tmp_path / f"{name}.dcm")
    index(store, tmp_path.iterdir())
    return tmp_path


def expected(folder: Path, target: str, hidden: str = "") -> list[Result]:
    """Return all results of a target by the headers of files, but for some that are hidden."""
    level = {"series": 2, "instances": 3}[target.split("/")[-1]]
    named = tuple(target.split("/")[1:-1:2])
    instances: dict[tuple[str, ...], set[str]] = {}
    modalities: dict[tuple[str, ...], str] = {}
    found = set()
    for name, (*uids, _) in sorted(FILES.items(), key=lambda each: f"{each[0]}.dcm"):
        if name in hidden.split():
            continue
        for depth in (1, 2):
            instances.setdefault(tuple(uids[:depth]), set()).add("/".join(uids))
        with suppress(FileNotFoundError, InvalidDicomError):
            modality = str(pydicom.dcmread(folder / f"{name}.dcm").Modality)
            modalities.setdefault(tuple(uids[:2]), modality)
        found.add(tuple(uids[:level]))
    results = []
    for result in sorted(found):
        study = result[:1]
        of_study = {each for series, each in modalities.items() if series[:1] == study}
        counts = {
            MODALITIES: sorted(of_study - {""}),
            SERIES: [sum(len(each) == 2 and each[:1] == study for each in instances)],
            INSTANCES: [len(instances[study])],
            OF_SERIES: [len(instances[result[:2]])],
        }
        if result[: len(named)] == named:
            results.append(Result(result, counts))
    return results


def told(target: str) -> set[str]:
    """Return what results hold without being asked for it (PS3.18 10.6.3.3.2, 10.6.3.3.3)."""
    is_study_named, is_series_named = "studies/" in target, "/series/" in target
    return (set() if is_study_named else OF_STUDY) | (set() if is_series_named else {OF_SERIES})


def found(
    searches: Search, store: FrameStore, target: str, query: str = "", groups: list[str] | None = None
) -> list[Result]:
    """Return the results of a search, with all that they hold of counts."""
    results, _ = searches.answer(store, "default", parse(target, query), "", groups)
    levels = ("0020000D", "0020000E", "00080018")
    return [
        Result(
            tuple(each[tag]["Value"][0] for tag in levels if tag in each),
            {tag: each[tag].get("Value", []) for tag in (*OF_STUDY, OF_SERIES) if tag in each},
        )
        for each in results
    ]


def with_tags(results: list[Result], tags: set[str]) -> list[Result]:
    return [Result(uids, {tag: counts[tag] for tag in tags}) for uids, counts in results]


def both_ways(store: FrameStore) -> Iterator[Search]:
    """Yield searches by headers, then by the search index; afterwards they were that."""
    for way in ("headers", "index"):
        if way == "index":
            made = SearchIndex(store)
            made.switch_on("default")
            list(fill_search_index(made, "default"))
        searches = Search()
        yield searches
        assert {each for each, count in searches.counts().items() if count} == {way}


def test_results_hold_what_is_counted_of_the_levels_above(store: FrameStore, folder: Path) -> None:
    for searches in both_ways(store):
        for target in TARGETS:
            whole = with_tags(expected(folder, target), told(target))
            assert whole
            assert found(searches, store, target) == whole, target
            for offset in range(len(whole) + 1):
                page = found(searches, store, target, f"limit=2&offset={offset}")
                assert page == whole[offset : offset + 2], (target, offset)
                page = found(searches, store, target, f"PatientID=1*&limit=2&offset={offset}")
                assert page == whole[offset : offset + 2], (target, offset)


def test_what_is_counted_is_returned_below_a_named_study_if_it_is_asked_for(
    store: FrameStore, folder: Path
) -> None:
    asked = [
        (f"includefield={MODALITIES}", {MODALITIES}),
        ("includefield=NumberOfStudyRelatedSeries,NumberOfStudyRelatedInstances", {SERIES, INSTANCES}),
        (f"includefield={OF_SERIES}&PatientID=*", {OF_SERIES}),
        ("ModalitiesInStudy=&NumberOfStudyRelatedInstances=*&limit=2", {MODALITIES, INSTANCES}),
    ]
    for searches in both_ways(store):
        for target in TARGETS:
            for query, tags in asked:
                whole = with_tags(expected(folder, target), told(target) | tags)
                page = whole[:2] if "limit" in query else whole
                assert found(searches, store, target, query) == page, (target, query)


def test_what_is_counted_is_never_what_a_file_says_of_it(store: FrameStore, folder: Path) -> None:
    searches = Search()
    for target in TARGETS:
        for query in ("includefield=all", "includefield=all,00201208&limit=2", "includefield=all&Rows=128"):
            whole = with_tags(expected(folder, target), OF_STUDY | {OF_SERIES})
            page = whole[:2] if "limit" in query else whole
            results = found(searches, store, target, query)
            assert [each.uids[: len(page[0].uids)] for each in results] == [each.uids for each in page]
            assert [each.counts for each in results] == [each.counts for each in page], (target, query)
    for query in ("includefield=all", f"includefield={OF_SERIES}"):
        for result in found(searches, store, "studies", query):
            assert set(result.counts) == OF_STUDY
            assert not {"XX", 77, 99} & {each for values in result.counts.values() for each in values}
    for matched in (f"{INSTANCES}=99", f"{MODALITIES}=XX"):
        assert found(searches, store, "instances", f"{matched}&includefield=all") == []


MATCHES: list[tuple[str, Callable[[dict[str, list[Any]]], bool]]] = [
    ("ModalitiesInStudy=CT", lambda counts: "CT" in counts[MODALITIES]),
    ("ModalitiesInStudy=MR%5CSM", lambda counts: bool({"MR", "SM"} & set(counts[MODALITIES]))),
    ("ModalitiesInStudy=PT", lambda _: False),
    ("ModalitiesInStudy=?T&PatientID=1CT1", lambda counts: "CT" in counts[MODALITIES]),
    ("NumberOfStudyRelatedSeries=2", lambda counts: counts[SERIES] == [2]),
    ("NumberOfStudyRelatedInstances=03", lambda counts: counts[INSTANCES] == [3]),
    ("NumberOfSeriesRelatedInstances=3", lambda counts: counts[OF_SERIES] == [3]),
    (
        "NumberOfSeriesRelatedInstances=1&ModalitiesInStudy=CT",
        lambda counts: counts[OF_SERIES] == [1] and "CT" in counts[MODALITIES],
    ),
    ("ModalitiesInStudy=CT&PatientID=nobody", lambda _: False),
]


def test_series_and_instances_are_found_by_what_is_counted(store: FrameStore, folder: Path) -> None:
    keys = {
        "ModalitiesInStudy": MODALITIES,
        "NumberOfStudyRelatedSeries": SERIES,
        "NumberOfStudyRelatedInstances": INSTANCES,
        "NumberOfSeriesRelatedInstances": OF_SERIES,
    }
    hits = 0
    for searches in both_ways(store):
        for target in TARGETS:
            for query, is_matched in MATCHES:
                tags = told(target) | {tag for key, tag in keys.items() if key in query}
                whole = [each for each in expected(folder, target) if is_matched(each.counts)]
                whole = with_tags(whole, tags)
                hits += len(whole)
                assert found(searches, store, target, query) == whole, (target, query)
                for offset in range(0, len(whole) + 1, 2):
                    page = found(searches, store, target, f"{query}&limit=2&offset={offset}")
                    assert page == whole[offset : offset + 2], (target, query, offset)
    assert hits > 100


def test_counts_are_of_the_whole_study_whichever_of_it_is_searched_for(
    store: FrameStore, folder: Path
) -> None:
    for searches in both_ways(store):
        for query in ("SeriesInstanceUID=1.3.2", "SOPInstanceUID=1.4.2&NumberOfStudyRelatedInstances=3"):
            target = "instances" if "SOP" in query else "series"
            wanted = [each for each in expected(folder, target) if each.uids[1] == "1.3.2"]
            assert found(searches, store, target, query) == wanted


@pytest.mark.parametrize("query", ["", "ModalitiesInStudy=MR", "NumberOfStudyRelatedInstances=2"])
def test_groups_count_what_they_see(store: FrameStore, folder: Path, query: str) -> None:
    hidden = "1 3 6"
    paths = [str(folder / f"{name}.dcm") for name in hidden.split()]
    store.query(
        "UPDATE voxtier.file SET allowed_groups = '{staff}' WHERE path = ANY (%s::text[]) RETURNING 1",
        (paths,),
    )
    searches = Search()
    matched = dict(MATCHES) | {"": lambda _: True}
    matched["NumberOfStudyRelatedInstances=2"] = lambda counts: counts[INSTANCES] == [2]
    for group, unseen in (("staff", ""), ("others", hidden)):
        for target in ("series", "instances"):
            is_matched = matched.get(query, lambda counts: "MR" in counts[MODALITIES])
            wanted = [each for each in expected(folder, target, unseen) if is_matched(each.counts)]
            assert found(searches, store, target, query, [group]) == wanted, (group, target)


def test_the_next_files_of_a_series_tell_the_modalities_of_its_study(store: FrameStore, folder: Path) -> None:
    """The first file of one series, and all of another, cannot be read."""
    for name in ("3", "7", "8"):
        (folder / f"{name}.dcm").rename(folder / f"{name}.away")
    (folder / "6.dcm").write_bytes(b"damaged")
    for searches in both_ways(store):
        for target in ("series", "instances"):
            wanted = expected(folder, target)
            assert found(searches, store, target) == wanted
            wanted = [each for each in wanted if set(each.counts[MODALITIES]) & {"PT", "SM"}]
            assert {each.uids[0] for each in wanted} == {"1.2.2", "1.2.3"}
            assert found(searches, store, target, "ModalitiesInStudy=PT,SM") == wanted


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the files whose headers are read."""
    names: list[str] = []
    original = search_module.read_indexed

    def note(path: str, *uids: str) -> Any:
        names.append(Path(path).stem)
        return original(path, *uids)

    monkeypatch.setattr(search_module, "read_indexed", note)
    return names


def test_no_more_headers_are_read_than_counts_and_results_need(
    store: FrameStore, folder: Path, read: list[str]
) -> None:
    for target, query, names in (
        ("series", "limit=1&offset=3", {"6", "7"}),
        ("instances", "limit=1&offset=3", {"3", "4"}),
        ("studies/1.2.1/instances", "", {"0", "1", "2"}),
        ("series", "SeriesInstanceUID=1.3.6&includefield=ModalitiesInStudy", {"90"}),
        ("series", "PatientID=1CT1&limit=1", {"0", "2"}),
        ("series", "NumberOfStudyRelatedSeries=1&StudyInstanceUID=1.2.2,1.2.3", {"3", "6", "7"}),
        ("instances", "NumberOfStudyRelatedSeries=1&StudyInstanceUID=1.2.2,1.2.3", set("34567")),
    ):
        read.clear()
        assert found(Search(), store, target, query)[0].counts.keys() >= told(target)
        # Of the page, of one result more, which tells whether there are more, and of the studies of both;
        # by what is counted, one of each series, and of each instance that fits.
        assert set(read) == names, (target, query)


def test_a_series_that_cannot_be_read_is_tried_once_for_itself_and_its_study(
    store: FrameStore, folder: Path, read: list[str]
) -> None:
    for name in ("7", "8", "9", "91"):
        (folder / f"{name}.dcm").unlink()
    assert found(Search(), store, "series") == expected(folder, "series")
    assert [name for name in sorted(read) if name in ("8", "9", "91")] == ["8", "9", "91"]


def test_a_slow_store_holds_no_search_by_what_is_counted_for_long(
    store: FrameStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, original = [0.0], search_module.read_indexed

    def slow(*arguments: str) -> Any:
        now[0] += 11
        return original(*arguments)

    monkeypatch.setattr(search_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(search_module, "read_indexed", slow)
    for query, tries in (("", 3), ("ModalitiesInStudy=CT", 2)):
        searches, now[0] = Search(), 0
        for tried in range(1, tries + 1):  # three headers each, of eleven or nine
            with pytest.raises(
                BackendError, match=r"headers were read in 25 s, and the next search goes on there"
            ):
                found(searches, store, "instances", query)
            assert now[0] == tried * 33
        wanted = expected(folder, "instances")
        matched = [each for each in wanted if "CT" in each.counts[MODALITIES]]
        assert found(searches, store, "instances", query) == (matched if query else wanted)

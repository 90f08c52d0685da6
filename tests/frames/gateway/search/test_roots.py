"""A gateway that serves files of some folders alone tells nothing of others that the index knows."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from frames.gateway.conftest import Connect
from frames.gateway.serving import Answer, Client, index
from voxtier.frames import read_tables
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.gateway.search.statements import from_headers
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

LEVELS = ["studies", "series", "instances"]
QUERIES = [
    "",
    "PatientName=Secret*",
    "PatientName=Open*",
    "PatientName=*",
    "PatientName=*e*&limit=2",
    "limit=2&offset=1",
    "PatientID=1CT1&limit=2&offset=1",
    "Modality=CT&includefield=PatientName",
    "ModalitiesInStudy=CT",
]


def write(path: Path, uid: str, name: str, study: str = "") -> Path:
    """Write one instance; in a study of its own, if none is given."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    dataset.StudyInstanceUID = study or f"{uid}.1"
    dataset.SeriesInstanceUID = f"{uid}.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.PatientName = name
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def fill(store: FrameStore) -> None:
    made = SearchIndex(store)
    made.switch_on("default")
    list(fill_search_index(made, "default"))
    assert made.is_complete("default")


def answers(searches: Search, store: FrameStore) -> dict[str, Any]:
    asked = [f"{level}?{query}" for level, query in itertools.product(LEVELS, QUERIES)]
    return {each: searches.answer(store, "default", parse(*each.split("?", 1)), "") for each in asked}


def both_ways(store: FrameStore, roots: Sequence[str]) -> tuple[dict[str, Any], Search]:
    """Return the answers that headers give; those by a search index are the same."""
    SearchIndex(store).drop()
    by_headers = answers(Search(roots), store)
    fill(store)
    searches = Search(roots)
    for query, found in answers(searches, store).items():
        assert found == by_headers[query], query
    return by_headers, searches


@pytest.fixture
def public(tmp_path: Path, store: FrameStore) -> Path:
    """A folder with three studies, beside one whose name goes on."""
    public = tmp_path / "public"
    paths = [write(public / f"{number}.dcm", f"1.2.{number}", f"Open^{number}") for number in range(3)]
    index(store, paths)
    return public


def test_the_search_index_answers_where_all_files_are_below_the_roots(
    store: FrameStore, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(public)
    index(store, [tmp_path / "link" / "2.dcm"])
    asked: list[str] = []
    original = search_module.all_below
    monkeypatch.setattr(
        search_module, "all_below", lambda *arguments: asked.append("") or original(*arguments)
    )
    every = ([str(public), str(tmp_path / "link")], [f"{tmp_path}/"], ["/"])
    for roots in (*every, [str(tmp_path), "/elsewhere"]):
        asked.clear()
        found, searches = both_ways(store, roots)
        assert len(found["studies?PatientName=Open*"][0]) == 3
        assert searches.counts() == {"index": len(found), "headers": 0}
        assert len(asked) == 1  # all rows are looked at once


@pytest.mark.parametrize("place", ["private", "public2", "."])
@pytest.mark.parametrize("study", ["", "1.2.0.1"])
def test_a_file_outside_of_the_roots_is_not_found(
    store: FrameStore, public: Path, tmp_path: Path, place: str, study: str
) -> None:
    """A study of its own, or an instance more of one that is served: all is as if the file were not there."""
    secret = write(tmp_path / place / "secret.dcm", "1.2.1.5", "Secret^Patient", study)
    expected, searches = both_ways(store, [str(public)])
    index(store, [secret])
    fill(store)
    found = answers(searches, store)  # of a search that has used the search index
    by_headers, _ = both_ways(store, [str(public)])
    assert found == by_headers == expected
    assert len(both_ways(store, ())[0]["instances?"][0]) == 4
    store.delete("default", [str(secret)])
    fill(store)
    before = searches.counts()["index"]
    assert "1.2.1.5" not in str(answers(searches, store).values())
    assert searches.counts()["index"] > before


def test_a_study_is_named_by_its_file_below_the_roots(
    store: FrameStore, public: Path, tmp_path: Path
) -> None:
    """Its first file, in the order of paths, lies outside, and says another name."""
    expected, _ = both_ways(store, [str(public)])
    index(store, [write(tmp_path / "a.dcm", "1.2.9", "Secret^Patient", study="1.2.0.1")])
    found, _ = both_ways(store, [str(public)])
    assert found == expected


def test_prefixes_of_stores_are_roots_of_searches(store: FrameStore, public: Path) -> None:
    """Of an object that cannot be read its UIDs are told, of one outside nothing."""
    tables = read_tables([str(public / f"{number}.dcm") for number in range(3)])
    for result, address in zip(
        tables, ["s3://bucket/a/0.dcm", "s3://bucket/ab/1.dcm", "s3://bucket/2.dcm"], strict=True
    ):
        store.upsert("stores", [result._replace(path=address)])
    for roots, count in {
        ("s3://bucket/a",): 1,
        ("s3://bucket/a/",): 1,
        ("s3://bucket/a/0.dcm", "s3://bucket/ab"): 2,
        ("s3://bucket",): 3,
        ("s3://buck", str(public)): 0,
        ("/\udcff",): 0,
        (): 3,
    }.items():
        statement = from_headers("stores", parse("studies", ""), roots, for_groups=False)
        assert len(store.query(*statement)) == count, roots


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_leads_out_of_the_roots_is_as_a_file_outside(
    store: FrameStore, public: Path, tmp_path: Path, kind: str
) -> None:
    secret = write(tmp_path / "private" / "1.dcm", "1.2.1.5", "Secret^Patient")
    link = public / "link"
    link.symlink_to(secret if kind == "file" else secret.parent)
    index(store, [link if kind == "file" else link / "1.dcm"])
    found, searches = both_ways(store, [str(public)])
    assert "Secret" not in str(found.values())
    assert searches.counts()["index"] < len(LEVELS)  # once it was met, headers answer
    store.delete("default", [str(link if kind == "file" else link / "1.dcm")])
    SearchIndex(store).complete("default")
    assert "1.2.1.5" not in str(answers(searches, store).values())
    assert searches.counts()["index"] > len(QUERIES)


def test_a_header_that_a_file_below_the_roots_has_too_may_be_told(
    store: FrameStore, public: Path, tmp_path: Path
) -> None:
    os.link(public / "0.dcm", tmp_path / "copy.dcm")
    (public / "copy.dcm").symlink_to(tmp_path / "copy.dcm")
    index(store, [public / "copy.dcm"])
    found, _ = both_ways(store, [str(public)])
    assert len(found["studies?PatientName=Open*"][0]) == 3


def test_a_gateway_tells_no_name_from_outside_of_its_roots(
    store: FrameStore, public: Path, tmp_path: Path, connect: Connect
) -> None:
    index(store, [write(tmp_path / "private" / "1.dcm", "1.2.1.5", "Secret^Patient")])
    fill(store)
    client = connect(roots=[public])
    assert client.get("/dicomweb/studies?PatientName=Secret*").status == 204
    answer = client.get("/dicomweb/studies")
    assert b"Secret" not in answer.body
    assert len(json.loads(answer.body)) == 3


@pytest.mark.parametrize("groups", [None, "ward"])
def test_resources_outside_of_the_roots_are_not_there(
    store: FrameStore, public: Path, tmp_path: Path, connect: Connect, groups: str | None
) -> None:
    study = "1.2.0.1"  # of one that is served, and of its own
    secrets = [write(tmp_path / "private" / f"{each}.dcm", f"1.2.{each}", "Secret", study) for each in (7, 8)]
    # More copies than are tried, before the one that is served.
    shared = [write(tmp_path / f"a{each}" / "0.dcm", "1.2.0", "Secret", study) for each in range(9)]
    index(store, [*secrets, *shared, write(tmp_path / "private" / "9.dcm", "1.2.9", "Secret")])
    options = {} if groups is None else {"is_private": True, "groups_header": "X-Groups"}
    lines = {} if groups is None else {"X-Groups": groups}
    client = connect(roots=[public], **options)

    def ask(path: str) -> Answer:
        return client.get(f"/dicomweb/studies/{path}", {"Accept": "*/*", **lines})

    for own, missing in ((study, "1.2.7"), ("1.2.9.1", "1.2.9"), (study, "1.2.8")):
        for end in ("", "/metadata", "/frames/1"):
            instance = f"{own}/series/{missing}.2/instances/{missing}{end}"
            unknown = ask(f"{own}/series/{missing}.2/instances/1.99{end}")
            assert ask(instance)[::2] == unknown[::2], instance
            assert unknown.status == 404
    for end in ("", "/metadata"):
        for path in ("1.2.9.1", "1.2.9.1/series/1.2.9.2", f"{study}/series/1.2.7.2"):
            assert ask(f"{path}{end}")[::2] == ask(f"1.99{path[path.find('/') :] * ('/' in path)}{end}")[::2]
    [only] = json.loads(ask(f"{study}/metadata").body)
    assert only["00100010"]["Value"] == [{"Alphabetic": "Open^0"}]
    assert len(ask(study).parts()) == 1
    assert ask(f"{study}/series/1.2.0.2/instances/1.2.0/frames/1").status == 200


def test_a_copy_outside_of_the_roots_is_no_reason_of_a_refusal(
    store: FrameStore, public: Path, tmp_path: Path, connect: Connect
) -> None:
    """Of one series, as a study that was given other UIDs for one of its levels only."""
    inside, outside = public / "0.dcm", tmp_path / "private" / "0.dcm"
    index(store, [write(outside, "1.2.0", "Secret", "1.2.77")])

    def refusals(client: Client) -> list[bytes]:
        found = []
        for study, instance in (("1.2.0.1", "1.2.0"), ("1.2.77", "1.2.0"), ("1.2.77", "1.99")):
            answer = client.get(f"/dicomweb/studies/{study}/series/1.2.0.2/instances/{instance}/metadata")
            assert answer.status == 404
            found.append(answer.body)
        return found

    inside.write_bytes(b"damaged")
    with_copy = refusals(connect(roots=[public]))
    store.delete("default", [str(outside)])
    assert with_copy == refusals(connect(roots=[public]))
    assert b"io_error" not in b"".join(with_copy)

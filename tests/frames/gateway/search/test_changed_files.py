"""Searches of what changes: never the header of another state of a file, nor of another patient."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from frames.gateway.serving import index
from voxtier.cli.frames.search import fill_search
from voxtier.frames.gateway.search import search as search_module
from voxtier.frames.gateway.search.query import parse
from voxtier.frames.gateway.search.search import Search
from voxtier.frames.indexing.search import fill_search_index
from voxtier.frames.store.search_index import SearchIndex
from voxtier.frames.store.store import FrameStore

# Each writes as many bytes as the others.
NAMES = {"1.2.1": "Alice^A", "1.2.2": "Carol^C"}
# A file system may have none of these, and all of them may be as before when a file was restored.
NO_STATE = "UPDATE voxtier.file SET ctime_ns = NULL, inode = NULL, mtime_ns = NULL RETURNING 1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.dcm"


def write(path: Path, uid: str, name: str = "") -> None:
    """Write a file of one instance, in a study of its own; its time is always the same."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.PatientName = name or NAMES[uid]
    dataset.save_as(path)
    os.utime(path, ns=(1, 1))


def found(searches: Search, store: FrameStore, level: str = "studies", query: str = "") -> list[list[Any]]:
    """Return UIDs of studies and names of patients."""
    results, _ = searches.answer(store, "default", parse(level, query), "")
    return [[*each["0020000D"]["Value"], each["00100010"]["Value"][0]["Alphabetic"]] for each in results]


@pytest.mark.parametrize("level", ["studies", "series", "instances"])
@pytest.mark.parametrize(
    "change",
    ["etag = 'another'", "size = size + 1", "mtime_ns = 7", "ctime_ns = 7", "inode = 7", "uids"],
)
def test_a_header_is_kept_for_one_state_and_instance(
    store: FrameStore, path: Path, level: str, change: str
) -> None:
    """Whatever of a row has changed, the header is that of the file now."""
    searches = Search()
    write(path, "1.2.1")
    index(store, [path])
    store.query(NO_STATE, ())
    wanted = "includefield=PatientName"
    assert found(searches, store, level, wanted) == [["1.2.1.1", "Alice^A"]]
    if change == "uids":
        write(path, "1.2.2")
        index(store, [path])
        store.query(NO_STATE, ())
        assert found(searches, store, level, wanted) == [["1.2.2.1", "Carol^C"]]
    else:
        write(path, "1.2.1", "Carol^C")
        store.query(f"UPDATE voxtier.file SET {change} RETURNING 1", ())
        assert found(searches, store, level, wanted) == [["1.2.1.1", "Carol^C"]]


def test_a_header_of_another_state_than_that_of_its_row_is_not_kept(store: FrameStore, path: Path) -> None:
    """A file that changed and then was restored is unchanged for the index."""
    searches = Search()
    write(path, "1.2.1")
    index(store, [path])
    store.query("UPDATE voxtier.file SET ctime_ns = NULL, inode = NULL RETURNING 1", ())
    write(path, "1.2.1", "Another^One")
    os.utime(path, ns=(2, 2))
    assert found(searches, store) == [["1.2.1.1", "Another^One"]]
    write(path, "1.2.1")
    assert found(searches, store) == [["1.2.1.1", "Alice^A"]]


def test_a_header_of_a_file_that_changes_meanwhile_is_not_kept(
    store: FrameStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxtier.frames.indexing import headers as reading

    write(path, "1.2.1")
    index(store, [path])
    read = reading._core.read_metadata_json

    def late(*arguments: Any, **options: Any) -> bytes:
        text: bytes = read(*arguments, **options)
        path.touch()
        return text

    monkeypatch.setattr(reading._core, "read_metadata_json", late)
    searches = Search()
    assert found(searches, store) == [["1.2.1.1", "Alice^A"]]
    monkeypatch.undo()
    os.utime(path, ns=(1, 1))
    read_again: list[str] = []
    original = search_module.read_indexed

    def count(*arguments: str) -> Any:
        read_again.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(search_module, "read_indexed", count)
    for _ in range(3):
        assert found(searches, store) == [["1.2.1.1", "Alice^A"]]
    assert read_again == [str(path)]  # of the state of its row it is kept


@pytest.mark.parametrize("fault", ["moved", "damaged", "another instance"])
@pytest.mark.parametrize("has_search_index", [False, True])
def test_an_instance_is_found_by_its_next_copy(
    store: FrameStore, tmp_path: Path, *, has_search_index: bool, fault: str
) -> None:
    paths = [tmp_path / f"{name}.dcm" for name in "abcd"]
    for path in paths[:3]:
        write(path, "1.2.1")
    write(paths[3], "1.2.2")
    index(store, paths)
    for path in paths[:2]:
        if fault == "moved":
            path.unlink()
        else:
            path.write_bytes(b"damaged" if fault == "damaged" else paths[3].read_bytes())
    if has_search_index:
        made = SearchIndex(store)
        made.switch_on("default")
        list(fill_search_index(made, "default"))
    searches = Search()
    for query in ("PatientName=Alice*", "Rows=128&PatientName=A*", "StudyInstanceUID=1.2.1.1"):
        query += "&includefield=PatientName"
        assert found(searches, store, "instances", query) == [["1.2.1.1", "Alice^A"]]
    both = [["1.2.1.1", "Alice^A"], ["1.2.2.1", "Carol^C"]]
    for query in ("includefield=PatientName", "InstanceNumber=1&includefield=PatientName"):
        assert found(searches, store, "instances", query) == both
    assert searches.counts()["index" if has_search_index else "headers"] == 5
    query = "PatientName=Alice*&includefield=all"  # which headers alone tell
    assert found(searches, store, "instances", query) == [["1.2.1.1", "Alice^A"]]


@pytest.mark.parametrize("uid", ["1.2.1", "1.2.2"])
def test_a_header_of_a_row_that_another_run_changed_is_dropped(
    store: FrameStore, path: Path, monkeypatch: pytest.MonkeyPatch, uid: str
) -> None:
    """The other run knows the file better, whichever of the two writes last."""

    def fill(index: SearchIndex) -> int:
        return sum(fill_search_index(index, "default"))

    write(path, "1.2.1", "Wrong^A")
    index(store, [path])
    late, other = SearchIndex(store), SearchIndex(store)
    late.switch_on("default")
    put = late.put

    def put_late(source: str, headers: Any) -> int:
        write(path, uid, "Right^A")
        index(store, [path])
        if uid == "1.2.1":
            assert fill(other) == 1
        return put(source, headers)

    monkeypatch.setattr(late, "put", put_late)
    assert fill(late) == 0
    assert late.is_complete("default") == (uid == "1.2.1")
    assert found(Search(), store, "studies", "PatientName=*^A") == [[f"{uid}.1", "Right^A"]]
    kept = store.query("SELECT attributes FROM voxtier_search.header", ())
    assert [each["00100010"]["Value"] for (each,) in kept] == [[{"Alphabetic": "Right^A"}]][: len(kept)]
    assert fill(other) == (uid != "1.2.1")
    searches = Search()
    assert found(searches, store, "studies", "PatientName=Right*") == [[f"{uid}.1", "Right^A"]]
    assert searches.counts()["index"] == 1


def test_a_header_that_is_newer_than_its_row_is_read_again_with_the_next_run(
    store: FrameStore, path: Path
) -> None:
    write(path, "1.2.1")
    index(store, [path])
    made = SearchIndex(store)
    made.switch_on("default")
    write(path, "1.2.1", "Carol^C")  # after its row, before its header
    assert sum(fill_search_index(made, "default")) == 1
    write(path, "1.2.1", "David^D")
    index(store, [path])
    assert not made.is_complete("default")
    assert sum(fill_search_index(made, "default")) == 1
    assert found(Search(), store) == [["1.2.1.1", "David^D"]]


def test_a_run_says_that_files_changed_while_it_read_them(
    store: FrameStore, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, "1.2.1")
    index(store, [path])
    SearchIndex(store).switch_on("default")
    put = SearchIndex.put

    def put_late(made: SearchIndex, source: str, headers: Any) -> int:
        write(path, "1.2.2")
        index(store, [path])
        return put(made, source, headers)

    with monkeypatch.context() as patch:
        patch.setattr(SearchIndex, "put", put_late)
        fill_search(store, "default", 1)
    said = capsys.readouterr().err
    assert "0 headers read" in said
    assert "searches read headers until the next run" in said
    fill_search(store, "default", 1)
    assert capsys.readouterr().err == "search index: 1 header read\n"

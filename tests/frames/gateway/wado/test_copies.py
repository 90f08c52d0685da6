"""Copies of an instance: a series is whole as long as one copy of each of its instances can be read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frames.gateway.conftest import Connect
from frames.gateway.serving import index
from frames.gateway.wado.test_frames import SERIES, STUDY, described, payload, write
from support.builders import dicom, element, pattern
from voxtier.errors import BackendError
from voxtier.frames import FrameReader
from voxtier.frames.store.row import FoundFile
from voxtier.frames.store.store import FrameStore

STUDY_PATH = f"/dicomweb/studies/{STUDY}"
WHOLE_FILE = {"Accept": "application/dicom"}
WHOLE = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


def with_folder(path: Path) -> None:
    """Nothing can be read there now, which says nothing of the instance."""
    path.unlink()
    path.mkdir()


def with_text(path: Path) -> None:
    path.write_text("not DICOM any more")


def with_another(path: Path) -> None:
    write(path.parent, path.stem, "1.77")


def with_loop(path: Path) -> None:
    path.unlink()
    os.symlink(path.name, path)


HARMS = [Path.unlink, with_folder, with_text, with_another, with_loop]


@pytest.fixture
def copies(store: FrameStore, tmp_path: Path) -> list[list[Path]]:
    """Two instances, each in two folders."""
    found = []
    for uid in ("1.9", "1.10"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        first = write(tmp_path / "a", uid, uid)
        second = Path(shutil.copy(first, tmp_path / "b"))
        found.append([first, second])
    index(store, [path for pair in found for path in pair])
    return found


def test_no_file_can_know_what_parts_a_series_in_another_run(
    connect: Connect, copies: list[list[Path]]
) -> None:
    """It would hide what comes after it from a client."""
    client, other = connect(), connect()
    kinds = [each.get(STUDY_PATH, WHOLE).headers["content-type"] for each in (client, client, other)]
    assert kinds[0] == kinds[1] != kinds[2]


@pytest.mark.parametrize("harm", HARMS)
def test_a_series_is_whole_while_one_copy_of_each_instance_is_there(
    connect: Connect, copies: list[list[Path]], harm: Callable[[Path], None]
) -> None:
    expected = sorted(pair[0].read_bytes() for pair in copies)
    client = connect()
    harm(copies[0][0])
    harm(copies[1][1])
    for path in (STUDY_PATH, f"{STUDY_PATH}/series/{SERIES}"):
        answer = client.get(path, WHOLE)
        assert sorted(body for _, body in answer.parts()) == expected
        syntax = answer.parts()[0][0]["content-type"].split("transfer-syntax=")[1]
        exact = {"Accept": f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'}
        assert len(client.get(path, exact).parts()) == 2
        headers = json.loads(client.get(f"{path}/metadata").body)
        assert sorted(each["00080018"]["Value"][0] for each in headers) == ["1.10", "1.9"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("other", HARMS)
def test_where_no_copy_is_left_the_worst_is_not_assumed(
    connect: Connect, copies: list[list[Path]], harm: Callable[[Path], None], other: Callable[[Path], None]
) -> None:
    """An instance that is gone or damaged is left out; one that may be there makes the client ask again."""
    client = connect()
    harm(copies[0][0])
    other(copies[0][1])
    answer = client.get(f"{STUDY_PATH}/metadata")
    if {harm, other} & {with_folder, with_loop}:
        assert answer.status == 503
    else:
        [header] = json.loads(answer.body)
        assert header["00080018"]["Value"] == ["1.10"]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_everything_of_an_instance_comes_from_its_first_copy(
    connect: Connect, store: FrameStore, tmp_path: Path, order: tuple[int, ...]
) -> None:
    """A viewer that shows the header of one copy with the pixels of another shows what no file holds."""
    for number, folder in enumerate("cab"):
        (tmp_path / folder).mkdir()
        for uid in (1, 2, 3):
            write(tmp_path / folder, str(uid), f"1.{uid}", length=100 + 10 * number)
    index(store, sorted(tmp_path.glob("*/*.dcm")))
    client = connect(workers=1)
    first = {uid: (tmp_path / "a" / f"{uid}.dcm").read_bytes() for uid in order}
    for uid in order:
        path = f"{STUDY_PATH}/series/{SERIES}/instances/1.{uid}"
        assert client.get(path, {"Accept": "application/dicom"}).body == first[uid]
        [(_, frame)] = client.frames(path, "1").parts()
        assert frame in first[uid]
    whole = client.get(f"{STUDY_PATH}/series/{SERIES}", WHOLE)
    assert sorted(body for _, body in whole.parts()) == sorted(first.values())
    (tmp_path / "a" / "2.dcm").unlink()
    path = f"{STUDY_PATH}/series/{SERIES}/instances/1.2"
    assert client.frames(path, "1").status == 200


def test_a_copy_below_the_roots_is_served(connect: Connect, copies: list[list[Path]], tmp_path: Path) -> None:
    client = connect(roots=[tmp_path / "b"])
    for path in (STUDY_PATH, f"{STUDY_PATH}/series/{SERIES}"):
        assert len(json.loads(client.get(f"{path}/metadata").body)) == 2
        assert len(client.get(path, WHOLE).parts()) == 2


@pytest.mark.parametrize("harm", HARMS)
def test_a_series_that_cannot_be_begun_has_a_status(
    connect: Connect, copies: list[list[Path]], harm: Callable[[Path], None]
) -> None:
    """Nothing was sent yet: a proxy would make a bad gateway of a connection that just closes."""
    client = connect()
    for path in copies[1]:
        harm(path)
    first, second = copies[0]
    first.unlink()
    second.unlink()
    for path in (STUDY_PATH, f"{STUDY_PATH}/series/{SERIES}"):
        answer = client.get(path, WHOLE)
        assert answer.status in (404, 503)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_copy_that_is_cut_off_hides_no_whole_one(
    connect: Connect, store: FrameStore, tmp_path: Path, first: str
) -> None:
    """Nor one of which no frame is left, wherever it stands in the order of paths."""
    whole = dicom([*described("1.9", rows=40, columns=40, frames=3), element("PixelData", pattern(4800))])
    for name, length in (("a", len(whole.content)), ("b", len(whole.content))):
        cut = 0 if name != first else 1700
        (tmp_path / f"{name}.dcm").write_bytes(whole.content[: length - cut])
    (tmp_path / "0.dcm").write_bytes(whole.content[:-4800])
    index(store, sorted(tmp_path.glob("*.dcm")))
    client, path = connect(), f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    assert client.frames(path, "3").parts()[0][1] == whole.content[-1600:]
    assert client.get(path, {"Accept": "application/dicom"}).body == whole.content
    [(_, body)] = client.get(STUDY_PATH, WHOLE).parts()
    assert body == whole.content
    with FrameReader(store, "default", publish=False) as reader:
        assert reader.frame("1.9", 2) == whole.content[-1600:]


def test_a_copy_that_was_cut_off_since_is_not_the_only_one(
    connect: Connect, copies: list[list[Path]]
) -> None:
    """The index still counts it as whole; whoever knows the copies gets every frame."""
    client, path = connect(), f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    first, second = copies[0]
    first.write_bytes(second.read_bytes()[:-500])
    assert client.frames(path, "1").status == 200
    assert client.frames(path, "3").parts()[0][1] == payload(3)
    assert client.get(path, {"Accept": "application/dicom"}).body == second.read_bytes()


def test_a_good_copy_that_is_indexed_later_is_found(
    connect: Connect, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without asking the index at each request, as long as there is none."""
    content = write(tmp_path, "b", "1.9").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-500])
    index(store, [tmp_path / "a.dcm"])
    client, path = connect(), f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    asked: list[str] = []
    copies_of = store.copies_of

    def count(uid: str, source: str) -> list[FoundFile]:
        asked.append(uid)
        return copies_of(uid, source)

    monkeypatch.setattr(store, "copies_of", count)
    begun = time.monotonic()
    for _ in range(50):
        answer = client.frames(path, "3")
        assert (answer.status, json.loads(answer.body)["error"]["kind"]) == (404, "truncated_frame")
    # To find it, to look for another, and then once a second.
    assert 2 <= len(asked) <= 2 + (time.monotonic() - begun)
    index(store, [tmp_path / "b.dcm"])
    while (answer := client.frames(path, "3")).status != 200:
        assert time.monotonic() - begun < 60
    assert answer.parts()[0][1] == payload(3)


def test_a_whole_copy_that_is_indexed_later_is_sent_whole(
    connect: Connect, store: FrameStore, tmp_path: Path
) -> None:
    """Not only where a frame is missing: an instance that is cut off is 200, too."""
    whole = write(tmp_path, "whole", "1.9")
    content = whole.read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(content[:-20])
    index(store, [cut])
    client = connect()
    path = f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    assert client.get(path, WHOLE_FILE).body == content[:-20]
    index(store, [whole])
    ends = time.monotonic() + 30
    while client.get(path, WHOLE_FILE).body != content and time.monotonic() < ends:
        time.sleep(0.05)
    assert client.get(path, WHOLE_FILE).body == content


def relink(path: Path) -> None:
    path.with_suffix(".link").unlink(missing_ok=True)
    os.link(path, path.with_suffix(".link"))


def change_mode(path: Path) -> None:
    path.chmod(path.stat().st_mode ^ 0o004)


@pytest.mark.parametrize("change", [change_mode, relink])
def test_a_file_that_only_looks_changed_is_never_refused(
    connect: Connect, store: FrameStore, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    file = write(tmp_path, "a", "1.9")
    index(store, [file])
    client = connect()
    path = f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    query = f"/wado?requestType=WADO&studyUID={STUDY}&seriesUID={SERIES}&objectUID=1.9"
    accepts = {path: "application/dicom", query: "application/dicom", f"{path}/metadata": "*/*"}
    for resource, accept in accepts.items():
        before = client.get(resource, {"Accept": accept})
        time.sleep(0.02)  # two changes within one tick of the clock have one time
        change(file)
        again = client.get(resource, {"Accept": accept})
        assert (before.status, again.status) == (200, 200), resource
        assert again.body == before.body
    assert client.get(f"{path}/bulkdata/7FE00010", {"Accept": "*/*"}).status == 200
    change(file)
    assert client.get(f"{path}/bulkdata/7FE00010", {"Accept": "*/*"}).status == 200


def test_a_file_that_was_replaced_is_sent_as_it_is(
    connect: Connect, store: FrameStore, tmp_path: Path
) -> None:
    file = write(tmp_path, "a", "1.9")
    index(store, [file])
    client = connect()
    path = f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    for end in (b"1", b"2"):
        assert client.get(path, WHOLE_FILE).status == 200
        (tmp_path / "new").write_bytes(file.read_bytes()[:-1] + end)
        (tmp_path / "new").rename(file)
        assert client.get(path, WHOLE_FILE).body == file.read_bytes()


def test_a_copy_that_is_cut_off_is_sent_while_the_index_is_away(
    connect: Connect, store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might know a better one; until it says so this one is the best that is known."""
    cut = write(tmp_path, "a", "1.9")
    cut.write_bytes(cut.read_bytes()[:-20])
    index(store, [cut])
    client, path = connect(), f"{STUDY_PATH}/series/{SERIES}/instances/1.9"
    assert client.get(path, WHOLE_FILE).status == 200

    def away(uid: str, source: str) -> list[FoundFile]:
        raise BackendError("the database does not answer")

    monkeypatch.setattr(store, "copies_of", away)
    ends = time.monotonic() + 2.5  # twice as long as it is not asked again
    while time.monotonic() < ends:
        assert client.get(path, WHOLE_FILE).status == 200
        time.sleep(0.1)

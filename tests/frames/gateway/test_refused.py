"""Instances whose frames are refused: viewers are told of them, and get what their files say."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest

from frames.dicom.cases import CASES
from frames.gateway.conftest import Connect
from frames.gateway.serving import Client
from frames.indexing.files import native, run
from support.builders import JPEG, Element, Fragments, dicom, element, image, jpeg
from voxtier._core import Refusal
from voxtier.errors import FormatError, NotFoundError
from voxtier.frames import FrameReader, TableResult, read_tables
from voxtier.frames.store.store import FrameStore

STUDY, SERIES = "2.25.2", "2.25.3"
SERIES_PATH = f"/dicomweb/studies/{STUDY}/series/{SERIES}"
# Where the data set itself cannot be walked, nothing of it is believed; a header that is cut has no end.
UNREADABLE = {
    "bad_deflate",
    "bad_item_tag",
    "bad_nesting",
    "empty",
    "limit_exceeded",
    "misplaced_element",
    "nesting_too_deep",
    "not_dicom",
    "truncated_header",
    "truncated_meta",
    "value_past_end",
}


def three_frames_in_two(uid: str = "1.1") -> bytes:
    """Fewer fragments than frames."""
    named = [element("SOPInstanceUID", uid) if each.tag == 0x00080018 else each for each in image(frames=3)]
    return dicom([*named, element("PixelData", Fragments((jpeg(40), jpeg(50))))], JPEG).content


def uids(store: FrameStore, path: str) -> tuple[str | None, ...]:
    [found] = store.query(
        "SELECT sop_instance_uid, series_instance_uid, study_instance_uid, transfer_syntax_uid "
        "FROM voxtier.file WHERE path = %s",
        (path,),
    )
    return found


@pytest.fixture
def series(store: FrameStore, tmp_path: Path) -> list[Path]:
    """A sound instance, 2.25.1, and one whose frames are refused, 1.1."""
    paths = [tmp_path / "sound.dcm", tmp_path / "refused.dcm"]
    paths[0].write_bytes(native())
    paths[1].write_bytes(three_frames_in_two())
    assert [each.error_kind for each in run(store, [*map(str, paths)])].count(None) == 1
    return paths


def test_every_refusal_keeps_the_uids_that_pydicom_reads(store: FrameStore, tmp_path: Path) -> None:
    refused = {str(tmp_path / f"{number}.dcm"): case for number, case in enumerate(CASES) if case.error}
    for path, case in refused.items():
        Path(path).write_bytes(case.content)
    run(store, list(refused))
    kept = set()
    for path, case in refused.items():
        found = uids(store, path)
        assert isinstance(store.get("default", path), Refusal)
        if case.error in UNREADABLE and found == (None,) * 4:
            continue
        kept.add(case.error)
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        expected = [header.get(name) for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
        assert list(found[:3]) == [None if each is None else str(each) for each in expected]
    assert len(kept) > 8


def test_a_viewer_finds_it_and_gets_all_but_its_frames(connect: Connect, series: list[Path]) -> None:
    client = connect()
    found = json.loads(client.get(f"{SERIES_PATH}/instances").body)
    assert [each["00080018"]["Value"] for each in found] == [["1.1"], ["2.25.1"]]
    [study] = json.loads(client.get("/dicomweb/studies").body)
    assert study["00201208"]["Value"] == [2]
    headers = json.loads(client.get(f"{SERIES_PATH}/metadata").body)
    assert {each["00080018"]["Value"][0] for each in headers} == {"1.1", "2.25.1"}
    path = f"{SERIES_PATH}/instances/1.1"
    whole = client.get(path, {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'})
    assert [body for _, body in whole.parts()] == [series[1].read_bytes()]
    [header] = json.loads(client.get(f"{path}/metadata").body)
    assert header["00280008"]["Value"] == [3]
    both = client.get(
        SERIES_PATH, {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    )
    assert sorted(body for _, body in both.parts()) == sorted(each.read_bytes() for each in series)
    for _ in range(2):  # computed, and kept
        refused = client.frames(path, "1")
        assert (refused.status, json.loads(refused.body)["error"]["kind"]) == (
            404,
            "fewer_fragments_than_frames",
        )
    assert client.frames(f"{SERIES_PATH}/instances/2.25.1", "1").status == 200


def test_a_copy_with_frames_goes_before_one_without(
    connect: Connect, store: FrameStore, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.dcm", tmp_path / "b.dcm"
    first.write_bytes(three_frames_in_two("2.25.1"))
    second.write_bytes(native())
    run(store, [str(first), str(second)])
    client: Client = connect()
    assert client.frames(f"{SERIES_PATH}/instances/2.25.1", "1").status == 200
    whole = client.get(
        SERIES_PATH, {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    )
    assert [body for _, body in whole.parts()] == [second.read_bytes()]
    assert [each.path for each in store.by_sop_instance("2.25.1")] == [str(second)]
    assert [each.path for each in store.copies_of("2.25.1", "default")] == [str(second), str(first)]
    with FrameReader(store, "default", publish=False) as reader:
        assert len(reader.frame("2.25.1", 0)) == 16


def test_a_reader_says_why_it_has_no_frames(store: FrameStore, series: list[Path]) -> None:
    with FrameReader(store, "default", publish=False) as reader:
        with pytest.raises(FormatError) as refusal:
            reader.frame("1.1", 0)
        assert refusal.value.kind == "fewer_fragments_than_frames"
        with pytest.raises(NotFoundError):
            reader.frame("1.2", 0)


def test_groups_of_a_refused_instance_are_asked(
    connect: Connect, store: FrameStore, series: list[Path]
) -> None:
    """Whoever may not see the file learns nothing of it."""
    client = connect("default", is_private=True, groups_header="X-Groups")
    store.query("UPDATE voxtier.file SET allowed_groups = '{physicians}' RETURNING 1", ())
    for groups, status in (("physicians", 200), ("others", 404)):
        answer = client.get(f"{SERIES_PATH}/instances/1.1/metadata", {"X-Groups": groups})
        assert answer.status == status
        found = client.get(f"{SERIES_PATH}/instances", {"X-Groups": groups})
        assert (found.status, b'"1.1"' in found.body) == ((200, True) if status == 200 else (204, False))


def test_a_row_without_uids_gets_them_and_keeps_them(store: FrameStore, series: list[Path]) -> None:
    """Rows of older versions have none, nor has what a reader writes back."""
    path = str(series[1])
    known = uids(store, path)
    assert known[:3] == ("1.1", SERIES, STUDY)
    [result] = read_tables([path])
    assert isinstance(result, TableResult)
    assert store.upsert("default", [result]).unchanged == 1
    assert uids(store, path) == known
    store.upsert("default", [result], force=True)
    assert uids(store, path) == (None,) * 4
    run(store, [path])
    assert uids(store, path) == known


def test_text_that_is_no_uid_is_not_kept(store: FrameStore, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    texts = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    tags = {element(name, "").tag for name in texts}
    named = [Element(each.tag, each.vr, b"\xff\0Doe^Jane ") if each.tag in tags else each for each in image()]
    path.write_bytes(dicom([*named, element("PixelData", Fragments(()))], JPEG).content)
    [report] = run(store, [str(path)])
    assert report.error_kind is not None
    sound = dicom([*named, element("PixelData", bytes(16))]).content
    (tmp_path / "b.dcm").write_bytes(sound)
    run(store, [str(tmp_path / "b.dcm")])
    assert uids(store, str(path))[:3] == uids(store, str(tmp_path / "b.dcm"))[:3]

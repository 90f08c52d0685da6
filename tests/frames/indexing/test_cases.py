"""Every reference case, and hostile text, through an index run and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from frames.dicom.cases import CASES, Case
from frames.indexing.files import native, run, statuses
from support.builders import Element, dicom, element, image, pattern
from voxtier import _core
from voxtier._core import Refusal
from voxtier.frames import FrameTable, read_frame, read_table
from voxtier.frames.indexing.run import FileReport
from voxtier.frames.store.store import FrameStore


def test_every_case_comes_back_from_the_index_frame_by_frame(store: FrameStore, tmp_path: Path) -> None:
    """Ranges and bytes of every frame, those of several fragments too, after a life as a row."""
    cases = {str(tmp_path / f"{number}.dcm"): case for number, case in enumerate(CASES)}
    for path, case in cases.items():
        Path(path).write_bytes(case.content)
    reports = {report.path: report for report in run(store, list(cases))}
    assert reports.keys() == cases.keys()
    assert any(len(ranges) > 1 for case in CASES for ranges in case.ranges)
    for path, case in cases.items():
        check(case, path, store.get("default", path), reports[path])
    for again in run(store, list(cases)):  # a task that runs twice says the same of a file
        first = reports[again.path]
        if first.status == "ok":
            assert again.as_status()["status"] == "skipped"
        else:
            assert again.as_status() == first.as_status()


def check(case: Case, path: str, found: object, report: FileReport) -> None:
    if case.error:
        assert isinstance(found, Refusal)
        assert found.error.kind == report.error_kind == case.error
        assert report.status == _core.refused_status(case.error)
        assert report.error == str(found.error)
        return
    assert isinstance(found, FrameTable)
    assert found == read_table(path, verify="all")
    assert (report.status, report.frames) == (case.status, len(case.ranges))
    assert report.truncated_from == case.truncated_from
    whole = case.ranges if case.truncated_from is None else case.ranges[: case.truncated_from]
    assert [tuple(found.ranges(index)) for index in range(len(whole))] == list(whole)
    for index, pixels in enumerate(case.pixels):
        assert read_frame(path, found, index) == pixels


@pytest.mark.parametrize("value", [b"MONO\0CHROME ", b"Doe^Jane", b"\xff\xfe\0\x1b[2J ", b"X" * 40])
def test_text_that_postgres_refuses_does_not_fail_the_batch(
    store: FrameStore, tmp_path: Path, value: bytes
) -> None:
    """PostgreSQL takes no NUL in text, and a name in the wrong element is still a name."""
    texts = ("PhotometricInterpretation", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    elements = [
        Element(each.tag, each.vr, value) if each.tag in {element(name, b"").tag for name in texts} else each
        for each in image()
    ]
    bad, good = tmp_path / "bad.dcm", tmp_path / "good.dcm"
    bad.write_bytes(dicom([*elements, element("PixelData", pattern(16))]).content)
    good.write_bytes(native())
    assert statuses(run(store, [str(bad), str(good)])) == {"ok": 2}
    table = store.get("default", str(bad))
    assert isinstance(table, FrameTable)
    assert table == read_table(bad, verify="all")
    assert (table.photometric_interpretation, table.sop_instance_uid, table.study_instance_uid) == (
        "", "", ""
    )  # fmt: skip

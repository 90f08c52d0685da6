"""pydicom as second witness: on every reference case, and on every file that it ships."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.data import get_testdata_files

from frames.dicom import disagreements
from frames.dicom.cases import CASES, Case
from support.oracles import Truth, pydicom_truth
from voxtier.errors import FormatError
from voxtier.frames import read_frame, read_table

FILES = sorted({Path(name) for name in get_testdata_files() if Path(name).is_file()})


def truth_or_none(content: bytes) -> Truth | None:
    """pydicom's answer; whatever it raises counts as none, as its refusals have no common root."""
    try:
        return pydicom_truth(content)
    except Exception:
        return None


def agrees(case: Case) -> bool:
    truth = truth_or_none(case.content)
    if case.error or not case.ranges:
        return truth is None
    firsts = [ranges[0][0] for ranges in case.ranges]
    if truth is None:
        return False
    return truth.frames == list(case.pixels) and set(firsts) <= set(truth.offsets)


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in disagreements.CASES], ids=str)
def test_builder_agrees_with_pydicom(case: Case) -> None:
    """The cases' expectations come from the builder alone: here a stranger confirms them."""
    truth = truth_or_none(case.content)
    if not case.error and case.ranges:
        assert truth is not None
        assert truth.frames == list(case.pixels)
        assert {ranges[0][0] for ranges in case.ranges} <= set(truth.offsets)


@pytest.mark.parametrize("name", disagreements.CASES)
def test_a_listed_disagreement_with_pydicom_is_real(name: str) -> None:
    """An entry that pydicom has come to agree with must leave the list."""
    assert not agrees(next(case for case in CASES if case.name == name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_pydicom_gives_the_frames_that_pydicom_gives(path: Path) -> None:
    """Frames, offsets and syntax agree, or the file is on the list; no pixels for one, none for the other."""
    truth = truth_or_none(path.read_bytes())
    try:
        table = read_table(path, verify="all")
    except FormatError as refused:
        if path.name in disagreements.FILES:
            assert refused.kind == disagreements.FILES[path.name][0]
        else:
            assert truth is None
        return
    if path.name in disagreements.FILES:
        assert table.status == disagreements.FILES[path.name][0]
        return
    assert (truth is None) == (len(table) == 0)
    if truth is None:
        return
    assert [read_frame(path, table, index) for index in range(len(table))] == truth.frames
    firsts = [table.ranges(index)[0][0] for index in range(len(table))]
    assert firsts == truth.offsets if not truth.encapsulated else set(firsts) <= set(truth.offsets)
    assert table.transfer_syntax_uid == truth.transfer_syntax_uid or truth.transfer_syntax_uid is None
